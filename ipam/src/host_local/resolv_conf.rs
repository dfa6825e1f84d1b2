//! Name resolution from a file in the format of resolv.conf(5).

use crate::error::IpamError;
use crate::regular_file::read_bounded;
use cni_spec::{CniError, Code, Dns};
use nix::errno::Errno;
use std::io::ErrorKind;
use std::path::Path;

/// Largest file that is read, in bytes.
const LARGEST: usize = 64 << 10;

pub(super) fn read(path: &Path) -> Result<Dns, CniError> {
    let failed = |source| IpamError::Disk { action: "reading resolvConf", path: path.to_owned(), source };
    match read_bounded(path, LARGEST) {
        Ok(Some((text, _))) => Ok(parse(&String::from_utf8_lossy(&text))),
        Ok(None) => Err(failed(Errno::ENOENT.into()).into()),
        Err(error) if error.kind() == ErrorKind::FileTooLarge => {
            Err(CniError::new(Code::InvalidConfig, format!("resolvConf {}: {error}", path.display())))
        }
        Err(error) => Err(failed(error).into()),
    }
}

/// Lines that mean nothing to us are skipped, as the resolver does.
pub(crate) fn parse(text: &str) -> Dns {
    let mut dns = Dns::default();
    for line in text.lines().filter(|line| !line.trim_start().starts_with(['#', ';'])) {
        let mut words = line.split_whitespace();
        let keyword = words.next();
        let values = words.map(str::to_owned);
        match keyword {
            Some("nameserver") => dns.nameservers.extend(values),
            Some("domain") => dns.domain = values.take(1).collect(),
            Some("search") => dns.search.extend(values),
            Some("options") => dns.options.extend(values),
            _ => {}
        }
    }
    dns
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_four_keywords() {
        let dns = parse(
            "# c\n nameserver 10.0.0.10 \n;x\nnameserver fd00::a\ndomain a.b\nsearch a b\noptions ndots:5\nfoo x\n",
        );
        assert_eq!(dns.nameservers, ["10.0.0.10", "fd00::a"]);
        assert_eq!(
            (dns.domain.as_str(), dns.search, dns.options),
            ("a.b", vec!["a".into(), "b".into()], vec!["ndots:5".into()])
        );
    }
}
