//! Maps the names of an experiment to a live cluster: which master is `m1`, where its API is, where the agent
//! of every node is. Discovered once at the beginning of a run; `members` changes it when masters join or
//! leave.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use chaos_spec::NodeName;
use http::Method;
use proto_wire::cluster::{Member, MembersRequest};
use serde_json::Value;

use crate::access::{Access, Agent, Error, host_of, within};
use crate::http::client;

/// Maximum time of one request during discovery.
const PATIENCE: Duration = Duration::from_secs(5);

/// A master that the experiment names.
#[derive(Debug, Clone)]
pub struct Master {
    /// Name of the master in the cluster.
    pub name: String,
    /// Id of the master.
    pub id: u64,
    /// Address of its peer port, as `HOST:PORT`.
    pub peer: String,
    /// Address of its API.
    pub api: SocketAddr,
}

/// All nodes of the cluster.
pub struct Cluster {
    /// Credentials for the cluster.
    pub access: Access,
    /// Masters that are members, or should soon be again.
    pub masters: BTreeMap<NodeName, Master>,
    /// Addresses of the workers.
    pub workers: BTreeMap<NodeName, IpAddr>,
    /// Agents of all nodes, also of spare machines; an agent need not be running.
    pub agents: BTreeMap<NodeName, Agent>,
}

/// Addresses of agents that are not at the default place, on spare machines or other ports, by node name.
pub type Agents = BTreeMap<String, String>;

impl Cluster {
    /// Discovers the cluster that has masters at `peers`; agents listen on `agent_port` of every node, or at
    /// the address in `agents`.
    ///
    /// # Errors
    /// Fails if no master answers, or the answers are unusable.
    pub async fn discover(
        access: Access,
        peers: &[String],
        agent_port: u16,
        agents: &Agents,
    ) -> Result<Self, Error> {
        let members = ask_any(&access, peers).await?;
        let mut cluster =
            Self { access, masters: masters(&members)?, workers: BTreeMap::new(), agents: BTreeMap::new() };
        cluster.workers = cluster.find_workers().await?;
        let mut places: BTreeMap<NodeName, String> = BTreeMap::new();
        for (node, master) in &cluster.masters {
            places.insert(*node, format_place(address(&master.peer)?, agent_port));
        }
        places.extend(cluster.workers.iter().map(|(node, at)| (*node, format_place(*at, agent_port))));
        for (name, place) in agents {
            let named =
                cluster.masters.iter().find(|(_, master)| master.name == *name).map(|(node, _)| *node);
            let node = named.map_or_else(|| name.parse(), Ok).map_err(Error::Node)?;
            let with_port = place.parse::<SocketAddr>().map(|place| place.to_string());
            places.insert(node, with_port.unwrap_or_else(|_| format!("{place}:{agent_port}")));
        }
        for (node, place) in places {
            let agent = cluster.access.agent(&place)?;
            cluster.agents.insert(node, agent);
        }
        Ok(cluster)
    }

    /// Returns the node of the master with this id.
    pub fn node_of(&self, id: u64) -> Option<NodeName> {
        self.masters.iter().find(|(_, master)| master.id == id).map(|(node, _)| *node)
    }

    /// Returns the names that the cluster has for its masters.
    pub fn names(&self) -> std::collections::BTreeSet<String> {
        self.masters.values().map(|master| master.name.clone()).collect()
    }

    /// Returns the API addresses of all masters.
    pub fn apis(&self) -> Vec<SocketAddr> {
        self.masters.values().map(|master| master.api).collect()
    }

    /// Returns the address of a node that is a member or a worker; `None` for others.
    pub fn address(&self, node: NodeName) -> Option<IpAddr> {
        let master = self.masters.get(&node).and_then(|master| host_of(&master.peer).ok());
        master.or_else(|| self.workers.get(&node).copied())
    }

    async fn find_workers(&self) -> Result<BTreeMap<NodeName, IpAddr>, Error> {
        for master in self.masters.values() {
            let mut client = client(&self.access, master.api);
            if let Ok(answer) = client.ask(Method::GET, "/api/v1/nodes", None).await
                && answer.status.is_success()
            {
                return Ok(workers(&answer.body));
            }
        }
        Err(Error::Node("no master lists the nodes".to_owned()))
    }
}

async fn ask_any(access: &Access, peers: &[String]) -> Result<Vec<Member>, Error> {
    let mut last = Error::Node("no master is known".to_owned());
    for peer in peers {
        let mut admin = access.admin(peer)?;
        match within(PATIENCE, admin.members(MembersRequest { local: true })).await {
            Ok(answer) => return Ok(answer.members),
            Err(error) => last = Error::Node(format!("{peer}: {error}")),
        }
    }
    Err(last)
}

fn format_place(address: IpAddr, port: u16) -> String {
    SocketAddr::new(address, port).to_string()
}

fn address(place: &str) -> Result<IpAddr, Error> {
    host_of(place).map_err(|error| Error::Node(error.to_string()))
}

/// Gives the members names of the experiment: their own where all of these have that form (`m1`, `m2`, ...),
/// else numbers in the order of ids.
fn masters(members: &[Member]) -> Result<BTreeMap<NodeName, Master>, Error> {
    let own: Vec<Option<NodeName>> = members.iter().map(|member| member.name.parse().ok()).collect();
    let fits = own.iter().all(|name| name.is_some_and(|name| name.role() == chaos_spec::Role::Master));
    let numbers = 1..=u32::try_from(members.len()).unwrap_or(u32::MAX);
    let numbered = numbers.map(NodeName::master);
    let names: Vec<Option<NodeName>> = if fits { own } else { numbered.collect() };
    let mut masters = BTreeMap::new();
    for (name, member) in names.into_iter().zip(members) {
        let master = master_of(member)?;
        if name.is_none_or(|name| masters.insert(name, master).is_some()) {
            return Err(Error::Node(format!("two masters are called {}", member.name)));
        }
    }
    Ok(masters)
}

/// Converts a member to a master of the experiment.
///
/// # Errors
/// Fails if the address of its API does not parse.
pub fn master_of(member: &Member) -> Result<Master, Error> {
    let api = member.api_address.parse().map_err(|_| Error::Address(member.api_address.clone()))?;
    Ok(Master { name: member.name.clone(), id: member.id, peer: member.peer_address.clone(), api })
}

/// Gives the nodes of a list names of the experiment, by the same rule as [`masters`].
fn workers(list: &Value) -> BTreeMap<NodeName, IpAddr> {
    let items = list["items"].as_array().map(Vec::as_slice).unwrap_or_default();
    let mut found: Vec<(&str, IpAddr)> = items
        .iter()
        .filter_map(|item| {
            let addresses = item["status"]["addresses"].as_array()?;
            let internal = addresses.iter().find(|address| address["type"] == "InternalIP")?;
            Some((item["metadata"]["name"].as_str()?, internal["address"].as_str()?.parse().ok()?))
        })
        .collect();
    found.sort_unstable();
    let own: Vec<Option<NodeName>> = found.iter().map(|(name, _)| name.parse().ok()).collect();
    let fits = own.iter().all(|name| name.is_some_and(|name| name.role() == chaos_spec::Role::Worker));
    let numbered = (1..).map(NodeName::worker);
    let names: Vec<Option<NodeName>> = if fits { own } else { numbered.take(found.len()).collect() };
    names.into_iter().zip(found).filter_map(|(name, (_, address))| Some((name?, address))).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn member(id: u64, name: &str) -> Member {
        let (peer_address, api_address) = (format!("10.0.0.{id}:6444"), format!("10.0.0.{id}:6443"));
        Member { id, name: name.to_owned(), peer_address, api_address, voter: true, ..Member::default() }
    }

    fn names(members: &[Member]) -> Vec<(String, u64)> {
        let masters = masters(members).unwrap();
        masters.iter().map(|(node, master)| (node.to_string(), master.id)).collect()
    }

    #[test]
    fn masters_keep_names_that_an_experiment_can_use_and_get_numbers_otherwise() {
        let own = [member(1, "m1"), member(5, "m3"), member(9, "m2")];
        assert_eq!(names(&own), [("m1".into(), 1), ("m2".into(), 9), ("m3".into(), 5)]);
        let hosts = [member(1, "alpha"), member(5, "m3")];
        assert_eq!(names(&hosts), [("m1".into(), 1), ("m2".into(), 5)]);
        assert!(masters(&[member(1, "m1"), member(2, "m1")]).is_err());
    }

    #[test]
    fn workers_are_found_by_their_internal_addresses() {
        let node = |name: &str, address: &str| {
            json!({"metadata": {"name": name}, "status": {"addresses": [
                {"type": "Hostname", "address": name}, {"type": "InternalIP", "address": address},
            ]}})
        };
        let list = json!({"items": [node("beta", "10.0.1.2"), node("alpha", "10.0.1.1")]});
        let found: Vec<_> = workers(&list).into_iter().map(|(n, a)| format!("{n} {a}")).collect();
        assert_eq!(found, ["w1 10.0.1.1", "w2 10.0.1.2"]);
    }
}
