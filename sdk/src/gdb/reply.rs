//! What stubs answer, taken apart (GDB manual, "Stop Reply Packets", "General Query Packets"). Pure functions over bytes that
//! somebody else made: anything may come in, nothing panics.

use super::packet::number;

/// Why the target stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stop {
    /// gdb's number of the signal (5 is SIGTRAP, 2 is SIGINT; 0: none).
    pub signal: u8,
    /// The thread that reports, where it says so.
    pub thread: Option<u64>,
}

/// A stop reply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StopReply {
    /// The target stands.
    Stopped(Stop),
    /// `W`, `X`: the program has ended, or there is none.
    Ended,
    /// `O`: text that the program or the stub prints.
    Output,
    /// `F`: the program asks for a file operation of ours.
    FileRequest,
}

/// A stop reply; `None`: it is none.
#[must_use]
pub fn stop(reply: &[u8]) -> Option<StopReply> {
    match reply.first()? {
        b'S' => Some(StopReply::Stopped(Stop { signal: number(reply.get(1..3)?)? as u8, thread: None })),
        b'T' => {
            let signal = number(reply.get(1..3)?)? as u8;
            let pairs = reply.get(3..)?.split(|b| *b == b';');
            let thread = pairs.filter_map(|p| p.strip_prefix(b"thread:")).find_map(thread_id);
            Some(StopReply::Stopped(Stop { signal, thread }))
        }
        b'W' | b'X' => Some(StopReply::Ended),
        b'O' => Some(StopReply::Output),
        b'F' => Some(StopReply::FileRequest),
        _ => None,
    }
}

/// A thread id: `TID` or `pPID.TID`. `None` for those that mean any or all threads.
#[must_use]
pub fn thread_id(text: &[u8]) -> Option<u64> {
    let tid = match text.strip_prefix(b"p") {
        Some(rest) => rest.splitn(2, |b| *b == b'.').nth(1)?,
        None => text,
    };
    number(tid).filter(|t| *t != 0)
}

/// The answer to `qfThreadInfo` and `qsThreadInfo`: `m` and ids, or `l` at the end. `None`: neither.
#[must_use]
pub fn threads(reply: &[u8]) -> Option<Vec<u64>> {
    match reply.split_first()? {
        (b'l', _) => Some(Vec::new()),
        (b'm', ids) => ids.split(|b| *b == b',').map(thread_id).collect(),
        _ => None,
    }
}

/// Is it an error, `Enn` or `E.text`?
#[must_use]
pub fn is_error(reply: &[u8]) -> bool {
    matches!(reply, [b'E', b'.', ..] | [b'E', _, _])
}

/// What a stub offers: the answer to `qSupported`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Offers {
    names: Vec<String>,
    /// Longest packet that the stub takes, bytes.
    pub packet_size: Option<usize>,
}

impl Offers {
    /// Takes the answer apart.
    #[must_use]
    pub fn parse(reply: &[u8]) -> Offers {
        let mut out = Offers::default();
        for item in reply.split(|b| *b == b';') {
            if let Some(size) = item.strip_prefix(b"PacketSize=") {
                out.packet_size = number(size).and_then(|n| usize::try_from(n).ok());
            } else if let Some(name) = item.strip_suffix(b"+") {
                out.names.push(String::from_utf8_lossy(name).into_owned());
            }
        }
        out
    }

    /// Is it offered?
    #[must_use]
    pub fn has(&self, name: &str) -> bool {
        self.names.iter().any(|n| n == name)
    }
}

/// The answer to a `vFile` request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileReply<'a> {
    /// The result, or gdb's errno.
    pub result: Result<u64, u64>,
    /// What is attached, still escaped.
    pub data: &'a [u8],
}

/// `F result [, errno] [; attachment]` (GDB manual, "Host I/O Packets"). `None`: it is none.
#[must_use]
pub fn file(reply: &[u8]) -> Option<FileReply<'_>> {
    let rest = reply.strip_prefix(b"F")?;
    let (head, data) = match rest.iter().position(|b| *b == b';') {
        Some(i) => (&rest[..i], &rest[i + 1..]),
        None => (rest, &[][..]),
    };
    let mut parts = head.splitn(2, |b| *b == b',');
    let result = parts.next()?;
    let result = match result.strip_prefix(b"-") {
        Some(_) => Err(parts.next().and_then(number).unwrap_or(0)),
        None => Ok(number(result)?),
    };
    Some(FileReply { result, data })
}

/// Load bias from `qOffsets`: `Text=xxx;Data=xxx[;Bss=xxx]` or `TextSeg=xxx[;DataSeg=xxx]`.
#[must_use]
pub fn text_offset(reply: &[u8]) -> Option<u64> {
    let first = reply.split(|b| *b == b';').next()?;
    number(first.strip_prefix(b"TextSeg=").or_else(|| first.strip_prefix(b"Text="))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stop_replies() {
        let stopped = |signal, thread| Some(StopReply::Stopped(Stop { signal, thread }));
        assert_eq!(stop(b"S05"), stopped(5, None));
        assert_eq!(stop(b"T0506:0420;07:f8;thread:2658;core:1;"), stopped(5, Some(0x2658)));
        assert_eq!(stop(b"T02thread:p01.2c;"), stopped(2, Some(0x2c)));
        assert_eq!(stop(b"T00"), stopped(0, None));
        assert_eq!(stop(b"W00"), Some(StopReply::Ended));
        assert_eq!(stop(b"X09;process:1"), Some(StopReply::Ended));
        assert_eq!(stop(b"O4142"), Some(StopReply::Output));
        for bad in [&b""[..], b"S", b"S5", b"Txx", b"E01", b"OK".split_at(0).0, b"m12"] {
            assert_eq!(stop(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn lists_of_threads() {
        assert_eq!(threads(b"m1,2,p01.ff"), Some(vec![1, 2, 255]));
        assert_eq!(threads(b"l"), Some(vec![]));
        assert_eq!(threads(b"m"), None);
        assert_eq!(threads(b"m1,,2"), None);
        assert_eq!(threads(b""), None);
        assert_eq!(thread_id(b"-1"), None);
        assert_eq!(thread_id(b"p1"), None);
    }

    #[test]
    fn offers() {
        let o = Offers::parse(b"PacketSize=47ff;QPassSignals+;qXfer:auxv:read+;ConditionalTracepoints-;multiprocess?");
        assert_eq!(o.packet_size, Some(0x47ff));
        assert!(o.has("QPassSignals") && o.has("qXfer:auxv:read") && !o.has("ConditionalTracepoints"));
        assert_eq!(Offers::parse(b""), Offers::default());
    }

    #[test]
    fn file_replies() {
        assert_eq!(file(b"F6"), Some(FileReply { result: Ok(6), data: b"" }));
        assert_eq!(file(b"F-1,2"), Some(FileReply { result: Err(2), data: b"" }));
        assert_eq!(file(b"F-1"), Some(FileReply { result: Err(0), data: b"" }));
        assert_eq!(file(b"F3;a;b"), Some(FileReply { result: Ok(3), data: b"a;b" }));
        assert_eq!(file(b"F"), None);
        assert_eq!(file(b"E01"), None);
    }

    #[test]
    fn offsets() {
        assert_eq!(text_offset(b"Text=4000000000;Data=4000000000;Bss=4000000000"), Some(0x40_0000_0000));
        assert_eq!(text_offset(b"TextSeg=1000"), Some(0x1000));
        assert_eq!(text_offset(b""), None);
    }
}
