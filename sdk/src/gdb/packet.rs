//! Packets of the gdb remote protocol: framing, checksums, escapes and run lengths (GDB manual, "Overview" of the Remote
//! Protocol). Pure functions over bytes, which come from whoever answers at the other end: sizes are bounded, and nothing
//! panics.

/// The longest packet that is accepted, bytes, before and after its run lengths are expanded.
pub const MAX_PACKET: usize = 1 << 20;

/// What a stream of bytes from the stub comes to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// `+`: our packet arrived.
    Ack,
    /// `-`: our packet arrived damaged.
    Nak,
    /// `$...#xx` with the right checksum; run lengths are expanded, escapes are not resolved.
    Packet(Vec<u8>),
    /// `%...#xx`: a notification, which nobody acknowledges.
    Notification(Vec<u8>),
    /// A packet with a wrong checksum, or whose run lengths make no sense.
    Damaged,
    /// A packet longer than [`MAX_PACKET`].
    TooLong,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
enum Place {
    /// Between packets.
    #[default]
    Outside,
    Inside,
    /// Behind `#`.
    Checksum,
}

/// Finds packets in a stream of bytes.
#[derive(Debug, Default)]
pub struct Decoder {
    place: Place,
    notification: bool,
    too_long: bool,
    raw: Vec<u8>,
    sum: u8,
    /// First digit of the checksum.
    digit: Option<u8>,
}

impl Decoder {
    /// Takes the next byte.
    pub fn push(&mut self, byte: u8) -> Option<Event> {
        match self.place {
            Place::Outside => match byte {
                b'+' => Some(Event::Ack),
                b'-' => Some(Event::Nak),
                b'$' | b'%' => {
                    self.begin(byte);
                    None
                }
                // Noise of the line, or of a stub that prints.
                _ => None,
            },
            Place::Inside => {
                match byte {
                    b'#' => {
                        self.place = Place::Checksum;
                        self.digit = None;
                    }
                    // Never part of a packet: one was cut off, another begins.
                    b'$' => self.begin(byte),
                    _ if self.raw.len() >= MAX_PACKET => self.too_long = true,
                    _ => {
                        self.raw.push(byte);
                        self.sum = self.sum.wrapping_add(byte);
                    }
                }
                None
            }
            Place::Checksum => match self.digit {
                None => {
                    self.digit = Some(byte);
                    None
                }
                Some(high) => {
                    self.place = Place::Outside;
                    Some(self.finish(high, byte))
                }
            },
        }
    }

    fn begin(&mut self, byte: u8) {
        self.place = Place::Inside;
        self.notification = byte == b'%';
        self.too_long = false;
        self.raw.clear();
        self.sum = 0;
    }

    fn finish(&mut self, high: u8, low: u8) -> Event {
        if self.too_long {
            return Event::TooLong;
        }
        match (byte_of(high, low), expand_runs(&self.raw)) {
            (Some(sum), Some(bytes)) if sum == self.sum => {
                if self.notification {
                    Event::Notification(bytes)
                } else {
                    Event::Packet(bytes)
                }
            }
            _ => Event::Damaged,
        }
    }
}

fn digit(c: u8) -> Option<u8> {
    char::from(c).to_digit(16).map(|d| d as u8)
}

fn byte_of(high: u8, low: u8) -> Option<u8> {
    Some(digit(high)? << 4 | digit(low)?)
}

/// `c*n` means `c` and `n - 29` more of it. `None`: nothing to repeat, a count that is no printable character, or more than
/// [`MAX_PACKET`].
#[must_use]
pub fn expand_runs(raw: &[u8]) -> Option<Vec<u8>> {
    let mut out: Vec<u8> = Vec::with_capacity(raw.len());
    let mut bytes = raw.iter();
    while let Some(&b) = bytes.next() {
        if b != b'*' {
            out.push(b);
            continue;
        }
        let count = *bytes.next().filter(|n| (b' '..=b'~').contains(n))?;
        let last = *out.last()?;
        let len = out.len() + usize::from(count - 29);
        if len > MAX_PACKET {
            return None;
        }
        out.resize(len, last);
    }
    Some(out)
}

/// Resolves escapes of binary data: `}` and the byte xor 0x20. A `}` at the very end stands for nothing.
#[must_use]
pub fn unescape(data: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(data.len());
    let mut bytes = data.iter();
    while let Some(&b) = bytes.next() {
        match b {
            b'}' => out.extend(bytes.next().map(|b| b ^ 0x20)),
            _ => out.push(b),
        }
    }
    out
}

/// Escapes binary data for a packet.
#[must_use]
pub fn escape(data: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(data.len() + 16);
    for &b in data {
        if matches!(b, b'#' | b'$' | b'}' | b'*') {
            out.extend([b'}', b ^ 0x20]);
        } else {
            out.push(b);
        }
    }
    out
}

/// The packet with this payload. Binary parts of it are escaped already.
#[must_use]
pub fn frame(payload: &[u8]) -> Vec<u8> {
    let sum = payload.iter().fold(0u8, |s, b| s.wrapping_add(*b));
    let mut out = Vec::with_capacity(payload.len() + 4);
    out.push(b'$');
    out.extend_from_slice(payload);
    out.extend(format!("#{sum:02x}").bytes());
    out
}

/// Pairs of hexadecimal digits. `None`: an odd number of them, or something else.
#[must_use]
pub fn from_hex(text: &[u8]) -> Option<Vec<u8>> {
    let (pairs, rest) = text.as_chunks::<2>();
    rest.is_empty().then_some(())?;
    pairs.iter().map(|p| byte_of(p[0], p[1])).collect()
}

/// Bytes as pairs of hexadecimal digits.
#[must_use]
pub fn to_hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    let mut out = String::with_capacity(bytes.len() * 2);
    for b in bytes {
        let _ = write!(out, "{b:02x}");
    }
    out
}

/// A hexadecimal number, most significant digit first.
#[must_use]
pub fn number(text: &[u8]) -> Option<u64> {
    // from_str_radix takes a sign, the protocol does not.
    let text = std::str::from_utf8(text).ok().filter(|t| t.bytes().all(|b| b.is_ascii_hexdigit()))?;
    u64::from_str_radix(text, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn events(bytes: &[u8]) -> Vec<Event> {
        let mut d = Decoder::default();
        bytes.iter().filter_map(|b| d.push(*b)).collect()
    }

    #[test]
    fn what_is_framed_is_found_again() {
        for payload in [&b""[..], b"OK", b"qSupported:a+;b-", b"X1000,4:\x01}\x03}\x04}]\xff"] {
            assert_eq!(events(&frame(payload)), [Event::Packet(payload.to_vec())]);
        }
        assert_eq!(frame(b"g"), b"$g#67");
    }

    #[test]
    fn acks_noise_and_notifications_are_told_apart() {
        let got = events(b"+-\r\nhello\x03$OK#9a%Stop:T05#99+");
        let want = [
            Event::Ack,
            Event::Nak,
            Event::Packet(b"OK".to_vec()),
            Event::Notification(b"Stop:T05".to_vec()),
            Event::Ack,
        ];
        // The sum of the notification as the manual counts it.
        let sum = b"Stop:T05".iter().fold(0u8, |s, b| s.wrapping_add(*b));
        assert_eq!(sum, 0x99);
        assert_eq!(got, want);
    }

    #[test]
    fn damage_is_noticed() {
        assert_eq!(events(b"$OK#9b"), [Event::Damaged]);
        assert_eq!(events(b"$OK#zz"), [Event::Damaged]);
        assert_eq!(events(b"$*!#4b"), [Event::Damaged], "nothing to repeat");
        assert_eq!(events(b"$0*#5a"), [Event::Damaged], "no count");
        assert_eq!(events(b"$OK#9"), []);
        assert_eq!(events(b"$abc$OK#9a"), [Event::Packet(b"OK".to_vec())], "the first was cut off");
        assert_eq!(events(b"$OK#9\x00$OK#9a"), [Event::Damaged, Event::Packet(b"OK".to_vec())]);
    }

    #[test]
    fn runs_are_expanded() {
        assert_eq!(expand_runs(b"0* ").unwrap(), b"0000");
        assert_eq!(expand_runs(b"a0*~b").unwrap().len(), 1 + 1 + (0x7e - 29) + 1);
        assert_eq!(expand_runs(b"0*"), None);
        assert_eq!(expand_runs(b"*!"), None);
        assert_eq!(expand_runs(b"0*\x1d"), None);
        assert_eq!(expand_runs(b"0*!*!").unwrap().len(), 1 + 4 + 4);
    }

    #[test]
    fn sizes_are_bounded() {
        let mut long = vec![b'$'];
        long.resize(MAX_PACKET + 10, b'a');
        long.extend(b"#00$OK#9a");
        assert_eq!(events(&long), [Event::TooLong, Event::Packet(b"OK".to_vec())]);
        let bomb: Vec<u8> = b"0".iter().copied().chain(b"*~".iter().copied().cycle().take(40_000)).collect();
        assert_eq!(expand_runs(&bomb), None);
    }

    #[test]
    fn binary_survives_escaping() {
        let all: Vec<u8> = (0..=255).collect();
        let escaped = escape(&all);
        assert!(!escaped.iter().any(|b| matches!(b, b'#' | b'$' | b'*')));
        assert_eq!(unescape(&escaped), all);
        assert_eq!(unescape(b"a}"), b"a");
    }

    #[test]
    fn hex_is_read_strictly() {
        assert_eq!(from_hex(b"00fF10"), Some(vec![0, 255, 16]));
        assert_eq!(from_hex(b"0"), None);
        assert_eq!(from_hex(b"xx"), None);
        assert_eq!(to_hex(&[0, 255, 16]), "00ff10");
        assert_eq!(number(b"7fffffffffffffff"), Some(i64::MAX as u64));
        assert_eq!(number(b"+5"), None);
        assert_eq!(number(b""), None);
        assert_eq!(number(b"11112222333344445"), None);
    }

    #[test]
    fn nothing_makes_the_decoder_panic() {
        let mut seed = 0x9e37_79b9_7f4a_7c15u64;
        let mut d = Decoder::default();
        for _ in 0..200_000 {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            let alphabet = b"$#%+-*}0aF~ \x00\xff";
            if let Some(Event::Packet(p)) = d.push(alphabet[(seed >> 11) as usize % alphabet.len()]) {
                let _ = (unescape(&p), from_hex(&p), number(&p));
            }
        }
    }
}
