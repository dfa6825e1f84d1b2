//! Typed reading of a configuration, with errors that name the field by its path.

use crate::{CniError, Code};
use ipnetwork::IpNetwork;
use serde_json::{Map, Value};
use std::fmt::Display;
use std::net::IpAddr;
use std::str::FromStr;

/// A place in a JSON document: its path (`ipam.ranges[0][1].subnet`) and what is there, if anything.
///
/// It reads as the reference plugins do (Go's encoding/json), so that a conflist that works with them works with us:
/// `null` counts as absent, so does an empty string; keys match without regard to ASCII case when none matches exactly;
/// unknown keys are left alone. Going into something absent finds nothing, so that optional objects need no special
/// treatment.
#[derive(Clone, Debug)]
pub struct Field<'a> {
    path: String,
    value: Option<&'a Value>,
}

impl<'a> Field<'a> {
    /// `value`, known to people as `path` (empty: the document itself).
    pub fn new(path: impl Into<String>, value: Option<&'a Value>) -> Self {
        Field { path: path.into(), value: value.filter(|value| !value.is_null()) }
    }

    /// The field `key` of a document's top object.
    pub fn of(document: &'a Map<String, Value>, key: &str) -> Self {
        Field::new(key, lookup(document, key))
    }

    /// The path, for messages.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// What is there; `null` is nothing.
    pub fn value(&self) -> Option<&'a Value> {
        self.value
    }

    /// The field `key` of this object. Fails if this is something other than an object.
    pub fn field(&self, key: &str) -> Result<Field<'a>, CniError> {
        let found = self.object()?.and_then(|object| lookup(object, key));
        let path = if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) };
        Ok(Field::new(path, found))
    }

    /// The items of this list; none if it is absent.
    pub fn items(&self) -> Result<Vec<Field<'a>>, CniError> {
        let items = match self.value {
            None => return Ok(Vec::new()),
            Some(value) => value.as_array().ok_or_else(|| self.wanted("a list"))?,
        };
        let item = |(index, value)| Field::new(format!("{}[{index}]", self.path), Some(value));
        Ok(items.iter().enumerate().map(item).collect())
    }

    /// A list of texts.
    pub fn strings(&self) -> Result<Vec<String>, CniError> {
        self.items()?.iter().map(|item| Ok(item.string()?.unwrap_or_default().to_owned())).collect()
    }

    /// This object's map.
    pub fn object(&self) -> Result<Option<&'a Map<String, Value>>, CniError> {
        self.value.map(|value| value.as_object().ok_or_else(|| self.wanted("an object"))).transpose()
    }

    /// A text that is not empty.
    pub fn string(&self) -> Result<Option<&'a str>, CniError> {
        let text = self.value.map(|value| value.as_str().ok_or_else(|| self.wanted("a string"))).transpose()?;
        Ok(text.filter(|text| !text.is_empty()))
    }

    /// A truth value.
    pub fn bool(&self) -> Result<Option<bool>, CniError> {
        self.value.map(|value| value.as_bool().ok_or_else(|| self.wanted("true or false"))).transpose()
    }

    /// A whole number from 0 on that fits `T`.
    pub fn number<T: TryFrom<u64>>(&self) -> Result<Option<T>, CniError> {
        let read = |value: &Value| value.as_u64().and_then(|number| T::try_from(number).ok());
        let size = 8 * size_of::<T>();
        self.value
            .map(|value| read(value).ok_or_else(|| self.wanted(&format!("a whole number of at most {size} bits"))))
            .transpose()
    }

    /// A text that is read as a `T`.
    pub fn parsed<T: FromStr<Err: Display>>(&self) -> Result<Option<T>, CniError> {
        self.string()?
            .map(|text| text.parse().map_err(|error| self.invalid(format!("{} is wrong: {error}", excerpt(text)))))
            .transpose()
    }

    /// An address, `10.1.0.5` or `fd00::5`.
    pub fn address(&self) -> Result<Option<IpAddr>, CniError> {
        let Some(text) = self.string()? else { return Ok(None) };
        text.parse().map(Some).map_err(|_| self.wanted("an IPv4 or IPv6 address"))
    }

    /// An address with its prefix length, `10.1.0.5/16`; host bits are kept.
    pub fn network(&self) -> Result<Option<IpNetwork>, CniError> {
        let Some(text) = self.string()? else { return Ok(None) };
        parse_cidr(text).map(Some).ok_or_else(|| self.wanted("an address with prefix length such as 10.1.0.5/16"))
    }

    /// The error for a value of the wrong type or form: what it must be, and what it is.
    pub fn wanted(&self, what: &str) -> CniError {
        let found = self.value.map_or_else(|| "absent".to_owned(), excerpt_of);
        self.invalid(format!("must be {what}, but is {found}"))
    }

    /// An `InvalidConfig` error about this field.
    pub fn invalid(&self, what: impl Display) -> CniError {
        let path = if self.path.is_empty() { "the network configuration" } else { &self.path };
        CniError::new(Code::InvalidConfig, format!("{path}: {what}"))
    }
}

/// The exact key first, then the first in the map that differs in case only.
fn lookup<'a>(object: &'a Map<String, Value>, key: &str) -> Option<&'a Value> {
    object.get(key).or_else(|| object.iter().find(|(name, _)| name.eq_ignore_ascii_case(key)).map(|(_, value)| value))
}

/// `address/length` and nothing else: unlike ipnetwork's own parser, no bare address and no netmask, as Go's ParseCIDR.
fn parse_cidr(text: &str) -> Option<IpNetwork> {
    let (address, length) = text.split_once('/')?;
    let digits = !length.is_empty() && length.bytes().all(|byte| byte.is_ascii_digit());
    if !digits {
        return None;
    }
    IpNetwork::new(address.parse().ok()?, length.parse().ok()?).ok()
}

/// Longest piece of foreign text that goes into a message, in characters.
const EXCERPT: usize = 64;

/// Foreign text for a message: quoted, control characters escaped, of bounded length.
pub(crate) fn excerpt(text: &str) -> String {
    match text.char_indices().nth(EXCERPT) {
        None => format!("{text:?}"),
        Some((end, _)) => format!("{:?}...", text.get(..end).unwrap_or_default()),
    }
}

fn excerpt_of(value: &Value) -> String {
    match value {
        Value::String(text) => excerpt(text),
        Value::Array(_) => "a list".into(),
        Value::Object(_) => "an object".into(),
        scalar => scalar.to_string(),
    }
}
