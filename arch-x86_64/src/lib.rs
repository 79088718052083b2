#![no_std]
//! x86-64.
#![forbid(unsafe_code)]
