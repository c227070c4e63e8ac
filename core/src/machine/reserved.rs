//! Outcomes that may not reach their client.
//!
//! # Theory of operation
//!
//! A signal can end a client's call while its answer is under way. A front end that learns of that says so ([`ReportAnswers`]). Each
//! outcome that it is given is *reserved* until it tells whether the client got it ([`Answered`]). If the client did not get it, the
//! call has not been made: the client may make it again (`SA_RESTART`), and gets what it would have got. So every datagram is read
//! once and written once.
//!
//! | call | while its outcome is reserved | the client got it | it did not |
//! | --- | --- | --- | --- |
//! | read | nobody else can read the datagram | it is gone | it is the oldest in the queue again |
//! | write | nobody sees the datagram; writes behind it wait | it goes on its way | it never was |
//! | open | the file is not shown | it is shown | it is closed |
//! | TUNSETIFF | the file is not attached; a tunnel made for it is not shown, and its name is taken | it is attached | the tunnel goes |
//! | TUNSETQUEUE | the queue stays as it is | it changes | it stays |
//!
//! All other calls change nothing, or the same when they are made twice. They are not reserved.
//!
//! After open, TUNSETIFF and TUNSETQUEUE all requests for the file wait until the outcome is known. A close waits for every outcome of
//! its file. TUNSETIFF waits for another in its network namespace.
//!
//! What a reserved outcome holds is charged as it is in a queue. There are as many as there are clients' threads in a call.
//!
//! [`ReportAnswers`]: super::input::ReportAnswers
//! [`Answered`]: super::input::Answered

use alloc::{collections::BTreeMap, vec::Vec};

use super::{
    Core, DropReason, Event, FileId, IoctlCall, NetdevRequest, Op, Origin, Outcome, Output,
    Request, RequestId, Scope, TunnelId,
    attach::{Attachment, inheritable},
    ioctl,
};
use crate::{abi::tun::IfFlags, errno::Errno};

/// The outcomes that are not known to have reached their clients.
#[derive(Debug, Default)]
pub(super) struct Reservations {
    /// Front ends that tell. Until there is one no call pays for it.
    reporting: Vec<Origin>,
    outcomes: BTreeMap<RequestId, Reserved>,
    /// Requests that wait for an outcome of their file, in the order they came.
    waiting: Vec<Request>,
}

/// What an outcome holds.
#[derive(Debug)]
pub(super) enum Reserved {
    /// A file.
    Open(FileId),
    /// A datagram, by its number in the file's queue.
    Read {
        /// The file.
        file: FileId,
        /// The number.
        number: u64,
        /// The tunnel and the length of the datagram, if the read had no room for its headers.
        lost: Option<(TunnelId, usize)>,
    },
    /// A place among the writes of a tunnel.
    Write(TunnelId, FileId),
    /// TUNSETIFF: a tunnel, which may have been made for it.
    Attach {
        /// The file.
        file: FileId,
        /// The tunnel.
        tunnel: TunnelId,
        /// Where its name is looked up.
        scope: Scope,
        /// As they were given.
        flags: IfFlags,
        /// It was made for it.
        created: bool,
    },
    /// TUNSETQUEUE, with its flags.
    SetQueue(FileId, IfFlags),
}

impl Reserved {
    fn file(&self) -> FileId {
        match self {
            Self::Open(file)
            | Self::Read { file, .. }
            | Self::Write(_, file)
            | Self::Attach { file, .. }
            | Self::SetQueue(file, _) => *file,
        }
    }

    /// Nothing else can be done on the file meanwhile.
    fn holds_file(&self) -> bool {
        match self {
            Self::Open(_) | Self::Attach { .. } | Self::SetQueue(..) => true,
            Self::Read { .. } | Self::Write(..) => false,
        }
    }
}

impl Reservations {
    /// There is a front end that tells.
    pub(super) fn is_in_use(&self) -> bool {
        !self.reporting.is_empty()
    }

    /// Whether the outcome of a request is reserved.
    pub(super) fn reports(&self, request: RequestId) -> bool {
        self.reporting.contains(&request.origin)
    }

    /// An outcome is reserved.
    pub(super) fn has(&self, request: RequestId) -> bool {
        self.outcomes.contains_key(&request)
    }

    /// A TUNSETIFF in the namespace is not known to have reached its client.
    pub(super) fn is_attaching_in(&self, scope: Scope) -> bool {
        let mut outcomes = self.outcomes.values();
        outcomes.any(|it| matches!(it, Reserved::Attach { scope: other, .. } if *other == scope))
    }
}

impl Core {
    /// The front end tells of every answer.
    pub(super) fn report_answers(&mut self, origin: Origin) {
        if !self.reservations.reporting.contains(&origin) {
            self.reservations.reporting.push(origin);
        }
    }

    /// Whether a request has to wait for an outcome of its file.
    pub(super) fn must_wait_for_outcome(&self, request: &Request) -> bool {
        let (Op::Read(file, _)
        | Op::Write(file, _)
        | Op::Poll { file, .. }
        | Op::Ioctl(file, _)
        | Op::Close(file)) = request.op
        else {
            return false;
        };
        let is_close = matches!(request.op, Op::Close(_));
        self.files.get(&file).is_some_and(|file| file.is_held || is_close && file.reserved > 0)
    }

    pub(super) fn wait_for_outcome(&mut self, request: Request) {
        self.reservations.waiting.push(request);
    }

    /// The front end of this request tells of its answers.
    pub(super) fn reports(&self, request: RequestId) -> bool {
        self.reservations.reports(request)
    }

    /// Ends a request that waits for an outcome by a signal; false if it does not wait for one.
    pub(super) fn cancel_waiting(&mut self, id: RequestId) -> bool {
        let waiting = &mut self.reservations.waiting;
        let Some(at) = waiting.iter().position(|request| request.id == id) else { return false };
        // As in the kernel, nothing ends a close.
        if !matches!(waiting[at].op, Op::Close(_)) {
            waiting.remove(at);
            self.outputs.push(Output::Complete(id, Err(Errno::EINTR)));
        }
        true
    }

    pub(super) fn reserve(&mut self, request: RequestId, reserved: Reserved) {
        if let Some(file) = self.files.get_mut(&reserved.file()) {
            file.reserved += 1;
            file.is_held |= reserved.holds_file();
        }
        self.reservations.outcomes.insert(request, reserved);
    }

    /// The outcome of a request reached its client, or not.
    pub(super) fn answered(&mut self, request: RequestId, delivered: bool) {
        let Some(reserved) = self.reservations.outcomes.remove(&request) else { return };
        if let Some(file) = self.files.get_mut(&reserved.file()) {
            file.reserved -= 1;
            file.is_held &= !reserved.holds_file();
        }
        match reserved {
            Reserved::Open(file) => self.decide_open(file, delivered),
            Reserved::Read { file, number, lost } => {
                self.decide_read(file, number, lost, delivered);
            }
            Reserved::Write(tunnel, _) => self.decide_write(tunnel, request, delivered),
            Reserved::Attach { file, tunnel, flags, created, .. } => {
                self.decide_attach(file, tunnel, flags, created, delivered);
                self.resume_deferred();
            }
            Reserved::SetQueue(file, flags) => {
                self.decide_set_queue(request, file, flags, delivered);
            }
        }
        // One that still has to wait is kept again.
        for request in core::mem::take(&mut self.reservations.waiting) {
            self.request(request);
        }
    }

    fn decide_open(&mut self, id: FileId, delivered: bool) {
        if delivered {
            self.show_opened(id);
        } else {
            // Nobody waits for the answer.
            let _closed = self.close(id);
        }
    }

    fn decide_read(
        &mut self,
        id: FileId,
        number: u64,
        lost: Option<(TunnelId, usize)>,
        delivered: bool,
    ) {
        let Some(file) = self.files.get_mut(&id) else { return };
        // It may have been lost with its queue.
        if !delivered {
            if file.queue.give_back(number) && !self.serve_parked(id) {
                self.wake(id);
            }
        } else if file.queue.remove(number)
            && let Some((tunnel, length)) = lost
        {
            self.count_to_client_drop(tunnel, DropReason::ReadTooShort, length);
        }
    }

    /// TUNSETIFF of a file that could be bound: what the call returns, but for the name.
    pub(super) fn reserve_attach(
        &mut self,
        request: RequestId,
        attachment: &Attachment,
        created: bool,
    ) -> Result<(), Errno> {
        let Attachment { file, tunnel: id, scope, flags, .. } = *attachment;
        let Some(tunnel) = self.tunnels.get_mut(&id) else { return Ok(()) };
        tunnel.expected_files += 1;
        tunnel.is_shown &= !created;
        let filtered = if flags.contains(IfFlags::NO_PI) { Ok(()) } else { inheritable(tunnel) };
        self.reserve(request, Reserved::Attach { file, tunnel: id, scope, flags, created });
        filtered
    }

    fn decide_attach(
        &mut self,
        file: FileId,
        id: TunnelId,
        flags: IfFlags,
        created: bool,
        delivered: bool,
    ) {
        // Somebody may have deleted it.
        let Some(tunnel) = self.tunnels.get_mut(&id) else { return };
        tunnel.expected_files -= 1;
        if tunnel.gone {
            return;
        }
        if delivered && self.files.has(&file) {
            tunnel.is_shown = true;
            // What it says has been answered.
            let _filtered = self.bind(file, id, flags, created);
            return;
        }
        let (name, was_shown) = (tunnel.name, tunnel.is_shown);
        if self.bury_if_unused(id, file) && was_shown {
            self.event(|| Event::Deleted { tunnel: id, name });
        }
    }

    /// An ioctl that is not TUNSETIFF.
    pub(super) fn perform_ioctl(
        &mut self,
        request: RequestId,
        file: FileId,
        call: &IoctlCall,
    ) -> Outcome {
        if self.reports(request)
            && let Some(flags) = ioctl::tunsetqueue(call)
        {
            let changed = self.check_set_queue(file, flags)?;
            self.reserve(request, Reserved::SetQueue(file, flags));
            return changed.and_then(|()| ioctl::done());
        }
        ioctl::perform(self, file, call)
    }

    fn decide_set_queue(
        &mut self,
        asker: RequestId,
        file: FileId,
        flags: IfFlags,
        delivered: bool,
    ) {
        if delivered {
            // What it says has been answered.
            let _changed = self.set_queue(file, flags);
            return;
        }
        let attaches = flags.contains(IfFlags::ATTACH_QUEUE);
        if let Some(tunnel) = self.whose_queue_changes(file, attaches) {
            // The device's queue has changed already.
            let attached = !attaches;
            let back = NetdevRequest::SetQueue { tunnel, file, attached, asker };
            self.outputs.push(Output::Netdev(back));
        }
    }
}

#[cfg(test)]
mod tests;
