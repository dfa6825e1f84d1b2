//! Container images made of static executables and nothing else, as archives that containerd, podman and docker load:
//! an OCI image layout (opencontainers/image-spec, image-layout.md) in a tar file. The same executables give the same bytes.

mod tar;

use crate::Result;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::path::Path;
use tar::Tar;

const DAEMON: &str = "flanneld-rs";

/// What an image holds for one kind of processor.
#[derive(Clone, Debug)]
pub struct Platform {
    /// processor, by Go's names (`amd64`, `arm64`), as the specification wants it
    pub architecture: String,
    /// executables, each with its name in the root directory
    pub executables: Vec<(String, Vec<u8>)>,
}

/// An image to be written.
#[derive(Clone, Debug)]
pub struct Image {
    /// full reference, such as `localhost/pause:1`
    pub name: String,
    /// path of the executable that runs unless another is asked for
    pub entrypoint: String,
    /// annotations of the image, by the names that the specification has for them (annotations.md)
    pub annotations: Vec<(&'static str, String)>,
    /// at least one
    pub platforms: Vec<Platform>,
}

impl Platform {
    /// With the daemon and the CNI executable from a directory such as `make build` fills.
    ///
    /// # Errors
    /// The file that cannot be read.
    pub fn in_directory(architecture: &str, directory: &Path) -> Result<Self> {
        let read = |name: &str| {
            let path = directory.join(name);
            let content = std::fs::read(&path);
            content.map(|content| (name.into(), content)).map_err(|error| format!("{}: {error}", path.display()))
        };
        let executables = [DAEMON, "cni-plugin"].map(read).into_iter().collect::<std::result::Result<_, _>>()?;
        Ok(Platform { architecture: architecture.into(), executables })
    }
}

impl Image {
    /// The image that the manifests in `conf/kubernetes` run.
    pub fn of_product(name: &str, platforms: Vec<Platform>) -> Self {
        let annotations = vec![
            ("org.opencontainers.image.title", DAEMON.into()),
            ("org.opencontainers.image.version", env!("CARGO_PKG_VERSION").into()),
            ("org.opencontainers.image.licenses", "Apache-2.0".into()),
        ];
        Image { name: name.into(), entrypoint: format!("/{DAEMON}"), annotations, platforms }
    }

    /// The whole archive. Layers are not compressed: registries and their clients do that on the way.
    ///
    /// # Errors
    /// A name or a size that the formats do not hold.
    pub fn archive(&self) -> Result<Vec<u8>> {
        let mut blobs = Blobs::default();
        let manifests = self.platforms.iter().map(|platform| self.manifest(platform, &mut blobs));
        let manifests = manifests.collect::<Result<Vec<Value>>>()?;
        let [_, ..] = manifests.as_slice() else { return Err("an image without a platform".into()) };
        let images = match <[Value; 1]>::try_from(manifests) {
            Ok([only]) => only,
            Err(several) => blobs.add(INDEX, &index(several))?,
        };
        let index = index(vec![with(images, "annotations", self.names())]);

        let mut archive = Tar::default();
        archive.file("oci-layout", 0o644, br#"{"imageLayoutVersion":"1.0.0"}"#)?;
        archive.file("index.json", 0o644, &serde_json::to_vec(&index)?)?;
        archive.directory("blobs")?;
        archive.directory("blobs/sha256")?;
        for (digest, content) in &blobs.0 {
            archive.file(&format!("blobs/sha256/{digest}"), 0o644, content)?;
        }
        Ok(archive.finish())
    }

    /// Adds layer, configuration and manifest of one platform; what an index says of them.
    fn manifest(&self, platform: &Platform, blobs: &mut Blobs) -> Result<Value> {
        let mut layer = Tar::default();
        for (name, content) in &platform.executables {
            layer.file(name, 0o755, content)?;
        }
        let layer = layer.finish();
        let diff = digest(&layer);
        let layer = blobs.put("application/vnd.oci.image.layer.v1.tar", layer);
        let kind = json!({"architecture": platform.architecture, "os": "linux"});
        let config = json!({
            "architecture": platform.architecture,
            "os": "linux",
            "config": {"Entrypoint": [self.entrypoint]},
            "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{diff}")]},
        });
        let config = blobs.add("application/vnd.oci.image.config.v1+json", &config)?;
        let annotations: serde_json::Map<String, Value> =
            self.annotations.iter().map(|(key, value)| ((*key).into(), value.clone().into())).collect();
        let manifest = json!({
            "schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": [layer], "annotations": annotations,
        });
        Ok(with(blobs.add(MANIFEST, &manifest)?, "platform", kind))
    }

    /// What containerd and what others take the name of an image in an archive from.
    fn names(&self) -> Value {
        json!({"io.containerd.image.name": self.name, "org.opencontainers.image.ref.name": self.name})
    }
}

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";

fn index(manifests: Vec<Value>) -> Value {
    json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": manifests})
}

fn with(mut descriptor: Value, key: &str, value: Value) -> Value {
    descriptor[key] = value;
    descriptor
}

/// Contents, each under its digest.
#[derive(Default)]
struct Blobs(std::collections::BTreeMap<String, Vec<u8>>);

impl Blobs {
    fn add(&mut self, media_type: &str, content: &Value) -> Result<Value> {
        Ok(self.put(media_type, serde_json::to_vec(content)?))
    }

    /// What others say of the blob.
    fn put(&mut self, media_type: &str, content: Vec<u8>) -> Value {
        let digest = digest(&content);
        let descriptor = json!({"mediaType": media_type, "digest": format!("sha256:{digest}"), "size": content.len()});
        self.0.insert(digest, content);
        descriptor
    }
}

fn digest(content: &[u8]) -> String {
    Sha256::digest(content).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(platforms: &[&str]) -> Image {
        let platform = |architecture: &&str| Platform {
            architecture: (*architecture).into(),
            executables: vec![("pause".into(), architecture.as_bytes().to_vec())],
        };
        Image {
            name: "localhost/pause:1".into(),
            entrypoint: "/pause".into(),
            annotations: Vec::new(),
            platforms: platforms.iter().map(platform).collect(),
        }
    }

    #[test]
    fn the_same_input_gives_the_same_bytes() {
        for platforms in [&["amd64"][..], &["amd64", "arm64"]] {
            let image = image(platforms);
            assert_eq!(image.archive().unwrap(), image.clone().archive().unwrap());
        }
        assert!(image(&[]).archive().is_err());
    }
}
