//! nftables through netlink: a table is a value, replaced atomically; no `nft` executable is involved.
