//! The chaos laboratory on a live cluster: the agent that breaks a node and mends
//! it again, and the runner that carries an experiment file out through the agents,
//! works through the API like any client, and judges what it saw with the same
//! oracle as the simulation. `ephor chaos` calls both.
//!
//! | module | does |
//! | --- | --- |
//! | [`agent`] | applies effects to its node, and undoes each at its limit whoever is alive |
//! | [`effect`] | what an agent can do |
//! | [`access`] | the ways into the cluster: API, masters, agents |
//! | [`cluster`] | which node is which |
//! | `http`, `workload`, `watcher` | the clients |
//! | `poll`, `view` | what the masters say of themselves |
//! | `observer` | all that was seen |
//! | `parts`, `inject`, `members` | the faults, when it is time |
//! | [`run`], `steady`, `report` | one run, from the first look to the verdict |

pub mod access;
pub mod agent;
pub mod cluster;
pub mod effect;
mod http;
mod inject;
mod members;
mod observer;
mod parts;
mod poll;
mod report;
pub mod run;
mod steady;
mod view;
mod watcher;
mod workload;
