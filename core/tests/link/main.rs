//! The patch linker, with real objects (the host's compiler makes them at run time) and the real x86-64 tables.

mod broken;
mod data;
mod execute;
mod expressions;
mod imports;
mod layout;
mod oracle;
mod refused;
mod relocations;
mod replace;
mod support;
mod tls;
mod toy;
