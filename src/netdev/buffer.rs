//! Room for what is read of a queue or of rtnetlink. Each thread that reads has one buffer: what clients can make more of, such as queues
//! and namespaces, has none.

use std::cell::Cell;

thread_local! {
    static BUFFER: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// Lends the thread's buffer, of at least this length. Who borrows it again meanwhile gets another.
pub(super) fn with<T>(length: usize, act: impl FnOnce(&mut Vec<u8>) -> T) -> T {
    let mut buffer = BUFFER.take();
    if buffer.len() < length {
        buffer = vec![0; length];
    }
    let done = act(&mut buffer);
    BUFFER.set(buffer);
    done
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffer_is_kept_and_never_lent_twice() {
        with(8, |outer| {
            outer[0] = 1;
            with(16, |inner| assert_eq!((inner.len(), inner[0]), (16, 0)));
            assert_eq!(outer.len(), 8);
        });
        with(4, |again| assert_eq!((again.len(), again[0]), (8, 1)));
    }
}
