//! Types of the chaos laboratory: what an experiment is, which faults it may inject, when it has passed and
//! how a run is reported. `ephor-sim` and the live runner read the same experiment file through this crate,
//! and give it what they saw. The crate does no I/O and reads no clock.
//!
//! | module         | what it holds                                                    |
//! |----------------|------------------------------------------------------------------|
//! | [`experiment`] | the file: YAML to [`Experiment`], strictly, with errors by path   |
//! | [`fault`]      | the vocabulary of faults and [`FaultKind`] for counting them      |
//! | [`target`]     | whom a fault strikes: a role, a node or a list of nodes           |
//! | [`resolve`]    | which nodes a target means when its fault fires                   |
//! | [`units`]      | durations, percentages and clock offsets as the file writes them  |
//! | [`verdict`]    | pass, fail or unknown, with the reasons                           |
//! | [`report`]     | what a run saw, as text, journal, JUnit and HTML                  |

mod document;
mod error;
pub mod experiment;
pub mod fault;
pub mod report;
pub mod resolve;
pub mod target;
pub mod units;
pub mod verdict;

pub use error::Error;
pub use experiment::{Experiment, Invariant};
pub use fault::{Fault, FaultKind};
pub use report::Report;
pub use resolve::Group;
pub use target::{NodeName, Role, Target};
pub use verdict::{Reason, Verdict};
