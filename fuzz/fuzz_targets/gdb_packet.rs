//! Whatever a stub sends is taken without a panic, and what we frame is found again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tigerfix::gdb::packet::{Decoder, Event, MAX_PACKET, escape, frame, from_hex, number, unescape};
use tigerfix::gdb::{description, objects, reply};

fn look(payload: &[u8]) {
    assert!(payload.len() <= MAX_PACKET);
    let _ = (from_hex(payload), number(payload), unescape(payload));
    let _ = (reply::stop(payload), reply::threads(payload), reply::file(payload), reply::text_offset(payload));
    let _ = (reply::thread_id(payload), reply::Offers::parse(payload), reply::is_error(payload));
    let text = String::from_utf8_lossy(payload);
    let _ = description::registers(&description::parts(&text));
    let _ = (objects::memory_map(&text), objects::threads(&text), objects::libraries(&text));
}

fuzz_target!(|bytes: &[u8]| {
    let mut decoder = Decoder::default();
    for &b in bytes {
        if let Some(Event::Packet(p) | Event::Notification(p)) = decoder.push(b) {
            look(&p);
        }
    }
    look(bytes);
    // A frame goes through whatever came before it was left half way.
    let payload = escape(bytes);
    assert_eq!(unescape(&payload), bytes);
    let mut decoder = Decoder::default();
    let events: Vec<Event> = frame(&payload).into_iter().filter_map(|b| decoder.push(b)).collect();
    assert_eq!(events, [Event::Packet(payload)]);
});
