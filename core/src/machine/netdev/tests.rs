//! Scenarios of tunnels that have a link, or wait for one.

use alloc::{
    boxed::Box,
    string::{String, ToString},
    vec,
};

use super::*;
use crate::{
    abi::tun::{IfFlags, Offload, POLL_ERROR, POLL_WRITABLE, ioctl::*},
    machine::rig::{Rig, bytes_read, flags::*},
    *,
};

const DATAGRAM: &[u8] = &[0x45, 1, 2, 3];

fn rig(policy: Interface) -> Rig {
    let mut rig = Rig::new();
    rig.handle(input::SetInterfacePolicy { policy });
    rig
}

fn state(name: &str, up: bool) -> NetdevState {
    NetdevState {
        scope: Scope(1),
        index: 7,
        name: Name::new(name.as_bytes()),
        up,
        carrier: true,
        mtu: 1500,
        address: Some(MacAddress([2, 0, 0, 0, 0, 1])),
        queue_length: 500,
    }
}

fn made(name: &str) -> Result<Option<MadeNetdev>, Errno> {
    Ok(Some(MadeNetdev { state: state(name, false), persistent: false, was_there: false }))
}

/// The tunnel that the last request is about.
fn wanted(rig: &mut Rig) -> TunnelId {
    match rig.netdev_requests.pop() {
        Some(NetdevRequest::Make { tunnel, .. }) => tunnel,
        other => panic!("{other:?} is asked"),
    }
}

/// A file attached to a tunnel whose link is down.
fn attached(rig: &mut Rig, name: &str, flags: u16) -> (FileId, TunnelId) {
    let file = rig.open();
    let asked = rig.set_iff_later(file, name, flags);
    let tunnel = wanted(rig);
    rig.tell_of_netdev(NetdevNews::Made(tunnel, made(name)));
    assert!(rig.outcome(asked).unwrap().is_ok());
    (file, tunnel)
}

fn name_stored(outcome: Outcome) -> String {
    let Ok(Reply::Ioctl { output, .. }) = outcome else { panic!("{outcome:?}") };
    IfReq::from_bytes(output.as_bytes()).unwrap().name().to_string()
}

#[test]
fn attach_is_answered_when_the_link_is_there() {
    let mut rig = rig(Interface::Shadow);
    let file = rig.open();
    let asked = rig.set_iff_later(file, "tun%d", TUN_NO_PI);
    assert!(rig.outcome(asked).is_none());
    assert_eq!(rig.core.tunnels().count(), 0);
    let tunnel = wanted(&mut rig);
    rig.tell_of_netdev(NetdevNews::Made(tunnel, made("tun5")));
    assert_eq!(name_stored(rig.outcome(asked).unwrap()), "tun5");
    let tunnel = rig.core.tunnel(tunnel).unwrap();
    assert_eq!(tunnel.interface(), Interface::Shadow);
    assert!(!tunnel.is_up(), "a link starts down");
    assert_eq!(tunnel.requested_name(), &Name::new(b"tun%d"));
}

#[test]
fn refused_link_is_the_clients_error() {
    let mut rig = rig(Interface::Shadow);
    let file = rig.open();
    let asked = rig.set_iff_later(file, "tun0", TUN_NO_PI);
    let tunnel = wanted(&mut rig);
    rig.tell_of_netdev(NetdevNews::Made(tunnel, Err(Errno::EBUSY)));
    assert_eq!(rig.outcome(asked), Some(Err(Errno::EBUSY)));
    assert_eq!(rig.core.tunnels().count(), 0);
    assert_eq!(rig.poll(file, None), POLL_ERROR);
}

#[test]
fn tunnel_may_do_without() {
    let mut rig = rig(Interface::Bridge);
    let file = rig.open();
    let asked = rig.set_iff_later(file, "tun0", TUN_NO_PI);
    let tunnel = wanted(&mut rig);
    rig.tell_of_netdev(NetdevNews::Made(tunnel, Ok(None)));
    assert_eq!(name_stored(rig.outcome(asked).unwrap()), "tun0");
    assert_eq!(rig.write(file, DATAGRAM), Ok(4), "it is up, and the harness gets it");
    rig.close(file);
}

#[test]
fn attaches_of_one_namespace_wait_for_each_other() {
    let mut rig = rig(Interface::Shadow);
    let [first, second, third] = [1, 1, 2].map(|scope| rig.open_in(Scope(scope)));
    let asked = [first, second, third].map(|file| rig.set_iff_later(file, "tun0", TUN_NO_PI));
    let tunnel_of_third = wanted(&mut rig);
    let tunnel = wanted(&mut rig);
    assert!(rig.netdev_requests.is_empty(), "the second waits");
    rig.tell_of_netdev(NetdevNews::Made(tunnel, made("tun0")));
    assert!(rig.outcome(asked[0]).unwrap().is_ok());
    // It has one queue, and that is taken.
    assert_eq!(rig.outcome(asked[1]), Some(Err(Errno::EBUSY)));
    let there = NetdevState { scope: Scope(2), ..state("tun0", false) };
    let made = MadeNetdev { state: there, persistent: false, was_there: false };
    rig.tell_of_netdev(NetdevNews::Made(tunnel_of_third, Ok(Some(made))));
    assert!(rig.outcome(asked[2]).unwrap().is_ok());
}

#[test]
fn no_signal_ends_the_wait_for_a_link() {
    let mut rig = rig(Interface::Shadow);
    let [first, second] = [1, 1].map(|scope| rig.open_in(Scope(scope)));
    let asked = [first, second].map(|file| rig.set_iff_later(file, "", TUN_NO_PI));
    assert!(rig.cancel(asked[0]) && rig.cancel(asked[1]));
    assert!(rig.outcome(asked[0]).is_none());
    let tunnel = wanted(&mut rig);
    rig.tell_of_netdev(NetdevNews::Made(tunnel, made("tun0")));
    assert_eq!(name_stored(rig.outcome(asked[0]).unwrap()), "tun0");
    assert!(!rig.cancel(asked[0]), "it was answered");
}

#[test]
fn link_of_a_file_that_is_gone_goes_too() {
    let mut rig = rig(Interface::Shadow);
    let file = rig.open();
    let asked = rig.set_iff_later(file, "tun0", TUN_NO_PI);
    let tunnel = wanted(&mut rig);
    rig.close(file);
    rig.tell_of_netdev(NetdevNews::Made(tunnel, made("tun0")));
    assert_eq!(rig.outcome(asked), Some(Err(Errno::EBADF)));
    assert_eq!(rig.netdev_requests, [NetdevRequest::Remove { tunnel, is_deleted: false }]);
    assert_eq!(rig.core.tunnels().count(), 0);
}

#[test]
fn close_is_answered_when_the_link_is_gone() {
    let mut rig = rig(Interface::Shadow);
    let (file, tunnel) = attached(&mut rig, "tun0", TUN_NO_PI);
    let closing = rig.ask(Op::Close(file));
    assert_eq!(rig.netdev_requests, [NetdevRequest::Remove { tunnel, is_deleted: false }]);
    assert!(rig.outcome(closing).is_none());
    rig.tell_of_netdev(NetdevNews::Removed(tunnel));
    assert_eq!(rig.outcome(closing), Some(Ok(Reply::Closed)));
}

#[test]
fn persistent_link_loses_its_queue_and_gets_another() {
    let mut rig = rig(Interface::Shadow);
    let (file, tunnel) = attached(&mut rig, "tun0", TUN_NO_PI);
    let asked = rig.ioctl_later(file, TUNSETPERSIST, 1, &[], 0);
    let asker = rig.request_id(asked);
    let set =
        NetdevRequest::Set { tunnel, setting: NetdevSetting::Persistent(true), asker: Some(asker) };
    assert_eq!(rig.netdev_requests.pop(), Some(set));
    rig.tell_of_netdev(NetdevNews::Done(asker, Ok(())));
    assert!(rig.outcome(asked).unwrap().is_ok());
    rig.close(file);
    assert_eq!(rig.netdev_requests.pop(), Some(NetdevRequest::Close { tunnel, file }));

    let file = rig.open();
    let asked = rig.set_iff_later(file, "tun0", TUN_NO_PI);
    let asker = rig.request_id(asked);
    let (flags, rights) = (IfFlags::TUN | IfFlags::NO_PI, Rights::Admin);
    assert_eq!(
        rig.netdev_requests.pop(),
        Some(NetdevRequest::Open { tunnel, file, flags, rights, asker })
    );
    rig.tell_of_netdev(NetdevNews::Done(asker, Ok(())));
    assert_eq!(name_stored(rig.outcome(asked).unwrap()), "tun0");
}

#[test]
fn what_the_link_refuses_is_not_set() {
    let mut rig = rig(Interface::Shadow);
    let (file, tunnel) = attached(&mut rig, "tun0", TUN_NO_PI);
    for (command, value, setting) in [
        (TUNSETOWNER, 5, NetdevSetting::Owner(5)),
        (TUNSETGROUP, 6, NetdevSetting::Group(6)),
        (TUNSETLINK, 0x1_0001, NetdevSetting::LinkType(1)),
        (TUNSETOFFLOAD, 0x183, NetdevSetting::Offload(0x183)),
    ] {
        let asked = rig.ioctl_later(file, command, value, &[], 0);
        let asker = rig.request_id(asked);
        let set = NetdevRequest::Set { tunnel, setting, asker: Some(asker) };
        assert_eq!(rig.netdev_requests.pop(), Some(set));
        rig.tell_of_netdev(NetdevNews::Done(asker, Err(Errno::EINVAL)));
        assert_eq!(rig.outcome(asked), Some(Err(Errno::EINVAL)));
    }
    assert_eq!(rig.core.tunnel(tunnel).unwrap().owner(), (None, None));
    assert_eq!(rig.ioctl(file, TUNSETOFFLOAD, 0x181, &[]), Err(Errno::EINVAL), "TSO is missing");
    assert_eq!(rig.netdev_requests, [], "what is no set never reaches the link");
}

#[test]
fn address_is_set_on_the_link_first() {
    let mut rig = rig(Interface::Shadow);
    let (file, tunnel) = attached(&mut rig, "tap0", TAP_NO_PI);
    let mut request = IfReq::zeroed(false);
    request.set_hwaddr(1, [2, 0, 0, 0, 0, 9]);
    let asked = rig.ioctl_later(file, SIOCSIFHWADDR, 0, request.as_bytes(), 0);
    let asker = rig.request_id(asked);
    let address = MacAddress([2, 0, 0, 0, 0, 9]);
    let setting = NetdevSetting::Address(address);
    let set = NetdevRequest::Set { tunnel, setting, asker: Some(asker) };
    assert_eq!(rig.netdev_requests.pop(), Some(set));
    rig.tell_of_netdev(NetdevNews::Done(asker, Ok(())));
    assert!(rig.outcome(asked).unwrap().is_ok());
    assert_eq!(rig.core.tunnel(tunnel).unwrap().hwaddr(), Some(address));
    // Of another family: the core knows that without asking.
    request.set_hwaddr(7, [2, 0, 0, 0, 0, 9]);
    let stored = rig.ioctl(file, SIOCSIFHWADDR, 0, request.as_bytes());
    assert_eq!(stored, Err(Errno::EINVAL));
}

#[test]
fn queue_is_detached_on_the_link_first() {
    let mut rig = rig(Interface::Bridge);
    let (file, tunnel) = attached(&mut rig, "tun0", TUN_NO_PI | MULTI_QUEUE);
    let mut set_queue = |flags: u16, answer| {
        let mut request = IfReq::zeroed(false);
        request.set_flags(IfFlags::from_bits_retain(flags));
        let asked = rig.ioctl_later(file, TUNSETQUEUE, 0x1000, request.as_bytes(), 0);
        if let Some(NetdevRequest::SetQueue { attached, asker, .. }) = rig.netdev_requests.last() {
            let (attached, asker) = (*attached, *asker);
            let request = NetdevRequest::SetQueue { tunnel, file, attached, asker };
            assert_eq!(rig.netdev_requests.pop(), Some(request));
            assert!(rig.outcome(asked).is_none());
            rig.tell_of_netdev(NetdevNews::Done(asker, answer));
            return (Some(attached), rig.outcome(asked).unwrap().map(drop));
        }
        (None, rig.outcome(asked).unwrap().map(drop))
    };
    assert_eq!(set_queue(0x400, Err(Errno::ENOMEM)), (Some(false), Err(Errno::ENOMEM)));
    assert_eq!(set_queue(0x400, Ok(())), (Some(false), Ok(())));
    assert_eq!(set_queue(0x600, Ok(())), (Some(true), Ok(())), "attach wins");
    assert_eq!(set_queue(0x800, Ok(())), (None, Err(Errno::EINVAL)));
}

#[test]
fn link_is_looked_at_before_a_read() {
    let mut rig = rig(Interface::Bridge);
    let (file, tunnel) = attached(&mut rig, "tun0", TUN_NO_PI);
    assert_eq!(rig.read(file, 100), Err(Errno::EAGAIN));
    assert_eq!(rig.looks, [Look { tunnel, sent: Sent::To(file) }], "it might have been deleted");
    rig.send_by_netdev(tunnel, file, DATAGRAM);
    assert_eq!(rig.read(file, 100), Ok(DATAGRAM.to_vec()));
    assert_eq!(
        rig.looks[1..],
        [Look { tunnel, sent: Sent::Nothing }],
        "or lost what was queued with the length of its queue"
    );
}

#[test]
fn what_happens_to_the_link_happens_to_the_tunnel() {
    let mut rig = rig(Interface::Shadow);
    let (file, tunnel) = attached(&mut rig, "tap0", TAP_NO_PI);
    assert_eq!(rig.poll(file, Some(WakeHandle(1))), 0, "it is down");
    assert_eq!(rig.write(file, &[0; 14]), Err(Errno::EIO));
    assert_eq!(
        rig.looks,
        [Look { tunnel, sent: Sent::Nothing }; 2],
        "the link was looked at before it was said"
    );
    let changed = NetdevState {
        mtu: 1400,
        address: Some(MacAddress([2, 0, 0, 0, 0, 9])),
        ..state("other", true)
    };
    rig.tell_of_netdev(NetdevNews::Changed(tunnel, changed));
    assert_eq!(rig.wakes, 1);
    assert_eq!(rig.poll(file, None), POLL_WRITABLE);
    assert_eq!(rig.write(file, &[0; 14]), Ok(14));
    let stored = rig.ioctl(file, TUNGETIFF, 0x1000, &[]).unwrap();
    assert_eq!(IfReq::from_bytes(&stored).unwrap().name(), Name::new(b"other"));
    let shown = rig.core.tunnel(tunnel).unwrap();
    assert_eq!((shown.mtu(), shown.hwaddr()), (1400, changed.address));
    let named = |name: &[u8]| rig.core.find(&Address::Name(Name::new(name))).ok();
    assert_eq!((named(b"tap0"), named(b"other")), (None, Some(tunnel)));
    // Its name of before is free.
    attached(&mut rig, "tap0", TAP_NO_PI);
}

#[test]
fn link_that_is_moved_leaves_its_name_behind() {
    let mut rig = rig(Interface::Shadow);
    let (_, moved) = attached(&mut rig, "tun0", TUN_NO_PI);
    let there = NetdevState { scope: Scope(2), index: 2, ..state("tun0", false) };
    rig.tell_of_netdev(NetdevNews::Changed(moved, there));
    assert_eq!(rig.core.tunnel(moved).unwrap().scope(), Scope(2));
    // Where it was the name is free, where it is it is taken.
    let (_, other) = attached(&mut rig, "tun0", TUN_NO_PI);
    let file = rig.open_in(Scope(2));
    let asked = rig.set_iff_later(file, "tun0", TUN_NO_PI);
    assert_eq!(rig.outcome(asked), Some(Err(Errno::EBUSY)));
    let at = |scope: u64| rig.core.find(&Address::Scoped(Name::new(b"tun0"), Scope(scope))).ok();
    assert_eq!((at(1), at(2)), (Some(other), Some(moved)));
    // The one that is gone takes no other's name with it.
    rig.tell_of_netdev(NetdevNews::Gone(moved));
    assert_eq!(rig.core.find(&Address::Name(Name::new(b"tun0"))), Ok(other));
}

/// The kernel judges who may attach to a device that memtun did not make.
#[test]
fn rights_of_the_caller_go_with_the_request() {
    let mut rig = rig(Interface::Shadow);
    rig.handle(input::SetAdmission { admission: Admission::NetAdmin });
    let mut asked_by = |net_admin| {
        let file = rig.open();
        let caller = Credentials { net_admin, uid: 5, groups: vec![6], ..Credentials::default() };
        let asked = rig.set_iff_later_by(file, "tun0", TUN_NO_PI, &caller);
        let request = rig.netdev_requests.pop();
        let Some(NetdevRequest::Make { tunnel, rights, .. }) = request else {
            panic!("{request:?} is asked")
        };
        rig.tell_of_netdev(NetdevNews::Made(tunnel, Err(Errno::EPERM)));
        assert_eq!(rig.outcome(asked), Some(Err(Errno::EPERM)));
        (rights, caller)
    };
    assert_eq!(asked_by(true).0, Rights::Admin);
    let (rights, caller) = asked_by(false);
    assert_eq!(rights, Rights::Of { caller: Box::new(caller), may_make: false });
    rig.handle(input::SetAdmission { admission: Admission::Names(vec!["tun*".parse().unwrap()]) });
    let mut asked_for = |name: &str, got: &str, was_there| {
        let file = rig.open();
        let caller = Credentials { uid: 5, groups: vec![6], ..Credentials::default() };
        let asked = rig.set_iff_later_by(file, name, TUN_NO_PI, &caller);
        let request = rig.netdev_requests.pop();
        let Some(NetdevRequest::Make { tunnel, rights: Rights::Of { may_make, .. }, .. }) = request
        else {
            panic!("{request:?} is asked")
        };
        let made = MadeNetdev { state: state(got, false), persistent: false, was_there };
        rig.tell_of_netdev(NetdevNews::Made(tunnel, Ok(Some(made))));
        (may_make, rig.outcome(asked).unwrap().map(drop))
    };
    assert_eq!(asked_for("tun%d", "tun3", false), (true, Ok(())));
    assert_eq!(asked_for("eth7", "eth7", false), (false, Err(Errno::EPERM)), "not to be made");
    assert_eq!(asked_for("corp0", "corp0", true), (false, Ok(())), "by the kernel's word");
}

/// Its owner and group are the kernel device's.
#[test]
fn further_queue_of_a_link_is_for_whom_the_kernel_would_let() {
    let mut rig = rig(Interface::Shadow);
    let (file, _) = attached(&mut rig, "tun0", TUN_NO_PI | 0x100);
    let asked = rig.ioctl_later(file, TUNSETOWNER, 5, &[], 0);
    let asker = rig.request_id(asked);
    rig.tell_of_netdev(NetdevNews::Done(asker, Ok(())));
    rig.netdev_requests.clear();
    let mut rights_of = |uid| {
        let file = rig.open();
        let caller = Credentials { uid, groups: vec![6], ..Credentials::default() };
        let asked = rig.set_iff_later_by(file, "tun0", TUN_NO_PI | 0x100, &caller);
        match rig.netdev_requests.pop() {
            Some(NetdevRequest::Open { rights, asker, .. }) => {
                rig.tell_of_netdev(NetdevNews::Done(asker, Ok(())));
                (matches!(rights, Rights::Of { .. }), rig.outcome(asked).unwrap().map(drop))
            }
            other => (other.is_some(), rig.outcome(asked).unwrap().map(drop)),
        }
    };
    assert_eq!(rights_of(5), (true, Ok(())));
    assert_eq!(rights_of(6), (false, Err(Errno::EPERM)), "whoever may make tunnels");
}

#[test]
fn tunnel_goes_with_its_link() {
    let mut rig = rig(Interface::Shadow);
    let (file, tunnel) = attached(&mut rig, "tun0", TUN_NO_PI);
    rig.poll(file, Some(WakeHandle(1)));
    let reading = rig.read_later(file, 100);
    rig.tell_of_netdev(NetdevNews::Gone(tunnel));
    assert_eq!(rig.outcome(reading).map(bytes_read), Some(Err(Errno::EFAULT)));
    assert_eq!(rig.wakes, 1);
    assert_eq!(rig.poll(file, None), POLL_ERROR);
    assert_eq!(rig.read(file, 100), Err(Errno::EBADFD));
    assert_eq!(rig.write(file, DATAGRAM), Err(Errno::EBADFD));
    assert!(rig.netdev_requests.is_empty(), "there is nothing to remove");
    let asked = rig.set_iff_later(file, "tun0", TUN_NO_PI);
    let again = wanted(&mut rig);
    assert_ne!(again, tunnel);
    rig.tell_of_netdev(NetdevNews::Made(again, made("tun0")));
    assert!(rig.outcome(asked).unwrap().is_ok());
}

#[test]
fn shadow_counts_what_the_kernel_sends() {
    let mut rig = rig(Interface::Shadow);
    rig.handle(input::Observe { on: true });
    let (file, tunnel) = attached(&mut rig, "tun0", TUN_NO_PI);
    rig.send_by_netdev(tunnel, file, DATAGRAM);
    assert_eq!(rig.read(file, 100), Err(Errno::EAGAIN));
    let counted = rig.core.tunnel(tunnel).unwrap().counters().to_link;
    assert_eq!(counted, Count { datagrams: 1, bytes: 4 });
    assert!(matches!(rig.events.pop(), Some(Event::ToLink { .. })));
}

/// So the queue is the kernel's, with its length and its order.
#[test]
fn bridge_leaves_what_nobody_reads_to_the_kernel() {
    let mut rig = rig(Interface::Bridge);
    let (file, tunnel) = attached(&mut rig, "tun0", TUN_NO_PI);
    assert_eq!(rig.readable(tunnel, file), []);
    let first = rig.read_later(file, 100);
    assert_eq!(
        rig.receives.pop(),
        Some((tunnel, file)),
        "it may have come before it was waited for"
    );
    let second = rig.read_later(file, 100);
    assert_eq!(rig.readable(tunnel, file), [file, file], "one by the read, one by the event");
    assert!(rig.send_by_netdev(tunnel, file, DATAGRAM), "there is one more who reads");
    assert!(!rig.send_by_netdev(tunnel, file, &[0x46]));
    let read = [first, second].map(|asked| bytes_read(rig.outcome(asked).unwrap()).unwrap());
    assert_eq!(read, [DATAGRAM.to_vec(), vec![0x46]]);
    assert!(!rig.send_by_netdev(tunnel, file, DATAGRAM), "that one has looked for, and finds it");
    assert_eq!(rig.read(file, 100), Ok(DATAGRAM.to_vec()));
}

#[test]
fn bridge_wakes_pollers_for_each_that_comes() {
    let mut rig = rig(Interface::Bridge);
    let (file, tunnel) = attached(&mut rig, "tun0", TUN_NO_PI);
    rig.poll(file, Some(WakeHandle(1)));
    let before = rig.wakes;
    assert_eq!(rig.readable(tunnel, file), []);
    assert_eq!(rig.readable(tunnel, file), []);
    assert_eq!(rig.wakes, before + 2);
    rig.send_by_netdev(tunnel, file, DATAGRAM);
    assert_eq!(rig.wakes, before + 2, "it was told of when it came");
}

#[test]
fn bridge_takes_all_before_its_filter_changes() {
    let mut rig = rig(Interface::Bridge);
    let (file, tunnel) = attached(&mut rig, "tap0", TAP_NO_PI);
    let _refused = rig.ioctl(file, TUNATTACHFILTER, 0x1000, &[0; 16]);
    assert!(rig.looks.contains(&Look { tunnel, sent: Sent::All }));
}

#[test]
fn bridge_that_becomes_a_shadow_takes_what_was_left() {
    let mut rig = rig(Interface::Bridge);
    let (file, tunnel) = attached(&mut rig, "tun0", TUN_NO_PI);
    rig.handle(input::SetInterface { tunnel, interface: Interface::Shadow });
    assert_eq!(rig.readable(tunnel, file), [file, file]);
    assert!(rig.send_by_netdev(tunnel, file, DATAGRAM), "all is counted");
}

#[test]
fn bridge_asks_the_kernel_and_says_what_it_said() {
    let mut rig = rig(Interface::Bridge);
    let (file, tunnel) = attached(&mut rig, "tun0", 0x4001);
    let written = [&[0, 0, 8, 0][..], &[0, 0, 0, 0, 0, 0, 0, 0, 2, 0], DATAGRAM].concat();
    let asked = rig.write_later(file, &written);
    assert!(rig.outcome(asked).is_none());
    let forward = rig.forwards.pop().unwrap();
    // There is room for a UDP tunnel on the device.
    assert_eq!(forward.head.as_bytes(), [&written[..14], &[0; 14]].concat());
    assert_eq!(forward.datagram.payload, DATAGRAM);
    rig.tell_of_netdev(NetdevNews::Forwarded(Box::new(forward.clone()), Err(Errno::EIO)));
    assert_eq!(rig.outcome(asked), Some(Err(Errno::EIO)));
    assert_eq!(rig.take(tunnel), None);

    let asked = rig.write_later(file, &written);
    let forward = rig.forwards.pop().unwrap();
    rig.tell_of_netdev(NetdevNews::Forwarded(Box::new(forward), Ok(())));
    assert_eq!(rig.outcome(asked), Some(Ok(Reply::Written(18))));
    assert_eq!(rig.take(tunnel).as_deref(), Some(DATAGRAM), "a copy");
    assert_eq!(rig.core.tunnel(tunnel).unwrap().counters().from_client.datagrams, 1);
    // The rest of a write that was split cannot be put behind what the kernel has.
    assert_eq!(rig.write_part(file, &[1], 18), Ok(1));
    assert!(rig.forwards.is_empty());
}

#[test]
fn bridge_gives_the_client_what_the_kernel_sends() {
    let mut rig = rig(Interface::Bridge);
    let (file, tunnel) = attached(&mut rig, "tun0", 0x5001);
    let header = [1, 0, 0, 0, 0, 0, 0, 0, 2, 0];
    rig.send_by_netdev(tunnel, file, &[&header, &[0; 14][..], DATAGRAM].concat());
    assert_eq!(rig.read(file, 100), Ok([&header, DATAGRAM].concat()));
    // Still, the harness may inject, though the link is down for the kernel.
    rig.set_link(tunnel, true);
    assert!(rig.inject(tunnel, DATAGRAM).is_ok());
    assert_eq!(rig.set_peer(tunnel, PeerId(1)), Err(CommandError::HasPeer(Name::new(b"tun0"))));
}

#[test]
fn bridge_cuts_what_is_in_a_tunnel_if_the_vnet_header_has_no_room_for_it() {
    // UDP in segments of 10 bytes, from inside a VXLAN tunnel over IPv4.
    let head = [1, 0x25, 0, 0, 10, 0, 70, 0, 6, 0];
    let offsets = [34, 0, 50, 0];
    let ip = |length, start: &[u8]| {
        let header = [0x45, 0, 0, length, 0, 0, 0x40, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2];
        [&header[..], start].concat()
    };
    let inner = ip(53, &[0, 1, 0, 2, 0, 33, 0, 0]);
    let outer = ip(89, &[0, 3, 0, 4, 0, 69, 0, 0, 8, 0, 0, 0, 0, 0, 1, 0]);
    let frame = [&[2; 12][..], &[8, 0], &outer, &inner, &[7; 25]].concat();
    let sent = [&head, &[0; 10][..], &offsets, &frame].concat();
    for (size, lengths) in [(10_i32, vec![88, 88, 83]), (24, vec![103])] {
        let mut rig = rig(Interface::Bridge);
        let (file, tunnel) = attached(&mut rig, "tap0", 0x5002);
        let accepted =
            (Offload::CSUM | Offload::USO4 | Offload::USO6 | Offload::UDP_TUNNEL_GSO).bits();
        let asked = rig.ioctl_later(file, TUNSETOFFLOAD, accepted, &[], 0);
        let asker = rig.request_id(asked);
        rig.tell_of_netdev(NetdevNews::Done(asker, Ok(())));
        assert!(rig.outcome(asked).is_some_and(|outcome| outcome.is_ok()));
        rig.ioctl(file, TUNSETVNETHDRSZ, 0, &size.to_ne_bytes()).unwrap();
        rig.send_by_netdev(tunnel, file, &sent);
        let size = usize::try_from(size).unwrap();
        for length in lengths {
            assert_eq!(rig.read(file, 1_000).unwrap().len(), size + length);
        }
        assert_eq!(rig.read(file, 1_000), Err(Errno::EAGAIN));
    }
}

#[test]
fn harness_brings_the_link_up() {
    let mut rig = rig(Interface::Shadow);
    let (_, tunnel) = attached(&mut rig, "tun0", TUN_NO_PI);
    rig.set_link(tunnel, true);
    let setting = NetdevSetting::Up(true);
    assert_eq!(rig.netdev_requests, [NetdevRequest::Set { tunnel, setting, asker: None }]);
    rig.tell_of_netdev(NetdevNews::Changed(tunnel, state("tun0", true)));
    assert!(rig.core.tunnel(tunnel).unwrap().is_up());
}

#[test]
fn name_of_a_tunnel_without_a_link_is_not_given_twice() {
    let mut rig = rig(Interface::Shadow);
    let (file, tunnel) = attached(&mut rig, "tun0", TUN_NO_PI);
    rig.handle(input::SetInterface { tunnel, interface: Interface::None });
    rig.close(file);
    let file = rig.open();
    rig.handle(input::SetInterfacePolicy { policy: Interface::None });
    rig.set_iff(file, "tun0", TUN_NO_PI).unwrap();
    rig.handle(input::SetInterfacePolicy { policy: Interface::Shadow });
    let other = rig.open();
    let asked = rig.set_iff_later(other, "tun%d", TUN_NO_PI);
    let tunnel = wanted(&mut rig);
    rig.tell_of_netdev(NetdevNews::Made(tunnel, made("tun0")));
    assert_eq!(rig.outcome(asked), Some(Err(Errno::EBUSY)));
    assert_eq!(rig.netdev_requests, [NetdevRequest::Remove { tunnel, is_deleted: false }]);
}

#[test]
fn deletion_is_more_than_the_end_of_use() {
    let mut rig = rig(Interface::Shadow);
    let (_, tunnel) = attached(&mut rig, "tun0", TUN_NO_PI);
    rig.delete(tunnel);
    assert_eq!(rig.netdev_requests, [NetdevRequest::Remove { tunnel, is_deleted: true }]);
}

/// A tunnel without a device, in a core that makes none, and the plan for one.
fn planned(rig: &mut Rig, flags: u16) -> (FileId, TunnelId, Box<NetdevPlan>) {
    let (file, tunnel) = rig.attached("tun0", flags);
    match rig.handle(input::SwitchInterface { tunnel, to: Interface::Shadow }) {
        Ok(Switch::Add(plan)) => (file, tunnel, plan),
        other => panic!("{other:?}"),
    }
}

#[test]
fn tunnel_gets_a_device_as_it_is() {
    let mut rig = Rig::new();
    let (file, tunnel, plan) = planned(&mut rig, TUN_NO_PI);
    assert_eq!(plan.files, [file]);
    assert_eq!(plan.settings, [NetdevSetting::Mtu(1500), NetdevSetting::Up(true)]);
    assert_eq!(
        rig.handle(input::SwitchInterface { tunnel, to: Interface::None }),
        Ok(Switch::Busy)
    );
    // What the harness changes meanwhile is changed on the device.
    rig.set_link(tunnel, false);
    rig.tell_of_netdev(NetdevNews::Added(tunnel, Some(Interface::Shadow)));
    let setting = NetdevSetting::Up(false);
    assert_eq!(rig.netdev_requests, [NetdevRequest::Set { tunnel, setting, asker: None }]);
    assert_eq!(rig.core.tunnel(tunnel).unwrap().interface(), Interface::Shadow);
    assert_eq!(
        rig.handle(input::SwitchInterface { tunnel, to: Interface::Shadow }),
        Ok(Switch::Done)
    );
    assert_eq!(
        rig.handle(input::SwitchInterface { tunnel, to: Interface::Bridge }),
        Ok(Switch::Turn)
    );
    assert_eq!(
        rig.handle(input::SwitchInterface { tunnel, to: Interface::None }),
        Ok(Switch::Remove)
    );
    assert_eq!(rig.core.tunnel(tunnel).unwrap().interface(), Interface::None);
}

#[test]
fn device_of_a_tunnel_that_has_gone_meanwhile_goes_too() {
    let mut rig = Rig::new();
    let (file, tunnel, _) = planned(&mut rig, TUN_NO_PI);
    rig.close(file);
    rig.tell_of_netdev(NetdevNews::Added(tunnel, Some(Interface::Shadow)));
    assert_eq!(rig.netdev_requests, [NetdevRequest::Remove { tunnel, is_deleted: false }]);
}

#[test]
fn queue_of_a_file_that_has_gone_meanwhile_is_closed() {
    let mut rig = Rig::new();
    let (file, tunnel, plan) = {
        let (first, _) = rig.attached("tun0", TUN_NO_PI | 0x100);
        let second = rig.open();
        rig.set_iff(second, "tun0", TUN_NO_PI | 0x100).unwrap();
        let tunnel = rig.core.find(&Address::Name(Name::new(b"tun0"))).unwrap();
        let Ok(Switch::Add(plan)) =
            rig.handle(input::SwitchInterface { tunnel, to: Interface::Shadow })
        else {
            panic!("it has none")
        };
        (first, tunnel, plan)
    };
    assert_eq!(plan.files.len(), 2);
    rig.close(file);
    rig.tell_of_netdev(NetdevNews::Added(tunnel, Some(Interface::Shadow)));
    assert_eq!(rig.netdev_requests, [NetdevRequest::Close { tunnel, file }]);
}

#[test]
fn calls_that_change_a_tunnel_wait_while_it_gets_a_device() {
    let mut rig = Rig::new();
    let (file, tunnel, _) = planned(&mut rig, TUN_NO_PI | 0x100);
    let other = rig.open();
    let attaching = rig.set_iff_later(other, "tun0", TUN_NO_PI | 0x100);
    let setting = rig.ioctl_later(file, TUNSETOWNER, 5, &[], 0);
    assert!(rig.outcome(attaching).is_none() && rig.outcome(setting).is_none());
    rig.tell_of_netdev(NetdevNews::Added(tunnel, Some(Interface::Shadow)));
    // Both ask the device now.
    assert_eq!(rig.netdev_requests.len(), 2, "{:?}", rig.netdev_requests);
    // A device that could not be made holds up nobody either.
    let mut rig = Rig::new();
    let (_, tunnel, _) = planned(&mut rig, TUN_NO_PI | 0x100);
    let other = rig.open();
    let attaching = rig.set_iff_later(other, "tun0", TUN_NO_PI | 0x100);
    rig.tell_of_netdev(NetdevNews::Added(tunnel, None));
    assert!(rig.outcome(attaching).unwrap().is_ok());
}

/// A queue that was opened for a file which is closed by then.
#[test]
fn queue_that_nobody_has_is_closed() {
    let mut rig = rig(Interface::Shadow);
    let (_kept, tunnel) = attached(&mut rig, "tun0", TUN_NO_PI | 0x100);
    let file = rig.open();
    let asked = rig.set_iff_later(file, "tun0", TUN_NO_PI | 0x100);
    let asker = rig.request_id(asked);
    let request = rig.core.file(file).unwrap().opened_by;
    rig.handle(input::Undelivered { request });
    rig.netdev_requests.clear();
    rig.tell_of_netdev(NetdevNews::Done(asker, Ok(())));
    assert_eq!(rig.outcome(asked), Some(Err(Errno::EBADF)));
    assert_eq!(rig.netdev_requests, [NetdevRequest::Close { tunnel, file }]);
}
