//! A way in for the fuzz targets: what the kernel says, as far as it is decoded by this crate. Not part of any build but theirs.

/// One netlink message of the route family, read as everything that it could be.
pub fn route_message(flags: u16, payload: &[u8]) {
    crate::netlink::decode_as_everything(flags, payload);
}

/// One netlink message of nftables (behind the family header), read as everything that it could be.
pub fn nftables_message(payload: &[u8]) {
    crate::nft::decode_as_everything(payload);
}
