//! The network configuration on standard input.

use crate::{AddResult, AttachmentId, CniError, Code, Field, SpecVersion};
use serde_json::{Map, Value};

/// The largest configuration that is read, in bytes. A GC lists every attachment of the node under two keys, some
/// 230 bytes together: this is enough for 18,000 of them.
pub const MAX_CONFIG_SIZE: usize = 4 << 20;

/// The part of a network configuration that every plugin shares; the rest stays in `json` for the plugin's own parser.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkConfig {
    /// `cniVersion` (default 0.1.0)
    pub version: SpecVersion,
    /// `name`, checked against the specification's character set
    pub name: String,
    /// `type`; [`crate::answer`] puts the name of the selected plugin here if the configuration has none
    pub plugin: String,
    /// `prevResult`, if any
    pub prev_result: Option<AddResult>,
    /// the whole object as received
    pub json: Map<String, Value>,
}

impl NetworkConfig {
    /// Reads a plugin's configuration (spec section 1, "Plugin configuration objects", with what the runtime inserted).
    ///
    /// Nesting is bounded by serde_json (128 levels), the size by [`MAX_CONFIG_SIZE`].
    ///
    /// # Errors
    /// `Decode` for what is not JSON, not an object, or has a `name`, `type` or `cniVersion` that is not a string;
    /// `IncompatibleVersion`; `InvalidConfig` for a missing or illegal name, an illegal type, a malformed prevResult.
    pub fn parse(json: &[u8]) -> Result<Self, CniError> {
        let mut config = Self::without_prev_result(json)?;
        config.prev_result = config.read_prev_result()?;
        Ok(config)
    }

    /// The field `key` of the configuration, to read typed values from: `config.field("ipam").field("type")?.string()?`.
    pub fn field(&self, key: &str) -> Field<'_> {
        Field::of(&self.json, key)
    }

    /// All but `prevResult`, in the order in which the reference checks: name, then version.
    pub(crate) fn without_prev_result(json: &[u8]) -> Result<Self, CniError> {
        if json.len() > MAX_CONFIG_SIZE {
            let msg = format!("the network configuration is larger than {MAX_CONFIG_SIZE} bytes");
            return Err(CniError::new(Code::InvalidConfig, msg));
        }
        let json: Map<String, Value> = serde_json::from_slice(json).map_err(|error| {
            CniError::new(Code::Decode, format!("the network configuration is not a JSON object: {error}"))
        })?;
        let name = text(&json, "name")?.ok_or_else(|| Field::of(&json, "name").invalid("the network has no name"))?;
        if !is_identifier(name) {
            return Err(
                Field::of(&json, "name").wanted("letters, digits, '_', '.', '-', starting with letter or digit")
            );
        }
        let version = text(&json, "cniVersion")?.map_or(Ok(SpecVersion::UNSTATED), str::parse)?;
        let plugin = text(&json, "type")?.unwrap_or_default();
        // The type is the name of an executable file (spec section 1).
        if plugin.contains(['/', '\\', '\0']) || matches!(plugin, "." | "..") {
            return Err(Field::of(&json, "type").wanted("the name of a plugin"));
        }
        Ok(NetworkConfig { version, name: name.to_owned(), plugin: plugin.to_owned(), prev_result: None, json })
    }

    pub(crate) fn read_prev_result(&self) -> Result<Option<AddResult>, CniError> {
        let field = self.field("prevResult");
        if field.value().is_none() { Ok(None) } else { AddResult::read(&field, self.version).map(Some) }
    }

    /// The attachments that a GC must leave alone (spec section 2, "GC").
    ///
    /// `null` is how Go prints an empty list and means that none is valid. A configuration without the key is refused:
    /// taking that for an empty list would tear down every pod of the node.
    pub(crate) fn valid_attachments(&self) -> Result<Vec<AttachmentId>, CniError> {
        const KEY: &str = "cni.dev/valid-attachments";
        // libcni sends the list under this key as well, by which an earlier text of the specification called it.
        const OLD_KEY: &str = "cni.dev/attachments";
        let key = [KEY, OLD_KEY].into_iter().find(|key| self.json.contains_key(*key));
        let list = key.map(|key| self.field(key)).ok_or_else(|| self.field(KEY).invalid("missing, but GC needs it"))?;
        let attachment = |item: Field<'_>| {
            let (id, ifname) = (item.field("containerID")?, item.field("ifname")?);
            AttachmentId::new(id.string()?.unwrap_or_default(), ifname.string()?.unwrap_or_default())
                .map_err(|error| item.invalid(error))
        };
        list.items()?.into_iter().map(attachment).collect()
    }
}

/// One of the three texts of the protocol itself, for which a wrong type is a decoding failure (as in the reference).
fn text<'a>(json: &'a Map<String, Value>, key: &str) -> Result<Option<&'a str>, CniError> {
    Field::of(json, key).string().map_err(|error| CniError { code: Code::Decode, ..error })
}

/// The character set of network names and container ids: an alphanumeric character, then any of these and `_`, `.`, `-`.
pub(crate) fn is_identifier(text: &str) -> bool {
    text.starts_with(|first: char| first.is_ascii_alphanumeric())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-'))
}
