//! Who may attach to what, where that is asked.

use alloc::{borrow::ToOwned, vec};

use super::*;

fn caller(net_admin: bool, uid: u32, groups: &[u32]) -> Credentials {
    Credentials { net_admin, is_initial_admin: net_admin, uid, groups: groups.to_vec() }
}

fn strict() -> Rig {
    let mut rig = Rig::new();
    rig.handle(input::SetAdmission { admission: Admission::NetAdmin });
    rig
}

#[test]
fn making_a_tunnel_takes_net_admin() {
    let mut rig = strict();
    let (nobody, admin) = (caller(false, 0, &[0]), caller(true, 7, &[]));
    let file = rig.open();
    for (name, flags) in [("t", TUN), ("t", 0), ("a/b", TUN), ("%d%d", TAP)] {
        assert_eq!(
            rig.set_iff_by(file, name, flags, Some(&nobody)),
            Err(Errno::EPERM),
            "before the type and the name are looked at"
        );
    }
    assert_eq!(rig.set_iff_by(file, "lo", TUN, Some(&nobody)), Err(Errno::EINVAL));
    assert_eq!(rig.set_iff_by(file, "t", 0x20 | TAP, Some(&nobody)), Err(Errno::EPERM));
    assert_eq!(rig.set_iff_by(file, "t", 0x20 | TAP, Some(&admin)), Err(Errno::EINVAL));
    assert_eq!(rig.set_iff_by(file, "t", TAP, Some(&admin)), Ok("t".to_owned()));
    assert_eq!(rig.set_iff_by(file, "u", TAP, Some(&nobody)), Err(Errno::EEXIST));
}

#[test]
fn owner_and_group_may_attach_without_net_admin() {
    let mut rig = strict();
    let make = |rig: &mut Rig, name: &str, owner: Option<u64>, group: Option<u64>| {
        let (file, _) = rig.attached(name, TUN);
        for (command, id) in [(TUNSETOWNER, owner), (TUNSETGROUP, group)] {
            if let Some(id) = id {
                rig.ioctl(file, command, id, &[]).unwrap();
            }
        }
        rig.ioctl(file, TUNSETPERSIST, 1, &[]).unwrap();
        rig.close(file);
    };
    make(&mut rig, "free", None, None);
    make(&mut rig, "owned", Some(5), None);
    make(&mut rig, "grouped", None, Some(50));
    make(&mut rig, "both", Some(5), Some(50));
    let owner = caller(false, 5, &[5]);
    let member = caller(false, 6, &[6, 50]);
    let (in_both, other) = (caller(false, 5, &[50]), caller(false, 6, &[6]));
    let admin = caller(true, 6, &[6]);
    for (name, caller, permitted) in [
        ("free", &other, true),
        ("owned", &owner, true),
        ("owned", &member, false),
        ("grouped", &member, true),
        ("grouped", &owner, false),
        ("both", &owner, false),
        ("both", &member, false),
        ("both", &in_both, true),
        ("both", &admin, true),
    ] {
        let file = rig.open();
        let expected = if permitted { Ok(name.to_owned()) } else { Err(Errno::EPERM) };
        assert_eq!(rig.set_iff_by(file, name, TUN, Some(caller)), expected, "{name} {caller:?}");
        rig.close(file);
    }
    // What is asked for is checked before, what is there after.
    let (file, late) = (rig.open(), rig.open());
    assert_eq!(rig.set_iff_by(file, "both", EXCL | TUN, Some(&other)), Err(Errno::EBUSY));
    assert_eq!(rig.set_iff_by(file, "both", TAP, Some(&other)), Err(Errno::EINVAL));
    assert_eq!(rig.set_iff_by(file, "both", TUN | MULTI_QUEUE, Some(&other)), Err(Errno::EINVAL));
    rig.set_iff_by(file, "both", TUN, Some(&in_both)).unwrap();
    assert_eq!(rig.set_iff_by(late, "both", TUN, Some(&other)), Err(Errno::EPERM));
    assert_eq!(rig.set_iff_by(late, "both", TUN, Some(&in_both)), Err(Errno::EBUSY));
    assert_eq!(rig.ioctl(file, TUNSETOWNER, 9, &[]), Ok(vec![]), "attached, nobody is asked");
}

#[test]
fn everybody_may_do_all_unless_it_is_asked() {
    let mut rig = Rig::new();
    let nobody = caller(false, 7, &[7]);
    let file = rig.open();
    assert_eq!(rig.core.asks_who_attaches(file), None);
    rig.set_iff_by(file, "t", 0x30 | TAP, Some(&nobody)).unwrap();
    rig.ioctl(file, TUNSETOWNER, 5, &[]).unwrap();
    rig.ioctl(file, TUNSETPERSIST, 1, &[]).unwrap();
    rig.close(file);
    let file = rig.open();
    assert_eq!(rig.set_iff_by(file, "t", 0x30 | TAP, Some(&nobody)), Ok("t".to_owned()));
    rig.handle(input::SetAdmission { admission: Admission::NetAdmin });
    assert_eq!(rig.core.asks_who_attaches(file), Some(Scope(1)));
}

#[test]
fn names_are_kept_from_those_without_net_admin() {
    let mut rig = Rig::new();
    rig.handle(input::SetAdmission {
        admission: Admission::Names(vec!["tun*".parse().unwrap(), "x1".parse().unwrap()]),
    });
    let (nobody, admin) = (caller(false, 7, &[7]), caller(true, 7, &[7]));
    let mut attach = |name: &str, caller: &Credentials| {
        let file = rig.open();
        rig.set_iff_by(file, name, TUN, Some(caller))
    };
    assert_eq!(attach("", &nobody), Ok("tun0".to_owned()));
    assert_eq!(attach("tun%d", &nobody), Ok("tun1".to_owned()));
    assert_eq!(attach("eth7", &nobody), Err(Errno::EPERM));
    assert_eq!(attach("x%d", &nobody), Err(Errno::EPERM), "it would be x0");
    assert_eq!(attach("x1", &nobody), Ok("x1".to_owned()));
    assert_eq!(attach("eth7", &admin), Ok("eth7".to_owned()));
}
