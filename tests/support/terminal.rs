//! A program on a terminal of its own: what a person would see, and what they type.

use std::{
    fs::{self, File},
    io::{Read, Write},
    os::fd::OwnedFd,
    process::{Child, Command, ExitStatus, Stdio},
    sync::mpsc,
    thread,
};

use nix::{
    pty::{Winsize, openpty},
    sys::{
        signal::{Signal, kill},
        wait::{Id, WaitPidFlag, waitid},
    },
    unistd::Pid,
};

use super::{DEADLINE, until, within_deadline};

/// A pseudo-terminal and the program that has it for its controlling terminal. The program is killed when this is dropped.
pub struct Terminal {
    child: Child,
    keyboard: File,
    output: mpsc::Receiver<Vec<u8>>,
    unread: Vec<u8>,
    ended: bool,
}

impl Terminal {
    /// The key that interrupts.
    pub const CTRL_C: &str = "\x03";

    /// Starts a program in a window of that many columns. The terminal shows colours unless the command sets `TERM` or
    /// `NO_COLOR`.
    pub fn start(command: &Command, columns: u16) -> Self {
        let size = Winsize { ws_row: 24, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        let pty = openpty(&size, None).expect("a pseudo-terminal");
        let end = |slave: &OwnedFd| Stdio::from(slave.try_clone().expect("a descriptor"));
        let mut started = Command::new("setsid");
        started.arg("--ctty").arg(command.get_program()).args(command.get_args());
        for variable in ["MEMTUN_CONTROL", "MEMTUN_LOG", "NO_COLOR", "CLICOLOR", "CLICOLOR_FORCE"] {
            started.env_remove(variable);
        }
        started.env("TERM", "xterm-256color");
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => started.env(name, value),
                None => started.env_remove(name),
            };
        }
        if let Some(folder) = command.get_current_dir() {
            started.current_dir(folder);
        }
        started.stdin(end(&pty.slave)).stdout(end(&pty.slave)).stderr(end(&pty.slave));
        let child = started.spawn().unwrap_or_else(|error| panic!("{started:?}: {error}"));
        // The output ends when the last of the program's own descriptors is closed.
        drop((started, pty.slave));
        let keyboard = File::from(pty.master);
        let mut screen = keyboard.try_clone().expect("a descriptor");
        let (send, output) = mpsc::channel();
        thread::spawn(move || {
            let mut buffer = [0; 4096];
            // A terminal whose other end is closed gives EIO.
            while let Ok(length @ 1..) = screen.read(&mut buffer) {
                if send.send(buffer[..length].to_vec()).is_err() {
                    return;
                }
            }
        });
        Self { child, keyboard, output, unread: Vec::new(), ended: false }
    }

    pub fn press(&mut self, keys: &str) {
        self.keyboard.write_all(keys.as_bytes()).expect("the terminal takes keys");
    }

    /// Waits until what was printed since the last call is complete, and returns it.
    #[track_caller]
    pub fn read_until(&mut self, what: &str, is_complete: impl Fn(&str) -> bool) -> String {
        loop {
            let text = String::from_utf8_lossy(&self.unread).into_owned();
            if is_complete(&text) {
                self.unread.clear();
                return text;
            }
            match self.output.recv_timeout(DEADLINE) {
                Ok(bytes) => self.unread.extend(bytes),
                Err(error) => panic!("{what}: {error} after {text:?}"),
            }
        }
    }

    /// Waits for the program's end; returns what else it printed.
    #[track_caller]
    pub fn end(mut self) -> (ExitStatus, String) {
        while let Ok(bytes) = self.output.recv_timeout(DEADLINE) {
            self.unread.extend(bytes);
        }
        let text = String::from_utf8_lossy(&self.unread).into_owned();
        self.ended = true;
        let pid = self.child.id();
        let status = self.child.try_wait().expect("it can be waited for").unwrap_or_else(|| {
            // Its output is closed, so it is about to end.
            let ended = move || {
                let pid = Id::Pid(Pid::from_raw(pid.cast_signed()));
                waitid(pid, WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT)
            };
            within_deadline("the program's end", ended).expect("it can be waited for");
            self.child.wait().expect("it can be waited for")
        });
        (status, text)
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits until the program runs, on its terminal: keys reach it from then on.
    #[track_caller]
    pub fn wait_for_program(&self, name: &str) {
        let path = format!("/proc/{}/comm", self.pid());
        until(|| fs::read_to_string(&path).is_ok_and(|running| running.trim_end() == name));
    }

    /// Something was printed that has not been read.
    pub fn has_printed(&mut self) -> bool {
        self.unread.extend(self.output.try_iter().flatten());
        !self.unread.is_empty()
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        if !self.ended {
            // A shell's jobs have process groups of their own. SIGTERM, for memtun takes its device along.
            for process in session(self.child.id()) {
                let _ended = kill(process, Signal::SIGTERM);
            }
            let _ended = self.child.kill();
            let _reaped = self.child.wait();
        }
    }
}

/// The processes of a session, see `proc_pid_stat(5)`.
fn session(leader: u32) -> Vec<Pid> {
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let ids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let is_of_session = |id: &i32| {
        let stat = fs::read_to_string(format!("/proc/{id}/stat")).unwrap_or_default();
        // state, ppid, pgrp, session
        let session = stat.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().nth(3));
        session.and_then(|session| session.parse().ok()) == Some(leader)
    };
    ids.filter(is_of_session).map(Pid::from_raw).collect()
}
