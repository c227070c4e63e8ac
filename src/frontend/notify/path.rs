//! Whether a path leads to the device, resolved as the kernel would do it for the client (`path_resolution(7)`, `openat2(2)`).
//!
//! # Theory of operation
//!
//! The device is at one path of this process's mount namespace, whether or not there is a file. It is also every node with the number of
//! the kernel's tun. Most paths lead elsewhere, and one look tells: their last part is there, is no link and has another name. The
//! others are walked part by part. A walk begins at the client's root, its working directory or a descriptor, all by `/proc/TID`.
//! `/proc/self` means the client. What a link of `/proc` leads to is opened, because its text says little.
//!
//! What does not lead to the device goes on in the kernel, which then finds by itself whatever is wrong with it.

use std::{
    ffi::{OsStr, OsString},
    fs,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
        unix::ffi::{OsStrExt, OsStringExt},
    },
    path::{Path, PathBuf},
};

use nix::{
    errno::Errno,
    fcntl::{OFlag, open, openat, readlink, readlinkat},
    sys::{
        stat::{Mode, makedev},
        statfs::{PROC_SUPER_MAGIC, fstatfs},
    },
};

use crate::{frontend::opener, hub::FileKind};

/// The number of the kernel's tun (`TUN_MINOR`, `MISC_MAJOR`).
pub(super) const NUMBER: (u64, u64) = (10, 200);
/// Links that are followed, as by the kernel (`MAXSYMLINKS`).
const MAX_LINKS: usize = 40;

/// Where the device is.
#[derive(Clone, Debug)]
pub(super) struct Place {
    path: PathBuf,
}

/// A path that a client gives.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asked<'a> {
    /// The thread.
    pub(super) tid: u32,
    /// The descriptor of the folder where a relative path begins; `None`: the working directory.
    pub(super) folder: Option<u32>,
    /// The path.
    pub(super) path: &'a OsStr,
    /// A link at its end is followed.
    pub(super) follows: bool,
    /// `RESOLVE_*`.
    pub(super) resolve: u64,
}

/// What a path leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// The device.
    Device,
    /// What a descriptor refers to (`/proc/PID/fd`). It may be an open file of the device.
    Opened(FileKind),
    /// Something else, or nothing.
    Other,
}

impl Place {
    /// At a path of this process, which need not lead to anything.
    pub(super) fn new(at: &Path) -> Self {
        Self { path: real(at) }
    }

    /// What a client finds by a path. Nothing that fails is the device.
    pub(super) fn find(&self, asked: &Asked<'_>) -> Found {
        if asked.path.is_empty() {
            return Found::Other;
        }
        self.try_find(asked).unwrap_or(Found::Other)
    }

    fn try_find(&self, asked: &Asked<'_>) -> Result<Found, Errno> {
        let start = Start::of(asked)?;
        if let Some(found) = self.at_a_glance(asked, &start) {
            return Ok(found);
        }
        Walk::begin(asked, start)?.run(&self.path)
    }

    /// What one look tells; `None`: not enough.
    fn at_a_glance(&self, asked: &Asked<'_>, start: &Start) -> Option<Found> {
        let path = asked.path.as_bytes();
        let last = path.rsplit(|byte| *byte == b'/').next()?;
        let name = self.path.file_name()?.as_bytes();
        let (is_absolute, is_special) = (path.starts_with(b"/"), [&b""[..], b".", b".."]);
        if last == name || is_special.contains(&last) || asked.resolve != 0 || start.is_confined {
            return None;
        }
        if path.starts_with(b"/proc/") || !is_absolute && is_proc(start.folder.as_fd()) {
            return None;
        }
        let from = if is_absolute { &start.root } else { &start.folder };
        match FileKind::named(from.as_fd(), OsStr::from_bytes(trim_start(path))) {
            Ok(kind) if kind.is_link => None,
            Ok(kind) if is_node(kind) => Some(Found::Device),
            Ok(_) | Err(_) => Some(Found::Other),
        }
    }
}

/// Without the slashes at its beginning.
fn trim_start(path: &[u8]) -> &[u8] {
    let start = path.iter().position(|byte| *byte != b'/').unwrap_or(path.len());
    &path[start..]
}

/// A node of the kernel's tun.
pub(super) fn is_node(kind: FileKind) -> bool {
    kind.character_device == Some(makedev(NUMBER.0, NUMBER.1))
}

/// An absolute path without links, as far as it leads to something.
fn real(path: &Path) -> PathBuf {
    let known = path.ancestors().find_map(|known| Some((known, fs::canonicalize(known).ok()?)));
    let rest = known.as_ref().and_then(|(known, _)| path.strip_prefix(known).ok());
    match (known, rest) {
        (Some((_, real)), Some(rest)) if !rest.as_os_str().is_empty() => real.join(rest),
        (Some((_, real)), Some(_)) => real,
        _ => path.to_owned(),
    }
}

/// Where a path begins.
struct Start {
    root: OwnedFd,
    folder: OwnedFd,
    /// The root is not that of this process.
    is_confined: bool,
}

impl Start {
    fn of(asked: &Asked<'_>) -> Result<Self, Errno> {
        let root = open_of(asked.tid, "root")?;
        let within = asked.resolve & RESOLVE_IN_ROOT != 0;
        let folder = match asked.folder {
            _ if asked.path.as_bytes().starts_with(b"/") && !within => again(&root)?,
            None => open_of(asked.tid, "cwd")?,
            Some(number) => open_of(asked.tid, &format!("fd/{number}"))?,
        };
        let root = if within { again(&folder)? } else { root };
        let is_confined = path_of(&root).as_deref() != Ok(Path::new("/"));
        Ok(Self { root, folder, is_confined })
    }
}

/// A walk along a path.
struct Walk<'a> {
    asked: &'a Asked<'a>,
    root: OwnedFd,
    /// The folder that it has come to.
    folder: OwnedFd,
    /// What is left, the next part last.
    left: Vec<OsString>,
    links: usize,
    /// How far down from where it began.
    depth: usize,
    /// Of where it began.
    file_system: u64,
}

/// Where a link leads.
enum Target {
    /// To a path.
    Path(OsString),
    /// To this (`proc_pid_get_link`).
    Jump(OwnedFd),
}

impl<'a> Walk<'a> {
    fn begin(asked: &'a Asked<'a>, start: Start) -> Result<Self, Errno> {
        let Start { root, folder, .. } = start;
        let file_system = FileKind::of(folder.as_fd())?.file_system;
        let mut walk =
            Self { asked, root, folder, left: Vec::new(), links: 0, depth: 0, file_system };
        let path = asked.path.as_bytes();
        if path.starts_with(b"/") && walk.must(RESOLVE_BENEATH) {
            return Err(Errno::EXDEV);
        }
        walk.push(path);
        Ok(walk)
    }

    fn must(&self, resolve: u64) -> bool {
        self.asked.resolve & resolve != 0
    }

    fn push(&mut self, path: &[u8]) {
        let parts =
            path.split(|byte| *byte == b'/').filter(|part| ![&b""[..], b"."].contains(part));
        self.left.extend(parts.rev().map(|part| OsString::from_vec(part.to_vec())));
    }

    fn run(mut self, device: &Path) -> Result<Found, Errno> {
        while let Some(part) = self.left.pop() {
            let is_last = self.left.is_empty();
            if part == ".." {
                self.up()?;
            } else if let Some(process) = self.process(&part)? {
                self.folder = process;
            } else if (!is_last || self.asked.follows)
                && let Some(target) = self.target(&part)?
            {
                match target {
                    Target::Jump(to) if is_last => return self.arrive(&to, device),
                    Target::Jump(to) => self.folder = to,
                    Target::Path(path) => self.turn(path.as_bytes())?,
                }
            } else if is_last {
                return self.end(&part, device);
            } else {
                match open_path(&self.folder, &part, OFlag::O_NOFOLLOW) {
                    Ok(folder) => self.folder = folder,
                    Err(Errno::ENOENT) => {
                        self.left.push(part);
                        return self.beyond(device);
                    }
                    Err(errno) => return Err(errno),
                }
                self.depth += 1;
            }
        }
        Ok(Found::Other)
    }

    fn up(&mut self) -> Result<(), Errno> {
        if self.must(RESOLVE_BENEATH) && self.depth == 0 {
            return Err(Errno::EXDEV);
        }
        self.depth = self.depth.saturating_sub(1);
        let same = |a: FileKind, b: FileKind| (a.file_system, a.inode) == (b.file_system, b.inode);
        if !same(FileKind::of(self.folder.as_fd())?, FileKind::of(self.root.as_fd())?) {
            self.folder = open_path(&self.folder, OsStr::new(".."), OFlag::empty())?;
        }
        Ok(())
    }

    /// What the client's own names in `/proc` stand for.
    fn process(&self, part: &OsStr) -> Result<Option<OwnedFd>, Errno> {
        let tid = self.asked.tid;
        let is_own = (part == "self" || part == "thread-self") && is_proc(self.folder.as_fd());
        if !is_own || self.must(RESOLVE_NO_SYMLINKS) {
            return Ok(None);
        }
        let pid = opener::process_of(tid).ok_or(Errno::ESRCH)?;
        let path = if part == "self" { String::new() } else { format!("task/{tid}") };
        open_of(pid, &path).map(Some)
    }

    /// Where a link leads; `None`: it is none.
    fn target(&mut self, part: &OsStr) -> Result<Option<Target>, Errno> {
        let Ok(path) = readlinkat(&self.folder, part) else { return Ok(None) };
        self.links += 1;
        if self.links > MAX_LINKS || self.must(RESOLVE_NO_SYMLINKS) {
            return Err(Errno::ELOOP);
        }
        // Those that lead to a path have a relative one.
        let is_jump = is_proc(self.folder.as_fd())
            && (path.as_bytes().starts_with(b"/") || path.as_bytes().contains(&b':'));
        if !is_jump {
            return Ok(Some(Target::Path(path)));
        }
        if self.asked.resolve & (RESOLVE_NO_MAGICLINKS | RESOLVE_BENEATH | RESOLVE_IN_ROOT) != 0 {
            return Err(Errno::ELOOP);
        }
        open_path(&self.folder, part, OFlag::empty()).map(|to| Some(Target::Jump(to)))
    }

    /// Goes on along a link.
    fn turn(&mut self, path: &[u8]) -> Result<(), Errno> {
        if path.starts_with(b"/") {
            if self.must(RESOLVE_BENEATH) {
                return Err(Errno::EXDEV);
            }
            self.folder = again(&self.root)?;
        }
        self.push(path);
        Ok(())
    }

    /// What has the last name.
    fn end(&self, part: &OsStr, device: &Path) -> Result<Found, Errno> {
        if self.asked.path.as_bytes().ends_with(b"/") {
            return Ok(Found::Other);
        }
        let is_there = match FileKind::named(self.folder.as_fd(), part) {
            Ok(kind) => is_node(kind),
            Err(Errno::ENOENT) => false,
            Err(errno) => return Err(errno),
        };
        let is_at = || path_of(&self.folder).is_ok_and(|folder| folder.join(part) == device);
        Ok(if is_there || is_at() { self.unless_elsewhere()? } else { Found::Other })
    }

    /// What has the names that are left, the first of which leads to nothing.
    fn beyond(&self, device: &Path) -> Result<Found, Errno> {
        if self.left.iter().any(|part| part == "..") || self.asked.path.as_bytes().ends_with(b"/") {
            return Ok(Found::Other);
        }
        let mut path = path_of(&self.folder)?;
        path.extend(self.left.iter().rev());
        Ok(if path == device { self.unless_elsewhere()? } else { Found::Other })
    }

    /// What a link of `/proc` leads to.
    fn arrive(&self, to: &OwnedFd, device: &Path) -> Result<Found, Errno> {
        let kind = FileKind::of(to.as_fd())?;
        if is_node(kind) || path_of(to)? == device {
            return self.unless_elsewhere();
        }
        Ok(Found::Opened(kind))
    }

    fn unless_elsewhere(&self) -> Result<Found, Errno> {
        let is_elsewhere = self.must(RESOLVE_NO_XDEV)
            && FileKind::of(self.folder.as_fd())?.file_system != self.file_system;
        Ok(if is_elsewhere { Found::Other } else { Found::Device })
    }
}

// As `linux/openat2.h` has them.
const RESOLVE_NO_XDEV: u64 = 0x01;
const RESOLVE_NO_MAGICLINKS: u64 = 0x02;
const RESOLVE_NO_SYMLINKS: u64 = 0x04;
const RESOLVE_BENEATH: u64 = 0x08;
const RESOLVE_IN_ROOT: u64 = 0x10;

fn is_proc(folder: BorrowedFd<'_>) -> bool {
    fstatfs(folder).is_ok_and(|of| of.filesystem_type() == PROC_SUPER_MAGIC)
}

fn open_path(folder: &OwnedFd, name: &OsStr, flags: OFlag) -> Result<OwnedFd, Errno> {
    openat(folder, name, OFlag::O_PATH | OFlag::O_CLOEXEC | flags, Mode::empty())
}

fn open_of(id: u32, what: &str) -> Result<OwnedFd, Errno> {
    let path = format!("/proc/{id}/{what}");
    open(path.as_str(), OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty())
}

fn again(file: &OwnedFd) -> Result<OwnedFd, Errno> {
    file.try_clone().map_err(|_| Errno::EMFILE)
}

/// Where something is, as this process sees it.
fn path_of(file: &OwnedFd) -> Result<PathBuf, Errno> {
    readlink(format!("/proc/self/fd/{}", file.as_raw_fd()).as_str()).map(PathBuf::from)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn find(place: &Place, path: &str) -> Found {
        find_by(place, path, true, 0)
    }

    fn find_by(place: &Place, path: &str, follows: bool, resolve: u64) -> Found {
        let tid = nix::unistd::gettid().as_raw().unsigned_abs();
        let path = OsStr::new(path);
        place.find(&Asked { tid, folder: None, path, follows, resolve })
    }

    #[test]
    fn a_path_that_leads_to_nothing_is_found_in_every_form() {
        let folder = tempfile::tempdir().unwrap();
        let at = |rest: &str| format!("{}/{rest}", folder.path().display());
        fs::create_dir(at("dev")).unwrap();
        symlink(at("dev/net/tun"), at("link")).unwrap();
        symlink("dev", at("short")).unwrap();
        symlink("loop", at("loop")).unwrap();
        let place = Place::new(Path::new(&at("dev/net/tun")));
        for path in
            ["dev/net/tun", "dev//net/./tun", "link", "short/net/tun", "short/../dev/net/tun"]
        {
            assert_eq!(find(&place, &at(path)), Found::Device, "{path}");
            let rooted = format!("/proc/self/root{}", at(path));
            assert_eq!(find(&place, &rooted), Found::Device, "{path}");
        }
        for path in
            ["dev/net/tun/", "dev/net", "dev/net/tun/x", "loop", "dev/net/../net/tun", "tun"]
        {
            assert_eq!(find(&place, &at(path)), Found::Other, "{path}");
        }
        assert_eq!(find_by(&place, &at("link"), false, 0), Found::Other);
        assert_eq!(find_by(&place, &at("link"), true, RESOLVE_NO_SYMLINKS), Found::Other);
        assert_eq!(find_by(&place, &at("link"), true, RESOLVE_NO_MAGICLINKS), Found::Device);
        assert_eq!(find_by(&place, &at("dev/net/tun"), true, RESOLVE_BENEATH), Found::Other);
        assert_eq!(find(&place, ""), Found::Other);
    }

    #[test]
    fn descriptors_in_proc_are_what_they_refer_to() {
        let place = Place::new(Path::new("/nowhere/tun"));
        let file = fs::File::open("/dev/null").unwrap();
        let kind = FileKind::of(file.as_fd()).unwrap();
        for process in ["self", "thread-self"] {
            let path = format!("/proc/{process}/fd/{}", file.as_raw_fd());
            assert_eq!(find(&place, &path), Found::Opened(kind), "{path}");
        }
        assert_eq!(find(&place, "/proc/self/status"), Found::Other);
        assert_eq!(find(&place, "/proc/mounts"), Found::Other);
    }

    #[test]
    fn relative_paths_begin_at_a_folder() {
        let folder = tempfile::tempdir().unwrap();
        let place = Place::new(&folder.path().join("a/tun"));
        let open = fs::File::open(folder.path()).unwrap();
        let tid = std::process::id();
        let asked = |path, resolve| Asked {
            tid,
            folder: Some(open.as_raw_fd().unsigned_abs()),
            path: OsStr::new(path),
            follows: true,
            resolve,
        };
        for resolve in [0, RESOLVE_BENEATH, RESOLVE_NO_XDEV, RESOLVE_IN_ROOT] {
            assert_eq!(place.find(&asked("a/tun", resolve)), Found::Device, "{resolve}");
        }
        assert_eq!(place.find(&asked("/a/tun", RESOLVE_IN_ROOT)), Found::Device);
        assert_eq!(place.find(&asked("/a/tun", 0)), Found::Other);
        assert_eq!(place.find(&asked("../../a/tun", RESOLVE_IN_ROOT)), Found::Device);
        let up = format!("../{}/a/tun", folder.path().file_name().unwrap().display());
        assert_eq!(place.find(&asked(&up, 0)), Found::Device);
        assert_eq!(place.find(&asked(&up, RESOLVE_BENEATH)), Found::Other);
    }
}
