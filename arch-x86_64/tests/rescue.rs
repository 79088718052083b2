//! The rescue frame on a real kernel: a stopped child's registers are spoilt, an injected system call returns into
//! rt_sigreturn with nobody tracing any more, and the child must be back exactly where it was.
#![cfg(all(target_arch = "x86_64", target_os = "linux", target_pointer_width = "64"))]
// ptrace and fork have no safe form in libc; this is a test of the effect, not part of the product.
#![allow(unsafe_code, clippy::undocumented_unsafe_blocks)]

use std::arch::global_asm;
use std::ffi::c_void;
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};
use tigerfix_arch_x86_64::X86_64;
use tigerfix_core::arch::{Arch, Registers};

global_asm!(
    // syscall; ret: what injected system calls run
    ".globl rescue_syscall_ret",
    "rescue_syscall_ret: syscall",
    "ret",
    // what the C library hands to the kernel as SA_RESTORER
    ".globl rescue_restorer",
    "rescue_restorer: mov rax, 15",
    "syscall",
    // a system call for looking into the child, ends in a trap
    ".globl rescue_syscall_trap",
    "rescue_syscall_trap: syscall",
    "int3",
    // makes the kernel give the thread room for AMX tiles: loads a configuration from rdi and tile 0 from rsi
    ".globl rescue_use_tiles",
    "rescue_use_tiles: .byte 0xc4, 0xe2, 0x78, 0x49, 0x07", // ldtilecfg [rdi]
    ".byte 0xc4, 0xe2, 0x7b, 0x49, 0xc0",                   // tilezero tmm0
    ".byte 0xc4, 0xe2, 0x7b, 0x4b, 0x04, 0x16",             // tileloadd tmm0, [rsi + rdx]
    "ret",
    ".globl rescue_release_tiles",
    "rescue_release_tiles: .byte 0xc4, 0xe2, 0x78, 0x49, 0xc0", // tilerelease
    "ret",
    // spins with every register at a value of its own; never returns. rdi: 8 words, 32 bytes
    ".globl rescue_spin",
    "rescue_spin:",
    "movups xmm0, [rdi]",
    "movups xmm7, [rdi + 1]",
    "movups xmm15, [rdi + 3]",
    "test esi, esi",
    "jz 2f",
    "vmovups ymm1, [rdi]",
    "vmovups ymm15, [rdi + 5]",
    "2: test edx, edx",
    "jz 3f",
    "vmovups zmm2, [rdi]",
    "vmovups zmm31, [rdi + 7]",
    "mov eax, 0x5a5a5a",
    "kmovd k3, eax",
    "3: fldpi",
    "fld1",
    "movabs rbx, 0x1122334455667788",
    "lea rbp, [rbx + 1]",
    "lea rcx, [rbx + 2]",
    "lea rdx, [rbx + 3]",
    "lea rsi, [rbx + 4]",
    "lea rdi, [rbx + 5]",
    "lea r8, [rbx + 6]",
    "lea r9, [rbx + 7]",
    "lea r10, [rbx + 8]",
    "lea r11, [rbx + 9]",
    "lea r12, [rbx + 10]",
    "lea r13, [rbx + 11]",
    "lea r14, [rbx + 12]",
    "lea r15, [rbx + 13]",
    "mov rax, -512", // looks like ERESTARTSYS, but this is no system call
    "mov qword ptr [rsp - 8], rbx",
    "mov qword ptr [rsp - 128], rbp",
    "std",
    "stc",
    "1: jmp 1b",
);

unsafe extern "C" {
    fn rescue_syscall_ret();
    fn rescue_restorer();
    fn rescue_syscall_trap();
    fn rescue_use_tiles(config: *const u8, rows: *const u8, stride: usize);
    fn rescue_release_tiles();
    fn rescue_spin(bytes: *const u8, ymm: i32, zmm: i32) -> !;
}

const NT_PRSTATUS: usize = 1;
const NT_X86_XSTATE: usize = 0x202;
const WORDS: usize = 27;
const RAX: u8 = 10;

fn check(result: i64, what: &str) -> i64 {
    assert!(result >= 0, "{what}: {}", std::io::Error::last_os_error());
    result
}

struct Child(libc::pid_t);

impl Drop for Child {
    fn drop(&mut self) {
        unsafe {
            libc::kill(self.0, libc::SIGKILL);
            libc::waitpid(self.0, std::ptr::null_mut(), libc::__WALL);
        }
    }
}

impl Child {
    fn fork(run: impl FnOnce()) -> Child {
        match unsafe { libc::fork() } {
            0 => {
                unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
                run();
                unsafe { libc::_exit(99) }
            }
            pid => Child(check(i64::from(pid), "fork") as libc::pid_t),
        }
    }
    fn ptrace(&self, request: libc::c_uint, addr: usize, data: usize) {
        check(unsafe { libc::ptrace(request, self.0, addr, data) }, "ptrace");
    }
    fn stop(&self) {
        self.ptrace(libc::PTRACE_SEIZE, 0, 0);
        self.ptrace(libc::PTRACE_INTERRUPT, 0, 0);
        self.wait_stop();
    }
    fn wait_stop(&self) -> i32 {
        let mut status = 0;
        check(i64::from(unsafe { libc::waitpid(self.0, &raw mut status, libc::__WALL) }), "waitpid");
        assert!(libc::WIFSTOPPED(status), "child ended: status {status:#x}");
        libc::WSTOPSIG(status)
    }
    fn detach(&self) {
        self.ptrace(libc::PTRACE_DETACH, 0, 0);
    }
    fn regset(&self, kind: usize) -> Vec<u8> {
        let mut buf = vec![0u8; 32768];
        let mut iov = libc::iovec { iov_base: buf.as_mut_ptr().cast(), iov_len: buf.len() };
        self.ptrace(libc::PTRACE_GETREGSET, kind, (&raw mut iov) as usize);
        buf.truncate(iov.iov_len);
        buf
    }
    fn set_regset(&self, kind: usize, bytes: &[u8]) {
        let mut iov = libc::iovec { iov_base: bytes.as_ptr() as *mut c_void, iov_len: bytes.len() };
        self.ptrace(libc::PTRACE_SETREGSET, kind, (&raw mut iov) as usize);
    }
    fn regs(&self) -> Registers {
        let mut regs = Registers::ZERO;
        for (i, w) in self.regset(NT_PRSTATUS).as_chunks::<8>().0.iter().enumerate() {
            regs.values[i] = u64::from_le_bytes(*w);
        }
        regs
    }
    fn set_regs(&self, regs: &Registers) {
        let bytes: Vec<u8> = regs.values[..WORDS].iter().flat_map(|v| v.to_le_bytes()).collect();
        self.set_regset(NT_PRSTATUS, &bytes);
    }
    fn mask(&self) -> u64 {
        let mut mask = 0u64;
        self.ptrace(libc::PTRACE_GETSIGMASK, 8, (&raw mut mask) as usize);
        mask
    }
    fn set_mask(&self, mask: u64) {
        self.ptrace(libc::PTRACE_SETSIGMASK, 8, (&raw const mask) as usize);
    }
    fn memory(&self) -> std::fs::File {
        std::fs::File::options().read(true).write(true).open(format!("/proc/{}/mem", self.0)).unwrap()
    }
    fn write(&self, at: u64, bytes: &[u8]) {
        std::os::unix::fs::FileExt::write_all_at(&self.memory(), bytes, at).unwrap();
    }
    fn read(&self, at: u64, len: usize) -> Vec<u8> {
        let mut buf = vec![0; len];
        std::os::unix::fs::FileExt::read_exact_at(&self.memory(), &mut buf, at).unwrap();
        buf
    }
    /// The child's alternate signal stack, by a call injected far below its stack. Only for a child that is in no call.
    fn altstack(&self) -> Vec<u8> {
        let (saved, mut regs) = (self.regs(), self.regs());
        let layout = X86_64.registers();
        let out = (saved.get(layout.sp) - 40000) & !15;
        regs.set(RAX, libc::SYS_sigaltstack as u64);
        regs.set(layout.syscall_args[0], 0);
        regs.set(layout.syscall_args[1], out);
        regs.set(layout.pc, rescue_syscall_trap as *const () as u64);
        regs.set(layout.restart_nr.unwrap(), u64::MAX);
        self.set_regs(&regs);
        self.ptrace(libc::PTRACE_CONT, 0, 0);
        assert_eq!(self.wait_stop(), libc::SIGTRAP);
        assert_eq!(self.regs().get(RAX), 0);
        self.set_regs(&saved);
        self.read(out, 24)
    }
    /// Spoils everything that the frame must bring back, and sends the child into an injected getpid that returns into
    /// rt_sigreturn.
    fn hijack(&self) {
        let layout = X86_64.registers();
        let mut regs = self.regs();
        let xstate = self.regset(NT_X86_XSTATE);
        let mut frame = X86_64.rescue_frame(&regs, &xstate, u128::from(self.mask())).unwrap();
        let word = (frame.sp - frame.at) as usize;
        frame.bytes[word..word + 8].copy_from_slice(&(rescue_restorer as *const () as u64).to_le_bytes());
        self.write(frame.at, &frame.bytes);
        for r in (0..16).filter(|r| *r != 15) {
            regs.set(r, 0xdead_0000 + u64::from(r));
        }
        regs.set(layout.syscall_nr, libc::SYS_getpid as u64);
        regs.set(layout.restart_nr.unwrap(), u64::MAX);
        regs.set(layout.pc, rescue_syscall_ret as *const () as u64);
        regs.set(layout.sp, frame.sp);
        regs.set(18, 0x246); // eflags: no direction, no carry
        self.set_regs(&regs);
        // Everything to its initial state, in XSTATE_BV.
        let mut spoilt = xstate;
        spoilt[512..520].fill(0);
        self.set_regset(NT_X86_XSTATE, &spoilt);
        self.set_mask(0x7000);
    }
    fn cpu_ticks(&self) -> u64 {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.0)).unwrap();
        stat.rsplit(") ").next().unwrap().split(' ').nth(11).unwrap().parse().unwrap()
    }
}

/// Waits until `done`, at most ten seconds.
fn eventually(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < Duration::from_secs(10), "{what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// What the thread did with AMX, which decides how much state the kernel keeps for it.
#[derive(Clone, Copy, PartialEq)]
enum Tiles {
    Untouched,
    Released,
    Live,
}

/// Uses AMX in this thread, if there is any.
fn use_tiles(tiles: Tiles) {
    const ARCH_REQ_XCOMP_PERM: i32 = 0x1023;
    const TILE_DATA: i32 = 18;
    if tiles == Tiles::Untouched || unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, TILE_DATA) } != 0
    {
        return;
    }
    // palette 1; tile 0 has 4 rows of 64 bytes
    let mut config = [0u8; 64];
    (config[0], config[16], config[48]) = (1, 64, 4);
    let rows = [0x5au8; 1024];
    unsafe { rescue_use_tiles(config.as_ptr(), rows.as_ptr(), 64) };
    if tiles == Tiles::Released {
        unsafe { rescue_release_tiles() };
    }
}

#[test]
fn everything_survives() {
    survives(Tiles::Untouched);
}

#[test]
fn everything_survives_with_room_for_tiles() {
    survives(Tiles::Released);
}

#[test]
fn everything_survives_with_live_tiles() {
    survives(Tiles::Live);
}

fn survives(tiles: Tiles) {
    let bytes: Vec<u8> = (1..=128).collect();
    let has = |on: bool| i32::from(on);
    let ymm = has(is_x86_feature_detected!("avx"));
    let zmm = has(is_x86_feature_detected!("avx512bw"));
    let child = Child::fork(|| unsafe {
        let stack = libc::stack_t { ss_sp: 0x10_0000 as *mut c_void, ss_flags: 0, ss_size: 0x8000 };
        libc::sigaltstack(&raw const stack, std::ptr::null_mut());
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigaddset(&raw mut set, libc::SIGUSR1);
        libc::sigaddset(&raw mut set, libc::SIGRTMAX());
        libc::sigprocmask(libc::SIG_SETMASK, &raw const set, std::ptr::null_mut());
        use_tiles(tiles);
        rescue_spin(bytes.as_ptr(), ymm, zmm);
    });
    let spin = |c: &Child| c.regs().get(0) == 0x1122_3344_5566_7788 + 13 && c.regs().get(18) & 0x401 == 0x401;
    eventually("child spins", || {
        child.stop();
        if spin(&child) {
            return true;
        }
        child.detach();
        false
    });
    let before = (child.regs(), child.regset(NT_X86_XSTATE), child.mask(), child.altstack());
    assert_eq!(before.2, 1 << (libc::SIGUSR1 - 1) | 1 << (libc::SIGRTMAX() - 1));
    assert_eq!(before.3[..8], 0x10_0000u64.to_le_bytes());
    let sp = before.0.get(X86_64.registers().sp);
    let red_zone = child.read(sp - 128, 128);

    child.hijack();
    assert_ne!(child.regset(NT_X86_XSTATE), before.1);
    child.detach();
    let ticks = child.cpu_ticks();
    eventually("child spins again", || child.cpu_ticks() > ticks + 2);

    child.stop();
    let mut after = child.regs();
    assert_eq!(after.get(15), u64::MAX);
    after.set(15, before.0.get(15));
    for (i, name) in X86_64.registers().names.iter().enumerate() {
        assert_eq!(after.values[i], before.0.values[i], "{name}");
    }
    let xstate = child.regset(NT_X86_XSTATE);
    // XSTATE_BV says what is in use; the contents of the parts that are, and of those in initial state, must be the same.
    let differ: Vec<usize> = (0..xstate.len()).filter(|i| xstate[*i] != before.1[*i]).collect();
    assert!(differ.iter().all(|i| (512..520).contains(i)), "xstate differs at {differ:?}");
    assert_eq!(child.mask(), before.2);
    assert_eq!(child.altstack(), before.3);
    assert_eq!(child.read(sp - 128, 128), red_zone);
}

#[test]
fn an_interrupted_call_goes_on() {
    let (mut reader, mut writer) = std::io::pipe().unwrap();
    let child = Child::fork(|| {
        let mut byte = [0u8; 1];
        let n = std::io::Read::read(&mut reader, &mut byte);
        // No retry on EINTR: read() of io::Read hands it on.
        let ok = matches!(n, Ok(1)) && byte[0] == 7;
        unsafe { libc::_exit(if ok { 42 } else { 43 }) }
    });
    let blocked = || std::fs::read_to_string(format!("/proc/{}/syscall", child.0)).is_ok_and(|s| s.starts_with("0 "));
    eventually("child reads", blocked);
    child.stop();
    assert_eq!(child.regs().get(RAX) as i64, -512, "ERESTARTSYS");
    child.hijack();
    child.detach();
    eventually("child reads again", blocked);
    std::io::Write::write_all(&mut writer, &[7]).unwrap();
    let mut status = 0;
    check(i64::from(unsafe { libc::waitpid(child.0, &raw mut status, 0) }), "waitpid");
    assert!(libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 42, "status {status:#x}");
    std::mem::forget(child);
    assert!(reader.as_raw_fd() >= 0);
}

#[test]
fn a_sleep_goes_on() {
    let child = Child::fork(|| {
        let time = libc::timespec { tv_sec: 0, tv_nsec: 400_000_000 };
        let ok = unsafe { libc::nanosleep(&raw const time, std::ptr::null_mut()) } == 0;
        unsafe { libc::_exit(if ok { 42 } else { 43 }) }
    });
    eventually("child sleeps", || {
        std::fs::read_to_string(format!("/proc/{}/stat", child.0)).is_ok_and(|s| s.contains(") S "))
    });
    child.stop();
    assert_eq!(child.regs().get(RAX) as i64, -516, "ERESTART_RESTARTBLOCK");
    child.hijack();
    child.detach();
    let mut status = 0;
    check(i64::from(unsafe { libc::waitpid(child.0, &raw mut status, 0) }), "waitpid");
    assert!(libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 42, "status {status:#x}");
    std::mem::forget(child);
}
