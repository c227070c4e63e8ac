//! Answers to ioctls that store something in the caller's memory, given by another thread than the one that served the ioctl.
//!
//! On a file the server itself stores the answer, and the caller's memory may never arrive. The thread that serves an ioctl lets
//! another thread serve the file meanwhile. But a call may have had to wait, for example for a network device. The thread that ends the
//! wait has other work, so a separate thread stores the answer. There is one such thread for each caller whose memory does not arrive,
//! with a limit for each user, so that one user takes none from the others.

use std::{
    cell::Cell,
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
};

use cuse_rs::{Channel, Errno, RequestId};
use tracing::warn;

use crate::{
    core::{IoctlOutput, Resource, input},
    hub::Hub,
};

thread_local! {
    /// The ioctl that this thread is asking the core.
    static ASKED: Cell<Option<RequestId>> = const { Cell::new(None) };
}

/// The users of those whose calls have not been answered, by call, of one device.
#[derive(Debug, Default)]
pub(super) struct Stores(Mutex<BTreeMap<RequestId, u32>>);

impl Stores {
    /// Asks the core what a caller wants to know. Answered meanwhile by this thread, it may wait for the caller.
    pub(super) fn ask(&self, id: RequestId, uid: u32, ask: impl FnOnce()) {
        self.lock().insert(id, uid);
        ASKED.set(Some(id));
        ask();
        ASKED.set(None);
    }

    /// Answers a call; not by this thread, if it has not asked.
    pub(super) fn answer(
        &self,
        hub: &Hub,
        channel: &Arc<Channel>,
        id: RequestId,
        result: i32,
        output: IoctlOutput,
    ) {
        let uid = self.lock().remove(&id);
        let Some(uid) = uid.filter(|_| ASKED.get() != Some(id)) else {
            channel.reply_ioctl(id).done(result, output.as_bytes());
            return;
        };
        let user = hub.handle(input::FindUser { uid });
        let Ok(charge) = user.charge_outside(Resource::StoredAnswers, 1) else {
            channel.reply_ioctl(id).error(Errno::ENOMEM);
            return;
        };
        let to = Arc::clone(channel);
        let stored = thread::Builder::new().name("store".to_owned()).spawn(move || {
            let _until_stored = charge;
            to.reply_ioctl(id).done(result, output.as_bytes());
        });
        if let Err(error) = stored {
            warn!(%error, "no thread to answer an ioctl, answering ENOMEM");
            channel.reply_ioctl(id).error(Errno::ENOMEM);
        }
    }

    /// A call was answered with nothing to store.
    pub(super) fn forget(&self, id: RequestId) {
        self.lock().remove(&id);
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<RequestId, u32>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::{Charge, Core, Limits};

    #[test]
    fn one_user_does_not_take_the_others_threads() {
        let limits = Limits::default();
        let hub = Hub::new(Core::new(limits, 1));
        let begin =
            |uid| hub.handle(input::FindUser { uid }).charge_outside(Resource::StoredAnswers, 1);
        let of_one: Vec<Charge> = (0..100).filter_map(|_| begin(7).ok()).collect();
        assert_eq!(of_one.len(), limits.stored_answers.user);
        let users = (100..200).flat_map(|uid| [uid; 100]);
        let of_others: Vec<Charge> = users.filter_map(|uid| begin(uid).ok()).collect();
        assert_eq!(of_others.len() + of_one.len(), limits.stored_answers.all);
        assert!(begin(8).is_err());
        drop(of_one);
        assert!(begin(8).is_ok() && begin(7).is_ok());
    }
}
