//! The result of another plugin in the chain: what is read can be told in the newest version, and is the same then.
#![no_main]

use cni_spec::{AddResult, SpecVersion};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Some((version, json)) = data.split_first() else { return };
    let Ok(value) = serde_json::from_slice(json) else { return };
    let version = SpecVersion::ALL[usize::from(*version) % SpecVersion::ALL.len()];
    let Ok(result) = AddResult::from_json(&value, version) else { return };
    for version in SpecVersion::ALL {
        let _ = result.to_text(version);
    }
    let told = result.to_json(SpecVersion::LATEST).expect("the newest version can tell everything");
    let again = AddResult::from_json(&told, SpecVersion::LATEST).expect("what we print can be read");
    assert_eq!(again, result);
});
