//! Questions and answers over a line: acknowledgements, repeats, and a limit to every wait.
//!
//! After an answer that did not come, or came damaged too often, nothing more is said: a late answer would pass for that to
//! the next question.

use super::error::{GdbError, show};
use super::link::{Address, Got, Link};
use super::packet::{Decoder, Event, frame};
use super::reply::{self, Stop, StopReply};
use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// How often a packet is repeated.
const REPEATS: u32 = 3;
/// How many packets are put aside that nobody waits for, before that is an error.
const MAX_STRAY: usize = 1000;

/// A line with packets on it.
#[derive(Debug)]
pub(super) struct Connection {
    link: Link,
    decoder: Decoder,
    events: VecDeque<Event>,
    /// Packets are acknowledged, both ways.
    acks: bool,
    /// How long an answer may take.
    patience: Duration,
    /// The target runs.
    pub(super) running: bool,
    /// The deadline after which the line was looked at once more: a wait that is over takes no more than that.
    overdue: Option<Instant>,
    /// Why nothing more is said.
    broken: Option<GdbError>,
}

impl Connection {
    pub(super) fn open(address: &Address, patience: Duration) -> Result<Connection, GdbError> {
        let link = Link::open(address)?;
        // 1 KiB takes a second at 9600 baud.
        let patience = if link.is_slow() { patience * 4 } else { patience };
        Ok(Connection::over(link, patience))
    }

    pub(super) fn over(link: Link, patience: Duration) -> Connection {
        Connection {
            link,
            decoder: Decoder::default(),
            events: VecDeque::new(),
            acks: true,
            patience,
            running: false,
            overdue: None,
            broken: None,
        }
    }

    pub(super) fn is_slow(&self) -> bool {
        self.link.is_slow()
    }

    /// To be said first. A stub may still wait for the acknowledgement of somebody who was cut off; to all others it is
    /// nothing.
    pub(super) fn greet(&mut self) -> Result<(), GdbError> {
        self.put(b"+", b"+")
    }

    /// From now on nothing is acknowledged: the stub agreed.
    pub(super) fn no_acks(&mut self) {
        self.acks = false;
    }

    fn state(&self) -> &'static str {
        if self.running {
            "the target was running then"
        } else {
            "the target stood then, and the stub decides whether it goes on"
        }
    }

    fn break_off<T>(&mut self, e: GdbError) -> Result<T, GdbError> {
        self.broken = Some(e.clone());
        Err(e)
    }

    fn lost<T>(&mut self, during: &[u8], why: String) -> Result<T, GdbError> {
        let e = GdbError::Lost { during: show(during), why, state: self.state() };
        self.break_off(e)
    }

    fn silent<T>(&mut self, during: &[u8]) -> Result<T, GdbError> {
        let millis = self.patience.as_millis() as u64;
        let e = GdbError::Silent { during: show(during), millis, state: self.state() };
        self.break_off(e)
    }

    fn nonsense<T>(&mut self, during: &[u8], answer: &[u8]) -> Result<T, GdbError> {
        let e = GdbError::Nonsense { during: show(during), answer: show(answer) };
        self.break_off(e)
    }

    fn put(&mut self, bytes: &[u8], during: &[u8]) -> Result<(), GdbError> {
        match self.link.send(bytes) {
            Ok(()) => Ok(()),
            Err(e) => self.lost(during, e.to_string()),
        }
    }

    /// The next event, or `None` at the deadline: then what has come by now is given out, but a stub that talks without end is
    /// no better than a silent one.
    fn next(&mut self, during: &[u8], deadline: Instant) -> Result<Option<Event>, GdbError> {
        let mut buf = [0u8; 4096];
        loop {
            if let Some(e) = self.events.pop_front() {
                return Ok(Some(e));
            }
            // What came in time may not have been read in time.
            if Instant::now() >= deadline && self.overdue.replace(deadline) == Some(deadline) {
                return Ok(None);
            }
            match self.link.receive(&mut buf, deadline) {
                Ok(Got::Bytes(n)) => {
                    for &b in buf.get(..n).unwrap_or_default() {
                        self.events.extend(self.decoder.push(b));
                    }
                }
                Ok(Got::Nothing) => {}
                Ok(Got::End) => return self.lost(during, "it was closed at the other end".into()),
                Err(e) => return self.lost(during, e.to_string()),
            }
        }
    }

    /// Sends a packet, and sees that it arrives.
    pub(super) fn send(&mut self, payload: &[u8]) -> Result<(), GdbError> {
        if let Some(e) = &self.broken {
            return Err(e.clone());
        }
        let packet = frame(payload);
        self.put(&packet, payload)?;
        if !self.acks {
            return Ok(());
        }
        let deadline = Instant::now() + self.patience;
        let mut repeats = 0;
        loop {
            match self.next(payload, deadline)? {
                Some(Event::Ack) => return Ok(()),
                Some(Event::Nak) if repeats < REPEATS => {
                    repeats += 1;
                    self.put(&packet, payload)?;
                }
                Some(Event::Nak) => return self.nonsense(payload, b"-"),
                // Said before it heard us: repeated because our acknowledgement came late.
                Some(Event::Packet(_) | Event::Damaged) => self.put(b"+", payload)?,
                Some(Event::Notification(_)) => {}
                Some(Event::TooLong) => return self.nonsense(payload, b"a packet without end"),
                None => return self.silent(payload),
            }
        }
    }

    /// The next packet, acknowledged.
    fn packet(&mut self, during: &[u8], deadline: Instant) -> Result<Option<Vec<u8>>, GdbError> {
        let mut repeats = 0;
        loop {
            match self.next(during, deadline)? {
                Some(Event::Packet(p)) => {
                    if self.acks {
                        self.put(b"+", during)?;
                    }
                    return Ok(Some(p));
                }
                Some(Event::Damaged) if self.acks && repeats < REPEATS => {
                    repeats += 1;
                    self.put(b"-", during)?;
                }
                Some(Event::Damaged) => return self.nonsense(during, b"a damaged packet"),
                Some(Event::TooLong) => return self.nonsense(during, b"a packet without end"),
                Some(Event::Ack | Event::Nak | Event::Notification(_)) => {}
                None => return Ok(None),
            }
        }
    }

    /// Asks, and gives the answer.
    pub(super) fn ask(&mut self, payload: &[u8]) -> Result<Vec<u8>, GdbError> {
        self.send(payload)?;
        let deadline = Instant::now() + self.patience;
        for _ in 0..MAX_STRAY {
            match self.packet(payload, deadline)? {
                // Text that the stub has to say; `OK` is an answer.
                Some(p) if p.first() == Some(&b'O') && p != b"OK" => {}
                Some(p) => return Ok(p),
                None => return self.silent(payload),
            }
        }
        self.nonsense(payload, b"text without end")
    }

    /// Sends the byte that stops a running target.
    pub(super) fn interrupt(&mut self) -> Result<(), GdbError> {
        if let Some(e) = &self.broken {
            return Err(e.clone());
        }
        self.put(&[3], b"0x03")
    }

    /// Waits for the target to stop; `None`: it has not by the deadline.
    pub(super) fn stopped(&mut self, during: &[u8], deadline: Instant) -> Result<Option<Stop>, GdbError> {
        loop {
            let Some(p) = self.packet(during, deadline)? else { return Ok(None) };
            match reply::stop(&p) {
                Some(StopReply::Stopped(stop)) => {
                    self.running = false;
                    return Ok(Some(stop));
                }
                Some(StopReply::Ended) => {
                    let e = GdbError::Ended { answer: show(&p) };
                    return self.break_off(e);
                }
                Some(StopReply::Output) => {}
                // Unknown error: we have no files for it (GDB manual, "The F Reply Packet", "Errno Values").
                Some(StopReply::FileRequest) => self.send(b"F-1,270f")?,
                None if reply::is_error(&p) => {
                    return Err(GdbError::Refused { during: show(during), answer: show(&p) });
                }
                None if p.is_empty() => return Err(GdbError::Lacks { what: format!("do `{}`", show(during)) }),
                None => return self.nonsense(during, &p),
            }
        }
    }
}
