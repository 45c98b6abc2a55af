//! An empty crate. porcupine-rs 0.3.0 lists the benchmark library of this name among its dependencies and
//! uses it in its benchmarks alone, so that every build of `ephor` would compile it and 21 crates below it.
//! `[patch.crates-io]` in the workspace's manifest puts this crate in its place. A version of porcupine-rs
//! that uses it does not compile.
