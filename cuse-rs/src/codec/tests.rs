//! Every message, byte for byte, as a little-endian kernel sends and takes it.

#![cfg(target_endian = "little")]

use super::*;

const CALLER: Caller = Caller { tid: 0x0304, uid: 1000, gid: 100 };
const ID: RequestId = RequestId(0x2a);

/// Bytes from hexadecimal digits; spaces and lines are for the reader.
fn hex(text: &str) -> Vec<u8> {
    let digits: String = text.split_whitespace().collect();
    let pair = |at| u8::from_str_radix(&digits[at..at + 2], 16).unwrap();
    (0..digits.len()).step_by(2).map(pair).collect()
}

/// A message with the header of a request by [`CALLER`], named [`ID`].
fn message(length: &str, opcode: &str, body: &str) -> Vec<u8> {
    let rest = "2a00000000000000 0000000000000000 e8030000 64000000 04030000 0000 0000";
    hex(&format!("{length} {opcode} {rest} {body}"))
}

fn decoded(bytes: &[u8]) -> Request<'_> {
    let message = decode(bytes).unwrap();
    assert_eq!((message.id, message.caller), (ID, CALLER));
    message.request
}

#[test]
fn cuse_init() {
    let bytes = message("38000000", "00100000", "07000000 26000000 00000000 01000000");
    let flags = CuseInitFlags::UNRESTRICTED_IOCTL;
    assert_eq!(decoded(&bytes), Request::CuseInit(CuseInit { major: 7, minor: 38, flags }));
}

#[test]
fn open() {
    let bytes = message("30000000", "0e000000", "02880000 00000000");
    assert_eq!(decoded(&bytes), Request::Open(Open { flags: 0x8802 }));
}

#[test]
fn read() {
    let bytes = message(
        "50000000",
        "0f000000",
        "0700000000000000 0000020000000000 40000000 00000000 0000000000000000 02080000 00000000",
    );
    let read = Read { file: FileHandle(7), offset: 0x20000, size: 64, flags: 0x802 };
    assert_eq!(decoded(&bytes), Request::Read(read));
}

#[test]
fn a_read_for_the_page_cache() {
    for (flags, is_paging) in [("00000000", true), ("02000000", false)] {
        let body = format!(
            "0700000000000000 0000000000000000 40000000 {flags} 0000000000000000 02080000 00000000"
        );
        let bytes = message("50000000", "0f000000", &body);
        assert_eq!(decode(&bytes).unwrap().is_paging, is_paging);
    }
}

#[test]
fn init() {
    let bytes = message(
        "68000000",
        "1a000000",
        "07000000 2d000000 00000200 fbfffff3 fd050000
         0000000000000000 0000000000000000 0000000000000000 0000000000000000 0000000000000000 00000000",
    );
    let flags = InitFlags::from_bits_retain(0xf3ff_fffb);
    assert_eq!(decoded(&bytes), Request::Init(Init { major: 7, minor: 45, flags }));
}

#[test]
fn setattr() {
    let bytes = message(
        "80000000",
        "04000000",
        "37000000 00000000 0000000000000000 0000000000000000 0000000000000000
         0a00000000000000 0b00000000000000 0c00000000000000 01000000 02000000 03000000
         a0810000 00000000 e8030000 64000000 00000000",
    );
    let valid = SetattrFlags::MODE
        | SetattrFlags::UID
        | SetattrFlags::GID
        | SetattrFlags::ATIME
        | SetattrFlags::MTIME;
    let (atime, mtime) = ((10, 1), (11, 2));
    let setattr = Setattr { valid, mode: 0o100_640, uid: 1000, gid: 100, atime, mtime };
    assert_eq!(decoded(&bytes), Request::File(FileRequest::Setattr(setattr)));
}

#[test]
fn requests_for_a_file() {
    let getattr = message("38000000", "03000000", "00000000 00000000 0000000000000000");
    assert_eq!(decoded(&getattr), Request::File(FileRequest::Getattr));
    assert_eq!(decoded(&message("28000000", "11000000", "")), Request::File(FileRequest::Statfs));
    let fsync = message("38000000", "14000000", "0700000000000000 00000000 00000000");
    assert_eq!(decoded(&fsync), Request::File(FileRequest::Fsync));
    // SETXATTR, GETXATTR, LISTXATTR, REMOVEXATTR, FLUSH, ACCESS, FALLOCATE, LSEEK, COPY_FILE_RANGE, STATX
    for opcode in [21, 22, 23, 24, 25, 34, 43, 46, 47, 52] {
        let bytes = message("28000000", &format!("{opcode:02x}000000"), "");
        assert_eq!(decoded(&bytes), Request::File(FileRequest::Optional), "{opcode}");
    }
}

#[test]
fn write() {
    let bytes = message(
        "53000000",
        "10000000",
        "0700000000000000 0000000000000000 03000000 00000000 0000000000000000 01000000 00000000
         616263",
    );
    let write = Write { file: FileHandle(7), offset: 0, data: b"abc".into(), flags: 1 };
    assert_eq!(decoded(&bytes), Request::Write(write));
}

#[test]
fn ioctl() {
    let bytes = message(
        "4c000000",
        "27000000",
        "0700000000000000 02000000 ca540440 00f0ffffff7f0000 04000000 28000000  01020304",
    );
    let ioctl = Ioctl {
        file: FileHandle(7),
        command: 0x4004_54ca,
        argument: 0x7fff_ffff_f000,
        flags: IoctlFlags::UNRESTRICTED,
        input: &[1, 2, 3, 4],
        output_size: 40,
    };
    assert_eq!(decoded(&bytes), Request::Ioctl(ioctl));
}

#[test]
fn ioctl_of_a_32_bit_caller() {
    let bytes = message(
        "48000000",
        "27000000",
        "0700000000000000 0b000000 ca540440 00f0ff0000000000 00000000 00000000",
    );
    let Request::Ioctl(ioctl) = decoded(&bytes) else { panic!("no ioctl") };
    let flags = IoctlFlags::COMPAT | IoctlFlags::UNRESTRICTED | IoctlFlags::BITS_32;
    assert_eq!(ioctl.flags, flags);
}

#[test]
fn poll() {
    let asleep =
        message("40000000", "28000000", "0700000000000000 0900000000000000 01000000 05000000");
    let poll = Poll { file: FileHandle(7), events: 5, notify: Some(PollHandle(9)) };
    assert_eq!(decoded(&asleep), Request::Poll(poll));
    let awake =
        message("40000000", "28000000", "0700000000000000 0900000000000000 00000000 05000000");
    assert_eq!(decoded(&awake), Request::Poll(Poll { notify: None, ..poll }));
}

#[test]
fn release() {
    let bytes =
        message("40000000", "12000000", "0700000000000000 02000000 00000000 0000000000000000");
    assert_eq!(decoded(&bytes), Request::Release(FileHandle(7)));
}

#[test]
fn interrupt() {
    let bytes = message("30000000", "24000000", "2800000000000000");
    assert_eq!(decoded(&bytes), Request::Interrupt(RequestId(0x28)));
}

#[test]
fn requests_that_are_not_for_a_device() {
    assert_eq!(decoded(&message("28000000", "26000000", "")), Request::Destroy);
    let forget = message("30000000", "02000000", "0100000000000000");
    assert_eq!(decoded(&forget), Request::Silent);
    assert_eq!(decoded(&message("28000000", "39300000", "")), Request::Unknown);
}

#[test]
fn a_message_cut_anywhere_is_refused() {
    let whole = message(
        "53000000",
        "10000000",
        "0700000000000000 0000000000000000 03000000 00000000 0000000000000000 01000000 00000000
         616263",
    );
    for length in 0..whole.len() {
        let mut cut = whole[..length].to_vec();
        let error = decode(&cut).unwrap_err();
        assert_eq!(error.waiting(), (length >= 40).then_some(ID), "{error}");
        if length >= 40 {
            cut[0] = u8::try_from(length).unwrap();
            assert!(matches!(decode(&cut), Err(DecodeError::Body { needed: 40 | 43, .. })));
        }
    }
}

#[test]
fn a_size_beyond_the_message_is_refused() {
    let bytes = message(
        "50000000",
        "10000000",
        "0700000000000000 0000000000000000 ffffffff 00000000 0000000000000000 01000000 00000000",
    );
    let error = decode(&bytes).unwrap_err();
    assert_eq!(error.to_string(), "WRITE: 40 bytes after the header, 4294967335 needed");
}

#[test]
fn nobody_waits_for_a_reply_to_these() {
    for bytes in [message("28000000", "24000000", ""), message("ff000000", "02000000", "")] {
        assert_eq!(decode(&bytes).unwrap_err().waiting(), None);
    }
    let mut nameless = message("28000000", "0f000000", "");
    nameless[8] = 0;
    assert_eq!(decode(&nameless).unwrap_err().waiting(), None);
}

fn encoded(reply: Reply<'_>) -> Vec<u8> {
    reply.with_pieces(ID, joined)
}

fn joined(pieces: &[IoSlice<'_>]) -> Vec<u8> {
    pieces.iter().flat_map(|piece| piece.to_vec()).collect()
}

#[test]
fn replies() {
    let file = FileHandle(7);
    let data = [IoSlice::new(b"ab"), IoSlice::new(b""), IoSlice::new(b"c")];
    let input = [UserRange { address: 0x7f00, length: 40 }];
    let output = [UserRange { address: 0x1000, length: 1 }, UserRange { address: 2, length: 3 }];
    let init = abi::InitOut {
        major: 7,
        minor: 36,
        flags: (InitFlags::BIG_WRITES | InitFlags::MAX_PAGES).bits(),
        max_background: 1024,
        congestion_threshold: 768,
        max_write: 1 << 20,
        time_gran: 1,
        max_pages: 256,
        ..Default::default()
    };
    let attr = abi::Attr {
        ino: 1,
        size: 0x7fff_f000,
        atime: 10,
        mtime: 11,
        ctime: 12,
        atimensec: 1,
        mtimensec: 2,
        ctimensec: 3,
        mode: 0o100_666,
        nlink: 1,
        uid: 1000,
        gid: 100,
        blksize: 4096,
        ..Default::default()
    };
    let attr = abi::AttrOut { attr_valid: 3600, attr, ..Default::default() };
    let statfs = abi::Kstatfs { bsize: 4096, frsize: 4096, namelen: 255, ..Default::default() };
    let goldens = [
        (Reply::Error(Errno::EINTR), "10000000 fcffffff 2a00000000000000"),
        (Reply::Error(Errno::from_number(512)), "10000000 fbffffff 2a00000000000000"),
        (Reply::Done, "10000000 00000000 2a00000000000000"),
        (
            Reply::Opened(file, OpenFlags::STREAM | OpenFlags::DIRECT_IO),
            "20000000 00000000 2a00000000000000  0700000000000000 11000000 00000000",
        ),
        (
            Reply::Init(&init),
            "50000000 00000000 2a00000000000000  07000000 24000000 00000000 20004000 0004 0003
             00001000 01000000 0001 0000 00000000 00000000 0000 00000000000000000000000000000000000000000000",
        ),
        (
            Reply::Attributes(&attr),
            "78000000 00000000 2a00000000000000  100e000000000000 00000000 00000000
             0100000000000000 00f0ff7f00000000 0000000000000000
             0a00000000000000 0b00000000000000 0c00000000000000 01000000 02000000 03000000
             b6810000 01000000 e8030000 64000000 00000000 00100000 00000000",
        ),
        (
            Reply::Statfs(&statfs),
            "60000000 00000000 2a00000000000000  0000000000000000 0000000000000000 0000000000000000
             0000000000000000 0000000000000000 00100000 ff000000 00100000 00000000
             0000000000000000 0000000000000000 0000000000000000",
        ),
        (Reply::Data(&[]), "10000000 00000000 2a00000000000000"),
        (Reply::Data(&data), "13000000 00000000 2a00000000000000  616263"),
        (Reply::Written(3), "18000000 00000000 2a00000000000000  03000000 00000000"),
        (
            Reply::Ioctl { result: -25, output: &[1, 2] },
            "22000000 00000000 2a00000000000000  e7ffffff 00000000 00000000 00000000  0102",
        ),
        (
            Reply::Retry { input: &input, output: &output },
            "50000000 00000000 2a00000000000000  00000000 04000000 01000000 02000000
             007f000000000000 2800000000000000
             0010000000000000 0100000000000000
             0200000000000000 0300000000000000",
        ),
        (Reply::Ready(0x41), "18000000 00000000 2a00000000000000  41000000 00000000"),
    ];
    for (reply, golden) in goldens {
        assert_eq!(encoded(reply), hex(golden), "{reply:?}");
    }
}

#[test]
fn the_reply_to_cuse_init() {
    let init = abi::CuseInitOut {
        major: 7,
        minor: 36,
        flags: 1,
        max_read: 0x20000,
        max_write: 0x10000,
        dev_major: 240,
        dev_minor: 5,
        ..Default::default()
    };
    let golden = "69000000 00000000 2a00000000000000
        07000000 24000000 00000000 01000000 00000200 00000100 f0000000 05000000
        0000000000000000 0000000000000000 0000000000000000 0000000000000000 0000000000000000
        4445564e414d453d6e65742f74756e7800";
    assert_eq!(encoded(Reply::CuseInit(&init, b"DEVNAME=net/tunx\0")), hex(golden));
}

#[test]
fn the_poll_notification() {
    let golden = "18000000 01000000 0000000000000000  0900000000000000";
    assert_eq!(notify_poll(PollHandle(9), joined), hex(golden));
}

#[test]
fn a_reply_in_many_pieces_is_joined() {
    let pieces = [IoSlice::new(b"x"); MAX_PIECES + 1];
    let whole = encoded(Reply::Data(&pieces));
    assert_eq!(whole[16..], [b'x'; MAX_PIECES + 1]);
    assert_eq!(usize::from(whole[0]), whole.len());
}

#[test]
fn a_retry_with_too_many_ranges_fails_as_in_the_kernel() {
    let range = UserRange { address: 0, length: 1 };
    let most = vec![range; abi::IOCTL_MAX_IOV];
    assert_eq!(encoded(Reply::Retry { input: &most, output: &[] }).len(), 32 + 256 * 16);
    let bytes = encoded(Reply::Retry { input: &most, output: &[range] });
    assert_eq!(bytes, hex("10000000 f4ffffff 2a00000000000000"));
}
