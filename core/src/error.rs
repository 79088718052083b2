//! What every refusal has in common: a rule id, a class and a hint.

/// How grave an error is; the command line turns it into the exit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// A rule says no; nothing was touched (exit code 1).
    Refused,
    /// The input or the way tfix was called is wrong; nothing was touched (exit code 2).
    BadInput,
    /// Something went wrong after the first change to the target, and that change was undone (exit code 3).
    RolledBack,
    /// Something went wrong after the first change to the target, and undoing it did not succeed; the message says in
    /// what state the target is (exit code 3).
    Failed,
}

/// Implemented by the error enum of every stage.
pub trait Explain: core::fmt::Display {
    /// A short stable id such as `window-too-small`, for scripts and for looking it up in docs/rules.md.
    fn rule(&self) -> &'static str;
    /// How grave it is.
    fn class(&self) -> Class;
    /// What the user can do next, as a sentence; `None` where the message says all.
    fn hint(&self) -> Option<&'static str> {
        None
    }
}
