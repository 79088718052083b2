//! Linking takes any object and any program without a panic, and what it makes is a package that can be read again.
//!
//! Input: length of the program (4 bytes, little-endian), the program's ELF file, the object file. `fuzz/seed` makes inputs
//! to start from.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tigerfix::arch;
use tigerfix::generate::Generate;

fuzz_target!(|bytes: &[u8]| {
    let Some((len, rest)) = bytes.split_first_chunk::<4>() else { return };
    let len = u32::from_le_bytes(*len) as usize;
    let Some((program, object)) = rest.split_at_checked(len) else { return };
    let Ok(ident) = tigerfix::program::ident_of(program) else { return };
    if arch::for_ident(&ident).is_err() {
        return;
    }
    let job = Generate::new("program", program).object("patch.o", object).name("fuzzed");
    if let Ok(made) = job.run() {
        let reader = tigerfix::package::PackageReader::parse(&made.bytes).expect("what gen makes can be read");
        assert_eq!(reader.to_package(), made.package);
    }
});
