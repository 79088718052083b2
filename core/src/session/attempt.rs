//! Stop, check, write, resume; again until the timeout while threads are in the way. `fix` and `revert` differ in what they
//! write, and in whether threads are led out of the code.

use crate::session::error::SessionError;
use crate::session::stack::Checker;
use crate::session::{Clock, attach, resume_all, stop_all};
use crate::target::{Target, TargetError};
use alloc::{boxed::Box, string::String, vec::Vec};

/// First wait between attempts, and the longest, microseconds.
pub(super) const WAIT_US: (u64, u64) = (500, 20_000);
/// How long the others may stay stopped while threads that are inside are led out: half of the first attempt's
/// budget, and the longest, microseconds.
const LEAD_OUT_US: (u64, u64) = (500, 80_000);

/// What a stop came to.
pub(super) enum Outcome<'e> {
    /// The sites were written.
    Written,
    /// Threads were in the way.
    Blocked,
    /// It failed.
    Failed(&'e SessionError),
}

/// One way of changing the sites.
pub(super) struct Attempt<'a> {
    /// How long to retry, milliseconds.
    pub(super) timeout_ms: u64,
    /// Help threads that are inside to get out while the others stay stopped.
    pub(super) lead_out: bool,
    /// Changes the sites; everybody is stopped, and nobody in the way. Is given the number of the attempt, from 1 on.
    pub(super) write: &'a mut dyn FnMut(&mut dyn Target, u32) -> Result<(), SessionError>,
    /// In what state the target is, should its threads not be let go after this outcome.
    pub(super) state: &'a dyn Fn(Outcome<'_>) -> String,
}

impl Attempt<'_> {
    /// Returns how long all threads were stopped in the attempt that wrote, microseconds, and how many attempts it took.
    ///
    /// # Errors
    /// [`SessionError`]
    pub(super) fn run(
        self,
        target: &mut dyn Target,
        checker: &mut Checker<'_, '_>,
        clock: &mut dyn Clock,
    ) -> Result<(u64, u32), SessionError> {
        let begin = clock.now_us();
        let mut wait = WAIT_US.0;
        let mut attempts = 0;
        loop {
            interrupted(target)?;
            attempts += 1;
            attach(target)?;
            let stopped_at = clock.now_us();
            let threads = stop_all(target)?;
            let mut outcome = checker.check(target, &threads);
            if self.lead_out
                && let Ok(blockers) = &mut outcome
                && !blockers.is_empty()
            {
                // Longer at each attempt: the first ones hardly disturb, the later ones get through.
                let budget = (LEAD_OUT_US.0 << attempts.min(10)).min(LEAD_OUT_US.1);
                let blockers = core::mem::take(blockers);
                // From here on: over a slow line the look alone takes longer.
                let deadline = clock.now_us().saturating_add(budget);
                outcome = checker.lead_out(target, blockers, clock, deadline);
            }
            let outcome = match outcome {
                Ok(blockers) if blockers.is_empty() => (self.write)(target, attempts).map(|()| Vec::new()),
                other => other,
            };
            let resumed = resume_all(target);
            let now = clock.now_us();
            if let Err(cause) = resumed {
                let what = (self.state)(match &outcome {
                    Ok(b) if b.is_empty() => Outcome::Written,
                    Ok(_) => Outcome::Blocked,
                    Err(e) => Outcome::Failed(e),
                });
                return Err(SessionError::NotResumed { what, cause: Box::new(cause) });
            }
            let late = now.saturating_sub(begin) / 1000 >= self.timeout_ms;
            match outcome {
                Ok(b) if b.is_empty() => return Ok((now.saturating_sub(stopped_at), attempts)),
                Ok(blockers) if late => {
                    return Err(SessionError::Busy { blockers, attempts, millis: self.timeout_ms });
                }
                // A stack that can't be judged now may be judged at the next attempt.
                Ok(_) => {}
                Err(SessionError::StackUnknown { .. }) if !late => {}
                Err(e) => return Err(e),
            }
            clock.wait_us(wait);
            wait = (wait * 2).min(WAIT_US.1);
        }
    }
}

/// Has the user asked to stop?
pub(super) fn interrupted(target: &dyn Target) -> Result<(), SessionError> {
    if target.interrupted() { Err(TargetError::Interrupted.into()) } else { Ok(()) }
}
