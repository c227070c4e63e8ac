//! Random scripts against a reference: what a tun does, in the fewest words, with no headers.
//!
//! Names belong to kinds of tunnels: two have one queue, the third has many, the fourth is a persistent one's. Beside
//! agreement step by step: every request is answered exactly once (the rig fails on a second answer), and every datagram
//! that was injected was read, is queued, was counted as dropped, or was lost with its queue.

mod step;

use alloc::{borrow::ToOwned, collections::VecDeque, vec, vec::Vec};

use bytes::Bytes;
use proptest::prelude::*;

use self::step::{Step, step};
use super::{
    rig::{Rig, bytes_read, flags::*},
    *,
};
use crate::{
    abi::tun::ioctl::{TUNGETIFF, TUNGETSNDBUF, TUNSETCARRIER, TUNSETPERSIST, TUNSETSNDBUF},
    errno::Errno,
};

const NAMES: [&str; 4] = ["a", "b", "m", "p"];
const CAPACITY: usize = 500;
const FILES: usize = 8;

fn flags_of(name: usize) -> u16 {
    if NAMES[name] == "m" { TUN_NO_PI | MULTI_QUEUE } else { TUN_NO_PI }
}

struct ModelFile {
    id: FileId,
    name: Option<usize>,
    detached: bool,
    queue: VecDeque<u32>,
    parked: VecDeque<u64>,
    send_buffer: i32,
}

struct ModelTunnel {
    id: TunnelId,
    up: bool,
    carrier: bool,
    persistent: bool,
    capacity: usize,
    written: VecDeque<u32>,
    joined: Option<usize>,
    /// Given to a reader or queued, and counted as dropped.
    injected: (u64, u64),
}

#[derive(Default)]
struct Model {
    files: [Option<ModelFile>; FILES],
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
                if let Some(slot) = self.files.iter_mut().find(|file| file.is_none()) {
                    *slot = Some(ModelFile {
                        id: rig.open(),
                        name: None,
                        detached: false,
                        queue: VecDeque::new(),
                        parked: VecDeque::new(),
                        send_buffer: i32::MAX,
                    });
                }
            }
            Step::Attach { file, name, kind } => self.attach(rig, file, name, kind),
            Step::Queue { file, flags } => self.set_queue(rig, file, flags),
            Step::Persist { file, on } => {
                let Some((file, tunnel)) = self.pair(file) else { return };
                let expected = tunnel.map_or(Err(Errno::EBADFD), |tunnel| {
                    tunnel.persistent = on;
                    Ok(vec![])
                });
                assert_eq!(rig.ioctl(file.id, TUNSETPERSIST, on.into(), &[]), expected);
            }
            Step::Carrier { file, on } => {
                let active = self.active_of(file);
                let Some((file, tunnel)) = self.pair(file) else { return };
                let expected = match tunnel {
                    None => Err(Errno::EBADFD),
                    Some(_) if on && active == 0 => Err(Errno::EPERM),
                    Some(tunnel) => {
                        tunnel.carrier = on;
                        Ok(vec![])
                    }
                };
                let value = i32::from(on).to_ne_bytes();
                assert_eq!(rig.ioctl(file.id, TUNSETCARRIER, 0, &value), expected);
            }
            Step::SendBuffer { file, size } => self.set_send_buffer(rig, file, size),
            Step::Flags { file } => {
                let Some((file, tunnel)) = self.pair(file) else { return };
                let expected = tunnel.map(|tunnel| {
                    let flags = flags_of(file.name.expect("it has a tunnel"));
                    (flags | if tunnel.persistent { PERSIST } else { 0 })
                        | if file.detached { DETACH_QUEUE } else { 0 }
                });
                let stored = rig.ioctl(file.id, TUNGETIFF, 0, &[]);
                let flags = stored.map(|stored| u16::from_ne_bytes([stored[16], stored[17]]));
                assert_eq!(flags, expected.ok_or(Errno::EBADFD));
            }
            Step::Read { file } => {
                let Some(file) = self.open_file(file) else { return };
                let expected = match (file.name, file.queue.pop_front()) {
                    (None, _) => Err(Errno::EBADFD),
                    (Some(_), None) => Err(Errno::EAGAIN),
                    (Some(_), Some(number)) => Ok(bytes(number)),
                };
                assert_eq!(rig.read(file.id, 100), expected);
            }
            Step::ReadLater { file } => {
                let Some(file) = self.open_file(file) else { return };
                let request = rig.read_later(file.id, 100);
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
                let Some(file) = self.open_file(file) else { return };
                if let Some(request) = file.parked.pop_back() {
                    assert!(rig.cancel(request));
                    assert_eq!(rig.outcome(request), Some(Err(Errno::EINTR)));
                    assert!(!rig.cancel(request), "answered already");
                }
            }
            Step::Write { file } => {
                let number = self.number();
                let Some((file, tunnel)) = self.pair(file) else { return };
                let expected = match &tunnel {
                    None => Err(Errno::EBADFD),
                    Some(tunnel) if !tunnel.up => Err(Errno::EIO),
                    Some(_) => Ok(5),
                };
                assert_eq!(rig.write(file.id, &bytes(number)), expected);
                match tunnel.filter(|tunnel| tunnel.up) {
                    None => {}
                    Some(ModelTunnel { joined: Some(other), .. }) => {
                        let other = *other;
                        self.send(rig, other, number);
                    }
                    Some(tunnel) => tunnel.written.push_back(number),
                }
            }
            Step::Poll { file } => {
                let Some((file, tunnel)) = self.pair(file) else { return };
                let expected = tunnel.map_or(tun::POLL_ERROR, |tunnel| {
                    let readable = if file.queue.is_empty() { 0 } else { tun::POLL_READABLE };
                    let writable = tunnel.up && file.send_buffer > 3;
                    readable | if writable { tun::POLL_WRITABLE } else { 0 }
                });
                assert_eq!(rig.poll(file.id, None), expected);
            }
            Step::Close { file } => self.close(rig, file),
            Step::Inject { name, count } => (0..count).for_each(|_| self.inject(rig, name)),
            Step::Take { name } => self.take(rig, name),
            Step::Link { name, up } => {
                if let Some(tunnel) = &mut self.tunnels[name] {
                    tunnel.up = up;
                    rig.set_link(tunnel.id, up);
                }
            }
            Step::Resize { name, length } => {
                let Some(tunnel) = &mut self.tunnels[name] else { return };
                tunnel.capacity = length;
                let tx_queue_length = u32::try_from(length).ok();
                let settings = Settings { tx_queue_length, ..Settings::default() };
                assert_eq!(rig.configure(tunnel.id, &settings), Ok(()));
                for file in self.files_of(name) {
                    file.queue.truncate(length);
                }
            }
            Step::Delete { name } => self.delete(rig, name),
            Step::Join { name, other } => self.join(rig, name, other),
            Step::Part { name } => {
                if let Some(tunnel) = &mut self.tunnels[name] {
                    let joined = tunnel.joined.take();
                    assert_eq!(
                        rig.handle(input::Part { tunnel: tunnel.id.into() }).is_ok(),
                        joined.is_some()
                    );
                    self.leave_alone(joined);
                }
            }
        }
    }

    fn join(&mut self, rig: &mut Rig, name: usize, other: usize) {
        let (Some(one), Some(two)) = (&self.tunnels[name], &self.tunnels[other]) else { return };
        let joined = rig.join(one.id, two.id);
        if name == other {
            assert!(matches!(joined, Err(CommandError::SameTunnel(_))), "{joined:?}");
        } else if one.joined.is_some() || two.joined.is_some() {
            assert!(matches!(joined, Err(CommandError::HasPeer(_))), "{joined:?}");
        } else {
            assert_eq!(joined, Ok(()));
            for (from, to) in [(name, other), (other, name)] {
                let Some(tunnel) = &mut self.tunnels[from] else { continue };
                tunnel.joined = Some(to);
                for number in core::mem::take(&mut tunnel.written) {
                    self.send(rig, to, number);
                }
            }
        }
    }

    fn leave_alone(&mut self, name: Option<usize>) {
        if let Some(tunnel) = name.and_then(|name| self.tunnels[name].as_mut()) {
            tunnel.joined = None;
        }
    }

    fn open_file(&mut self, file: usize) -> Option<&mut ModelFile> {
        self.files.get_mut(file)?.as_mut()
    }

    /// A file, and the tunnel it is attached to.
    fn pair(&mut self, file: usize) -> Option<(&mut ModelFile, Option<&mut ModelTunnel>)> {
        let file = self.files.get_mut(file)?.as_mut()?;
        let tunnel = file.name.and_then(|name| self.tunnels[name].as_mut());
        Some((file, tunnel))
    }

    fn files_of(&mut self, name: usize) -> impl Iterator<Item = &mut ModelFile> {
        self.files.iter_mut().flatten().filter(move |file| file.name == Some(name))
    }

    /// How many queues of a file's tunnel are attached.
    fn active_of(&mut self, file: usize) -> usize {
        let name = self.open_file(file).and_then(|file| file.name);
        name.map_or(0, |name| self.files_of(name).filter(|file| !file.detached).count())
    }

    fn attach(&mut self, rig: &mut Rig, file: usize, name: usize, kind: u16) {
        let taken = self.files_of(name).count();
        let Some(file) = self.files.get_mut(file).and_then(Option::as_mut) else { return };
        let tunnel = &mut self.tunnels[name];
        // A tap, or another number of queues, than what the name stands for.
        let wanted = if kind == 2 { 0x1002 } else { flags_of(name) ^ kind };
        let differs = wanted != flags_of(name);
        if tunnel.is_none() && differs {
            return;
        }
        let expected = match (file.name, &tunnel) {
            (Some(_), _) => Err(Errno::EEXIST),
            (None, Some(_)) if differs => Err(Errno::EINVAL),
            (None, Some(_)) if taken > 0 && NAMES[name] != "m" => Err(Errno::EBUSY),
            (None, _) => Ok(NAMES[name].to_owned()),
        };
        assert_eq!(rig.set_iff(file.id, NAMES[name], wanted), expected);
        if expected.is_err() {
            return;
        }
        file.name = Some(name);
        file.queue.clear();
        let id = rig.core.file(file.id).and_then(File::tunnel).expect("it is attached");
        let tunnel = tunnel.get_or_insert_with(|| ModelTunnel {
            id,
            up: true,
            carrier: true,
            persistent: false,
            capacity: CAPACITY,
            written: VecDeque::new(),
            joined: None,
            injected: (0, 0),
        });
        assert_eq!(tunnel.id, id);
        tunnel.carrier |= taken == 0;
    }

    fn set_queue(&mut self, rig: &mut Rig, file: usize, flags: u16) {
        let Some(file) = self.open_file(file) else { return };
        let is_multi = file.name.is_some_and(|name| NAMES[name] == "m");
        let attach = flags & ATTACH_QUEUE != 0;
        let good = flags != 0 && is_multi && file.detached == attach;
        let expected = if good { Ok(()) } else { Err(Errno::EINVAL) };
        assert_eq!(rig.set_queue(file.id, flags), expected);
        if good {
            file.detached = !attach;
            if file.detached {
                file.queue.clear();
            }
        }
    }

    fn set_send_buffer(&mut self, rig: &mut Rig, file: usize, size: i32) {
        let Some(asked) = self.open_file(file) else { return };
        let (id, name) = (asked.id, asked.name);
        let expected = match name {
            None => Err(Errno::EBADFD),
            Some(_) if size <= 0 => Err(Errno::EINVAL),
            Some(name) => {
                for file in self.files_of(name).filter(|file| !file.detached) {
                    file.send_buffer = size;
                }
                Ok(vec![])
            }
        };
        assert_eq!(rig.ioctl(id, TUNSETSNDBUF, 0, &size.to_ne_bytes()), expected);
        let own = self.open_file(file).map(|file| file.send_buffer.to_ne_bytes().to_vec());
        let expected = name.and(own).ok_or(Errno::EBADFD);
        assert_eq!(rig.ioctl(id, TUNGETSNDBUF, 0, &[]), expected);
    }

    fn close(&mut self, rig: &mut Rig, file: usize) {
        let Some(ModelFile { id, name, parked, .. }) =
            self.files.get_mut(file).and_then(Option::take)
        else {
            return;
        };
        rig.close(id);
        for request in parked {
            assert_eq!(rig.outcome(request), Some(Err(Errno::EBADFD)), "an answer is owed");
        }
        let Some(name) = name else { return };
        if self.files_of(name).count() > 0 {
            return;
        }
        match &mut self.tunnels[name] {
            Some(tunnel) if tunnel.persistent => tunnel.carrier = false,
            Some(_) | None => self.bury(name),
        }
    }

    fn delete(&mut self, rig: &mut Rig, name: usize) {
        let Some(tunnel) = &self.tunnels[name] else { return };
        rig.delete(tunnel.id);
        for file in self.files_of(name) {
            (file.name, file.detached) = (None, false);
            file.queue.clear();
            for request in file.parked.drain(..) {
                assert_eq!(rig.outcome(request), Some(Err(Errno::EFAULT)));
            }
        }
        self.bury(name);
    }

    fn bury(&mut self, name: usize) {
        if let Some(tunnel) = self.tunnels[name].take() {
            self.leave_alone(tunnel.joined);
            if !tunnel.written.is_empty() {
                self.gone[name].push(tunnel.written);
            }
        }
    }

    fn inject(&mut self, rig: &mut Rig, name: usize) {
        let number = self.number();
        let Some(tunnel) = &self.tunnels[name] else { return };
        let delivered = rig.inject(tunnel.id, &bytes(number));
        let expected = self.arrive(rig, name, number);
        if matches!(expected, Err(CommandError::QueueFull { .. })) {
            self.count_drop(name);
        }
        assert_eq!(delivered, expected);
    }

    /// A datagram of a peer goes where one that is injected does; every one that is refused is counted.
    fn send(&mut self, rig: &mut Rig, name: usize, number: u32) {
        if self.arrive(rig, name, number).is_err() {
            self.count_drop(name);
        }
    }

    /// What becomes of a datagram that has been sent to a tunnel's client.
    fn arrive(
        &mut self,
        rig: &mut Rig,
        name: usize,
        number: u32,
    ) -> Result<Delivery, CommandError> {
        let tunnel = self.tunnels[name].as_mut().expect("it is there");
        let known = tun::Name::new(NAMES[name].as_bytes());
        let files = self.files.iter_mut().flatten().filter(|file| file.name == Some(name));
        let (detached, attached): (Vec<_>, Vec<_>) = files.partition(|file| file.detached);
        if detached.is_empty() && attached.is_empty() {
            return Err(CommandError::NotAttached(known));
        }
        if !tunnel.up {
            return Err(CommandError::Down(known));
        }
        if !tunnel.carrier {
            return Err(CommandError::NoCarrier(known));
        }
        // Which of several queues it is, the hash of its flow says: the core is asked.
        let selected = rig
            .core
            .tunnel(tunnel.id)
            .and_then(|known| known.select_queue(&Bytes::from(bytes(number)).into()));
        let Some(file) = attached.into_iter().find(|file| Some(file.id) == selected) else {
            return Err(CommandError::NoQueue(known));
        };
        // A queue of nothing passes nothing, not even to who waits.
        if tunnel.capacity > 0
            && let Some(request) = file.parked.pop_front()
        {
            assert_eq!(rig.outcome(request).map(bytes_read), Some(Ok(bytes(number))));
            tunnel.injected.0 += 1;
            return Ok(Delivery::Read);
        }
        if file.queue.len() >= tunnel.capacity {
            return Err(CommandError::QueueFull { name: known, datagrams: tunnel.capacity });
        }
        file.queue.push_back(number);
        tunnel.injected.0 += 1;
        Ok(Delivery::Queued(file.queue.len()))
    }

    fn count_drop(&mut self, name: usize) {
        self.tunnels[name].as_mut().expect("it is there").injected.1 += 1;
    }

    fn take(&mut self, rig: &mut Rig, name: usize) {
        let Ok(id) = rig.core.find(&Address::Name(tun::Name::new(NAMES[name].as_bytes()))) else {
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

    /// Nothing got lost on the way.
    fn check_sums(&self, rig: &Rig) {
        for tunnel in self.tunnels.iter().flatten() {
            let known = rig.core.tunnel(tunnel.id).expect("it is there");
            let counters = known.counters();
            assert_eq!(
                (counters.to_client.datagrams, counters.to_client_dropped.datagrams),
                tunnel.injected
            );
            assert_eq!((known.is_up(), known.has_carrier()), (tunnel.up, tunnel.carrier));
        }
        let mut open: Vec<&ModelFile> = self.files.iter().flatten().collect();
        open.sort_by_key(|file| file.id);
        assert_eq!(rig.core.files().count(), open.len());
        for (file, model) in rig.core.files().zip(open) {
            assert_eq!((file.id(), file.is_detached()), (model.id, model.detached));
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
    fn random_scripts_agree_with_the_model(steps in prop::collection::vec(step(), 0..150)) {
        let mut rig = Rig::new();
        let mut model = Model::default();
        for step in steps {
            model.perform(&mut rig, step);
            model.check_sums(&rig);
        }
    }
}
