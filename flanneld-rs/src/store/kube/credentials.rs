//! Where the API server is and who we are to it: in a pod from its service account, else from a kubeconfig, as client-go does.

use super::KubeOptions;
use crate::store::StoreError;
use kube::Config;
use kube::config::{KubeConfigOptions, Kubeconfig};
use sha2::{Digest, Sha256};

/// Reads the files anew each time: certificates and tokens are replaced while we run.
///
/// # Errors
/// `Invalid`, with the file or the variable that is missing.
pub(super) async fn read(options: &KubeOptions) -> Result<Config, StoreError> {
    let invalid = |error: String| StoreError::Invalid(error);
    let mut config = match (&options.kubeconfig, &options.api_url) {
        (None, None) => Config::incluster_env().map_err(|error| {
            invalid(format!(
                "{}: no service account of a pod is here; name a kubeconfig with --kubeconfig-file, or run in a pod",
                chain(&error)
            ))
        })?,
        // As client-go: whoever names a server and no credentials goes without.
        (None, Some(url)) => Config::new(server(url)?),
        (Some(path), url) => {
            let wrong = |why: String| invalid(format!("kubeconfig {}: {why}", path.display()));
            let file = Kubeconfig::read_from(path).map_err(|error| wrong(chain(&error)))?;
            let programs = file.auth_infos.iter().filter_map(|user| user.auth_info.as_ref());
            if programs.into_iter().any(|user| user.exec.is_some() || user.auth_provider.is_some()) {
                return Err(wrong(
                    "credentials by a program (exec, auth-provider) are not supported; use a token or a \
                                  client certificate"
                        .into(),
                ));
            }
            let mut config = Config::from_custom_kubeconfig(file, &KubeConfigOptions::default())
                .await
                .map_err(|error| wrong(chain(&error)))?;
            if let Some(url) = url {
                config.cluster_url = server(url)?;
            }
            config
        }
    };
    // Who is asked without TLS is asked without authorities, of which an image of nothing but executables has none.
    if config.cluster_url.scheme_str() == Some("http") {
        config.root_cert.get_or_insert_default();
    }
    // What is to be tried again, and when, is decided here.
    config.default_retry = false;
    Ok(config)
}

/// See [`super::KubeStore::cluster`].
///
/// # Errors
/// As [`read`].
pub(super) async fn cluster(options: &KubeOptions) -> Result<String, StoreError> {
    let config = read(options).await?;
    let authorities = config.root_cert.unwrap_or_default();
    if authorities.is_empty() {
        return Ok(config.cluster_url.to_string());
    }
    let digest = Sha256::digest(authorities.concat());
    Ok(format!("authority {}", digest.iter().take(16).map(|byte| format!("{byte:02x}")).collect::<String>()))
}

fn server(url: &str) -> Result<axum::http::Uri, StoreError> {
    let wrong = |why: String| StoreError::Invalid(format!("--kube-api-url {url}: {why}"));
    if !url.starts_with("http://") && !url.starts_with("https://") {
        return Err(wrong("must begin with https:// or http://".into()));
    }
    url.parse().map_err(|error| wrong(format!("{error}")))
}

/// An error with its causes.
pub(super) fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let words = cause.to_string();
        if !text.contains(&words) {
            text = format!("{text}: {words}");
        }
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    /// What the cluster of a kubeconfig is called; `authority` is a file beside it, or empty.
    async fn called(directory: &Path, server: &str, authority: &str) -> Result<String, StoreError> {
        let mut cluster = serde_json::json!({"server": server});
        if !authority.is_empty() {
            cluster["certificate-authority"] = authority.into();
        }
        let file = serde_json::json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "test",
            "clusters": [{"name": "test", "cluster": cluster}],
            "users": [{"name": "test", "user": {"token": "secret"}}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
        });
        let path = directory.join("kubeconfig");
        std::fs::write(&path, file.to_string()).unwrap();
        super::cluster(&KubeOptions {
            kubeconfig: Some(path),
            api_url: None,
            annotation_prefix: "flannel.alpha.coreos.com".into(),
            node: Some("node".into()),
            pod: None,
            set_condition: true,
            families: Vec::new(),
            silence: crate::store::SILENCE,
        })
        .await
    }

    #[tokio::test]
    async fn a_cluster_is_known_by_its_authority() {
        let directory = tempfile::tempdir().unwrap();
        let directory = directory.path();
        for (name, body) in [("one.pem", "b25l"), ("another.pem", "b3RoZXI=")] {
            let pem = format!("-----BEGIN CERTIFICATE-----\n{body}\n-----END CERTIFICATE-----\n");
            std::fs::write(directory.join(name), pem).unwrap();
        }
        let one = called(directory, "https://192.0.2.1:6443", "one.pem").await.unwrap();
        assert_eq!(called(directory, "https://192.0.2.2:6443", "one.pem").await.unwrap(), one);
        assert_ne!(called(directory, "https://192.0.2.1:6443", "another.pem").await.unwrap(), one);
        // Without one, the URL is all there is.
        let url = called(directory, "http://192.0.2.1:8080", "").await.unwrap();
        assert!(url.contains("192.0.2.1:8080"), "{url}");
        assert!(called(directory, "https://192.0.2.1:6443", "absent.pem").await.is_err());
    }
}
