//! The recipes of `examples/containers`: their commands are memtun's, what they refer to is there, and podman performs those that
//! need no other machine.

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::{PermissionsExt, chown, symlink},
    path::{Path, PathBuf},
    process::Command,
};

use clap::CommandFactory;
use memtun::cli::Cli;
use nix::unistd::geteuid;
use pulldown_cmark::{Event, Parser, Tag, TagEnd};
use tempfile::TempDir;
use yaml_rust2::{Yaml, YamlLoader};

use super::{BUSYBOX, CRUN, PATIENCE, PODMAN, missing};
use crate::support::{
    daemon::{Backend, MEMTUN, Run, run},
    program::{Program, compiled_static},
};

pub const TESTS: &[(&str, fn())] = &[
    ("commands_are_those_of_memtun", commands_are_those_of_memtun),
    ("memtun_is_found_in_shell_scripts", memtun_is_found_in_shell_scripts),
    ("recipes_refer_to_what_is_there", recipes_refer_to_what_is_there),
    ("document_has_every_recipe", document_has_every_recipe),
];

/// Those that podman performs.
pub const OF_PODMAN: &[(&str, fn())] = &[
    ("test_runs_beside_its_program", test_runs_beside_its_program),
    ("test_and_program_run_in_two_containers", test_and_program_run_in_two_containers),
    ("pod_uses_a_daemon_of_its_node", pod_uses_a_daemon_of_its_node),
];

const FOLDER: &str = "examples/containers";
const DOCUMENT: &str = "docs/containers.md";
const REPLY: &str = "10.0.0.2 > 10.0.0.1: ICMP echo reply";

/// What this user cannot do.
pub fn limit() -> Option<&'static str> {
    (!geteuid().is_root()).then_some("a container without root takes ids of its own")
}

/// What is missing here.
pub fn obstacle() -> Option<String> {
    missing(&[PODMAN, CRUN, BUSYBOX]).or_else(|| Backend::Fuse.obstacle())
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

#[track_caller]
fn text(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// The names of the recipes' files.
fn names() -> BTreeSet<String> {
    let entries = fs::read_dir(root().join(FOLDER)).expect("the recipes are there");
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

#[track_caller]
fn recipe(name: &str) -> Yaml {
    let documents = YamlLoader::load_from_str(&text(&format!("{FOLDER}/{name}")));
    let mut documents = documents.unwrap_or_else(|error| panic!("{name}: {error}"));
    assert_eq!(documents.len(), 1, "{name}");
    documents.remove(0)
}

/// What is at a key, which must be there.
#[track_caller]
fn at<'a>(yaml: &'a Yaml, key: &str) -> &'a Yaml {
    let value = &yaml[key];
    assert!(!value.is_badvalue(), "no {key} in {yaml:?}");
    value
}

/// A string at a key.
#[track_caller]
fn word<'a>(yaml: &'a Yaml, key: &str) -> &'a str {
    at(yaml, key).as_str().unwrap_or_else(|| panic!("{key} is a string in {yaml:?}"))
}

#[track_caller]
fn items(yaml: &Yaml) -> &[Yaml] {
    yaml.as_vec().unwrap_or_else(|| panic!("{yaml:?} is a list"))
}

#[track_caller]
fn strings(yaml: &Yaml) -> Vec<&str> {
    items(yaml).iter().map(|item| item.as_str().expect("a string")).collect()
}

/// The entries of a mapping, in order.
#[track_caller]
fn entries(yaml: &Yaml) -> impl Iterator<Item = (&str, &Yaml)> {
    let entries = yaml.as_hash().unwrap_or_else(|| panic!("{yaml:?} is a mapping"));
    entries.iter().map(|(key, value)| (key.as_str().expect("a string"), value))
}

/// All strings that are somewhere in it.
fn all_strings<'a>(yaml: &'a Yaml, into: &mut Vec<&'a str>) {
    if let Some(text) = yaml.as_str() {
        into.push(text);
    } else if let Some(items) = yaml.as_vec() {
        items.iter().for_each(|item| all_strings(item, into));
    } else if let Some(entries) = yaml.as_hash() {
        entries.values().for_each(|value| all_strings(value, into));
    }
}

/// memtun's arguments in a shell script, wherever it is called, with `memtun` as the first one.
fn calls(script: &str) -> Vec<Vec<String>> {
    const SEPARATORS: [&str; 5] = ["&", "&&", "||", "|", ";"];
    let script = script.replace("\\\n", " ");
    let lines = script.lines().filter_map(shlex::split);
    let is_memtun = |word: &String| word == "memtun" || word.ends_with("/bin/memtun");
    lines
        .flat_map(|words| {
            let commands = words.split(|word| SEPARATORS.contains(&word.as_str()));
            let from_memtun = commands
                .filter_map(|words| Some(&words[words.iter().position(is_memtun)?..]))
                .filter(|words| words.len() > 1);
            from_memtun.map(<[_]>::to_vec).collect::<Vec<_>>()
        })
        .collect()
}

/// The same of a whole recipe: a script, or the scripts and the commands in a YAML document.
fn calls_of(name: &str) -> Vec<Vec<String>> {
    fn commands(yaml: &Yaml, into: &mut Vec<Vec<String>>) {
        if let Some(items) = yaml.as_vec() {
            if items.len() > 1 && items[0].as_str() == Some("memtun") {
                into.push(strings(yaml).into_iter().map(str::to_owned).collect());
            }
            items.iter().for_each(|item| commands(item, into));
        } else if let Some(entries) = yaml.as_hash() {
            entries.values().for_each(|value| commands(value, into));
        }
    }
    if !is_yaml(name) {
        return calls(&text(&format!("{FOLDER}/{name}")));
    }
    let recipe = recipe(name);
    let (mut found, mut scripts) = (Vec::new(), Vec::new());
    commands(&recipe, &mut found);
    all_strings(&recipe, &mut scripts);
    found.extend(scripts.into_iter().flat_map(calls));
    found
}

fn is_yaml(name: &str) -> bool {
    Path::new(name).extension().is_some_and(|extension| extension == "yaml" || extension == "yml")
}

/// The blocks of code of a document, one after the other.
fn code(document: &str) -> String {
    let mut is_code = false;
    let pieces = Parser::new(document).filter_map(|event| {
        if let Event::Start(Tag::CodeBlock(_)) | Event::End(TagEnd::CodeBlock) = event {
            is_code = !is_code;
        }
        if let Event::Text(text) = event { is_code.then_some(text) } else { None }
    });
    pieces.map(pulldown_cmark::CowStr::into_string).collect()
}

fn commands_are_those_of_memtun() {
    let recipes = names().into_iter().filter(|name| is_yaml(name) || name == "test.sh");
    let mut found: Vec<_> = recipes.map(|name| (calls_of(&name), name)).collect();
    found.push((calls(&code(&text(DOCUMENT))), DOCUMENT.to_owned()));
    for (calls, name) in found {
        // It runs test.sh.
        assert_eq!(calls.is_empty(), name == "pod.yaml", "{name} calls memtun");
        for call in calls {
            if let Err(error) = Cli::command().try_get_matches_from(&call) {
                panic!("{name}: {}\n{error}", call.join(" "));
            }
        }
    }
}

fn memtun_is_found_in_shell_scripts() {
    let script = "\
        git clone there memtun && cargo install --path memtun\n\
        sudo ~/.cargo/bin/memtun serve --fuse \\\n  '/a b' & memtun wait # ready\n\
        docker run -v /run/memtun:/run/memtun memtun list | cat\n";
    let found = calls(script);
    let found: Vec<Vec<&str>> =
        found.iter().map(|call| call.iter().map(String::as_str).collect()).collect();
    assert_eq!(
        found,
        [
            &["~/.cargo/bin/memtun", "serve", "--fuse", "/a b"][..],
            &["memtun", "wait"],
            &["memtun", "list"]
        ]
    );
}

fn recipes_refer_to_what_is_there() {
    let exists = |path: &str| assert!(root().join(path).exists(), "{path}");
    for name in names().into_iter().filter(|name| is_yaml(name)) {
        let recipe = recipe(&name);
        let mut scripts = Vec::new();
        all_strings(&recipe, &mut scripts);
        // What continuous integration has of this repository.
        let words = scripts.into_iter().flat_map(str::split_whitespace);
        words.filter_map(|word| word.strip_prefix("memtun/")).for_each(exists);
        if !recipe["kind"].is_badvalue() {
            word(at(&recipe, "metadata"), "name");
            refers_to_its_volumes(&recipe);
        }
    }
    let daemons = recipe("daemonset.yaml");
    let spec = at(&daemons, "spec");
    let labels = at(at(at(spec, "template"), "metadata"), "labels");
    assert_eq!(at(at(spec, "selector"), "matchLabels"), labels);

    let compose = recipe("compose.yaml");
    for (_, service) in entries(at(&compose, "services")) {
        for volume in strings(at(service, "volumes")) {
            at(at(&compose, "volumes"), volume.split(':').next().unwrap());
        }
        if let Some(build) = service["build"].as_hash() {
            let build = &Yaml::Hash(build.clone());
            let context = Path::new(FOLDER).join(word(build, "context"));
            exists(context.join(word(build, "dockerfile")).to_str().unwrap());
        }
    }

    for (name, job) in entries(at(&recipe("github-workflow.yaml"), "jobs")) {
        word(job, "runs-on");
        for step in items(at(job, "steps")) {
            let kinds = ["uses", "run"].into_iter().filter(|kind| step[*kind].as_str().is_some());
            assert_eq!(kinds.count(), 1, "a step of {name}: {step:?}");
        }
    }
    let gitlab = recipe(".gitlab-ci.yml");
    for (name, job) in entries(&gitlab).filter(|(name, _)| !name.starts_with('.')) {
        assert!(!strings(at(job, "script")).is_empty(), "{name}");
        word(at(&gitlab, word(job, "extends")), "image");
    }

    for line in text(&format!("{FOLDER}/Dockerfile")).lines() {
        let mut words: Vec<&str> = line.split_whitespace().collect();
        if words.first() == Some(&"COPY") && !words[1].starts_with("--from=") {
            words.pop();
            words[1..].iter().copied().for_each(exists);
        }
    }
}

/// Every volume that a container of a pod mounts is one of the pod.
#[track_caller]
fn refers_to_its_volumes(recipe: &Yaml) {
    let spec = pod(recipe);
    let volumes: Vec<&str> =
        items(at(spec, "volumes")).iter().map(|volume| word(volume, "name")).collect();
    for container in items(at(spec, "containers")) {
        word(container, "image");
        for mount in items(at(container, "volumeMounts")) {
            assert!(volumes.contains(&word(mount, "name")), "{mount:?}");
        }
    }
}

/// A pod's specification, or that of a DaemonSet's pods.
fn pod(recipe: &Yaml) -> &Yaml {
    let spec = at(recipe, "spec");
    let of_template = &spec["template"]["spec"];
    if of_template.is_badvalue() { spec } else { of_template }
}

fn document_has_every_recipe() {
    let document = text(DOCUMENT);
    let links: BTreeSet<String> = Parser::new(&document)
        .filter_map(|event| {
            let Event::Start(Tag::Link { dest_url, .. }) = event else { return None };
            dest_url.strip_prefix("../examples/containers/").map(str::to_owned)
        })
        .collect();
    // Docker finds it beside the Dockerfile.
    let names: BTreeSet<String> =
        names().into_iter().filter(|name| name != "Dockerfile.dockerignore").collect();
    assert_eq!(links, names);
}

/// A machine with podman, in namespaces of its own: what runs there ends with it. Its folder `/run` is empty.
struct Engine {
    machine: Program,
    folder: TempDir,
}

impl Engine {
    /// One whose image is what the Dockerfile makes, as far as the recipes look at it.
    fn start() -> Self {
        let folder = tempfile::tempdir().expect("a folder for the machine");
        let open = fs::Permissions::from_mode(0o755);
        fs::set_permissions(folder.path(), open).unwrap();
        let image = folder.path().join("image");
        for name in
            ["bin", "dev/net", "lib", "lib64", "proc", "run/memtun", "sys", "tmp", "usr/lib"]
        {
            fs::create_dir_all(image.join(name)).unwrap();
        }
        let programs = image.join("usr/local/bin");
        fs::create_dir_all(&programs).unwrap();
        fs::write(programs.join("memtun"), "").unwrap();
        fs::copy(compiled_static("pong"), programs.join("my-tun-program")).unwrap();
        fs::copy(root().join(FOLDER).join("test.sh"), image.join("test.sh")).unwrap();
        fs::copy(BUSYBOX.path, image.join("bin/busybox")).unwrap();
        for name in ["cat", "sh", "stat"] {
            symlink("busybox", image.join("bin").join(name)).unwrap();
        }
        // crun takes a machine with control groups of both versions for broken. podman keeps its locks in /dev/shm.
        let script = "mount -t cgroup2 none /sys/fs/cgroup && mount -t tmpfs shm /dev/shm && mount -t tmpfs run /run \
             && echo ready && exec sleep infinity";
        let mut unshare = Command::new("unshare");
        unshare.args(["--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc", "--"]);
        let machine = Program::start(unshare.args(["sh", "-c", script])).with_deadline(PATIENCE);
        machine.expect_line("ready");
        Self { machine, folder }
    }

    /// A command on the machine, outside of containers.
    fn command(&self) -> Command {
        let of_machine = |kind| format!("/proc/{}/ns/{kind}", self.machine.pid());
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--mount={}", of_machine("mnt")))
            .arg(format!("--net={}", of_machine("net")))
            .arg(format!("--pid={}", of_machine("pid_for_children")))
            .arg("--");
        command
    }

    /// A container with memtun, and the system's libraries for it.
    fn container(&self, container: &Container) -> Command {
        let [image, state, run] =
            ["image", "state", "run"].map(|name| self.folder.path().join(name));
        let mut podman = self.command();
        podman.arg(PODMAN.path).arg("--root").arg(state).arg("--runroot").arg(run);
        podman
            .args(["--storage-driver=vfs", "--cgroup-manager=cgroupfs", "--events-backend=none"])
            .args(["run", "--rm", "--cgroups=disabled"])
            // Its own defaults are higher than a limited user may ask for.
            .args(["--ulimit=nofile=1024:1024", "--ulimit=nproc=1000:1000"])
            .args(["/lib", "/lib64", "/usr/lib"].map(|path| format!("--volume={path}:{path}:ro")))
            .arg(format!("--volume={MEMTUN}:/usr/local/bin/memtun:ro"))
            .args(&container.options)
            .arg("--rootfs")
            .arg(image)
            .args(&container.command);
        podman
    }

    /// Runs it to its end. It has no right, as the kernel says.
    #[track_caller]
    fn run_confined(&self, container: &Container) -> Run {
        let command = ["cat", "/proc/self/status"].map(str::to_owned).to_vec();
        let status = Container { options: container.options.clone(), command };
        let status = run(&mut self.container(&status), b"").succeeded();
        let line = |name: &str| {
            let value =
                status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(":\t"));
            value.unwrap_or_else(|| panic!("no {name} in {status}"))
        };
        assert_eq!(line("Uid"), "65534\t65534\t65534\t65534");
        assert_eq!(line("CapBnd"), "0000000000000000");
        assert_eq!(line("NoNewPrivs"), "1");
        assert_eq!(line("Seccomp"), "2", "podman's own filter");
        run(&mut self.container(container), b"")
    }
}

/// A container as podman is asked for it.
struct Container {
    options: Vec<String>,
    command: Vec<String>,
}

impl Container {
    /// A container of a pod. Paths of the node are those of the machine.
    #[track_caller]
    fn of_pod(recipe: &Yaml, name: &str) -> Self {
        let spec = pod(recipe);
        let mut containers = items(at(spec, "containers")).iter();
        let container = containers.find(|container| word(container, "name") == name);
        let container = container.expect("a container of that name");
        let context = at(container, "securityContext");
        let id = |key| at(context, key).as_i64().expect("a number");
        // The containers of a pod share a network namespace.
        let mut options = vec!["--network=host".to_owned()];
        options.push(format!("--user={}:{}", id("runAsUser"), id("runAsGroup")));
        let dropped = strings(at(at(context, "capabilities"), "drop"));
        options.extend(dropped.iter().map(|name| format!("--cap-drop={name}")));
        if at(context, "allowPrivilegeEscalation").as_bool() == Some(false) {
            options.push("--security-opt=no-new-privileges".to_owned());
        }
        if context["readOnlyRootFilesystem"].as_bool() == Some(true) {
            options.extend(["--read-only", "--read-only-tmpfs=false"].map(str::to_owned));
        }
        for mount in items(at(container, "volumeMounts")) {
            let mut volumes = items(at(spec, "volumes")).iter();
            let volume = volumes.find(|volume| word(volume, "name") == word(mount, "name"));
            let volume = volume.expect("a volume of the pod");
            let path = word(mount, "mountPath");
            options.push(match volume["hostPath"]["path"].as_str() {
                Some(source) => format!("--volume={source}:{path}"),
                None => format!("--mount=type=tmpfs,destination={path},tmpfs-mode=1777"),
            });
        }
        let command = strings(at(container, "command")).into_iter().map(str::to_owned).collect();
        Self { options, command }
    }

    /// A service of compose. Its volumes are folders of the machine.
    #[track_caller]
    fn of_service(recipe: &Yaml, name: &str, volumes: &Path) -> Self {
        let service = at(at(recipe, "services"), name);
        let mut options = vec![
            format!("--user={}", word(service, "user")),
            format!("--network={}", word(service, "network_mode")),
        ];
        let dropped = strings(at(service, "cap_drop"));
        options.extend(dropped.iter().map(|name| format!("--cap-drop={name}")));
        for option in strings(at(service, "security_opt")) {
            options.push(format!("--security-opt={option}"));
        }
        for (name, value) in entries(at(service, "environment")) {
            options.push(format!("--env={name}={}", value.as_str().expect("a string")));
        }
        for volume in strings(at(service, "volumes")) {
            options.push(format!("--volume={}", volumes.join(volume).display()));
        }
        let command = strings(at(service, "command")).into_iter().map(str::to_owned).collect();
        Self { options, command }
    }
}

fn test_runs_beside_its_program() {
    let engine = Engine::start();
    let container = Container::of_pod(&recipe("pod.yaml"), "test");
    let run = engine.run_confined(&container);
    assert!(run.status == 0 && run.stdout.contains(REPLY), "{run:?}");
}

fn test_and_program_run_in_two_containers() {
    let engine = Engine::start();
    let compose = recipe("compose.yaml");
    let control: PathBuf = engine.folder.path().join("control");
    fs::create_dir(&control).unwrap();
    chown(&control, Some(65534), Some(65534)).unwrap();
    let [client, test] =
        ["client", "test"].map(|name| Container::of_service(&compose, name, engine.folder.path()));
    let _client = Program::start_with_stderr(&mut engine.container(&client));
    let run = engine.run_confined(&test);
    assert!(run.status == 0 && run.stdout.contains(REPLY), "{run:?}");
}

/// The daemon is a process of the machine, not in a container: for that podman needs control groups.
fn pod_uses_a_daemon_of_its_node() {
    let engine = Engine::start();
    let daemons = recipe("daemonset.yaml");
    let container = &items(at(pod(&daemons), "containers"))[0];
    let serve = strings(at(container, "command"));
    let mut daemon = engine.command();
    daemon.arg(MEMTUN).args(&serve[1..]).env_remove("MEMTUN_CONTROL");
    let _daemon = Program::start_with_stderr(&mut daemon);
    let ready = strings(at(at(at(container, "readinessProbe"), "exec"), "command"));
    let mut wait = engine.command();
    wait.arg(MEMTUN).args(&ready[1..]).env_remove("MEMTUN_CONTROL");
    run(&mut wait, b"").succeeded();

    let recipe = recipe("pod-of-daemon.yaml");
    let [client, test] = ["client", "test"].map(|name| Container::of_pod(&recipe, name));
    let _client = Program::start_with_stderr(&mut engine.container(&client));
    let run = engine.run_confined(&test);
    assert!(run.status == 0 && run.stdout.contains(REPLY), "{run:?}");
}
