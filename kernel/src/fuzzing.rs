//! A way in for the fuzz targets: what the kernel says, as far as it is decoded by this crate, and
//! what it would be told. Not part of any build but theirs.

/// One netlink message of the route family, read as everything that it could be.
pub fn route_message(flags: u16, payload: &[u8]) {
    crate::netlink::decode_as_everything(flags, payload);
}

/// One netlink message of nftables (behind the family header), read as everything that it could be.
pub fn nftables_message(payload: &[u8]) {
    crate::nft::decode_as_everything(payload);
}

/// A table of somebody else's, as attributes: what becomes of a pod's packet in it.
pub fn foreign_table(bytes: &[u8]) {
    crate::nft::pass(bytes);
}

/// A message of the kernel about connections, or about WireGuard, read as everything that it could be.
pub fn other_message(payload: &[u8]) {
    crate::conntrack::decode_as_everything(payload);
    crate::wireguard::decode_as_everything(payload);
}

/// The messages that make a table; every interval in its sets ends before the next one starts.
pub fn table(table: &crate::nft::Table) -> crate::Result<()> {
    crate::nft::encode_all(table)
}
