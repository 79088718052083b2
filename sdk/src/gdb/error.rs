//! What goes wrong between us and a stub.

use tigerfix_core::error::{Class, Explain};
use tigerfix_core::target::TargetError;

/// Errors of the gdb remote transport. The texts are clauses about the stub.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum GdbError {
    /// The address given for the stub makes no sense.
    #[error("cannot be an address: {why}")]
    Address {
        /// A clause.
        why: String,
    },
    /// Nobody answers there.
    #[error("cannot be connected to: {why}")]
    Connect {
        /// The system's words.
        why: String,
    },
    /// The connection broke.
    #[error("lost the connection during `{during}` ({why}); {state}")]
    Lost {
        /// The packet that was on its way.
        during: String,
        /// The system's words.
        why: String,
        /// In what state the target is, as far as we know.
        state: &'static str,
    },
    /// No answer in time.
    #[error("did not answer `{during}` within {millis} ms; {state}")]
    Silent {
        /// The packet.
        during: String,
        /// How long we waited.
        millis: u64,
        /// In what state the target is, as far as we know.
        state: &'static str,
    },
    /// An answer that the protocol does not allow.
    #[error("answered `{during}` with `{answer}`, which makes no sense")]
    Nonsense {
        /// The packet.
        during: String,
        /// The answer, cut and made printable.
        answer: String,
    },
    /// It said no.
    #[error("refuses `{during}` ({answer})")]
    Refused {
        /// The packet.
        during: String,
        /// Its error.
        answer: String,
    },
    /// It does not know a packet that is needed.
    #[error("cannot {what}")]
    Lacks {
        /// A verb phrase.
        what: String,
    },
    /// The program ended.
    #[error("says that the program has ended ({answer})")]
    Ended {
        /// Its words.
        answer: String,
    },
    /// It does not stop the target.
    #[error("did not stop the target within {millis} ms; it runs on")]
    NotStopping {
        /// How long we waited.
        millis: u64,
    },
}

impl Explain for GdbError {
    fn rule(&self) -> &'static str {
        match self {
            GdbError::Address { .. } => "remote-address",
            GdbError::Connect { .. } => "remote-connect",
            GdbError::Lost { .. } => "remote-lost",
            GdbError::Silent { .. } => "remote-silent",
            GdbError::Nonsense { .. } => "remote-protocol",
            GdbError::Refused { .. } => "remote-refused",
            GdbError::Lacks { .. } => "remote-lacks",
            GdbError::Ended { .. } => "remote-ended",
            GdbError::NotStopping { .. } => "remote-not-stopping",
        }
    }
    fn class(&self) -> Class {
        match self {
            GdbError::Address { .. } | GdbError::Connect { .. } => Class::BadInput,
            _ => Class::Refused,
        }
    }
    fn hint(&self) -> Option<&'static str> {
        match self {
            GdbError::Address { .. } => Some("--remote takes HOST:PORT, unix:PATH, or DEVICE,BAUD"),
            GdbError::Connect { .. } => Some("start gdbserver, qemu with -g or -gdb, or the probe's server first"),
            _ => None,
        }
    }
}

impl GdbError {
    /// The same as an error of the target; `stub` names the stub.
    pub(super) fn of(self, stub: &str) -> TargetError {
        match self {
            GdbError::Ended { answer } => TargetError::Gone { what: format!("the program behind {stub}: {answer}") },
            e => TargetError::Unsuitable { rule: e.rule(), what: stub.to_owned(), why: e.to_string() },
        }
    }
}

/// A packet or an answer for a message: printable, and short.
pub(super) fn show(bytes: &[u8]) -> String {
    const SHOWN: usize = 48;
    let mut text: String = bytes.iter().take(SHOWN).flat_map(|b| b.escape_ascii()).map(char::from).collect();
    if bytes.len() > SHOWN {
        text.push_str("...");
    }
    text
}
