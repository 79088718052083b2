//! The package reader takes any bytes without a panic, and what it accepts can be written again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tigerfix_core::package::{PackageReader, seal, write};

fuzz_target!(|bytes: &[u8]| {
    let _ = PackageReader::parse(bytes);
    // The digest would stop nearly every input: give it the right one.
    let mut file = bytes.to_vec();
    if seal(&mut file).is_err() {
        return;
    }
    if let Ok(reader) = PackageReader::parse(&file) {
        let package = reader.to_package();
        let again = write(&package).expect("accepted, so it obeys the writer's rules");
        let reread = PackageReader::parse(&again).expect("written, so it obeys the reader's rules");
        assert_eq!(reread.to_package(), package);
    }
});
