//! What there is of a kind, in the order in which it came: files, and tunnels.

use alloc::{boxed::Box, collections::BTreeMap};

/// Things by their id. Each is in a box of its own: they are large, and a map moves what it holds.
#[derive(Debug)]
pub(super) struct Table<K, V>(BTreeMap<K, Box<V>>);

impl<K: Ord, V> Table<K, V> {
    pub(super) fn get(&self, id: &K) -> Option<&V> {
        self.0.get(id).map(Box::as_ref)
    }

    pub(super) fn get_mut(&mut self, id: &K) -> Option<&mut V> {
        self.0.get_mut(id).map(Box::as_mut)
    }

    pub(super) fn has(&self, id: &K) -> bool {
        self.0.contains_key(id)
    }

    pub(super) fn insert(&mut self, id: K, thing: V) {
        self.0.insert(id, Box::new(thing));
    }

    pub(super) fn remove(&mut self, id: &K) -> Option<Box<V>> {
        self.0.remove(id)
    }

    /// The oldest first.
    pub(super) fn values(&self) -> impl DoubleEndedIterator<Item = &V> + ExactSizeIterator {
        self.0.values().map(Box::as_ref)
    }

    pub(super) fn values_mut(&mut self) -> impl Iterator<Item = &mut V> {
        self.0.values_mut().map(Box::as_mut)
    }
}

impl<K, V> Default for Table<K, V> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}
