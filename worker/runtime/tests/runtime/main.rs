//! The runtime from outside, as a worker's agent sees it: a program, a socket, real
//! containers. Needs root and says so where it is missing.

mod containers;
mod security;
mod shims;
mod streams;
mod support;
