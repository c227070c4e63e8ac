//! A client's thread, as `/proc` shows it.
//!
//! All that is looked at here may be another's by the time it is used: a caller checks afterwards that the call still waits.

use std::{
    ffi::CStr,
    fmt::Write as _,
    fs,
    os::fd::{AsFd, OwnedFd},
    sync::{Arc, Mutex, PoisonError},
};

use nix::{
    errno::Errno,
    fcntl::{OFlag, open},
    sys::stat::Mode,
};

use crate::hub::FileKind;

/// Folders that are kept open, at most.
const MAX_FOLDERS: usize = 64;

/// The folders `/proc/TID/fd` of the threads that called last. One of a thread that has ended finds nothing, also if another has its
/// number by then.
#[derive(Debug, Default)]
pub(super) struct Descriptors(Mutex<Vec<(u32, Arc<OwnedFd>)>>);

impl Descriptors {
    /// What a thread's descriptor refers to.
    ///
    /// # Errors
    ///
    /// `EBADF`: there is none of this number. `EACCES`: the thread may not be looked at.
    pub(super) fn kind(&self, tid: u32, number: u32) -> Result<FileKind, Errno> {
        let mut name = Name::default();
        name.set(number);
        let (folder, is_kept) = self.folder(tid)?;
        match FileKind::in_folder(folder.as_fd(), name.as_c_str()) {
            Err(Errno::ENOENT | Errno::ESRCH) if is_kept => {
                // Perhaps it is that of a thread that has ended.
                self.forget(tid);
                let (folder, _) = self.folder(tid)?;
                FileKind::in_folder(folder.as_fd(), name.as_c_str())
            }
            kind => kind,
        }
        .map_err(|errno| if errno == Errno::ENOENT { Errno::EBADF } else { errno })
    }

    /// The folder, and whether it was open already.
    fn folder(&self, tid: u32) -> Result<(Arc<OwnedFd>, bool), Errno> {
        let mut folders = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(at) = folders.iter().position(|(of, _)| *of == tid) {
            let folder = Arc::clone(&folders[at].1);
            if at > 0 {
                // The last caller is likely to be the next.
                folders.swap(0, at);
            }
            return Ok((folder, true));
        }
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let folder = Arc::new(open(format!("/proc/{tid}/fd").as_str(), flags, Mode::empty())?);
        folders.truncate(MAX_FOLDERS - 1);
        folders.insert(0, (tid, Arc::clone(&folder)));
        Ok((folder, false))
    }

    fn forget(&self, tid: u32) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).retain(|(of, _)| *of != tid);
    }
}

/// The name of a descriptor, without an allocation.
#[derive(Default)]
struct Name {
    bytes: [u8; 12],
    length: usize,
}

impl Name {
    fn set(&mut self, number: u32) {
        write!(self, "{number}").expect("a number has at most ten digits");
    }

    fn as_c_str(&self) -> &CStr {
        CStr::from_bytes_until_nul(&self.bytes).expect("its end is never written to")
    }
}

impl std::fmt::Write for Name {
    fn write_str(&mut self, text: &str) -> std::fmt::Result {
        let end = self.length + text.len();
        let room = self.bytes.get_mut(self.length..end.min(11)).ok_or(std::fmt::Error)?;
        if room.len() != text.len() {
            return Err(std::fmt::Error);
        }
        room.copy_from_slice(text.as_bytes());
        self.length = end;
        Ok(())
    }
}

/// The flags of a descriptor's open file (`O_*`), and whether the descriptor is closed on exec.
pub(super) fn flags_of(tid: u32, number: u32) -> Option<OFlag> {
    let info = fs::read_to_string(format!("/proc/{tid}/fdinfo/{number}")).ok()?;
    let flags = info.lines().find_map(|line| line.strip_prefix("flags:"))?;
    i32::from_str_radix(flags.trim(), 8).ok().map(OFlag::from_bits_retain)
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;

    use super::*;

    #[test]
    fn descriptors_are_told_by_their_numbers() {
        let descriptors = Descriptors::default();
        let file = fs::File::open("/dev/null").unwrap();
        let number = file.as_raw_fd().unsigned_abs();
        for _ in 0..2 {
            let kind = descriptors.kind(std::process::id(), number).unwrap();
            assert_eq!(Ok(kind), FileKind::of(file.as_fd()));
            assert_eq!(descriptors.kind(std::process::id(), 1 << 30), Err(Errno::EBADF));
        }
        assert!(descriptors.kind(u32::MAX, 0).is_err());
        assert!(flags_of(std::process::id(), number).unwrap().contains(OFlag::O_CLOEXEC));
    }

    #[test]
    fn names_are_numbers() {
        for number in [0, 7, 1023, u32::MAX] {
            let mut name = Name::default();
            name.set(number);
            assert_eq!(name.as_c_str().to_str(), Ok(number.to_string().as_str()));
        }
    }
}
