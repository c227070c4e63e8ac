//! The log of a core's inputs, as it is stored: enough to give another core the same, and to compare what comes of it.
//!
//! # Format
//!
//! | bytes | what |
//! | --- | --- |
//! | 8 | [`MAGIC`] |
//! | 1 | [`FORMAT`] |
//! | 1 | how the log ended ([`End`]): 0 as long as it has not |
//! | the rest | records: the first is the [`Start`], each other a [`Record`] |
//!
//! A record is its length in four bytes, least significant first, and then so many bytes: a value in [postcard's
//! format](https://postcard.jamesmunns.com/wire-format), and a CRC-32 (ISO-HDLC) of it. So a log of which the end is missing can be read
//! up to the last whole record, and a byte that has changed is noticed.
//!
//! The values have no names or types in them. Only the version of memtun that wrote a log can read it, and the start says which
//! version that is.

use alloc::{string::String, vec::Vec};

use crc::{CRC_32_ISO_HDLC, CRC_64_XZ, Crc};
use serde::{Deserialize, Serialize};

use crate::{Answer, Condition, Datagram, Input, Instant, Limits, Op, Output, Reply, Resource};

/// What a log begins with.
pub const MAGIC: [u8; 8] = *b"memtun\x00i";

/// How it goes on.
pub const FORMAT: u8 = 1;

/// Where it says how it ended.
pub const END_AT: usize = 9;

/// Where its records begin.
pub const RECORDS_AT: usize = 10;

/// Bytes that say how long a record is.
pub const LENGTH: usize = 4;

/// Bytes of the longest record. No input of a daemon has so many.
pub const MAX_RECORD: usize = 64 << 20;

/// Who writes logs, and reads them.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// How a log ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum End {
    /// It has not: whoever writes it still does, or was killed.
    None = 0,
    /// With the core.
    Stopped = 1,
    /// Inputs came faster than they could be written, and the rest of them is missing.
    TooSlow = 2,
    /// They could not be written, and the rest of them is missing.
    WriteFailed = 3,
}

impl End {
    /// What a byte says; `None` if no log has it.
    #[must_use]
    pub(crate) fn from_byte(byte: u8) -> Option<Self> {
        [Self::None, Self::Stopped, Self::TooSlow, Self::WriteFailed]
            .into_iter()
            .find(|end| *end as u8 == byte)
    }
}

/// What the core was made of.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Start {
    /// [`VERSION`]. What follows it depends on it.
    pub version: String,
    /// What is random in the core follows from it.
    pub seed: u64,
    /// Its limits.
    pub limits: Limits,
}

/// What the log has beside its start.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Record {
    /// Something went into the core.
    Input {
        /// When.
        now: Instant,
        /// What.
        input: Input,
        /// The [`digest`] of its outputs.
        outputs: u64,
    },
    /// From now on somebody outside of the core holds so much for a user.
    Charge {
        /// The user.
        uid: u32,
        /// Of what.
        resource: Resource,
        /// How much it is in all.
        amount: usize,
    },
}

/// A log could not be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LogError {
    /// It is something else.
    #[error("this is not a log of inputs; MEMTUN_LOG_INPUTS makes one")]
    Other,
    /// It is of another version.
    #[error(
        "memtun {0} wrote the log, and only that version can read it; this is memtun {VERSION}"
    )]
    Version(String),
    /// It is of another format.
    #[error("the log has format {0}; this version of memtun reads format {FORMAT}")]
    Format(u8),
    /// Its bytes are not those that were written.
    #[error("the record is damaged")]
    Damaged,
}

/// The beginning of a log: what stands before its records, and the first of them.
#[must_use]
pub fn beginning(seed: u64, limits: Limits) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend(MAGIC);
    bytes.extend([FORMAT, End::None as u8]);
    append(&Start { version: VERSION.into(), seed, limits }, &mut bytes);
    bytes
}

/// How a log ended, by what stands before its records.
///
/// # Errors
///
/// [`LogError`]: it is no log, or of another format.
pub fn end(beginning: [u8; RECORDS_AT]) -> Result<End, LogError> {
    let [magic @ .., format, end] = beginning;
    match format {
        _ if magic != MAGIC => Err(LogError::Other),
        FORMAT => End::from_byte(end).ok_or(LogError::Damaged),
        format => Err(LogError::Format(format)),
    }
}

impl Start {
    /// Reads the first record, without its length.
    ///
    /// # Errors
    ///
    /// [`LogError`]: it is damaged, or of another version.
    pub fn decode(record: &[u8]) -> Result<Self, LogError> {
        let value = checked(record)?;
        let (version, _) =
            postcard::take_from_bytes::<&str>(value).map_err(|_| LogError::Damaged)?;
        if version != VERSION {
            return Err(LogError::Version(version.into()));
        }
        postcard::from_bytes(value).map_err(|_| LogError::Damaged)
    }
}

impl Record {
    /// Appends it to a log.
    pub fn encode(&self, log: &mut Vec<u8>) {
        append(self, log);
    }

    /// Reads a record, without its length.
    ///
    /// # Errors
    ///
    /// [`LogError::Damaged`].
    pub fn decode(record: &[u8]) -> Result<Self, LogError> {
        postcard::from_bytes(checked(record)?).map_err(|_| LogError::Damaged)
    }
}

/// What is compared of the outputs of an input.
#[must_use]
pub fn digest(outputs: &[Output]) -> u64 {
    DIGEST.checksum(&value(&outputs, Vec::new()))
}

/// Bytes of datagrams that an input and its outputs hold, more or less.
#[must_use]
#[expect(clippy::wildcard_enum_match_arm, reason = "few inputs and outputs hold any")]
pub fn weight(input: &Input, outputs: &[Output]) -> usize {
    let all = |datagrams: &[Datagram]| -> usize {
        datagrams.iter().map(|datagram| datagram.payload.len()).sum()
    };
    let given = match input {
        Input::Request(request) => match &request.op {
            Op::Write(_, call) => call.data.len(),
            Op::Ioctl(_, call) => call.input.len(),
            Op::Open { .. } | Op::Read(..) | Op::Poll { .. } | Op::Close(_) => 0,
        },
        Input::Inject(inject) => inject.datagram.payload.len(),
        Input::InjectFromPeer(inject) => inject.datagram.payload.len(),
        Input::NetdevDatagram(sent) => sent.bytes.len(),
        Input::PutBack(put) => all(&put.datagrams),
        Input::DropKept(drop) => size_of_val(&*drop.numbers),
        Input::Wait(wait) => match &wait.condition {
            Condition::Inject(injection) => injection.memory(),
            Condition::Exist(addresses) => size_of_val(&**addresses),
            _ => 0,
        },
        _ => 0,
    };
    let put_out = outputs.iter().map(|output| match output {
        Output::Complete(_, Ok(Reply::Read { body, .. })) => body.len(),
        Output::Answer(_, Answer::Taken(datagrams)) => all(datagrams),
        Output::Answer(_, Answer::Kept(datagrams)) => {
            datagrams.iter().map(|(_, datagram)| datagram.payload.len()).sum()
        }
        Output::Forward(forward) => forward.datagram.payload.len(),
        _ => 0,
    });
    given + put_out.sum::<usize>() + size_of_val(outputs)
}

static DIGEST: Crc<u64> = Crc::<u64>::new(&CRC_64_XZ);
static CHECK: Crc<u32> = Crc::<u32>::new(&CRC_32_ISO_HDLC);
const CHECK_LENGTH: usize = 4;

fn append<T: Serialize>(of: &T, log: &mut Vec<u8>) {
    let start = log.len();
    log.extend([0; LENGTH]);
    *log = value(of, core::mem::take(log));
    let check = CHECK.checksum(&log[start + LENGTH..]);
    log.extend(check.to_le_bytes());
    let length = u32::try_from(log.len() - start - LENGTH).unwrap_or(u32::MAX);
    log[start..start + LENGTH].copy_from_slice(&length.to_le_bytes());
}

/// Appends a value.
fn value<T: Serialize>(of: &T, to: Vec<u8>) -> Vec<u8> {
    // Sequences know their length, and a vector takes all that is written: nothing else can fail.
    postcard::to_extend(of, to).expect("every value has a form")
}

fn checked(record: &[u8]) -> Result<&[u8], LogError> {
    let (value, check) = record.split_last_chunk::<CHECK_LENGTH>().ok_or(LogError::Damaged)?;
    if CHECK.checksum(value).to_le_bytes() != *check {
        return Err(LogError::Damaged);
    }
    Ok(value)
}

#[cfg(test)]
mod tests {
    use alloc::vec;

    use super::*;
    use crate::{Core, Request, RequestId, WriteCall, input};

    fn record() -> Vec<u8> {
        let mut log = Vec::new();
        let call = WriteCall { data: vec![0x45; 9].into(), offset: 0, nonblock: true };
        let id = RequestId { origin: crate::Origin(1), unique: 7 };
        let request = Request { id, op: Op::Write(crate::FileId(3), call) };
        Record::Input { now: Instant::ORIGIN, input: request.into(), outputs: 5 }.encode(&mut log);
        log
    }

    #[test]
    fn beginning_says_who_wrote_the_log_and_how_it_ended() {
        let limits = Limits { datagram: 77, ..Limits::default() };
        let log = beginning(9, limits);
        let (head, records) = log.split_first_chunk().unwrap();
        assert_eq!(end(*head), Ok(End::None));
        let start = Start::decode(&records[LENGTH..]).unwrap();
        assert_eq!((start.version.as_str(), start.seed), (VERSION, 9));
        assert_eq!(alloc::format!("{:?}", start.limits), alloc::format!("{limits:?}"));

        let with = |at: usize, byte: u8| {
            let mut head = *head;
            head[at] = byte;
            end(head)
        };
        assert_eq!(with(END_AT, End::TooSlow as u8), Ok(End::TooSlow));
        assert_eq!(with(END_AT, 99), Err(LogError::Damaged));
        assert_eq!(with(0, b'M'), Err(LogError::Other));
        assert_eq!(with(8, 2), Err(LogError::Format(2)));

        let mut later = Vec::new();
        append(&("99.0.0", 5_u8), &mut later);
        let refused = Start::decode(&later[LENGTH..]).map(drop);
        assert_eq!(refused, Err(LogError::Version("99.0.0".into())));
    }

    #[test]
    fn each_changed_byte_is_noticed() {
        let log = record();
        let length = u32::from_le_bytes(*log.first_chunk().unwrap());
        assert_eq!(length as usize, log.len() - LENGTH);
        Record::decode(&log[LENGTH..]).unwrap();
        for at in LENGTH..log.len() {
            for bit in 0..8 {
                let mut damaged = log[LENGTH..].to_vec();
                damaged[at - LENGTH] ^= 1 << bit;
                assert_eq!(Record::decode(&damaged).map(drop), Err(LogError::Damaged), "{at}");
            }
            assert!(Record::decode(&log[LENGTH..at]).is_err(), "cut at {at}");
        }
    }

    #[test]
    fn outputs_have_a_digest() {
        let woken = |number| Output::Wake(crate::Origin(0), crate::WakeHandle(number));
        assert_eq!(digest(&[woken(1), woken(2)]), digest(&[woken(1), woken(2)]));
        assert_ne!(digest(&[woken(1), woken(2)]), digest(&[woken(2), woken(1)]));
        assert_ne!(digest(&[woken(1)]), digest(&[]));
    }

    #[test]
    fn what_the_edges_charge_decides_alike_in_another_core() {
        let limits = Limits { connections: crate::Bound { all: 3, user: 2 }, ..Limits::default() };
        let mut core = Core::new(limits, 1);
        let user = core.handle(Instant::ORIGIN, input::FindUser { uid: 5 });
        let held = user.charge_outside(Resource::Connections, 1).unwrap();
        assert_eq!(user.used_outside(Resource::Connections), 1);
        let changes = core.budget().outside_changes();
        drop(held);
        assert_ne!(core.budget().outside_changes(), changes);
        assert_eq!(user.used_outside(Resource::Connections), 0);

        let mut other = Core::new(limits, 1);
        let user = other.handle(Instant::ORIGIN, input::FindUser { uid: 5 });
        user.set_outside(Resource::Connections, 1);
        let _second = user.charge(Resource::Connections, 1).unwrap();
        assert!(user.charge(Resource::Connections, 1).is_err(), "the share is in use");
        user.set_outside(Resource::Connections, 0);
        assert_eq!(other.budget().used(Resource::Connections), 1);
    }
}
