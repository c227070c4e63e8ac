//! The README's sessions, typed in a shell on a terminal: nothing but what the README shows may appear. Only what the system
//! numbers may be another number: processes, and a ping's identifier.

use std::{fs, os::unix::fs::PermissionsExt, path::Path, process::Command};

use memtun_client::{
    Client,
    proto::wait::{Until, Wait},
};

use super::without_styles;
use crate::{
    run::{RunTest, User},
    support::{
        daemon::{Backend, MEMTUN},
        program::compiled,
        terminal::Terminal,
    },
};

pub const OF_README: &[RunTest] =
    &[("sessions_of_the_readme_are_as_they_are_shown", sessions_of_the_readme)];

/// Wide enough for every line.
const COLUMNS: u16 = 250;

/// A block of the README that begins with a prompt.
struct Session {
    prompt: &'static str,
    text: String,
}

impl Session {
    fn all() -> Vec<Self> {
        let readme = concat!(env!("CARGO_MANIFEST_DIR"), "/README.md");
        let readme = fs::read_to_string(readme).unwrap();
        let blocks =
            readme.split("```").skip(1).step_by(2).map(|block| block.trim_start_matches('\n'));
        let session = |block: &str| {
            let prompt = ["$ ", "# "].into_iter().find(|prompt| block.starts_with(prompt))?;
            Some(Self { prompt, text: block.to_owned() })
        };
        blocks.filter_map(session).collect()
    }

    fn commands(&self) -> impl Iterator<Item = &str> {
        self.text.lines().filter_map(|line| line.strip_prefix(self.prompt))
    }
}

fn sessions_of_the_readme(user: User) {
    let sessions = Session::all();
    assert!(sessions.len() >= 4, "the README has sessions");
    let as_user: Vec<&Session> = sessions.iter().filter(|session| session.prompt == "$ ").collect();
    assert!(as_user.len() >= 2 && as_user[0].commands().count() >= 6);
    for session in &sessions {
        if user == User::Ordinary && session.prompt == "# " {
            continue;
        }
        match Backend::Cuse.obstacle().filter(|_| session.text.contains("--cuse")) {
            Some(obstacle) => println!("SKIP the session with --cuse: {obstacle}"),
            None => session.perform(user),
        }
    }
}

impl Session {
    fn perform(&self, user: User) {
        let folder = tempfile::tempdir().unwrap();
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o777)).unwrap();
        fs::copy(compiled("pong"), folder.path().join("any-tun-program")).unwrap();
        // Programs that the README names and this machine may not have.
        let stub = folder.path().join("openvpn");
        fs::write(&stub, "#!/bin/sh\nexit 0\n").unwrap();
        fs::set_permissions(&stub, fs::Permissions::from_mode(0o755)).unwrap();

        let mut terminal = Terminal::start(&self.shell(user, folder.path()), COLUMNS);
        let is_prompt = |text: &str| without_styles(text).ends_with(self.prompt);
        let mut shown = terminal.read_until("the first prompt", is_prompt);
        for command in self.commands() {
            if command == "memtun list" {
                wait_until_reading(&folder.path().join("m.sock"));
            }
            terminal.press(&format!("{command}\n"));
            let is_done = |text: &str| text.contains('\n') && is_prompt(text);
            shown.push_str(&terminal.read_until(command, is_done));
        }
        let shown = without_styles(&shown).replace("\r\n", "\n");
        let shown = shown.strip_suffix(self.prompt).unwrap();
        assert_eq!(without_numbers(shown), without_numbers(&self.text), "{shown}");
        terminal.press("kill %1 %2; wait; exit\n");
        terminal.end();
    }

    /// A shell that finds memtun and the README's programs, with a `/run` of its own for root.
    fn shell(&self, user: User, folder: &Path) -> Command {
        let mut command = match (self.prompt, user) {
            ("# ", _) => {
                let mut command = Command::new("unshare");
                let script = "mount -t tmpfs tmpfs /run && exec \"$@\"";
                command.args(["-m", "sh", "-c", script, "sh"]);
                command
            }
            (_, User::Root) => Command::new("env"),
            (_, User::Ordinary) => {
                Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/lib/as-user"))
            }
        };
        let own = Path::new(MEMTUN).parent().unwrap();
        let path =
            format!("PATH={}:{}:/usr/sbin:/usr/bin:/sbin:/bin", own.display(), folder.display());
        command.args(["env", &path, &format!("PS1={}", self.prompt)]);
        command.args(["bash", "--norc", "--noprofile", "--noediting", "-i"]).current_dir(folder);
        command
    }
}

/// The program answers before it reads again; a person is not so fast as to see that.
fn wait_until_reading(control: &Path) {
    let (tunnel, timeout_ms) = ("tun0".parse().unwrap(), 30_000);
    let mut client = Client::connect(control).unwrap();
    client.call(&Wait { tunnel, until: Until::Reading, timeout_ms }).unwrap();
}

/// With `N` for each number that is another one each time.
fn without_numbers(text: &str) -> String {
    const BEFORE: [&str; 3] = ["] ", ", id ", "any-tun-program("];
    let mut out = String::new();
    let mut rest = text;
    while let Some(end) = BEFORE.iter().filter_map(|word| Some(rest.find(word)? + word.len())).min()
    {
        out.push_str(&rest[..end]);
        let tail = rest[end..].trim_start_matches(|c: char| c.is_ascii_digit());
        out.push_str(if tail.len() == rest[end..].len() { "" } else { "N" });
        rest = tail;
    }
    out + rest
}
