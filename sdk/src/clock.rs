//! The clock of a session on this machine.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tigerfix_core::session::Clock;

/// Monotonic time since its creation.
#[derive(Debug)]
pub struct SystemClock {
    start: Instant,
}

impl SystemClock {
    /// A clock that starts now.
    #[must_use]
    pub fn new() -> SystemClock {
        SystemClock { start: Instant::now() }
    }
}

impl Default for SystemClock {
    fn default() -> Self {
        SystemClock::new()
    }
}

impl Clock for SystemClock {
    fn now_us(&mut self) -> u64 {
        u64::try_from(self.start.elapsed().as_micros()).unwrap_or(u64::MAX)
    }
    fn wait_us(&mut self, us: u64) {
        std::thread::sleep(Duration::from_micros(us));
    }
    fn unix_seconds(&mut self) -> u64 {
        SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
    }
}
