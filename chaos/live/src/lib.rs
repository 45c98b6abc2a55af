//! The chaos laboratory on a live cluster: the agent that injects faults into a node and undoes them, and the
//! runner that carries out an experiment file through the agents, works through the API like any client, and
//! judges what it saw with the same oracle as the simulation. `ephor chaos` calls both.
//!
//! | module | does |
//! | --- | --- |
//! | [`agent`] | applies effects to its node, and undoes each at its limit whoever is alive |
//! | [`effect`] | the effects that an agent can apply |
//! | [`access`] | clients for the cluster: API, masters, agents |
//! | [`cluster`] | maps the experiment's names to nodes |
//! | `http`, `workload`, `watcher` | the clients |
//! | `poll`, `view` | the masters' answers about themselves and each other |
//! | `observer` | records all that is seen |
//! | `parts`, `inject`, `members` | injects the faults at their times |
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
