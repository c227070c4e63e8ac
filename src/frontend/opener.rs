//! Who opened the device, as `/proc` tells.

use std::{fs, os::unix::fs::MetadataExt};

use crate::core::{Opener, Scope};

/// What can be found out about the thread that made a call.
///
/// What cannot be read stays empty: the thread may belong to another pid namespace (then its id is 0), or `/proc` may
/// be hidden. An answer is owed in any case.
pub(super) fn look_up(tid: u32, uid: u32, gid: u32) -> Opener {
    let mut opener = Opener { pid: tid, command: String::new(), uid, gid, scope: Scope::default() };
    if tid == 0 {
        return opener;
    }
    if let Ok(status) = fs::read_to_string(format!("/proc/{tid}/status")) {
        let field =
            |key: &str| status.lines().find_map(|line| line.strip_prefix(key)).map(str::trim);
        opener.command = field("Name:").unwrap_or_default().to_owned();
        opener.pid = field("Tgid:").and_then(|pid| pid.parse().ok()).unwrap_or(tid);
    }
    if let Ok(namespace) = fs::metadata(format!("/proc/{tid}/ns/net")) {
        opener.scope = Scope(namespace.ino());
    }
    opener
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_is_found_under_its_process() {
        let tid = nix::unistd::gettid().as_raw().unsigned_abs();
        let opener = look_up(tid, 1, 2);
        assert_eq!(opener.pid, std::process::id());
        assert_ne!(opener.scope, Scope::default());
        assert!(!opener.command.is_empty());
        assert_eq!((opener.uid, opener.gid), (1, 2));
    }

    #[test]
    fn a_hidden_thread_has_the_default_scope() {
        assert_eq!(look_up(0, 1, 2).scope, Scope::default());
        assert_eq!(look_up(u32::MAX, 1, 2).command, "");
    }
}
