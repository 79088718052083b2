//! A stub that follows a script, for tests of everything that goes wrong on a line.

use super::connection::Connection;
use super::link::Link;
use super::packet::{Decoder, Event, frame};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::thread::JoinHandle;
use std::time::Duration;

/// What the stub sends for a packet.
pub(super) enum Say {
    /// The acknowledgement, if it is due, and a packet.
    Packet(&'static str),
    /// The same, with contents made for the occasion.
    Made(String),
    /// Exactly these bytes.
    Raw(Vec<u8>),
    /// The acknowledgement only.
    Nothing,
    /// These bytes, again and again.
    Flood(Vec<u8>),
    /// Closes the line.
    Hang,
}

/// What the stub saw, packets only; `\x03` for an interrupt.
pub(super) type Seen = Vec<String>;

/// A line to a stub that answers by `answer`, given the packet and its number.
pub(super) fn line(
    acks: bool,
    patience: Duration,
    mut answer: impl FnMut(&str, usize) -> Say + Send + 'static,
) -> (Connection, JoinHandle<Seen>) {
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    let handle = std::thread::spawn(move || {
        let mut seen = Seen::new();
        let mut decoder = Decoder::default();
        let mut acks = acks;
        let mut byte = [0u8];
        while theirs.read(&mut byte).is_ok_and(|n| n == 1) {
            let text = match decoder.push(byte[0]) {
                Some(Event::Packet(p)) => String::from_utf8_lossy(&p).into_owned(),
                Some(Event::Nak) => "-".to_owned(),
                None if byte[0] == 3 => "\x03".to_owned(),
                _ => continue,
            };
            let said = answer(&text, seen.len());
            let mut out = Vec::new();
            if acks && !matches!(said, Say::Raw(_) | Say::Hang) && text != "\x03" && text != "-" {
                out.push(b'+');
            }
            match said {
                Say::Packet(p) => out.extend(frame(p.as_bytes())),
                Say::Made(p) => out.extend(frame(p.as_bytes())),
                Say::Raw(bytes) => out.extend(bytes),
                Say::Nothing => {}
                Say::Flood(bytes) => {
                    seen.push(text);
                    // Whatever is said meanwhile is heard, and means nothing.
                    let mut ears = theirs.try_clone().unwrap();
                    let listener = std::thread::spawn(move || std::io::copy(&mut ears, &mut std::io::sink()));
                    while theirs.write_all(&bytes).is_ok() {}
                    let _ = listener.join();
                    return seen;
                }
                Say::Hang => {
                    seen.push(text);
                    return seen;
                }
            }
            if text == "QStartNoAckMode" {
                acks = false;
            }
            seen.push(text);
            if theirs.write_all(&out).is_err() {
                break;
            }
        }
        seen
    });
    (Connection::over(Link::Unix(ours), patience), handle)
}
