//! Files on the stub's side, by host I/O (GDB manual, "Host I/O Packets"): gdbserver has it, emulators and probes have not.

use super::error::{GdbError, show};
use super::packet::{to_hex, unescape};
use super::reply;
use super::stub::Stub;

/// Larger files are not read, bytes.
const MAX_FILE: usize = 1 << 30;

/// The result, or gdb's errno, and what came with it.
type Answer = (Result<u64, u64>, Vec<u8>);

impl Stub {
    /// `None`: the stub has no host I/O.
    fn file_request(&mut self, request: &str) -> Result<Option<Answer>, GdbError> {
        if self.files == Some(false) {
            return Ok(None);
        }
        let answer = self.ask(request)?;
        if answer.is_empty() {
            self.files = Some(false);
            return Ok(None);
        }
        self.files = Some(true);
        match reply::file(&answer) {
            Some(f) => Ok(Some((f.result, unescape(f.data)))),
            None => Err(GdbError::Nonsense { during: request.to_owned(), answer: show(&answer) }),
        }
    }

    /// A whole file, or `len` bytes of it from `offset` on. `None`: there is no such file, or no host I/O.
    pub(super) fn file(&mut self, path: &str, offset: u64, len: usize) -> Result<Option<Vec<u8>>, GdbError> {
        self.file_by(path, offset, len, false)
    }

    /// A text in /proc, mostly in one piece: the kernel gives as much as there is room for, so that less is the end.
    pub(super) fn short_file(&mut self, path: &str) -> Result<Option<String>, GdbError> {
        const MOST: usize = 1 << 14;
        let bytes = self.file_by(path, 0, MOST, true)?;
        Ok(bytes.map(|b| String::from_utf8_lossy(&b).into_owned()))
    }

    fn file_by(&mut self, path: &str, offset: u64, len: usize, short: bool) -> Result<Option<Vec<u8>>, GdbError> {
        let open = format!("vFile:open:{},0,0", to_hex(path.as_bytes()));
        let Some((Ok(fd), _)) = self.file_request(&open)? else { return Ok(None) };
        let mut out = Vec::new();
        let mut failed = false;
        while out.len() < len.min(MAX_FILE) {
            // Half of the packet, should everything need an escape.
            let n = (len - out.len()).min(self.packet / 2 - 16);
            let read = format!("vFile:pread:{fd:x},{n:x},{:x}", offset + out.len() as u64);
            match self.file_request(&read)? {
                Some((Ok(0), _)) => break,
                Some((Ok(_), data)) if !data.is_empty() && data.len() <= n => {
                    let last = short && data.len() < n;
                    out.extend(data);
                    if last {
                        break;
                    }
                }
                _ => {
                    failed = true;
                    break;
                }
            }
        }
        self.file_request(&format!("vFile:close:{fd:x}"))?;
        Ok((!failed).then_some(out))
    }

    /// What a symbolic link says.
    pub(super) fn link_target(&mut self, path: &str) -> Result<Option<String>, GdbError> {
        match self.file_request(&format!("vFile:readlink:{}", to_hex(path.as_bytes())))? {
            Some((Ok(_), data)) => Ok(Some(String::from_utf8_lossy(&data).into_owned())),
            _ => Ok(None),
        }
    }
}
