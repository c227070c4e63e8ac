//! What there is of a kind, in the order in which it came: files, and tunnels.

use alloc::{boxed::Box, collections::BTreeMap, vec::Vec};

/// Things by their id. Each is in a box of its own: they are large, and a map moves what it holds.
#[derive(Debug)]
pub(super) struct Table<K, V> {
    things: BTreeMap<K, Box<V>>,
    /// Somebody wants to know which of them may have changed.
    is_watched: bool,
    touched: Vec<K>,
}

impl<K: Ord + Copy, V> Table<K, V> {
    pub(super) fn get(&self, id: &K) -> Option<&V> {
        self.things.get(id).map(Box::as_ref)
    }

    pub(super) fn get_mut(&mut self, id: &K) -> Option<&mut V> {
        if self.is_watched {
            self.touch(*id);
        }
        self.things.get_mut(id).map(Box::as_mut)
    }

    pub(super) fn has(&self, id: &K) -> bool {
        self.things.contains_key(id)
    }

    pub(super) fn insert(&mut self, id: K, thing: V) {
        self.touch(id);
        self.things.insert(id, Box::new(thing));
    }

    pub(super) fn remove(&mut self, id: &K) -> Option<Box<V>> {
        self.touch(*id);
        self.things.remove(id)
    }

    /// The oldest first.
    pub(super) fn values(&self) -> impl DoubleEndedIterator<Item = &V> + ExactSizeIterator {
        self.things.values().map(Box::as_ref)
    }

    /// The ids of those that are so.
    pub(super) fn which(&self, is_so: impl Fn(&V) -> bool) -> Vec<K> {
        self.things.iter().filter(|(_, thing)| is_so(thing)).map(|(id, _)| *id).collect()
    }

    /// From now on it is known which of them may have changed, or not.
    pub(super) fn watch(&mut self, is_watched: bool) {
        self.is_watched = is_watched;
        if !is_watched {
            self.touched = Vec::new();
        }
    }

    /// Those that may have changed since this was asked last.
    pub(super) fn take_touched(&mut self) -> Vec<K> {
        core::mem::take(&mut self.touched)
    }

    fn touch(&mut self, id: K) {
        if self.is_watched && self.touched.last() != Some(&id) {
            self.touched.push(id);
        }
    }
}

impl<K, V> Default for Table<K, V> {
    fn default() -> Self {
        Self { things: BTreeMap::new(), is_watched: false, touched: Vec::new() }
    }
}
