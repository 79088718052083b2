//! The target's memory, as the stub gives it.

use super::error::{GdbError, show};
use super::packet::{escape, from_hex, to_hex};
use super::reply;
use super::stub::Stub;

/// Room that is made at once for what is read, bytes; more comes as it arrives.
const AT_ONCE: usize = 16 << 20;

impl Stub {
    /// Reads memory. Fewer bytes than asked for is an error.
    pub(super) fn read_bytes(&mut self, at: u64, len: usize) -> Result<Vec<u8>, GdbError> {
        let most = (self.packet - 16) / 2;
        let mut out = Vec::with_capacity(len.min(AT_ONCE));
        while out.len() < len {
            let n = (len - out.len()).min(most);
            let question = format!("m{:x},{n:x}", at.wrapping_add(out.len() as u64));
            let answer = self.ask(&question)?;
            if reply::is_error(&answer) || answer.is_empty() {
                return Err(GdbError::Refused { during: question, answer: show(&answer) });
            }
            match from_hex(&answer).filter(|b| (1..=n).contains(&b.len())) {
                Some(bytes) => out.extend(bytes),
                None => return Err(GdbError::Nonsense { during: question, answer: show(&answer) }),
            }
        }
        Ok(out)
    }

    /// Writes memory.
    pub(super) fn write_bytes(&mut self, at: u64, bytes: &[u8]) -> Result<(), GdbError> {
        if self.binary.is_none() && bytes.len() > 64 {
            // Of no bytes: only whether the packet is known.
            let answer = self.ask(&format!("X{at:x},0:"))?;
            self.binary = Some(answer == b"OK");
        }
        let mut done = 0;
        while done < bytes.len() {
            let binary = self.binary == Some(true);
            let most = (self.packet - 40) / 2;
            let piece = &bytes[done..bytes.len().min(done + most)];
            let mut packet =
                format!("{}{:x},{:x}:", if binary { 'X' } else { 'M' }, at.wrapping_add(done as u64), piece.len())
                    .into_bytes();
            if binary {
                packet.extend(escape(piece));
            } else {
                packet.extend(to_hex(piece).bytes());
            }
            if !self.order(&packet)? {
                return Err(GdbError::Lacks { what: "write memory".into() });
            }
            done += piece.len();
        }
        Ok(())
    }
}
