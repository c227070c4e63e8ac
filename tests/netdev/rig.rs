//! Devices in a namespace, and whoever listens to what becomes of them.

use super::*;

/// What a listener heard that it had not asked for.
#[derive(Debug, PartialEq)]
pub enum Heard {
    Readable(FileId),
    Changed(State),
    Gone,
}

/// Why there is no device.
#[derive(Debug, PartialEq)]
pub struct Refusal {
    pub errno: Errno,
    pub text: String,
}

/// What it had.
#[derive(Debug)]
pub enum Answer {
    Made(Result<MadeNetdev, Refusal>),
    Done(Result<(), Errno>),
    Removed,
    GoneOn,
}

pub struct Ear {
    pub heard: Mutex<mpsc::Sender<Heard>>,
    pub answers: Mutex<mpsc::Sender<Answer>>,
    /// Why the last one was not made.
    pub refused: Mutex<Option<Refusal>>,
    pub states: Mutex<BTreeMap<TunnelId, State>>,
    pub taken: Mutex<Vec<Bytes>>,
    /// An end of it means that all may go on.
    pub pause: Option<Mutex<mpsc::Receiver<()>>>,
}

impl Ear {
    pub fn hear(&self, heard: Heard) {
        // Nobody listens once the test is over.
        let _over = self.heard.lock().unwrap().send(heard);
    }

    pub fn answer(&self, answer: Answer) {
        let _over = self.answers.lock().unwrap().send(answer);
    }
}

impl Listener for Ear {
    fn tell(&self, news: News) {
        match news {
            News::Made(tunnel, made) => {
                let refused = self.refused.lock().unwrap().take();
                self.answer(Answer::Made(match made {
                    Ok(made) => {
                        let made = made.expect("nobody does without");
                        self.states.lock().unwrap().insert(tunnel, made.state);
                        Ok(made)
                    }
                    Err(_) => Err(refused.expect("it was explained")),
                }));
            }
            News::Done(_, done) => {
                self.answer(Answer::Done(done.map_err(|errno| Errno::from_raw(errno.number()))));
            }
            News::Removed(_) => self.answer(Answer::Removed),
            News::Changed(tunnel, state) => {
                if let Some(pause) = &self.pause {
                    let _until = pause.lock().unwrap().recv();
                }
                self.states.lock().unwrap().insert(tunnel, state);
                self.hear(Heard::Changed(state));
            }
            News::Gone(_) => self.hear(Heard::Gone),
            News::Readable(_, file) => self.hear(Heard::Readable(file)),
            News::Added(..) | News::Forwarded(..) => panic!("nobody has asked"),
        }
    }

    fn take(&self, _: TunnelId, _: FileId, datagram: Bytes) -> bool {
        self.taken.lock().unwrap().push(datagram);
        true
    }

    fn go_on(&self, _: Request) {
        self.answer(Answer::GoneOn);
    }

    fn explain(&self, error: &MakeError) -> Option<Errno> {
        let errno = error.errno();
        *self.refused.lock().unwrap() = Some(Refusal { errno, text: error.to_string() });
        Some(errno)
    }
}

pub const LINK: TunnelId = TunnelId(1);
pub const QUEUE: FileId = FileId(10);
pub const ASKER: RequestId = RequestId { origin: Origin(0), unique: 1 };
pub const TUN: IfFlags = IfFlags::TUN.union(IfFlags::NO_PI);
pub const TAP: IfFlags = IfFlags::TAP.union(IfFlags::NO_PI);

/// What is wanted of a device.
#[derive(Clone)]
pub struct Spec {
    pub name: Name,
    pub flags: IfFlags,
    pub interface: Interface,
    pub rights: Rights,
}

pub struct Rig {
    pub network: Network,
    pub user: Arc<User>,
    pub netdevs: Netdevs,
    pub ear: Arc<Ear>,
    pub heard: mpsc::Receiver<Heard>,
    pub answers: mpsc::Receiver<Answer>,
}

impl Rig {
    pub fn new() -> Self {
        Self::with(TunNode::find(), None)
    }

    pub fn with(node: TunNode, pause: Option<mpsc::Receiver<()>>) -> Self {
        let ((hear, heard), (answer, answers)) = (mpsc::channel(), mpsc::channel());
        let ear = Arc::new(Ear {
            heard: Mutex::new(hear),
            answers: Mutex::new(answer),
            refused: Mutex::default(),
            states: Mutex::default(),
            taken: Mutex::default(),
            pause: pause.map(Mutex::new),
        });
        let netdevs = Netdevs::start(node, Arc::clone(&ear) as Arc<dyn Listener>).unwrap();
        let user =
            Core::new(Limits::default(), 1).handle(Instant::ORIGIN, input::FindUser { uid: 0 });
        Self { network: Network::new(), user, netdevs, ear, heard, answers }
    }

    /// For whom devices are made.
    pub fn client(&self) -> Client {
        Client { user: Some(Arc::clone(&self.user)), network: Some(self.netns()) }
    }

    #[track_caller]
    pub fn answered(&self, request: NetdevRequest) -> Answer {
        self.netdevs.ask(request, self.client());
        self.answers.recv_timeout(DEADLINE).expect("it is answered")
    }

    #[track_caller]
    pub fn try_make(&self, tunnel: TunnelId, spec: Spec) -> Result<MadeNetdev, Refusal> {
        let Spec { name, flags, interface, rights } = spec;
        let (file, scope, index) = (QUEUE, Scope::default(), 0);
        let request =
            NetdevRequest::Make { tunnel, file, scope, name, flags, index, interface, rights };
        match self.answered(request) {
            Answer::Made(made) => made,
            other @ (Answer::Done(_) | Answer::Removed | Answer::GoneOn) => panic!("{other:?}"),
        }
    }

    pub fn make(&self, name: &str, flags: IfFlags) -> MadeNetdev {
        self.try_make(LINK, spec(name, flags)).unwrap()
    }

    pub fn set(&self, setting: Setting) -> Result<State, Errno> {
        self.set_of(LINK, setting)
    }

    #[track_caller]
    pub fn set_of(&self, tunnel: TunnelId, setting: Setting) -> Result<State, Errno> {
        match self.answered(NetdevRequest::Set { tunnel, setting, asker: Some(ASKER) }) {
            Answer::Done(done) => done.map(|()| self.state_of(tunnel)),
            other @ (Answer::Made(_) | Answer::Removed | Answer::GoneOn) => panic!("{other:?}"),
        }
    }

    /// As it was last told.
    pub fn state_of(&self, tunnel: TunnelId) -> State {
        self.ear.states.lock().unwrap()[&tunnel]
    }

    pub fn remove(&self) {
        self.remove_of(LINK);
    }

    pub fn remove_of(&self, tunnel: TunnelId) {
        let request = NetdevRequest::Remove { tunnel, is_deleted: false };
        assert!(matches!(self.answered(request), Answer::Removed));
    }

    pub fn netns(&self) -> Arc<Netns> {
        Arc::new(Netns::try_from(self.network.file()).unwrap())
    }

    pub fn write(&self, bytes: &[u8]) -> Result<usize, Errno> {
        self.netdevs.write(LINK, QUEUE, &[IoSlice::new(bytes)])
    }

    /// Waits until something was heard.
    #[track_caller]
    pub fn hear<T>(&self, what: &str, mut wanted: impl FnMut(&Heard) -> Option<T>) -> T {
        loop {
            match self.heard.recv_timeout(DEADLINE) {
                Ok(heard) => {
                    if let Some(found) = wanted(&heard) {
                        return found;
                    }
                }
                Err(error) => panic!("{what}: {error}"),
            }
        }
    }

    #[track_caller]
    pub fn hear_state(&self, what: &str, is: impl Fn(&State) -> bool) -> State {
        self.hear(what, |heard| match heard {
            Heard::Changed(state) if is(state) => Some(*state),
            Heard::Changed(_) | Heard::Readable(_) | Heard::Gone => None,
        })
    }

    /// What `ip` shows of a link.
    #[track_caller]
    pub fn shown(&self, name: &str) -> serde_json::Value {
        show(&self.network, name)
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        self.netdevs.stop();
    }
}

#[track_caller]
pub fn show(network: &Network, name: &str) -> serde_json::Value {
    let text = network.ip(&["-json", "-details", "link", "show", "dev", name]);
    let mut all: serde_json::Value = serde_json::from_str(&text).expect("ip prints JSON");
    all[0].take()
}

pub fn spec(name: &str, flags: IfFlags) -> Spec {
    let name = Name::new(name.as_bytes());
    Spec { name, flags, interface: Interface::Shadow, rights: Rights::Admin }
}

pub fn exists(network: &Network, name: &str) -> bool {
    network.command().args(["ip", "link", "show", "dev", name]).output().unwrap().status.success()
}
