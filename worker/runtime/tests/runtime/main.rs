//! Tests the runtime as a worker's agent sees it: a program, a socket, real containers. Needs root; without
//! it the tests print a note and pass.

mod containers;
mod security;
mod shims;
mod streams;
mod test_runtime;
