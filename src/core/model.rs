//! Random scripts against a reference: what a tun does, in the fewest words, with no headers and one queue a tunnel.
//!
//! Beside agreement step by step: every request is answered exactly once (the rig fails on a second answer), and every
//! datagram that was injected was read, is queued, or was counted as dropped.

use std::collections::VecDeque;

use proptest::prelude::*;

use super::{
    rig::{Rig, bytes_read},
    *,
};

const NAMES: [&str; 3] = ["a", "b", "c"];
const TUN_NO_PI: u16 = 0x1001;
const CAPACITY: usize = 500;

#[derive(Clone, Copy, Debug)]
enum Step {
    Open,
    Attach { file: usize, name: usize },
    Read { file: usize },
    ReadLater { file: usize },
    Cancel { file: usize },
    Write { file: usize },
    Poll { file: usize },
    Close { file: usize },
    Inject { name: usize, count: usize },
    Take { name: usize },
    Link { name: usize, up: bool },
}

fn step() -> impl Strategy<Value = Step> {
    let (file, name) = (0..6_usize, 0..NAMES.len());
    prop_oneof![
        2 => Just(Step::Open),
        3 => (file.clone(), name.clone()).prop_map(|(file, name)| Step::Attach { file, name }),
        3 => file.clone().prop_map(|file| Step::Read { file }),
        2 => file.clone().prop_map(|file| Step::ReadLater { file }),
        1 => file.clone().prop_map(|file| Step::Cancel { file }),
        3 => file.clone().prop_map(|file| Step::Write { file }),
        2 => file.clone().prop_map(|file| Step::Poll { file }),
        1 => file.prop_map(|file| Step::Close { file }),
        4 => (name.clone(), prop_oneof![9 => 1..4_usize, 1 => Just(CAPACITY + 3)])
            .prop_map(|(name, count)| Step::Inject { name, count }),
        2 => name.clone().prop_map(|name| Step::Take { name }),
        1 => (name, any::<bool>()).prop_map(|(name, up)| Step::Link { name, up }),
    ]
}

#[derive(Default)]
struct ModelFile {
    id: Option<FileId>,
    name: Option<usize>,
    queue: VecDeque<u32>,
    parked: VecDeque<u64>,
}

struct ModelTunnel {
    id: TunnelId,
    up: bool,
    written: VecDeque<u32>,
    /// Given to a reader or queued, and refused by a full queue.
    injected: (u64, u64),
}

#[derive(Default)]
struct Model {
    files: Vec<ModelFile>,
    tunnels: [Option<ModelTunnel>; NAMES.len()],
    /// Tunnels that are gone, and what can still be taken from them; the youngest is last.
    gone: [Vec<VecDeque<u32>>; NAMES.len()],
    next: u32,
}

fn bytes(number: u32) -> Vec<u8> {
    [&[0x45][..], &number.to_be_bytes()].concat()
}

impl Model {
    /// The number in the next datagram.
    fn number(&mut self) -> u32 {
        self.next += 1;
        self.next
    }

    fn perform(&mut self, rig: &mut Rig, step: Step) {
        match step {
            Step::Open => {
                if self.files.len() < 6 {
                    self.files.push(ModelFile { id: Some(rig.open()), ..ModelFile::default() });
                }
            }
            Step::Attach { file, name } => self.attach(rig, file, name),
            Step::Read { file } => {
                let Some((file, id)) = self.open_file(file) else { return };
                let expected = match (file.name, file.queue.pop_front()) {
                    (None, _) => Err(Errno::EBADFD),
                    (Some(_), None) => Err(Errno::EAGAIN),
                    (Some(_), Some(number)) => Ok(bytes(number)),
                };
                assert_eq!(rig.read(id, 100), expected);
            }
            Step::ReadLater { file } => {
                let Some((file, id)) = self.open_file(file) else { return };
                let request = rig.read_later(id, 100);
                match (file.name, file.queue.pop_front()) {
                    (None, _) => assert_eq!(rig.outcome(request), Some(Err(Errno::EBADFD))),
                    (Some(_), Some(number)) => {
                        assert_eq!(rig.outcome(request).map(bytes_read), Some(Ok(bytes(number))));
                    }
                    (Some(_), None) => {
                        assert_eq!(rig.outcome(request), None);
                        file.parked.push_back(request);
                    }
                }
            }
            Step::Cancel { file } => {
                let Some((file, _)) = self.open_file(file) else { return };
                if let Some(request) = file.parked.pop_back() {
                    assert!(rig.cancel(request));
                    assert_eq!(rig.outcome(request), Some(Err(Errno::EINTR)));
                    assert!(!rig.cancel(request), "answered already");
                }
            }
            Step::Write { file } => {
                let number = self.number();
                let Some((file, id)) = self.open_file(file) else { return };
                let name = file.name;
                let tunnel = name.and_then(|name| self.tunnels[name].as_mut());
                let expected = match tunnel {
                    None => Err(Errno::EBADFD),
                    Some(tunnel) if !tunnel.up => Err(Errno::EIO),
                    Some(tunnel) => {
                        tunnel.written.push_back(number);
                        Ok(5)
                    }
                };
                assert_eq!(rig.write(id, &bytes(number)), expected);
            }
            Step::Poll { file } => {
                let Some((file, id)) = self.open_file(file) else { return };
                let (name, readable) = (file.name, !file.queue.is_empty());
                let expected = match name.and_then(|name| self.tunnels[name].as_ref()) {
                    None => tun::POLL_ERROR,
                    Some(tunnel) => {
                        (if readable { tun::POLL_READABLE } else { 0 })
                            | (if tunnel.up { tun::POLL_WRITABLE } else { 0 })
                    }
                };
                assert_eq!(rig.poll(id, None), expected);
            }
            Step::Close { file } => self.close(rig, file),
            Step::Inject { name, count } => (0..count).for_each(|_| self.inject(rig, name)),
            Step::Take { name } => {
                let Ok(id) = rig.core.find(&Address::Name(tun::Name::new(NAMES[name].as_bytes())))
                else {
                    assert!(self.tunnels[name].is_none() && self.gone[name].is_empty());
                    return;
                };
                let expected = match &mut self.tunnels[name] {
                    Some(tunnel) => tunnel.written.pop_front(),
                    None => {
                        let youngest = self.gone[name].last_mut().expect("something is found");
                        let number = youngest.pop_front();
                        self.gone[name].retain(|written| !written.is_empty());
                        number
                    }
                };
                assert_eq!(rig.take(id), expected.map(bytes));
            }
            Step::Link { name, up } => {
                if let Some(tunnel) = &mut self.tunnels[name] {
                    tunnel.up = up;
                    rig.set_link(tunnel.id, up);
                }
            }
        }
    }

    fn open_file(&mut self, file: usize) -> Option<(&mut ModelFile, FileId)> {
        let file = self.files.get_mut(file)?;
        let id = file.id?;
        Some((file, id))
    }

    fn attach(&mut self, rig: &mut Rig, file: usize, name: usize) {
        let taken = self.tunnels[name].is_some();
        let Some((file, id)) = self.open_file(file) else { return };
        let expected = match (file.name, taken) {
            (Some(_), _) => Err(Errno::EEXIST),
            (None, true) => Err(Errno::EBUSY),
            (None, false) => Ok(NAMES[name].to_owned()),
        };
        assert_eq!(rig.set_iff(id, NAMES[name], TUN_NO_PI), expected);
        if expected.is_ok() {
            file.name = Some(name);
            let id = rig.core.file(id).and_then(File::tunnel).expect("it is attached");
            self.tunnels[name] =
                Some(ModelTunnel { id, up: true, written: VecDeque::new(), injected: (0, 0) });
        }
    }

    fn close(&mut self, rig: &mut Rig, file: usize) {
        let Some((file, id)) = self.open_file(file) else { return };
        file.id = None;
        let ModelFile { name, parked, .. } = std::mem::take(file);
        rig.close(id);
        for request in parked {
            assert_eq!(rig.outcome(request), Some(Err(Errno::EBADFD)), "an answer is owed");
        }
        if let Some(name) = name
            && let Some(tunnel) = self.tunnels[name].take()
            && !tunnel.written.is_empty()
        {
            self.gone[name].push(tunnel.written);
        }
    }

    fn inject(&mut self, rig: &mut Rig, name: usize) {
        let number = self.number();
        let Some(tunnel) = &mut self.tunnels[name] else { return };
        let file =
            self.files.iter_mut().find(|file| file.name == Some(name)).expect("an attached file");
        let delivered = rig.inject(tunnel.id, &bytes(number));
        if !tunnel.up {
            assert!(matches!(delivered, Err(CommandError::Down(_))), "{delivered:?}");
        } else if let Some(request) = file.parked.pop_front() {
            assert_eq!(delivered, Ok(Delivery::Read));
            assert_eq!(rig.outcome(request).map(bytes_read), Some(Ok(bytes(number))));
            tunnel.injected.0 += 1;
        } else if file.queue.len() < CAPACITY {
            file.queue.push_back(number);
            assert_eq!(delivered, Ok(Delivery::Queued(file.queue.len())));
            tunnel.injected.0 += 1;
        } else {
            assert!(matches!(delivered, Err(CommandError::QueueFull { .. })), "{delivered:?}");
            tunnel.injected.1 += 1;
        }
    }

    /// Nothing got lost on the way.
    fn check_sums(&self, rig: &Rig) {
        for tunnel in self.tunnels.iter().flatten() {
            let counters = rig.core.tunnel(tunnel.id).expect("it is there").counters();
            assert_eq!(
                (counters.to_client.datagrams, counters.to_client_dropped.datagrams),
                tunnel.injected
            );
        }
        let open: Vec<FileId> = self.files.iter().filter_map(|file| file.id).collect();
        assert_eq!(rig.core.files().map(File::id).collect::<Vec<_>>(), open);
        for (file, model) in
            rig.core.files().zip(self.files.iter().filter(|file| file.id.is_some()))
        {
            assert_eq!(
                (file.queue().len(), file.parked_reads()),
                (model.queue.len(), model.parked.len())
            );
            assert!(
                file.queue().is_empty() || file.parked_reads() == 0,
                "a parked read has an empty queue"
            );
        }
    }
}

proptest! {
    #[test]
    fn random_scripts_agree_with_the_model(steps in prop::collection::vec(step(), 0..120)) {
        let mut rig = Rig::new();
        let mut model = Model::default();
        for step in steps {
            model.perform(&mut rig, step);
            model.check_sums(&rig);
        }
    }
}
