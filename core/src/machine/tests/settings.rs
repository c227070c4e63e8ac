//! What the harness sets of a tunnel.

use alloc::{borrow::ToOwned, string::ToString, vec};

use super::*;

fn name(text: &str) -> Option<Name> {
    Some(Name::new(text.as_bytes()))
}

fn none() -> Settings {
    Settings::default()
}

#[test]
fn settings_have_the_limits_of_the_kernel() {
    let mut rig = Rig::new();
    let (_, tun) = rig.attached("tun0", TUN);
    let (_, tap) = rig.attached("tap0", TAP);
    for (tunnel, mtu, good) in [
        (tun, 67, false),
        (tun, 68, true),
        (tun, 65_535, true),
        (tun, 65_536, false),
        (tap, 65_521, true),
        (tap, 65_522, false),
    ] {
        let set = rig.configure(tunnel, &Settings { mtu: Some(mtu), ..none() });
        assert_eq!(set.is_ok(), good, "{mtu}");
        assert_eq!(rig.core.tunnel(tunnel).unwrap().mtu() == mtu, good);
    }
    for (tunnel, hwaddr, good) in [
        (tun, [2, 0, 0, 0, 0, 7], false),
        (tap, [3, 0, 0, 0, 0, 7], false),
        (tap, [0; 6], false),
        (tap, [2, 0, 0, 0, 0, 7], true),
    ] {
        let hwaddr = Some(MacAddress(hwaddr));
        assert_eq!(rig.configure(tunnel, &Settings { hwaddr, ..none() }).is_ok(), good);
    }
    assert_eq!(rig.core.tunnel(tap).unwrap().hwaddr(), Some(MacAddress([2, 0, 0, 0, 0, 7])));
    for (length, good) in [(0, true), (524_288, true), (524_289, false), (u32::MAX, false)] {
        let settings = Settings { tx_queue_length: Some(length), ..none() };
        assert_eq!(rig.configure(tap, &settings).is_ok(), good, "{length}");
    }
}

#[test]
fn a_name_can_be_changed_to_one_that_is_free() {
    let mut rig = Rig::new();
    let (file, tunnel) = rig.attached("r", TUN);
    rig.attached("taken", TUN);
    let set = |rig: &mut Rig, to| {
        let set = rig.configure(tunnel, &Settings { name: name(to), ..none() });
        set.map(|()| rig.core.tunnel(tunnel).unwrap().name().to_string())
    };
    for bad in ["all", "default", "x/y", "a%d%d", "", "."] {
        let error = set(&mut rig, bad).unwrap_err();
        assert!(matches!(error, CommandError::BadSetting(SettingError::Name(_))), "{bad}: {error}");
    }
    for taken in ["lo", "taken"] {
        let error = set(&mut rig, taken).unwrap_err();
        assert!(matches!(error, CommandError::BadSetting(SettingError::NameTaken(_))), "{error}");
    }
    assert_eq!(set(&mut rig, "r"), Ok("r".to_owned()), "its own");
    rig.wait(1, Condition::Attached(Address::Name(Name::new(b"foo0"))), 100).unwrap();
    assert_eq!(set(&mut rig, "foo%d"), Ok("foo0".to_owned()));
    assert_eq!(rig.answer(1), Some(Answer::Met(Some(tunnel))), "who waits for the name");
    let stored = IfReq::from_bytes(&rig.ioctl(file, TUNGETIFF, 0, &[]).unwrap()).unwrap();
    assert_eq!(stored.name().as_bytes(), b"foo0", "the client sees it");
    assert!(rig.core.find(&Address::Name(Name::new(b"r"))).is_err());
    let (_, again) = rig.attached("r", TUN);
    assert_ne!(again, tunnel, "the name is free");
    rig.close(file);
    let file = rig.open();
    assert_eq!(rig.set_iff(file, "foo0", TAP), Ok("foo0".to_owned()), "and so is this");
}

#[test]
fn queues_are_resized_at_once() {
    let mut rig = Rig::new();
    let (file, tunnel) = rig.attached("q", TUN_NO_PI | MULTI_QUEUE);
    let (detached, _) = rig.attached("q", TUN_NO_PI | MULTI_QUEUE);
    rig.set_queue(detached, 0x400).unwrap();
    for n in 0..3 {
        rig.inject(tunnel, &[0x45, n]).unwrap();
    }
    rig.configure(tunnel, &Settings { tx_queue_length: Some(2), ..none() }).unwrap();
    assert!(matches!(rig.inject(tunnel, IP), Err(CommandError::QueueFull { datagrams: 2, .. })));
    assert_eq!(rig.read(file, 9), Ok(vec![0x45, 0]), "the oldest are kept");
    assert_eq!(rig.core.file(detached).unwrap().queue().capacity(), 2);
    rig.configure(tunnel, &Settings { tx_queue_length: Some(0), ..none() }).unwrap();
    assert_eq!(rig.read(file, 9), Err(Errno::EAGAIN));
    assert!(matches!(rig.inject(tunnel, IP), Err(CommandError::QueueFull { datagrams: 0, .. })));
    let blocked = rig.read_later(file, 9);
    assert!(matches!(rig.inject(tunnel, IP), Err(CommandError::QueueFull { datagrams: 0, .. })));
    assert_eq!(rig.outcome(blocked), None, "who waits gets nothing of a queue of nothing");
    assert!(rig.cancel(blocked));
    rig.configure(tunnel, &Settings { tx_queue_length: Some(3), ..none() }).unwrap();
    let (_, same) = rig.attached("q", TUN_NO_PI | MULTI_QUEUE);
    assert_eq!(rig.core.tunnel(same).unwrap().tx_queue_length(), 3);
}

#[test]
fn without_carrier_nothing_reaches_the_client() {
    let mut rig = Rig::new();
    let (file, tunnel) = rig.attached("c", TUN_NO_PI);
    rig.inject(tunnel, IP).unwrap();
    rig.configure(tunnel, &Settings { carrier: Some(false), ..none() }).unwrap();
    assert!(matches!(rig.inject(tunnel, IP), Err(CommandError::NoCarrier(_))));
    assert_eq!(rig.poll(file, None), POLL_READABLE | POLL_WRITABLE);
    assert_eq!(rig.write(file, IP), Ok(IP.len()));
    assert_eq!(rig.read(file, 9), Ok(IP.to_vec()), "what is queued stays");
    rig.configure(tunnel, &Settings { carrier: Some(true), ..none() }).unwrap();
    assert!(rig.inject(tunnel, IP).is_ok());
    rig.ioctl(file, TUNSETPERSIST, 1, &[]).unwrap();
    rig.close(file);
    let error = rig.configure(tunnel, &Settings { carrier: Some(true), ..none() }).unwrap_err();
    assert!(matches!(error, CommandError::BadSetting(SettingError::Carrier(_))), "{error}");
}

#[test]
fn all_settings_are_made_or_none() {
    let mut rig = Rig::new();
    let (_, tunnel) = rig.attached("a", TAP);
    let mut settings = Settings {
        up: Some(false),
        mtu: Some(1400),
        hwaddr: Some(MacAddress([2, 0, 0, 0, 0, 1])),
        name: name("b"),
        carrier: Some(false),
        tx_queue_length: Some(9),
    };
    let seen = |rig: &Rig| {
        let tunnel = rig.core.tunnel(tunnel).unwrap();
        (tunnel.is_up(), tunnel.mtu(), tunnel.name().to_string(), tunnel.tx_queue_length())
    };
    for spoil in [
        |settings: &mut Settings| settings.mtu = Some(1),
        |settings: &mut Settings| settings.name = name("lo"),
        |settings: &mut Settings| settings.name = name("a b"),
        |settings: &mut Settings| settings.tx_queue_length = Some(u32::MAX),
    ] {
        let mut spoilt = settings.clone();
        spoil(&mut spoilt);
        assert!(rig.configure(tunnel, &spoilt).is_err());
        assert_eq!(seen(&rig), (true, 1500, "a".to_owned(), 1000), "{spoilt:?}");
    }
    rig.configure(tunnel, &settings).unwrap();
    assert_eq!(seen(&rig), (false, 1400, "b".to_owned(), 9));
    settings.name = None;
    rig.delete(tunnel);
    assert!(matches!(rig.configure(tunnel, &settings), Err(CommandError::UnknownTunnel(_))));
}
