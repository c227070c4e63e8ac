//! What users share: datagrams that there is no memory for, and shares of files, tunnels and the rest.

use alloc::{collections::BTreeMap, vec, vec::Vec};

use proptest::prelude::*;

use super::{file::FILE_MEMORY, queue::DATAGRAM_MEMORY, tunnel::TUNNEL_MEMORY, *};

/// What a client has that holds no datagram.
const CLIENT: usize = FILE_MEMORY + TUNNEL_MEMORY;
/// What a datagram of a thousand bytes takes.
const THOUSAND: usize = DATAGRAM_MEMORY + 1_000;

fn rig(all: usize, user: usize) -> Rig {
    Rig::with_limits(Limits { memory: Bound { all, user }, ..Limits::default() })
}

fn thousand() -> Vec<u8> {
    vec![0x45; 1_000]
}

/// A tunnel of a user.
fn attached_by(rig: &mut Rig, uid: u32, name: &str) -> (FileId, TunnelId) {
    let file = rig.open_by(uid, Scope(1)).unwrap();
    rig.set_iff(file, name, TUN_NO_PI).unwrap();
    (file, rig.core.file(file).unwrap().tunnel().unwrap())
}

fn used(rig: &Rig) -> usize {
    rig.core.budget().used(Resource::Memory)
}

#[test]
fn what_there_is_no_memory_for_is_dropped_and_counted_as_such() {
    let mut rig = rig(1 << 20, CLIENT + 3 * THOUSAND);
    rig.handle(input::Observe { on: true });
    let (file, tunnel) = attached_by(&mut rig, 7, "t");
    rig.write(file, &thousand()).unwrap();
    rig.inject(tunnel, &thousand()).unwrap();
    rig.inject(tunnel, &thousand()).unwrap();
    let name = Name::new(b"t");
    let refused = Err(CommandError::NoMemory { name, uid: 7 });
    assert_eq!(rig.inject(tunnel, &thousand()), refused);
    assert_eq!(rig.inject_from_peer(tunnel, &thousand()), refused);
    assert_eq!(rig.write(file, &thousand()), Ok(1_000), "the client is not told");
    let counters = rig.core.tunnel(tunnel).unwrap().counters();
    assert_eq!(counters.memory_dropped, Count { datagrams: 3, bytes: 3_000 });
    assert_eq!(counters.to_client_dropped.datagrams, 2);
    assert_eq!(counters.from_client_dropped.datagrams, 1);
    let reason =
        |event: &&Event| matches!(event, Event::Dropped { reason: DropReason::Memory, .. });
    assert_eq!(rig.events.iter().filter(reason).count(), 3);

    assert_eq!(rig.read(file, 2_000), Ok(thousand()));
    assert_eq!(rig.write(file, &thousand()), Ok(1_000));
    assert_eq!(rig.core.tunnel(tunnel).unwrap().written().len(), 2, "there is room again");
    rig.close(file);
    assert_eq!(used(&rig), TUNNEL_MEMORY + 2 * THOUSAND, "what is kept of a tunnel that is gone");
    while rig.take(tunnel).is_some() {}
    assert_eq!(used(&rig), 0);
}

#[test]
fn tunsetiff_and_open_get_enomem_and_other_users_do_not() {
    let mut rig = rig(1 << 20, CLIENT + FILE_MEMORY + THOUSAND);
    let (file, _) = attached_by(&mut rig, 7, "t");
    rig.write(file, &thousand()).unwrap();
    let second = rig.open_by(7, Scope(1)).unwrap();
    assert_eq!(rig.set_iff(second, "u", TUN_NO_PI), Err(Errno::ENOMEM));
    assert_eq!(rig.open_by(7, Scope(1)), Err(Errno::ENOMEM));
    let (other, _) = attached_by(&mut rig, 8, "u");
    assert_eq!(rig.write(other, &thousand()), Ok(1_000));
}

#[test]
fn what_is_kept_of_deleted_tunnels_makes_room() {
    let mut rig = rig(3 * CLIENT + 4 * THOUSAND, 2 * CLIENT + 2 * THOUSAND);
    let leave = |rig: &mut Rig, uid| {
        let (file, tunnel) = attached_by(rig, uid, "t");
        rig.write(file, &thousand()).unwrap();
        rig.close(file);
        tunnel
    };
    let (others, first, second) = (leave(&mut rig, 8), leave(&mut rig, 7), leave(&mut rig, 7));
    let (file, tunnel) = attached_by(&mut rig, 7, "t");
    let kept = |rig: &Rig| [others, first, second].map(|id| rig.core.tunnel(id).is_some());
    assert_eq!(kept(&rig), [true, false, true], "the oldest of the user's own");
    rig.inject(tunnel, &thousand()).unwrap();
    assert_eq!(kept(&rig), [true, false, true]);
    rig.write(file, &thousand()).unwrap();
    assert_eq!(kept(&rig), [true, false, false]);
    // Where it is all that is in use, whoever's is the oldest.
    let (file, _) = attached_by(&mut rig, 9, "u");
    for _ in 0..2 {
        rig.write(file, &thousand()).unwrap();
    }
    assert_eq!(kept(&rig), [false; 3]);
}

#[test]
fn a_user_who_leaves_many_tunnels_drives_out_its_own() {
    let gone_tunnels = Bound { all: 3, user: 2 };
    let mut rig = Rig::with_limits(Limits { gone_tunnels, ..Limits::default() });
    let leave = |rig: &mut Rig, uid| {
        let (file, tunnel) = attached_by(rig, uid, "t");
        rig.write(file, IP).unwrap();
        rig.close(file);
        tunnel
    };
    let first = leave(&mut rig, 8);
    let more: Vec<TunnelId> = (0..3).map(|_| leave(&mut rig, 7)).collect();
    let last = leave(&mut rig, 9);
    let is_kept = |id: &TunnelId| rig.core.tunnel(*id).is_some();
    assert!(is_kept(&first) && is_kept(&last));
    assert_eq!(more.iter().map(is_kept).collect::<Vec<_>>(), [false, false, true]);
}

#[test]
fn a_user_has_a_share_of_files_tunnels_reads_and_namespaces() {
    let two = Bound { all: 3, user: 2 };
    let mut rig = Rig::with_limits(Limits {
        files: Bound { all: 8, user: 4 },
        tunnels: two,
        all_parked_reads: two,
        namespaces: two,
        ..Limits::default()
    });
    let by = |rig: &mut Rig, uid, scope| rig.open_by(uid, Scope(scope));
    let files = [1, 1, 2, 2].map(|scope| by(&mut rig, 7, scope).unwrap());
    assert_eq!(by(&mut rig, 7, 1), Err(Errno::EMFILE), "files");
    rig.close(files[3]);
    assert_eq!(by(&mut rig, 7, 3), Err(Errno::EMFILE), "namespaces");
    let other = by(&mut rig, 8, 3).unwrap();
    assert_eq!(by(&mut rig, 8, 4), Err(Errno::ENFILE), "namespaces of all");
    rig.close(files[2]);
    by(&mut rig, 7, 1).unwrap();

    for (file, name) in files.iter().zip(["a", "b"]) {
        rig.set_iff(*file, name, TUN_NO_PI).unwrap();
        rig.ioctl(*file, TUNSETPERSIST, 1, &[]).unwrap();
    }
    let third = by(&mut rig, 7, 1).unwrap();
    assert_eq!(rig.set_iff(third, "c", TUN_NO_PI), Err(Errno::EMFILE), "tunnels");
    rig.set_iff(other, "d", TUN_NO_PI).unwrap();
    let fourth = by(&mut rig, 9, 3);
    assert_eq!(fourth.and_then(|file| rig.set_iff(file, "e", TUN_NO_PI)), Err(Errno::ENFILE));

    let reads = [0, 1].map(|at: usize| rig.read_later(files[at], 9));
    let refused = rig.read_later(files[0], 9);
    assert_eq!(rig.outcome(refused), Some(Err(Errno::ENOMEM)), "reads");
    let others = [0, 1].map(|_| rig.read_later(other, 9));
    assert_eq!(rig.outcome(others[0]), None);
    assert_eq!(rig.outcome(others[1]), Some(Err(Errno::ENOMEM)), "of all");
    assert!(rig.cancel(reads[0]));
    let again = rig.read_later(other, 9);
    assert_eq!(rig.outcome(again), None);
}

#[test]
fn open_files_are_limited() {
    let mut rig = Rig::with_limits(Limits {
        files: Bound::unshared(1),
        tunnels: Bound::unshared(1),
        parked_reads: 1,
        ..Limits::default()
    });
    let (file, _) = rig.attached("t", TUN);
    let request = rig.ask(Op::Open { flags: 2, opener: Opener::default() });
    assert_eq!(rig.outcome(request), Some(Err(Errno::ENFILE)));
    let (first, second) = (rig.read_later(file, 9), rig.read_later(file, 9));
    assert_eq!((rig.outcome(first), rig.outcome(second)), (None, Some(Err(Errno::ENOMEM))));
}

#[test]
fn a_filter_is_memory_too() {
    // The longest does not fit, the shortest does.
    let accept = [6, 0, 0, 0, 1, 0, 0, 0];
    let mut rig = rig(1 << 20, CLIENT + 1_000);
    let file = rig.open_by(7, Scope(1)).unwrap();
    rig.set_iff(file, "t", TAP_NO_PI).unwrap();
    let mut attach = |count: u16| {
        let mut program = vec![0; 16];
        program[..2].copy_from_slice(&count.to_ne_bytes());
        program[8] = 0x10;
        program.extend(accept.repeat(usize::from(count)));
        let attached = rig.ioctl(file, TUNATTACHFILTER, 0x1000, &program).map(drop);
        (attached, used(&rig))
    };
    assert_eq!(attach(4_096), (Err(Errno::ENOMEM), CLIENT));
    let (attached, used) = attach(1);
    assert_eq!(attached, Ok(()));
    assert!(used > CLIENT);
}

#[test]
fn the_rest_of_a_datagram_is_memory_too() {
    let mut rig = rig(1 << 20, CLIENT + THOUSAND);
    let (file, tunnel) = attached_by(&mut rig, 7, "t");
    rig.inject(tunnel, &thousand()).unwrap();
    assert_eq!(rig.read(file, 400), Ok(vec![0x45; 400]));
    assert_eq!(used(&rig), CLIENT + THOUSAND);
    assert_eq!(rig.read_part(file, 600, 400), Ok(vec![0x45; 600]));
    assert_eq!(used(&rig), CLIENT);

    rig.write(file, &thousand()).unwrap();
    let parked = rig.read_later(file, 400);
    rig.inject(tunnel, &thousand()).unwrap();
    assert!(rig.outcome(parked).is_some());
    assert_eq!(rig.read_part(file, 600, 400), Ok(vec![]), "there was no memory for it");
}

#[test]
fn places_in_a_queue_are_given_back() {
    let mut rig = Rig::new();
    let (file, tunnel) = rig.attached("t", TUN_NO_PI);
    for _ in 0..4_096 {
        rig.write(file, IP).unwrap();
    }
    let places = |rig: &Rig| rig.core.tunnel(tunnel).unwrap().written().places();
    assert!(places(&rig) >= 4_096);
    while rig.take(tunnel).is_some() {}
    assert!(places(&rig) <= 64, "{}", places(&rig));
}

/// What is in use by what there is, beside flows and filters.
fn sums(core: &Core) -> BTreeMap<u32, usize> {
    let mut sums = BTreeMap::new();
    let cost = |queue: &Queue| queue.bytes() + DATAGRAM_MEMORY * queue.len();
    for file in core.files() {
        let memory = FILE_MEMORY + cost(file.queue()) + file.rest_memory();
        *sums.entry(file.opener().uid).or_default() += memory;
    }
    for tunnel in core.tunnels() {
        *sums.entry(tunnel.user.uid()).or_default() += TUNNEL_MEMORY + tunnel.flows.memory();
        for (uid, memory) in tunnel.written().memory() {
            *sums.entry(uid).or_default() += memory;
        }
        assert_eq!(
            tunnel.written().memory().map(|(_, memory)| memory).sum::<usize>(),
            cost(tunnel.written())
        );
    }
    sums
}

fn check(core: &Core) {
    let sums = sums(core);
    let Bound { all, user: share } = core.budget().bound(Resource::Memory);
    for user in core.users() {
        let used = user.used(Resource::Memory);
        assert_eq!(used, sums.get(&user.uid()).copied().unwrap_or(0), "of uid {}", user.uid());
        assert!(used <= share);
    }
    let used = core.budget().used(Resource::Memory);
    assert_eq!(used, sums.values().sum::<usize>());
    assert!(used <= all);
    for (resource, there) in [
        (Resource::Files, core.files().count()),
        (Resource::Tunnels, core.tunnels().count()),
        (Resource::ParkedReads, core.files().map(File::parked_reads).sum()),
    ] {
        assert_eq!(core.budget().used(resource), there, "{resource:?}");
    }
}

proptest! {
    /// Whatever happens, what is in use is what is there, and within the limits.
    #[test]
    fn what_is_in_use_is_the_sum_of_what_is_there(
        script in prop::collection::vec((0..14_u8, 0..6_usize, 0..1_500_usize), 0..200)
    ) {
        let mut rig = rig(40_000, 16_000);
        let mut files: Vec<FileId> = Vec::new();
        for (what, which, length) in script {
            let file = files.get(which % files.len().max(1)).copied();
            let uid = u32::try_from(which % 3).unwrap();
            let tunnels: Vec<TunnelId> = rig.core.tunnels().map(Tunnel::id).collect();
            let tunnel = tunnels.get(length % tunnels.len().max(1)).copied();
            let data = [&[0x45][..], &vec![which.to_le_bytes()[0]; length]].concat();
            match (what, file, tunnel) {
                (0 | 1, ..) => files.extend(rig.open_by(uid, Scope(1))),
                (2 | 3, Some(file), _) => {
                    drop(rig.set_iff(file, ["m", "n", "o"][length % 3], MQ));
                }
                (4 | 5, Some(file), _) => drop(rig.write(file, &data)),
                (6 | 7, _, Some(tunnel)) => drop(rig.inject(tunnel, &data)),
                (8, Some(file), _) => drop(rig.read(file, length)),
                (9, Some(file), _) => drop(rig.read_later(file, length)),
                (10, _, Some(tunnel)) => drop(rig.take(tunnel)),
                (11, Some(file), _) => {
                    rig.close(file);
                    files.retain(|other| *other != file);
                }
                (12, _, Some(tunnel)) if rig.core.tunnel(tunnel).is_some_and(|it| !it.is_gone()) => {
                    rig.delete(tunnel);
                }
                (13, Some(file), _) => drop(rig.write_part(file, &data, 1)),
                _ => {}
            }
            check(&rig.core);
        }
        for file in files {
            rig.close(file);
        }
        let tunnels: Vec<TunnelId> = rig.core.tunnels().map(Tunnel::id).collect();
        for tunnel in tunnels {
            while rig.take(tunnel).is_some() {}
        }
        for resource in Resource::ALL {
            prop_assert_eq!(rig.core.budget().used(resource), 0, "{:?}", resource);
        }
    }
}
