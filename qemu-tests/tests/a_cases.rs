//! Five programs, patched while they run, at three optimisation levels and four ways to link: the new behaviour comes,
//! the state stays, and `revert` brings the old behaviour and the old bytes back.

use qemu_tests::cases::{A1, A2, A3, A4, A5, Case, build, live};
use qemu_tests::{Lab, Link, Outcome, Victim};

/// The patch must be accepted and work.
fn right<C: Case>(opt: &str, link: Link) {
    let lab = Lab::new();
    let (program, patch) = build::<C>(&lab, opt, link.flags(), &[]);
    let package = lab.package(&program, &patch);
    let mut victim = Victim::start(&program);
    C::shows_old(&mut victim);
    live::<C>(victim, &package);
}

/// The refusal names the function and the copies of it that a patch could not reach.
#[track_caller]
fn names_the_copies(outcome: &Outcome, function: &str) {
    outcome.refused(&[function]);
    let text = outcome.stderr.to_lowercase();
    let kind = ["inlined", "clone", "copy", "copies"].iter().any(|w| text.contains(w));
    assert!(kind, "the refusal says that there are copies of {function}\n{outcome}");
}

/// Where the compiler may have inlined the function, the patch works or is refused, but never half works.
fn right_or_refused<C: Case>(opt: &str, link: Link, flags: &[&str]) {
    let lab = Lab::new();
    let (program, patch) = build::<C>(&lab, opt, link.flags(), flags);
    let mut victim = Victim::start(&program);
    C::shows_old(&mut victim);
    let (outcome, package) = lab.generate(&program, &[&patch], &[]);
    if outcome.code() != 0 {
        names_the_copies(&outcome, "");
        assert!(C::FUNCTIONS.iter().any(|f| outcome.stderr.contains(f)), "it names the function\n{outcome}");
        assert!(!package.exists(), "a refused gen leaves no file");
        C::shows_old(&mut victim);
        return;
    }
    live::<C>(victim, &package);
}

macro_rules! levels {
    ($check:ident, $case:ident, $link:ident $(, $flag:expr)*) => {
        #[test]
        fn o0() {
            $check::<$case>("-O0", Link::$link $(, $flag)*);
        }
        #[test]
        fn o2() {
            $check::<$case>("-O2", Link::$link $(, $flag)*);
        }
        #[test]
        fn o3() {
            $check::<$case>("-O3", Link::$link $(, $flag)*);
        }
    };
}

macro_rules! links {
    ($check:ident, $case:ident $(, $flag:expr)*) => {
        mod pie {
            use super::*;
            levels!($check, $case, Pie $(, $flag)*);
        }
        mod no_pie {
            use super::*;
            levels!($check, $case, NoPie $(, $flag)*);
        }
        mod fully_static {
            use super::*;
            levels!($check, $case, Static $(, $flag)*);
        }
        mod static_pie {
            use super::*;
            levels!($check, $case, StaticPie $(, $flag)*);
        }
    };
}

mod a1_constant {
    use super::*;
    links!(right, A1);
}

mod a2_recursion {
    use super::*;
    links!(right, A2);
}

mod a3_program_data {
    use super::*;
    links!(right, A3);
}

mod a4_mutual_recursion {
    use super::*;
    links!(right_or_refused, A4, &[]);
}

mod a4_mutual_recursion_with_dwarf {
    use super::*;
    links!(right_or_refused, A4, &["-g"]);
}

mod a5_three_functions {
    use super::*;
    links!(right, A5);
}

/// The same programs where nothing keeps the functions out of line.
mod free_to_inline {
    use super::*;

    mod a1 {
        use super::*;
        levels!(right_or_refused, A1, Pie, &["-DKEEP="]);
    }
    mod a1_static_linkage {
        use super::*;
        levels!(right_or_refused, A1, Pie, &["-DKEEP=static"]);
    }
    mod a2 {
        use super::*;
        levels!(right_or_refused, A2, Pie, &["-DKEEP=", "-g"]);
    }
    mod a3 {
        use super::*;
        levels!(right_or_refused, A3, Pie, &["-DKEEP="]);
    }
    mod a3_fixed_address {
        use super::*;
        levels!(right_or_refused, A3, NoPie, &["-DKEEP=", "-g"]);
    }
    mod a5 {
        use super::*;
        levels!(right_or_refused, A5, Pie, &["-DKEEP="]);
    }
    /// Kept out of line, yet called with a constant: gcc makes a clone of event() at -O3.
    mod a5_literal {
        use super::*;
        levels!(right_or_refused, A5, Pie, &["-DLITERAL"]);
    }
}

/// With nothing inlined there is no ground for a refusal.
#[test]
fn a4_at_o0_is_patched() {
    for link in Link::ALL {
        right::<A4>("-O0", link);
    }
}

/// With debug information the refusal says where the copies are.
#[test]
fn a4_at_o2_names_the_inlined_places() {
    let lab = Lab::new();
    let (program, patch) = build::<A4>(&lab, "-O2", Link::Pie.flags(), &["-g"]);
    let (outcome, package) = lab.generate(&program, &[&patch], &[]);
    if outcome.code() == 0 {
        // This compiler inlined nothing; then the patch has to work.
        let mut victim = Victim::start(&program);
        A4::shows_old(&mut victim);
        live::<A4>(victim, &package);
        return;
    }
    names_the_copies(&outcome, "f1");
    let places = ["main", "f2"].iter().any(|w| outcome.stderr.contains(w));
    assert!(places, "the refusal names the functions into which f1 was inlined\n{outcome}");
}
