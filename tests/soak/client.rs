//! A client: what programs do with a tun device, in random order.

use std::{path::Path, thread, time::Duration};

use nix::{
    fcntl::OFlag,
    poll::{PollFlags, PollTimeout},
    sched::{CloneFlags, unshare},
    unistd::geteuid,
};

use crate::{
    device::{MULTI_QUEUE, NO_PI, TAP, TUN, TunFile, VNET_HDR},
    end_with_parent,
};
use memtun::abi::tun::ioctl::{TUNGETIFF, TUNSETQUEUE, TUNSETVNETHDRSZ};

const MOST_FILES: usize = 24;

pub(crate) fn play(device: &Path, mut random: fastrand::Rng) {
    end_with_parent();
    if geteuid().is_root() && random.u8(..3) == 0 {
        // Where it may not, it stays.
        let _own = unshare(CloneFlags::CLONE_NEWNET);
    }
    let mut files: Vec<TunFile> = Vec::new();
    loop {
        act(device, &mut random, &mut files);
    }
}

/// Calls may fail in any way; the daemon must not.
fn act(device: &Path, random: &mut fastrand::Rng, files: &mut Vec<TunFile>) {
    if files.is_empty() || (files.len() < MOST_FILES && random.u8(..8) == 0) {
        let flags = OFlag::O_RDWR | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK;
        let Ok(file) = TunFile::open_with(device, flags) else { return };
        let names = ["", "s%d", "s%d", "many", "tap%d", "fix"];
        let name = names[random.usize(..names.len())];
        let mut flags = if name == "tap%d" { TAP } else { TUN };
        flags |= [0, NO_PI, NO_PI, VNET_HDR][random.usize(..4)];
        flags |= if name == "many" { MULTI_QUEUE } else { 0 };
        let _attached = file.set_iff(name, flags);
        return files.push(file);
    }
    let at = random.usize(..files.len());
    let file = &files[at];
    match random.u8(..16) {
        0..6 => {
            let mut bytes = vec![0x45; length(random)];
            bytes[..4].copy_from_slice(&[0, 0, 8, 0]);
            for _ in 0..random.u8(1..40) {
                let _written = file.write(if random.bool() { &bytes } else { &bytes[4..] });
            }
        }
        6..9 => {
            for _ in 0..random.u8(1..40) {
                if file.read_up_to(length(random)).is_err() {
                    break;
                }
            }
        }
        9 => ignore(file.poll(PollFlags::POLLIN | PollFlags::POLLOUT, PollTimeout::from(2_u8))),
        10 => ignore(file.ioctl(TUNSETVNETHDRSZ, &mut random.u32(..100).to_ne_bytes())),
        11 => ignore(file.ioctl(TUNGETIFF, &mut [0; 40])),
        12 => {
            let mut request = [0; 40];
            request[16..18].copy_from_slice(&[0x200_u16, 0x400][random.usize(..2)].to_ne_bytes());
            ignore(file.ioctl(TUNSETQUEUE, &mut request));
        }
        13 => {
            // A reader that waits, on a thread of its own, until this process is killed.
            let blocked = file.try_clone();
            blocked.set_nonblocking(false);
            thread::spawn(move || blocked.read_up_to(1_500));
        }
        14 => drop(files.swap_remove(at)),
        _ => thread::sleep(Duration::from_micros(random.u64(..2_000))),
    }
}

/// A call may fail.
fn ignore<T>(_: T) {}

/// Of a datagram: most are as on a network.
fn length(random: &mut fastrand::Rng) -> usize {
    match random.u8(..10) {
        0 => random.usize(5..65_000),
        1..4 => random.usize(5..60),
        _ => random.usize(5..1_500),
    }
}
