//! A certificate authority of the test's own.

use crate::etcd_server::EtcdServer;
use flanneld_rs::store::{EtcdOptions, LEASE_TTL};
use std::path::PathBuf;

const KEY: &str = "-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2";

/// `<name>.pem` and `<name>.key` in a directory that goes when this is dropped.
pub(crate) struct Authority(tempfile::TempDir);

impl Authority {
    /// With a certificate for etcd on this machine.
    pub(crate) fn new() -> Self {
        let authority = Self(tempfile::tempdir().unwrap());
        authority.openssl(&format!("req -x509 {KEY} -subj /CN=authority -keyout ca.key -out ca.pem"));
        authority.issue("server", "serverAuth,clientAuth");
        authority
    }

    pub(crate) fn issue(&self, name: &str, usage: &str) {
        let extensions = format!(
            "-addext subjectAltName=IP:127.0.0.1 -addext extendedKeyUsage={usage} \
             -addext basicConstraints=critical,CA:FALSE"
        );
        let files = format!("-keyout {name}.key -out {name}.pem -CA ca.pem -CAkey ca.key");
        self.openssl(&format!("req -x509 {KEY} -subj /CN={name} {files} {extensions}"));
    }

    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Starts an etcd with TLS.
    pub(crate) fn serve(&self, more: &[String]) -> EtcdServer {
        let flag = |flag: &str, name: &str| format!("{flag}={}", self.file(name).display());
        EtcdServer::start_with(
            "https",
            &[&[flag("--cert-file", "server.pem"), flag("--key-file", "server.key")], more].concat(),
        )
    }

    /// Starts one that takes clients with a certificate by this authority only.
    pub(crate) fn serve_the_known(&self) -> EtcdServer {
        self.serve(&["--client-cert-auth".into(), format!("--trusted-ca-file={}", self.file("ca.pem").display())])
    }

    /// How a node reaches etcd at a port of this machine.
    pub(crate) fn options(&self, port: u16, client: Option<&str>) -> EtcdOptions {
        EtcdOptions {
            endpoints: vec![format!("https://127.0.0.1:{port}")],
            prefix: "/coreos.com/network".into(),
            cafile: Some(self.file("ca.pem")),
            certfile: client.map(|name| self.file(&format!("{name}.pem"))),
            keyfile: client.map(|name| self.file(&format!("{name}.key"))),
            user: None,
            ttl: LEASE_TTL,
        }
    }

    /// Works with the openssl of the machine.
    // The test needs certificates of its own; the product starts nothing.
    #[allow(clippy::disallowed_methods)]
    fn openssl(&self, arguments: &str) {
        let mut command = std::process::Command::new("openssl");
        let output = command.current_dir(self.0.path()).args(arguments.split_whitespace()).output();
        let output = output.expect("openssl must be installed (Debian package openssl)");
        assert!(output.status.success(), "openssl {arguments}: {}", String::from_utf8_lossy(&output.stderr));
    }
}
