//! The parameters in the runtime's environment (spec section 2, "Parameters").

use crate::config::is_identifier;
use crate::field::excerpt;
use crate::{Arguments, AttachmentId, CniError, Code, Sandbox};
use std::ffi::OsString;
use std::path::PathBuf;

/// What the environment alone says, before the configuration is read.
pub(crate) enum Call {
    /// needs no configuration
    Version,
    /// is about the network that the configuration describes
    Network(Verb),
}

/// A verb with its parameters.
pub(crate) enum Verb {
    Add(Sandbox),
    Del { id: AttachmentId, netns: Option<PathBuf>, args: Arguments },
    Check(Sandbox),
    Gc,
    Status,
}

impl Call {
    pub(crate) fn read(env: impl Fn(&str) -> Option<OsString>) -> Result<Self, CniError> {
        let environment = Environment { env };
        let command = environment.text("CNI_COMMAND")?;
        // CNI_PATH is of no use to us, but a runtime that forgets it is broken for every other plugin of its chain:
        // the reference asks for it, so both fail alike.
        let verb = match command.as_deref() {
            Some("ADD") => Verb::Add(environment.sandbox()?),
            Some("CHECK") => Verb::Check(environment.sandbox()?),
            Some("DEL") => {
                environment.require(&["CNI_CONTAINERID", "CNI_IFNAME", "CNI_PATH"])?;
                let (id, netns, args) = (environment.attachment()?, environment.netns(), environment.arguments()?);
                Verb::Del { id, netns, args }
            }
            Some(command @ ("GC" | "STATUS")) => {
                environment.require(&["CNI_PATH"])?;
                if command == "GC" { Verb::Gc } else { Verb::Status }
            }
            Some("VERSION") => return Ok(Call::Version),
            Some(other) => {
                let verbs = "use ADD, DEL, CHECK, GC, STATUS or VERSION";
                return Err(invalid(format!("CNI_COMMAND {} is unknown: {verbs}", excerpt(other))));
            }
            None => return Err(missing(&["CNI_COMMAND"])),
        };
        Ok(Call::Network(verb))
    }
}

struct Environment<E> {
    env: E,
}

impl<E: Fn(&str) -> Option<OsString>> Environment<E> {
    /// An empty variable is a missing one.
    fn get(&self, name: &str) -> Option<OsString> {
        (self.env)(name).filter(|value| !value.is_empty())
    }

    fn text(&self, name: &str) -> Result<Option<String>, CniError> {
        let text = self.get(name).map(OsString::into_string).transpose();
        text.map_err(|raw| invalid(format!("{name} {} is not UTF-8", excerpt(&raw.to_string_lossy()))))
    }

    /// Names all missing variables at once.
    fn require(&self, names: &[&str]) -> Result<(), CniError> {
        let missing: Vec<_> = names.iter().copied().filter(|name| self.get(name).is_none()).collect();
        if missing.is_empty() { Ok(()) } else { Err(self::missing(&missing)) }
    }

    fn sandbox(&self) -> Result<Sandbox, CniError> {
        self.require(&["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_PATH"])?;
        let path = self.get("CNI_PATH").unwrap_or_default();
        Ok(Sandbox {
            id: self.attachment()?,
            netns: self.netns().unwrap_or_default(),
            args: self.arguments()?,
            path: std::env::split_paths(&path).filter(|dir| !dir.as_os_str().is_empty()).collect(),
        })
    }

    fn netns(&self) -> Option<PathBuf> {
        self.get("CNI_NETNS").map(PathBuf::from)
    }

    fn attachment(&self) -> Result<AttachmentId, CniError> {
        let container_id = self.text("CNI_CONTAINERID")?.unwrap_or_default();
        AttachmentId::new(&container_id, &self.text("CNI_IFNAME")?.unwrap_or_default())
    }

    /// `K=V;K2=V2`, as strict as the reference: every piece has exactly one `=`. Of equal keys the last one counts.
    fn arguments(&self) -> Result<Arguments, CniError> {
        let Some(text) = self.text("CNI_ARGS")? else { return Ok(Arguments::new()) };
        let pair = |pair: &str| match pair.split_once('=') {
            Some((key, value)) if !key.is_empty() && !value.contains('=') => Ok((key.to_owned(), value.to_owned())),
            _ => Err(invalid(format!("CNI_ARGS: invalid pair {}: write KEY=VALUE;KEY=VALUE", excerpt(pair)))),
        };
        text.split(';').map(pair).collect()
    }
}

impl AttachmentId {
    /// Checks both names.
    ///
    /// # Errors
    /// `InvalidEnvironment` for a container id outside the specification's character set (an alphanumeric character,
    /// then any of these and `_`, `.`, `-`), or an interface name that Linux refuses: longer than 15 bytes, `.`, `..`,
    /// with `/`, `:` or white space (`dev_valid_name` in net/core/dev.c).
    pub fn new(container_id: &str, ifname: &str) -> Result<Self, CniError> {
        if !is_identifier(container_id) {
            return Err(invalid(format!(
                "CNI_CONTAINERID {} must be letters, digits, '_', '.', '-', starting with letter or digit",
                excerpt(container_id)
            )));
        }
        let illegal = |c: char| matches!(c, '/' | ':' | '\0') || c.is_whitespace();
        if ifname.is_empty() || ifname.len() > 15 || matches!(ifname, "." | "..") || ifname.contains(illegal) {
            return Err(invalid(format!(
                "CNI_IFNAME {} must be 1 to 15 bytes without '/', ':' or white space",
                excerpt(ifname)
            )));
        }
        Ok(AttachmentId { container_id: container_id.to_owned(), ifname: ifname.to_owned() })
    }
}

fn invalid(msg: String) -> CniError {
    CniError::new(Code::InvalidEnvironment, msg)
}

fn missing(names: &[&str]) -> CniError {
    invalid(format!("required env variables [{}] missing", names.join(",")))
}
