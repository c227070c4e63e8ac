//! Programs as clients: C sources of `tests/programs`, compiled when first needed.

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Arc, Mutex, mpsc},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::{Background, DEADLINE};

/// The compiled program `tests/programs/NAME.c`.
pub fn compiled(name: &str) -> PathBuf {
    static COMPILED: Mutex<BTreeMap<String, PathBuf>> = Mutex::new(BTreeMap::new());
    let mut compiled = COMPILED.lock().expect("no test panics while it compiles");
    let path = compiled.entry(name.to_owned()).or_insert_with(|| {
        let source = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("tests/programs")
            .join(name)
            .with_extension("c");
        let program =
            Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}-{}", std::process::id()));
        let cc = Command::new("cc")
            .args(["-O1", "-Wall", "-Wextra", "-Werror", "-D_GNU_SOURCE", "-o"])
            .args([&program, &source])
            .output()
            .expect("cc can be run");
        assert!(
            cc.status.success(),
            "compiling {}: {}",
            source.display(),
            String::from_utf8_lossy(&cc.stderr)
        );
        program
    });
    path.clone()
}

/// A running program whose output is read line by line. It is killed when dropped.
pub struct Program {
    child: Arc<Mutex<Child>>,
    pid: Pid,
    lines: mpsc::Receiver<String>,
    name: String,
}

impl Program {
    pub fn start(command: &mut Command) -> Self {
        let name = format!("{command:?}");
        let mut child = command
            .stdout(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("{name}: {error}"));
        let output = child.stdout.take().expect("it is piped");
        let (send, lines) = mpsc::channel();
        std::thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                if send.send(line).is_err() {
                    return;
                }
            }
        });
        let pid = Pid::from_raw(child.id().cast_signed());
        Self { child: Arc::new(Mutex::new(child)), pid, lines, name }
    }

    #[track_caller]
    pub fn line(&self) -> String {
        match self.lines.recv_timeout(DEADLINE) {
            Ok(line) => line,
            Err(error) => panic!("{}: no line within {DEADLINE:?}: {error}", self.name),
        }
    }

    #[track_caller]
    pub fn expect_line(&self, wanted: &str) {
        assert_eq!(self.line(), wanted, "{}", self.name);
    }

    pub fn signal(&self, signal: Signal) {
        kill(self.pid, signal).expect("the program is running");
    }

    #[track_caller]
    pub fn wait(&self) -> ExitStatus {
        let child = Arc::clone(&self.child);
        let waiting = Background::start(move || child.lock().expect("one waiter").wait());
        waiting.join(&self.name).expect("it can be waited for")
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        if let Ok(mut child) = self.child.try_lock() {
            // It has ended already where killing fails.
            let _ended = child.kill();
            let _reaped = child.wait();
        }
    }
}
