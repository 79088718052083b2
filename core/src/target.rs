//! What a transport provides. Reading and writing memory is required; all else is a capability.

/// A thread of the target (the kernel's tid, or the stub's thread id).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ThreadId(pub u64);

impl core::fmt::Display for ThreadId {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// Access rights of a mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Perm {
    /// Readable.
    pub read: bool,
    /// Writable.
    pub write: bool,
    /// Executable.
    pub exec: bool,
}

impl Perm {
    /// r--
    pub const R: Perm = Perm { read: true, write: false, exec: false };
    /// rw-
    pub const RW: Perm = Perm { read: true, write: true, exec: false };
    /// r-x
    pub const RX: Perm = Perm { read: true, write: false, exec: true };
}

impl core::fmt::Display for Perm {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let c = |on, ch| if on { ch } else { '-' };
        write!(f, "{}{}{}", c(self.read, 'r'), c(self.write, 'w'), c(self.exec, 'x'))
    }
}

#[cfg(feature = "alloc")]
pub use with_alloc::*;

#[cfg(feature = "alloc")]
mod with_alloc {
    use super::{Perm, ThreadId};
    use crate::addr::{Bias, RunAddr};
    use crate::arch::Registers;
    use crate::error::{Class, Explain};
    use alloc::{string::String, vec::Vec};

    /// Why a transport could not do something.
    #[derive(Debug, thiserror::Error)]
    #[non_exhaustive]
    pub enum TargetError {
        /// There is no such target (or it ended).
        #[error("no such target: {what}")]
        Gone {
            /// Process or device.
            what: String,
        },
        /// The system does not let us.
        #[error("not permitted to {action} {what}: {why}")]
        NotPermitted {
            /// Verb, such as "attach to".
            action: &'static str,
            /// Process, thread or file.
            what: String,
            /// The system's words.
            why: String,
        },
        /// Somebody else traces the target.
        #[error("{what} is already traced by process {tracer}")]
        AlreadyTraced {
            /// Process or thread.
            what: String,
            /// The tracer's pid (0: unknown).
            tracer: u32,
        },
        /// The target is in a state in which tfix won't touch it.
        #[error("{what} {why}")]
        Unsuitable {
            /// Rule id.
            rule: &'static str,
            /// Process or thread.
            what: String,
            /// A clause: "is a zombie", "runs in seccomp strict mode".
            why: String,
        },
        /// Memory at `addr` could not be read or written.
        #[error("cannot {action} {len} bytes at {addr}: {why}")]
        Memory {
            /// "read" or "write".
            action: &'static str,
            /// Where.
            addr: RunAddr,
            /// How many bytes.
            len: usize,
            /// The system's words.
            why: String,
        },
        /// A thread did not stop (or did not come back from an injected call) in time.
        #[error("thread {thread} did not {what} within {millis} ms")]
        Timeout {
            /// Which.
            thread: ThreadId,
            /// "stop", "return from mmap".
            what: &'static str,
            /// How long we waited.
            millis: u64,
        },
        /// A system call injected into the target failed.
        #[error("{call} in the target failed with errno {errno}")]
        Injected {
            /// Name of the call.
            call: &'static str,
            /// The positive errno.
            errno: u64,
        },
        /// The user asked to stop (Ctrl-C, SIGTERM).
        #[error("interrupted")]
        Interrupted,
        /// Anything else the system said.
        #[error("{what}: {why}")]
        System {
            /// What was being done.
            what: String,
            /// The system's words.
            why: String,
        },
        /// The transport lacks a capability that this step needs.
        #[error("this transport cannot {what}")]
        Unsupported {
            /// Verb phrase.
            what: &'static str,
        },
    }

    impl Explain for TargetError {
        fn rule(&self) -> &'static str {
            match self {
                TargetError::Gone { .. } => "no-such-target",
                TargetError::NotPermitted { .. } => "not-permitted",
                TargetError::AlreadyTraced { .. } => "already-traced",
                TargetError::Unsuitable { rule, .. } => rule,
                TargetError::Memory { .. } => "target-memory",
                TargetError::Timeout { .. } => "target-timeout",
                TargetError::Injected { .. } => "injected-call",
                TargetError::Interrupted => "interrupted",
                TargetError::System { .. } => "system",
                TargetError::Unsupported { .. } => "transport-lacks",
            }
        }
        fn class(&self) -> Class {
            match self {
                TargetError::Gone { .. } => Class::BadInput,
                _ => Class::Refused,
            }
        }
        fn hint(&self) -> Option<&'static str> {
            match self {
                TargetError::NotPermitted { .. } => {
                    Some("run tfix as the target's user or as root; see /proc/sys/kernel/yama/ptrace_scope")
                }
                TargetError::AlreadyTraced { .. } => Some("detach the debugger or tracer first"),
                TargetError::Gone { .. } => Some("check the process id"),
                TargetError::Unsuitable { rule: "remote-flash", .. } => Some(
                    "trampolines can't be written into flash or ROM over this protocol: link the function to run from RAM, \
                     or flash new firmware",
                ),
                _ => None,
            }
        }
    }

    /// One mapping of the target's address space.
    #[derive(Clone, Debug)]
    pub struct Mapping {
        /// First address.
        pub start: RunAddr,
        /// First address past it.
        pub end: RunAddr,
        /// Rights.
        pub perm: Perm,
        /// Offset in the file, bytes.
        pub offset: u64,
        /// Device and inode of the file, (0, 0) for anonymous ones.
        pub file: (u64, u64),
        /// Path or bracketed name as the kernel shows it; empty for anonymous ones.
        pub name: String,
    }

    impl Mapping {
        /// Does it hold `addr`?
        #[must_use]
        pub fn contains(&self, addr: RunAddr) -> bool {
            self.start <= addr && addr < self.end
        }
    }

    /// Memory that patches may use, on targets where none can be allocated. Nothing else uses it.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Area {
        /// First address.
        pub start: RunAddr,
        /// Size, bytes.
        pub size: u64,
    }

    /// The program of a target that has no files: firmware. It is taken from a file of ours, and compared with the target's
    /// memory before anything is changed.
    #[derive(Clone, Debug)]
    pub struct FixedProgram {
        /// Its path, for messages.
        pub name: String,
        /// The ELF file.
        pub bytes: Vec<u8>,
        /// What was added to its link-time addresses.
        pub bias: Bias,
    }

    /// A live target.
    pub trait Target {
        /// What it is, for messages: "process 123 (server)".
        fn describe(&self) -> String;
        /// Reads memory.
        ///
        /// # Errors
        /// [`TargetError::Memory`] unless all of `buf` was filled.
        fn read(&mut self, addr: RunAddr, buf: &mut [u8]) -> Result<(), TargetError>;
        /// Writes memory; reaches read-only text (copy on write: the file on disk is untouched).
        ///
        /// # Errors
        /// [`TargetError::Memory`] unless all of `bytes` was written.
        fn write(&mut self, addr: RunAddr, bytes: &[u8]) -> Result<(), TargetError>;
        /// Does [`Target::write`] change what is at `start..start + len`? Asked before anything is written. `name` is what
        /// lies there, for messages.
        ///
        /// # Errors
        /// [`TargetError::Unsuitable`] where it is known not to.
        fn writable(&self, _name: &str, _start: RunAddr, _len: u64) -> Result<(), TargetError> {
            Ok(())
        }
        /// The address space.
        fn mappings(&mut self) -> Option<&mut dyn Mappings>;
        /// The threads.
        fn threads(&mut self) -> Option<&mut dyn Threads>;
        /// Injected calls.
        fn calls(&mut self) -> Option<&mut dyn Calls>;
        /// Cache maintenance, where the transport has to do it itself.
        fn cache(&mut self) -> Option<&mut dyn CacheFlush>;
        /// The memory for patches, where the target has no [`Calls`] to allocate some with.
        fn area(&self) -> Option<Area> {
            None
        }
        /// How much memory may be searched while everybody is stopped, bytes: less where reading is slow.
        fn search_limit(&self) -> u64 {
            16 << 20
        }
        /// Keeps other users of this transport from changing the target, until this one is dropped. Called before the
        /// target is looked at with the intent to change it.
        ///
        /// # Errors
        /// [`TargetError::Unsuitable`] where somebody else has it.
        fn claim(&mut self) -> Result<(), TargetError> {
            Ok(())
        }
        /// Has the user asked to stop? Looked at between steps, never between the writes of sites.
        fn interrupted(&self) -> bool {
            false
        }
    }

    /// The address space of a target.
    pub trait Mappings {
        /// All mappings, ascending, as they are now.
        ///
        /// # Errors
        /// [`TargetError`]
        fn mappings(&mut self) -> Result<Vec<Mapping>, TargetError>;
        /// The parts of an anonymous mapping that were ever touched, ascending; the rest reads as zero. The whole of it
        /// where the transport can't tell.
        fn touched(&mut self, mapping: &Mapping) -> Vec<(RunAddr, RunAddr)> {
            alloc::vec![(mapping.start, mapping.end)]
        }
        /// The whole file behind a mapping, for programs without a build-id.
        ///
        /// # Errors
        /// [`TargetError`] where the file can't be had.
        fn file(&mut self, mapping: &Mapping) -> Result<Vec<u8>, TargetError>;
        /// The program, where no mapping shows it. [`Mappings::file`] gives the same bytes for any mapping then.
        fn fixed_program(&mut self) -> Option<FixedProgram> {
            None
        }
        /// The auxiliary vector's value of `key` (AT_ENTRY 9, AT_PHDR 3, AT_BASE 7, AT_PAGESZ 6, AT_HWCAP 16, AT_SYSINFO_EHDR 33).
        ///
        /// # Errors
        /// [`TargetError`]
        fn auxv(&mut self, key: u64) -> Result<Option<u64>, TargetError>;
    }

    /// Threads of a target.
    ///
    /// Order of use: `attach` (the target runs on), `stop_all`, look and write, `resume_all`; any number of times.
    /// Between `resume_all` and the next `attach` the target is on its own: nothing that happens to it waits for us.
    pub trait Threads {
        /// Attaches to every thread without stopping any.
        ///
        /// # Errors
        /// [`TargetError`]; nothing stays attached then.
        fn attach(&mut self) -> Result<(), TargetError>;
        /// Stops every thread, also those that are made meanwhile, and puts interrupted system calls in order, so that
        /// they go on as if nothing had happened. All threads run again when this fails.
        ///
        /// # Errors
        /// [`TargetError`]
        fn stop_all(&mut self) -> Result<Vec<ThreadId>, TargetError>;
        /// Registers of a stopped thread.
        ///
        /// # Errors
        /// [`TargetError`]
        fn registers(&mut self, thread: ThreadId) -> Result<Registers, TargetError>;
        /// Lets all threads go on and detaches from them.
        ///
        /// # Errors
        /// [`TargetError`]
        fn resume_all(&mut self) -> Result<(), TargetError>;
        /// Lets only these stopped threads run for about `micros` microseconds; all others stay stopped. Threads that
        /// they make meanwhile run; [`Threads::stop_all`] stops those too.
        ///
        /// # Errors
        /// [`TargetError`]; [`TargetError::Unsupported`] where the transport can't.
        fn run_some(&mut self, _threads: &[ThreadId], _micros: u64) -> Result<(), TargetError> {
            Err(TargetError::Unsupported { what: "let single threads run" })
        }
        /// An address in the thread's control block, where the thread pointer is in none of its registers.
        fn thread_block(&mut self, _thread: ThreadId) -> Option<RunAddr> {
            None
        }
        /// Why a stopped thread can't be judged now, as a clause: "the processor is inside an exception handler".
        fn obstacle(&mut self, _thread: ThreadId, _regs: &Registers) -> Option<&'static str> {
            None
        }
        /// Where a stopped thread may go on once an exception handler returns.
        ///
        /// # Errors
        /// [`TargetError`]
        fn returns(&mut self, _thread: ThreadId, _regs: &Registers) -> Result<Vec<RunAddr>, TargetError> {
            Ok(Vec::new())
        }
        /// Name of the thread, for messages (may be empty).
        fn thread_name(&mut self, thread: ThreadId) -> String;
    }

    /// Injected calls. Exactly one thread is held between `hold` and `release`; all others go on running.
    pub trait Calls {
        /// Picks a suitable thread, stops it and saves its state. A thread that is held already stays the one.
        ///
        /// # Errors
        /// [`TargetError`]; nothing is held then.
        fn hold(&mut self) -> Result<ThreadId, TargetError>;
        /// Makes a Linux system call in the held thread. `scratch` is written to memory that the thread does not use, and
        /// its address replaces the argument at index `.0`. Returns the raw result; a failed call is
        /// [`TargetError::Injected`].
        ///
        /// # Errors
        /// [`TargetError`]
        fn syscall(
            &mut self,
            name: &'static str,
            nr: u64,
            args: [u64; 6],
            scratch: Option<(usize, &[u8])>,
        ) -> Result<u64, TargetError>;
        /// Calls a function of the target in the held thread and returns its result. `trap` is the run-time address of
        /// a breakpoint instruction in the image that the function returns to.
        ///
        /// # Errors
        /// [`TargetError`]
        fn call(&mut self, entry: RunAddr, args: &[u64], trap: RunAddr) -> Result<u64, TargetError>;
        /// Restores the held thread's state and lets it go on. Called also after errors.
        ///
        /// # Errors
        /// [`TargetError`]
        fn release(&mut self) -> Result<(), TargetError>;
    }

    /// Cache maintenance by the transport.
    pub trait CacheFlush {
        /// Makes what was written to `start..start + len` visible to instruction fetch.
        ///
        /// # Errors
        /// [`TargetError`]
        fn flush(&mut self, start: RunAddr, len: u64) -> Result<(), TargetError>;
    }
}
