//! What a plugin of somebody else's prints: a result or an error, in any version.
#![no_main]

use cni_spec::SpecVersion;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Some((version, answer)) = data.split_first() else { return };
    let version = SpecVersion::ALL[usize::from(*version) % SpecVersion::ALL.len()];
    let (result, refusal) = cni_plugin::fuzzing::answer(answer, version);
    if let Ok(result) = result {
        let _ = result.to_text(SpecVersion::LATEST).expect("the newest version can tell everything");
    }
    assert!(!refusal.msg.is_empty());
});
