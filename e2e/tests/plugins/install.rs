//! Installation under way.

use crate::bench::{Bench, Whose};
use e2e::{oracle, tools};
use kernel::netns::Netns;
use serde_json::json;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

/// Installations one after the other, while pods come and go: none of them notices.
#[test]
#[allow(clippy::disallowed_methods, reason = "the harness starts what it tests")]
fn a_plugin_is_there_at_every_moment() {
    let mut bench = Bench::new(Whose::Ours);
    let bin = bench.work.make("opt").unwrap();
    // What was there before us: the reference plugins.
    for name in ["bridge", "host-local", "firewall"] {
        std::fs::copy(format!("/usr/lib/cni/{name}"), bin.join(name)).unwrap();
    }
    bench.runtime.plugins = bin.clone();
    let bridge = json!({"type": "bridge", "bridge": "cni0", "isGateway": true, "ipam": bench.host_local()});
    let network = bench.network("1.0.0", json!([bridge]));
    let command = |verb: &str| {
        let output = Command::new(tools::cni_plugin().unwrap()).arg(verb).arg("--bin-dir").arg(&bin).output().unwrap();
        assert!(output.status.success(), "{output:?}");
    };
    let done = AtomicBool::new(false);
    let attached = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..2)
            .map(|worker| {
                let (bench, network, done) = (&bench, &network, &done);
                scope.spawn(move || {
                    let sandbox = Netns::create().unwrap();
                    let mut count = 0;
                    while !done.load(Ordering::Relaxed) {
                        let id = format!("box{worker}-{count}");
                        let attachment = e2e::runner::Attachment::eth0(id, sandbox.path());
                        bench.runtime.add(network, &attachment).unwrap();
                        bench.runtime.del(network, &attachment).unwrap();
                        count += 1;
                    }
                    count
                })
            })
            .collect();
        for round in 0..12 {
            command(if round % 4 == 3 { "uninstall" } else { "install" });
        }
        done.store(true, Ordering::Relaxed);
        workers.into_iter().map(|worker| worker.join().unwrap()).sum::<usize>()
    });
    assert!(attached > 2, "hardly any pods: {attached}");
    // Uninstalled last: what was there before is there again, and nothing else.
    let mut left: Vec<String> =
        std::fs::read_dir(&bin).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    left.sort();
    assert_eq!(left, ["bridge", "firewall", "host-local"]);
    assert_eq!(std::fs::read(bin.join("bridge")).unwrap(), std::fs::read("/usr/lib/cni/bridge").unwrap());
    assert!(!oracle::links(bench.node()).unwrap().iter().any(|name| name.starts_with("veth")));
}
