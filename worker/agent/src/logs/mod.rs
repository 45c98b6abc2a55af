//! Container logs: read and followed for clients ([`read`]), rotated when they grow ([`rotate`]). The format is CRI's: one line is
//! `TIME STREAM TAG TEXT`, tag `P` for a part of a longer line.

pub mod read;
pub mod rotate;
