//! The line to a stub: TCP, a socket file, or a serial line. Bytes only; every read has a time limit.

use super::error::GdbError;
use rustix::termios::{self, ControlModes, OptionalActions, SpecialCodeIndex};
use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::{Duration, Instant};

/// How long connecting may take.
const CONNECT: Duration = Duration::from_secs(10);

/// Where a stub is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// `HOST:PORT`
    Tcp(String),
    /// `unix:PATH`
    Unix(PathBuf),
    /// `DEVICE,BAUD`: a serial line.
    Serial(PathBuf, u32),
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Address::Tcp(a) => f.write_str(a),
            Address::Unix(p) => write!(f, "unix:{}", p.display()),
            Address::Serial(p, baud) => write!(f, "{},{baud}", p.display()),
        }
    }
}

impl FromStr for Address {
    type Err = GdbError;

    fn from_str(text: &str) -> Result<Address, GdbError> {
        let bad = |why: String| GdbError::Address { why };
        if let Some(path) = text.strip_prefix("unix:") {
            return if path.is_empty() {
                Err(bad("no path behind `unix:`".into()))
            } else {
                Ok(Address::Unix(path.into()))
            };
        }
        if text.starts_with('/') {
            let Some((device, baud)) = text.rsplit_once(',') else {
                return Err(bad("a device needs its speed, as in /dev/ttyS0,115200".into()));
            };
            let baud = baud.parse().map_err(|_| bad(format!("`{baud}` is no speed")))?;
            speed(baud)?;
            return Ok(Address::Serial(device.into(), baud));
        }
        match text.rsplit_once(':') {
            Some((host, port)) if port.parse::<u16>().is_ok_and(|p| p != 0) => {
                // gdb's ":1234" means this machine.
                let host = if host.is_empty() { "localhost" } else { host };
                Ok(Address::Tcp(format!("{host}:{port}")))
            }
            _ => Err(bad(format!("`{text}` has no port"))),
        }
    }
}

/// The speeds that serial lines usually have.
const SPEEDS: [u32; 13] =
    [1200, 2400, 4800, 9600, 19200, 38400, 57600, 115_200, 230_400, 460_800, 921_600, 1_000_000, 1_500_000];

fn speed(baud: u32) -> Result<u32, GdbError> {
    match SPEEDS.contains(&baud) {
        true => Ok(baud),
        false => Err(GdbError::Address { why: format!("{baud} is no usual speed of a serial line") }),
    }
}

/// An open line.
#[derive(Debug)]
pub(super) enum Link {
    Tcp(TcpStream),
    Unix(UnixStream),
    Serial(File),
}

/// What a read came to.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Got {
    Bytes(usize),
    /// Nothing within the time limit.
    Nothing,
    /// The other end closed.
    End,
}

impl Link {
    pub(super) fn open(address: &Address) -> Result<Link, GdbError> {
        let fail = |e: std::io::Error| GdbError::Connect { why: e.to_string() };
        match address {
            Address::Tcp(a) => {
                let mut last = std::io::Error::from(ErrorKind::NotFound);
                for one in a.to_socket_addrs().map_err(fail)? {
                    match TcpStream::connect_timeout(&one, CONNECT) {
                        Ok(s) => {
                            // Each packet waits for an answer: nothing is gained by collecting bytes.
                            s.set_nodelay(true).map_err(fail)?;
                            return Ok(Link::Tcp(s));
                        }
                        Err(e) => last = e,
                    }
                }
                Err(fail(last))
            }
            Address::Unix(p) => UnixStream::connect(p).map(Link::Unix).map_err(fail),
            Address::Serial(device, baud) => {
                let file = File::options()
                    .read(true)
                    .write(true)
                    .custom_flags(nix::libc::O_NOCTTY)
                    .open(device)
                    .map_err(fail)?;
                raw_mode(&file, speed(*baud)?).map_err(|e| GdbError::Connect { why: e.to_string() })?;
                Ok(Link::Serial(file))
            }
        }
    }

    /// Is it slow enough for sizes to matter?
    pub(super) fn is_slow(&self) -> bool {
        matches!(self, Link::Serial(_))
    }

    pub(super) fn send(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        // A stub that does not read must not hold us for ever.
        const WRITE: Option<Duration> = Some(Duration::from_secs(10));
        match self {
            Link::Tcp(s) => {
                s.set_write_timeout(WRITE)?;
                s.write_all(bytes)
            }
            Link::Unix(s) => {
                s.set_write_timeout(WRITE)?;
                s.write_all(bytes)
            }
            Link::Serial(f) => f.write_all(bytes),
        }
    }

    /// Reads what there is, or waits until `deadline` for something.
    pub(super) fn receive(&mut self, buf: &mut [u8], deadline: Instant) -> std::io::Result<Got> {
        let left = deadline.saturating_duration_since(Instant::now());
        // A limit of 0 would mean none.
        let left = left.max(Duration::from_millis(1));
        let read = match self {
            Link::Tcp(s) => {
                s.set_read_timeout(Some(left))?;
                s.read(buf)
            }
            Link::Unix(s) => {
                s.set_read_timeout(Some(left))?;
                s.read(buf)
            }
            Link::Serial(f) => {
                use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
                use std::os::fd::AsFd;
                let mut fds = [PollFd::new(f.as_fd(), PollFlags::POLLIN)];
                let millis = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
                match poll(&mut fds, millis) {
                    Ok(0) => return Ok(Got::Nothing),
                    Ok(_) => f.read(buf),
                    Err(e) => Err(e.into()),
                }
            }
        };
        match read {
            Ok(0) => Ok(Got::End),
            Ok(n) => Ok(Got::Bytes(n)),
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted) => {
                Ok(Got::Nothing)
            }
            Err(e) => Err(e),
        }
    }
}

/// Eight bits, no parity, no flow control, no translation (termios(3), cfmakeraw).
fn raw_mode(file: &File, baud: u32) -> rustix::io::Result<()> {
    let mut t = termios::tcgetattr(file)?;
    t.make_raw();
    t.set_speed(baud)?;
    t.control_modes |= ControlModes::CLOCAL | ControlModes::CREAD;
    t.control_modes -= ControlModes::CRTSCTS | ControlModes::CSTOPB;
    // A read gives what is there; how long to wait for it is poll's business.
    t.special_codes[SpecialCodeIndex::VMIN] = 1;
    t.special_codes[SpecialCodeIndex::VTIME] = 0;
    termios::tcsetattr(file, OptionalActions::Flush, &t)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        let ok = |s: &str| s.parse::<Address>().unwrap();
        assert_eq!(ok("box:1234"), Address::Tcp("box:1234".into()));
        assert_eq!(ok(":1234"), Address::Tcp("localhost:1234".into()));
        assert_eq!(ok("[::1]:1234"), Address::Tcp("[::1]:1234".into()));
        assert_eq!(ok("unix:/tmp/a b"), Address::Unix("/tmp/a b".into()));
        assert_eq!(ok("/dev/ttyUSB0,115200"), Address::Serial("/dev/ttyUSB0".into(), 115_200));
        for bad in ["", "box", "box:", "box:0", "box:99999", "unix:", "/dev/ttyS0", "/dev/ttyS0,", "/dev/ttyS0,31"] {
            assert!(bad.parse::<Address>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_terminal_becomes_a_plain_line() {
        let pty = nix::pty::openpty(None, None).unwrap();
        let device = std::fs::read_link(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&pty.slave)));
        let mut link = Link::open(&Address::Serial(device.unwrap(), 115_200)).unwrap();
        let mut far = File::from(pty.master);
        // Bytes that a terminal would act upon.
        let all: Vec<u8> = (0..=255).collect();
        far.write_all(&all).unwrap();
        let mut got = Vec::new();
        let mut buf = [0u8; 64];
        while got.len() < all.len() {
            match link.receive(&mut buf, Instant::now() + Duration::from_secs(20)).unwrap() {
                Got::Bytes(n) => got.extend_from_slice(&buf[..n]),
                other => panic!("{other:?} after {} bytes", got.len()),
            }
        }
        assert_eq!(got, all);
        assert_eq!(link.receive(&mut buf, Instant::now()).unwrap(), Got::Nothing);
        link.send(&all).unwrap();
        let mut back = [0u8; 256];
        far.read_exact(&mut back).unwrap();
        assert_eq!(back[..], all[..]);
    }
}
