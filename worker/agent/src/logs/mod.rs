//! Container logs: read and followed for clients ([`read`]), rotated when they grow ([`rotate`]). The files
//! have CRI's format: a line is `TIME STREAM TAG TEXT`, with tag `P` for a part of a longer line.

pub mod read;
pub mod rotate;
