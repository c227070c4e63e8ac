//! The `memtun` program.

fn main() {}
