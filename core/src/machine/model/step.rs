//! What random scripts are made of.

use alloc::vec;

use proptest::prelude::*;

use super::{ATTACH_QUEUE, CAPACITY, DETACH_QUEUE, FILES, MULTI_QUEUE, NAMES};

#[derive(Clone, Copy, Debug)]
pub(super) enum Step {
    Open,
    Attach { file: usize, name: usize, kind: u16 },
    Queue { file: usize, flags: u16 },
    Persist { file: usize, on: bool },
    Carrier { file: usize, on: bool },
    SendBuffer { file: usize, size: i32 },
    Flags { file: usize },
    Read { file: usize },
    ReadLater { file: usize },
    Cancel { file: usize },
    Write { file: usize },
    Poll { file: usize },
    Close { file: usize },
    Inject { name: usize, count: usize },
    Take { name: usize },
    Link { name: usize, up: bool },
    Resize { name: usize, length: usize },
    Delete { name: usize },
    Join { name: usize, other: usize },
    Part { name: usize },
}

pub(super) fn step() -> impl Strategy<Value = Step> {
    let (file, name) = (0..FILES, 0..NAMES.len());
    let on = any::<bool>;
    let kind = prop_oneof![6 => Just(0), 1 => Just(MULTI_QUEUE), 1 => Just(2)];
    let queue =
        prop::sample::select(&[ATTACH_QUEUE, DETACH_QUEUE, DETACH_QUEUE | ATTACH_QUEUE, 0][..]);
    let size = prop::sample::select(&[-1, 0, 1, 3, 4, 5000][..]);
    prop_oneof![
        3 => Just(Step::Open),
        5 => (file.clone(), name.clone(), kind)
            .prop_map(|(file, name, kind)| Step::Attach { file, name, kind }),
        3 => (file.clone(), queue).prop_map(|(file, flags)| Step::Queue { file, flags }),
        1 => (file.clone(), on()).prop_map(|(file, on)| Step::Persist { file, on }),
        1 => (file.clone(), on()).prop_map(|(file, on)| Step::Carrier { file, on }),
        1 => (file.clone(), size).prop_map(|(file, size)| Step::SendBuffer { file, size }),
        2 => file.clone().prop_map(|file| Step::Flags { file }),
        3 => file.clone().prop_map(|file| Step::Read { file }),
        2 => file.clone().prop_map(|file| Step::ReadLater { file }),
        1 => file.clone().prop_map(|file| Step::Cancel { file }),
        3 => file.clone().prop_map(|file| Step::Write { file }),
        2 => file.clone().prop_map(|file| Step::Poll { file }),
        1 => file.prop_map(|file| Step::Close { file }),
        4 => (name.clone(), prop_oneof![9 => 1..4_usize, 1 => Just(CAPACITY + 3)])
            .prop_map(|(name, count)| Step::Inject { name, count }),
        2 => name.clone().prop_map(|name| Step::Take { name }),
        1 => (name.clone(), on()).prop_map(|(name, up)| Step::Link { name, up }),
        1 => (name.clone(), 0..6_usize).prop_map(|(name, length)| Step::Resize { name, length }),
        1 => name.clone().prop_map(|name| Step::Delete { name }),
        2 => (name.clone(), name.clone()).prop_map(|(name, other)| Step::Join { name, other }),
        1 => name.prop_map(|name| Step::Part { name }),
    ]
}
