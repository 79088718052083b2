//! A temporary directory in which one test compiles its programs and patches.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use tempfile::TempDir;

use crate::tool::Outcome;
use crate::{Guest, Victim};

/// The optimisation levels that every case is run at.
pub const MATRIX_OPTS: [&str; 3] = ["-O0", "-O2", "-O3"];

/// How a program is linked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Link {
    /// Position-independent, dynamic: what compilers do by default.
    Pie,
    /// Fixed address, dynamic.
    NoPie,
    /// Fixed address, no shared library at all.
    Static,
    /// Position-independent without a shared library.
    StaticPie,
}

impl Link {
    /// All of them.
    pub const ALL: [Link; 4] = [Link::Pie, Link::NoPie, Link::Static, Link::StaticPie];

    /// What gcc is told.
    pub fn flags(self) -> &'static [&'static str] {
        match self {
            Link::Pie => &["-fPIE", "-pie"],
            Link::NoPie => &["-fno-pie", "-no-pie"],
            Link::Static => &["-fno-pie", "-no-pie", "-static"],
            Link::StaticPie => &["-fPIE", "-static-pie"],
        }
    }
}

/// Root of the source tree.
pub fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the crate lies in the workspace").to_owned()
}

/// Where the fixtures lie.
pub fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures")
}

/// One test's directory; gone when the test ends.
pub struct Lab {
    dir: TempDir,
    /// What stands before `gcc` in the compiler's name.
    prefix: String,
    /// Everything is compiled by clang instead.
    clang: bool,
    guest: Option<Arc<Guest>>,
    /// Where tfix finds what is started here, if not by its process id alone.
    stub: Option<String>,
}

impl Default for Lab {
    fn default() -> Self {
        Self::new()
    }
}

impl Lab {
    /// An empty directory that other users can enter (some tests run tfix as another user).
    pub fn new() -> Self {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::Builder::new().prefix("tfix-test-").tempdir().expect("temporary directory");
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).expect("chmod of own directory");
        Self { dir, prefix: String::new(), clang: false, guest: None, stub: None }
    }

    /// The same for programs of another machine: those that `TRIPLE-gcc` makes.
    pub fn cross(triple: &str) -> Self {
        Self { prefix: format!("{triple}-"), ..Self::new() }
    }

    /// The same with another compiler, which finds libraries where GCC has them.
    pub fn by_clang(self) -> Self {
        Self { clang: true, ..self }
    }

    /// One whose programs are compiled for a guest, and run there.
    pub fn for_guest(guest: &Arc<Guest>) -> Self {
        Self { guest: Some(Arc::clone(guest)), ..Self::cross(guest.triple()) }
    }

    /// The same, and tfix comes to whatever is started here through the stub at this address.
    pub fn behind(self, stub: String) -> Self {
        Self { stub: Some(stub), ..self }
    }

    /// The guest that programs are compiled for.
    pub fn guest(&self) -> Option<&Arc<Guest>> {
        self.guest.as_ref()
    }

    /// Starts a program where it was compiled for.
    pub fn start<A: AsRef<std::ffi::OsStr>>(&self, program: &Path, arguments: &[A]) -> Victim {
        let victim = match &self.guest {
            None => Victim::start_with(program, arguments),
            Some(guest) => Victim::start_in(guest, program, arguments),
        };
        match &self.stub {
            None => victim,
            Some(stub) => victim.behind(stub.clone()),
        }
    }

    /// A path in this directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Writes a file in this directory.
    pub fn write(&self, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        std::fs::write(&path, bytes).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        path
    }

    /// Names of the files in this directory.
    pub fn files(&self) -> Vec<String> {
        let mut names: Vec<String> = std::fs::read_dir(self.dir.path())
            .expect("own directory")
            .map(|entry| entry.expect("own directory").file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        names
    }

    /// Compiles and links a fixture. A line `//# flags: ...` in the fixture adds flags (libraries, mostly).
    pub fn program(&self, source: &str, flags: &[&str]) -> PathBuf {
        let out = self.fresh(Path::new(source).file_stem().expect("a file name").to_str().expect("UTF-8"), "");
        self.compile(source, flags, &out);
        out
    }

    /// Compiles a fixture to a patch object, position-independent as users are told to.
    pub fn patch(&self, source: &str, flags: &[&str]) -> PathBuf {
        self.object(source, &[&["-fPIC"], flags].concat())
    }

    /// Compiles a fixture to an object with exactly these flags.
    pub fn object(&self, source: &str, flags: &[&str]) -> PathBuf {
        let out = self.fresh(Path::new(source).file_stem().expect("a file name").to_str().expect("UTF-8"), ".o");
        self.compile(source, &[&["-c"], flags].concat(), &out);
        out
    }

    /// A shared library `lib<stem>.so` in this directory.
    pub fn library(&self, source: &str, flags: &[&str]) -> PathBuf {
        let out =
            self.path(&format!("lib{}.so", Path::new(source).file_stem().expect("a file name").to_string_lossy()));
        self.compile(source, &[&["-fPIC", "-shared"], flags].concat(), &out);
        out
    }

    /// Compiles an inline source text to a patch object.
    pub fn patch_text(&self, name: &str, text: &str, flags: &[&str]) -> PathBuf {
        let path = self.write(name, text);
        self.patch(path.to_str().expect("UTF-8"), flags)
    }

    /// Compiles and links an inline source text.
    pub fn program_text(&self, name: &str, text: &str, flags: &[&str]) -> PathBuf {
        let path = self.write(name, text);
        self.program(path.to_str().expect("UTF-8"), flags)
    }

    fn fresh(&self, stem: &str, suffix: &str) -> PathBuf {
        let first = self.path(&format!("{stem}{suffix}"));
        if !first.exists() {
            return first;
        }
        (2..).map(|n| self.path(&format!("{stem}-{n}{suffix}"))).find(|p| !p.exists()).expect("a free name")
    }

    fn compile(&self, source: &str, flags: &[&str], out: &Path) {
        let source = fixtures().join(source);
        let text = std::fs::read_to_string(&source).unwrap_or_else(|e| panic!("{}: {e}", source.display()));
        let cxx = source.extension().is_some_and(|e| e == "cpp");
        let mut command = if self.clang {
            let mut clang = Command::new(if cxx { "clang++" } else { "clang" });
            clang.args(self.prefix.strip_suffix('-').map(|triple| format!("--target={triple}")));
            clang
        } else {
            Command::new(format!("{}{}", self.prefix, if cxx { "g++" } else { "gcc" }))
        };
        command.arg("-I").arg(repository().join("include")).arg("-I").arg(fixtures());
        command.args(["-Wall", "-Wextra"]).args(flags).arg("-o").arg(out).arg(&source);
        for line in text.lines().filter_map(|l| l.strip_prefix("//# flags:")) {
            command.args(line.split_whitespace());
        }
        let done = command.output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
        let said = String::from_utf8_lossy(&done.stderr);
        assert!(done.status.success(), "{command:?}\n{said}");
    }

    /// `tfix gen` with output `fix.tfp` in this directory (so the patch is called `fix`).
    pub fn generate(&self, program: &Path, objects: &[&Path], extra: &[&str]) -> (Outcome, PathBuf) {
        self.generate_to("fix.tfp", program, objects, extra)
    }

    /// `tfix gen` with an output of this name in this directory.
    pub fn generate_to(&self, out: &str, program: &Path, objects: &[&Path], extra: &[&str]) -> (Outcome, PathBuf) {
        let out = self.path(out);
        let mut arguments: Vec<OsString> = vec!["gen".into(), "-m".into(), program.into(), "-o".into(), (&out).into()];
        arguments.extend(objects.iter().map(|o| o.as_os_str().to_owned()));
        arguments.extend(extra.iter().map(OsString::from));
        (crate::run(&arguments), out)
    }

    /// A package that must be generated without complaint.
    pub fn package(&self, program: &Path, object: &Path) -> PathBuf {
        let (outcome, out) = self.generate(program, &[object], &[]);
        outcome.done();
        out
    }
}
