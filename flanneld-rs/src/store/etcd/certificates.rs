//! The files behind a connection: whom to trust, and who this node is. They are replaced while the daemon runs.

use super::{EtcdOptions, Password, User};
use crate::store::StoreError;
use etcd_client::{Certificate, Identity, TlsOptions};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Where Debian keeps the certificate authorities that the machine trusts.
const SYSTEM_AUTHORITIES: &str = "/etc/ssl/certs/ca-certificates.crt";

/// What changes with every change of a file, also when it is replaced by another or when a link to its directory is: inode,
/// seconds and nanoseconds of the last change. None: it cannot be looked at.
pub(super) type Version = Option<(u64, i64, i64)>;

impl EtcdOptions {
    /// At least one endpoint is reached over TLS.
    fn has_tls(&self) -> bool {
        self.endpoints.iter().any(|endpoint| endpoint.starts_with("https://"))
    }
}

/// The versions of all files that a connection is made with; there may be none.
pub(super) fn versions(options: &EtcdOptions) -> Vec<Version> {
    let mut files = Vec::new();
    if options.has_tls() {
        files.push(options.cafile.as_deref().unwrap_or(Path::new(SYSTEM_AUTHORITIES)));
        files.extend([&options.certfile, &options.keyfile].into_iter().flatten().map(PathBuf::as_path));
    }
    if let Some(User { password: Password::File(path), .. }) = &options.user {
        files.push(path);
    }
    let version = |path: &Path| fs::metadata(path).ok().map(|file| (file.ino(), file.ctime(), file.ctime_nsec()));
    files.into_iter().map(version).collect()
}

/// The TLS settings for an endpoint. None: it is reached without TLS.
///
/// # Errors
/// `Invalid`: which file cannot be read, or which options contradict each other.
pub(super) fn tls(options: &EtcdOptions, endpoint: &str) -> Result<Option<TlsOptions>, StoreError> {
    let read = |flag: &str, path: &Path| {
        fs::read(path).map_err(|error| StoreError::Invalid(format!("{flag}: reading {}: {error}", path.display())))
    };
    let files = [&options.cafile, &options.certfile, &options.keyfile];
    if !endpoint.starts_with("https://") {
        return match files.into_iter().flatten().next() {
            // To go on without TLS would send secrets in the clear: flannel did.
            Some(file) => Err(StoreError::Invalid(format!(
                "etcd endpoint {endpoint} is not https, but {} is given for TLS: correct --etcd-endpoints",
                file.display()
            ))),
            None => Ok(None),
        };
    }
    let authorities = match &options.cafile {
        Some(path) => read("--etcd-cafile", path)?,
        None => fs::read(SYSTEM_AUTHORITIES).map_err(|error| {
            StoreError::Invalid(format!(
                "etcd endpoint {endpoint}: neither --etcd-cafile nor {SYSTEM_AUTHORITIES} ({error}) says whom to trust"
            ))
        })?,
    };
    let mut tls = TlsOptions::new().ca_certificate(Certificate::from_pem(authorities));
    if let (Some(certificate), Some(key)) = (&options.certfile, &options.keyfile) {
        let (certificate, key) = (read("--etcd-certfile", certificate)?, read("--etcd-keyfile", key)?);
        tls = tls.identity(Identity::from_pem(certificate, key));
    }
    Ok(Some(tls))
}
