//! Programs as clients: C sources of `tests/programs`, compiled when first needed.

use std::{
    cell::RefCell,
    collections::BTreeMap,
    io::{BufRead, BufReader, PipeReader, Write, pipe},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Arc, Mutex, OnceLock, mpsc},
    thread,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::{Background, DEADLINE};

/// Of what tests depend on.
pub const TESTS: &[(&str, fn())] =
    &[("failed_compilation_fails_who_needs_it_alone", failed_compilation_fails_who_needs_it_alone)];

/// The compiled program `tests/programs/NAME.c`.
pub fn compiled(name: &str) -> PathBuf {
    compiled_as(&format!("tests/programs/{name}.c"), name, &[])
}

/// The same, without shared libraries.
pub fn compiled_static(name: &str) -> PathBuf {
    compiled_as(&format!("tests/programs/{name}.c"), &format!("{name}-static"), &["-static"])
}

/// Where compiled programs go: the build's folder, or another where that belongs to somebody else.
fn folder() -> PathBuf {
    std::env::var_os("MEMTUN_TEST_FOLDER").map_or(env!("CARGO_TARGET_TMPDIR").into(), PathBuf::from)
}

/// A source of this repository, compiled to a program of that name. The test fails if that cannot be done.
#[track_caller]
pub fn compiled_as(source: &str, program: &str, options: &[&str]) -> PathBuf {
    try_compiled_as(source, program, options).unwrap_or_else(|why| panic!("{why}"))
}

/// The same, or why not. It is tried once, and every test that needs the program gets the outcome.
pub fn try_compiled_as(source: &str, program: &str, options: &[&str]) -> Result<PathBuf, String> {
    type Outcome = Arc<OnceLock<Result<PathBuf, String>>>;
    static COMPILED: Mutex<BTreeMap<String, Outcome>> = Mutex::new(BTreeMap::new());
    let outcome = {
        let mut compiled = COMPILED.lock().expect("nobody panics while it finds a name");
        Arc::clone(compiled.entry(program.to_owned()).or_default())
    };
    outcome.get_or_init(|| compile(source, program, options)).clone()
}

fn compile(source: &str, program: &str, options: &[&str]) -> Result<PathBuf, String> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join(source);
    let program = folder().join(format!("{program}-{}", std::process::id()));
    let cc = Command::new("cc")
        .args(["-O1", "-Wall", "-Wextra", "-Werror", "-D_GNU_SOURCE", "-o"])
        .args([&program, &source])
        .args(options)
        .output()
        .map_err(|error| format!("compiling {}: cc: {error}", source.display()))?;
    let said = String::from_utf8_lossy(&cc.stderr);
    let failed = || format!("compiling {}: {said}", source.display());
    if cc.status.success() { Ok(program) } else { Err(failed()) }
}

/// Whether a source can be compiled and linked here.
pub fn compiles(source: &str, options: &[&str]) -> bool {
    let folder = tempfile::tempdir().expect("a folder for a program");
    let mut cc = Command::new("cc");
    cc.args(options).args(["-x", "c", "-", "-o"]).arg(folder.path().join("program"));
    let cc = cc.stdin(Stdio::piped()).stderr(Stdio::null()).spawn();
    cc.is_ok_and(|mut cc| {
        let stdin = cc.stdin.take();
        let written = stdin.is_some_and(|mut stdin| stdin.write_all(source.as_bytes()).is_ok());
        cc.wait().is_ok_and(|status| status.success()) && written
    })
}

/// A running program whose output is read line by line. It is killed when dropped; what it said is printed if the test
/// failed.
pub struct Program {
    child: Arc<Mutex<Child>>,
    pid: Pid,
    lines: mpsc::Receiver<String>,
    said: RefCell<Vec<String>>,
    name: String,
    /// How long a line that is waited for may take.
    deadline: Duration,
}

impl Program {
    pub fn start(command: &mut Command) -> Self {
        let (output, input) = pipe().expect("a pipe");
        Self::start_reading(command.stdout(input), output)
    }

    /// One whose errors are lines of output too.
    pub fn start_with_stderr(command: &mut Command) -> Self {
        let (output, input) = pipe().expect("a pipe");
        let same = input.try_clone().expect("a descriptor can be duplicated");
        Self::start_reading(command.stdout(input).stderr(same), output)
    }

    fn start_reading(command: &mut Command, output: PipeReader) -> Self {
        let name = format!("{command:?}");
        let child = command.spawn().unwrap_or_else(|error| panic!("{name}: {error}"));
        // The command holds the other end of the pipe, which must close with the program.
        command.stdout(Stdio::null()).stderr(Stdio::null());
        let (send, lines) = mpsc::channel();
        thread::spawn(move || {
            for line in BufReader::new(output).split(b'\n').map_while(Result::ok) {
                if send.send(String::from_utf8_lossy(&line).into_owned()).is_err() {
                    return;
                }
            }
        });
        let pid = Pid::from_raw(child.id().cast_signed());
        let said = RefCell::default();
        Self { child: Arc::new(Mutex::new(child)), pid, lines, said, name, deadline: DEADLINE }
    }

    /// The same, for a program that is slow to start.
    pub fn with_deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    #[track_caller]
    pub fn line(&self) -> String {
        self.line_with("")
    }

    /// Reads on until a line has this text in it, and returns the line. Others that come meanwhile do not make it wait longer.
    #[track_caller]
    #[expect(clippy::disallowed_methods, reason = "a deadline is a time")]
    pub fn line_with(&self, text: &str) -> String {
        let end = Instant::now() + self.deadline;
        loop {
            match self.lines.recv_timeout(end.saturating_duration_since(Instant::now())) {
                Ok(line) => {
                    self.said.borrow_mut().push(line.clone());
                    if line.contains(text) {
                        return line;
                    }
                }
                Err(error) => {
                    let (name, deadline) = (&self.name, self.deadline);
                    panic!("{name}: no line with {text:?} within {deadline:?}: {error}")
                }
            }
        }
    }

    /// Whether it has said this by now. It must not end before.
    #[track_caller]
    pub fn has_said(&self, text: &str) -> bool {
        let mut said = self.said.borrow_mut();
        let ended = loop {
            match self.lines.try_recv() {
                Ok(line) => said.push(line),
                Err(error) => break error == mpsc::TryRecvError::Disconnected,
            }
        };
        let has_said = said.iter().any(|line| line == text);
        assert!(has_said || !ended, "{}: it ended before it said {text:?}", self.name);
        has_said
    }

    /// The rest of the line that it has said and that begins so.
    #[track_caller]
    pub fn line_said(&self, start: &str) -> String {
        let said = self.said.borrow();
        let rest = said.iter().find_map(|line| line.strip_prefix(start));
        rest.unwrap_or_else(|| panic!("{}: no line begins with {start:?}", self.name)).to_owned()
    }

    #[track_caller]
    pub fn expect_line(&self, wanted: &str) {
        assert_eq!(self.line(), wanted, "{}", self.name);
    }

    pub fn pid(&self) -> Pid {
        self.pid
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
        match self.child.try_lock() {
            Ok(mut child) => {
                // It has ended already where killing fails.
                let _ended = child.kill();
                let _reaped = child.wait();
            }
            // Somebody waited for it in vain, and reaps it now.
            Err(_) => {
                let _ended = kill(self.pid, Signal::SIGKILL);
            }
        }
        if thread::panicking() {
            let unread = self.lines.try_iter();
            let said: Vec<String> = self.said.take().into_iter().chain(unread).collect();
            eprintln!("--- what {} said\n{}\n---", self.name, said.join("\n"));
        }
    }
}

fn failed_compilation_fails_who_needs_it_alone() {
    let folder = tempfile::tempdir().unwrap();
    let source = folder.path().join("mistake.c");
    std::fs::write(&source, "int main(void) { return mistake; }").unwrap();
    let shown = source.to_str().unwrap();
    for _ in 0..2 {
        let why = try_compiled_as(shown, "mistake", &[]).unwrap_err();
        assert!(why.contains("mistake.c: ") && why.contains("error:"), "{why}");
    }
    assert!(compiled("reader").exists());
}
