//! Programs under user-mode emulation, patched through the emulator's stub.

use std::path::Path;
use std::process::Command;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use object::{Object as _, ObjectSegment as _};
use tigerfix::gdb::GdbTarget;
use tigerfix::model::Package;
use tigerfix::session::record::State;
use tigerfix::session::{self, Plan};
use tigerfix::{SystemClock, arch};
use tigerfix_core::addr::RunAddr;
use tigerfix_core::target::Target as _;

use crate::stub::{listens, open};
use crate::{DEADLINE, Lab, Victim, until};

/// Starts a program under a user-mode emulator; it stands at its first instruction. Returns it, and what `--remote` takes.
pub fn emulated(lab: &Lab, emulator: &str, options: &[&str], program: &Path, arguments: &[&str]) -> (Victim, String) {
    let socket = lab.path("stub");
    let _ = std::fs::remove_file(&socket);
    let mut command = Command::new(emulator);
    command.args(options).arg("-g").arg(&socket).arg(program).args(arguments);
    let victim = Victim::spawn_standing(command);
    until("the emulator to listen", || listens(&socket).then_some(()));
    (victim, format!("unix:{}", socket.display()))
}

/// A program under an emulator, with the one connection that the emulator's stub allows.
pub struct Emulated {
    /// The emulator's process, which prints what the program prints.
    pub victim: Victim,
    /// What is behind the stub.
    pub target: GdbTarget,
    back_end: arch::AnyArch,
    package: Package,
    file: Vec<u8>,
    /// For messages.
    what: String,
}

impl Emulated {
    /// One that stands at its first instruction, and a package for it.
    pub fn start(
        lab: &Lab,
        emulator: &str,
        options: &[&str],
        program: &Path,
        arguments: &[&str],
        package: &Path,
    ) -> Self {
        let (victim, at) = emulated(lab, emulator, options, program, arguments);
        let (target, back_end, package) = open(&at, program, package);
        let file = std::fs::read(program).expect("compiled");
        Self { victim, target, back_end, package, file, what: format!("{emulator}, {}", program.display()) }
    }

    /// Lets it run.
    pub fn go(&mut self) {
        self.target.go().expect("it runs");
    }

    /// Stops it. Its stub does not look at the line while the program runs; a signal to the emulator does it.
    pub fn stop(&mut self) {
        kill(Pid::from_raw(self.victim.pid()), Signal::SIGTRAP).expect("own child");
        self.target.await_stop(DEADLINE).expect("stopped");
    }

    /// Where its functions would be patched, and how.
    pub fn plan(&mut self) -> Plan {
        let plan = session::plan(&mut self.target, self.back_end, &self.package, &session::Options::default());
        plan.unwrap_or_else(|e| panic!("{}: {e}", self.what))
    }

    /// Tries to apply the package.
    ///
    /// # Errors
    /// What the session says.
    pub fn try_apply(&mut self) -> Result<(), Box<session::SessionError>> {
        let options = session::Options::default();
        session::apply(&mut self.target, self.back_end, &self.package, &options, &mut SystemClock::new())?;
        Ok(())
    }

    /// Applies the package.
    pub fn apply(&mut self) {
        self.try_apply().unwrap_or_else(|e| panic!("{}: {e}", self.what));
    }

    /// Names of the patches that are applied.
    pub fn patches(&mut self) -> Vec<String> {
        let list = session::list(&mut self.target).expect("listed");
        let all = list.into_iter().map(|r| r.expect("a good record"));
        // An image into which the program may still return stays as a record that is no longer applied.
        all.filter(|r| r.state == State::Applied).map(|r| r.name).collect()
    }

    /// Takes the patch out.
    pub fn revert(&mut self) {
        session::revert(&mut self.target, self.back_end, None, 10_000, &mut SystemClock::new())
            .unwrap_or_else(|e| panic!("{}: {e}", self.what));
    }

    /// The program's code as it is in memory now; `bias` was added to its addresses.
    pub fn code(&mut self, bias: u64) -> Vec<u8> {
        let file = object::File::parse(&*self.file).expect("an ELF file");
        let mut code = Vec::new();
        for s in file.segments() {
            let object::SegmentFlags::Elf { p_flags, .. } = s.flags() else { continue };
            if p_flags.0 & object::elf::PF_X.0 != 0 {
                let from = code.len();
                code.resize(from + usize::try_from(s.size()).expect("64-bit host"), 0);
                let at = RunAddr(s.address().wrapping_add(bias));
                self.target.read(at, &mut code[from..]).unwrap_or_else(|e| panic!("{}: {e}", self.what));
            }
        }
        assert!(!code.is_empty(), "{}: no code", self.what);
        code
    }

    /// Stopped, patched, run, stopped, reverted, run: twice, all on the one connection. The old behaviour and the new one
    /// have to show, and the code has to be what it was. Returns the plan of the first time, and the program, which runs.
    pub fn live(mut self, old: impl Fn(&mut Victim), new: impl Fn(&mut Victim)) -> (Plan, Victim) {
        self.go();
        old(&mut self.victim);
        self.stop();
        let plan = self.plan();
        let before = self.code(plan.bias);
        for _ in 0..2 {
            self.apply();
            assert!(self.code(plan.bias) != before, "{}: the code is still the same", self.what);
            self.go();
            new(&mut self.victim);
            self.stop();
            assert_eq!(self.patches(), ["fix"], "{}", self.what);
            self.revert();
            assert_eq!(self.patches(), [""; 0], "{}", self.what);
            assert!(self.code(plan.bias) == before, "{}: the code is not what it was", self.what);
            self.go();
            old(&mut self.victim);
            self.stop();
        }
        // Left alone it runs on.
        drop(self.target);
        self.victim.still_prints();
        (plan, self.victim)
    }
}
