//! An in-memory `/dev/net/tun`.
