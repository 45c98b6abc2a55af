//! Target of a fault: a role that is resolved when the fault fires, a node or a list of nodes. Faults hold
//! it; the runners resolve it against their cluster.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use serde::de::{self, Deserialize, Deserializer, SeqAccess, Visitor};
use serde::ser::{Serialize, SerializeSeq, Serializer};

/// Role of a node in the cluster. The order is that of [`NodeName`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// A member of the replicating group; named `m1`, `m2`, ...
    Master,
    /// A node that runs pods; named `w1`, `w2`, ...
    Worker,
}

/// The name of a node of the experiment's cluster, `m1` or `w1`. `m2` sorts
/// before `m10`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct NodeName {
    role: Role,
    number: u32,
}

impl NodeName {
    /// Returns the name of the `number`th master, from 1; `None` for 0.
    pub fn master(number: u32) -> Option<Self> {
        (number > 0).then_some(Self { role: Role::Master, number })
    }

    /// Returns the name of the `number`th worker, from 1; `None` for 0.
    pub fn worker(number: u32) -> Option<Self> {
        (number > 0).then_some(Self { role: Role::Worker, number })
    }

    /// Returns the role that the name stands for.
    pub fn role(self) -> Role {
        self.role
    }

    /// Returns the number in the name, from 1.
    pub fn number(self) -> u32 {
        self.number
    }
}

impl fmt::Display for NodeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let letter = match self.role {
            Role::Master => 'm',
            Role::Worker => 'w',
        };
        write!(f, "{letter}{}", self.number)
    }
}

impl FromStr for NodeName {
    type Err = String;

    /// Parses a name; the error says what a name looks like.
    fn from_str(text: &str) -> Result<Self, String> {
        let number = |digits: &str| {
            let plain = digits.bytes().all(|b| b.is_ascii_digit()) && !digits.starts_with('0');
            if plain { digits.parse::<u32>().ok() } else { None }
        };
        let name = match (text.strip_prefix('m'), text.strip_prefix('w')) {
            (Some(digits), _) => number(digits).and_then(Self::master),
            (_, Some(digits)) => number(digits).and_then(Self::worker),
            _ => None,
        };
        name.ok_or_else(|| {
            format!("`{text}` is no name of a node; hint: masters are m1, m2, ..., workers w1, w2, ...")
        })
    }
}

impl Serialize for NodeName {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for NodeName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

/// Target of a fault. In the file it is a word, a name or a list of names.
///
/// A role is resolved when the fault fires, among the masters that run at that time, and means the same nodes
/// until the fault ends. Within one fault `minority` and `majority` are the two sides of one division.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// The master that leads.
    Leader,
    /// One master that does not lead, chosen by the seed.
    Follower,
    /// One master (under `worker`: one worker), chosen by the seed.
    Any,
    /// Every master (under `worker`: every worker).
    All,
    /// Fewer than half of the masters, as many as possible, chosen by the seed.
    Minority,
    /// All masters except the minority.
    Majority,
    /// These nodes, at least one.
    Nodes(BTreeSet<NodeName>),
}

/// Words for the roles, for error messages.
const WORDS: &str = "leader, follower, any, all, minority, majority";

impl Target {
    /// Creates the target of a single node.
    pub fn node(name: NodeName) -> Self {
        Self::Nodes(BTreeSet::from([name]))
    }

    /// Returns the word of a role; `None` for named nodes.
    pub fn word(&self) -> Option<&'static str> {
        match self {
            Self::Leader => Some("leader"),
            Self::Follower => Some("follower"),
            Self::Any => Some("any"),
            Self::All => Some("all"),
            Self::Minority => Some("minority"),
            Self::Majority => Some("majority"),
            Self::Nodes(_) => None,
        }
    }

    /// Returns the named nodes; none for a role.
    pub fn names(&self) -> impl Iterator<Item = NodeName> + '_ {
        let nodes = if let Self::Nodes(nodes) = self { Some(nodes) } else { None };
        nodes.into_iter().flatten().copied()
    }

    /// Returns whether the target is a single node, whichever that will be.
    pub fn is_one(&self) -> bool {
        match self {
            Self::Leader | Self::Follower | Self::Any => true,
            Self::All | Self::Minority | Self::Majority => false,
            Self::Nodes(nodes) => nodes.len() == 1,
        }
    }

    fn from_word(word: &str) -> Option<Self> {
        let roles = [Self::Leader, Self::Follower, Self::Any, Self::All, Self::Minority, Self::Majority];
        roles.into_iter().find(|role| role.word() == Some(word))
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(word) = self.word() {
            return f.write_str(word);
        }
        let names: Vec<String> = self.names().map(|name| name.to_string()).collect();
        f.write_str(&names.join(", "))
    }
}

impl Serialize for Target {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Nodes(nodes) if nodes.len() > 1 => {
                let mut list = serializer.serialize_seq(Some(nodes.len()))?;
                for node in nodes {
                    list.serialize_element(node)?;
                }
                list.end()
            }
            _ => serializer.collect_str(self),
        }
    }
}

impl<'de> Deserialize<'de> for Target {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(TargetVisitor)
    }
}

struct TargetVisitor;

impl<'de> Visitor<'de> for TargetVisitor {
    type Value = Target;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{WORDS}, a node like m1 or w1, or a list of nodes")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Target, E> {
        if let Some(role) = Target::from_word(text) {
            return Ok(role);
        }
        text.parse().map(Target::node).map_err(|_| {
            E::custom(format_args!(
                "`{text}` is no target; hint: take {WORDS}, a node like m1 or w1, or a list of nodes"
            ))
        })
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Target, A::Error> {
        let mut nodes = BTreeSet::new();
        while let Some(Member(node)) = seq.next_element()? {
            if !nodes.insert(node) {
                return Err(de::Error::custom(format_args!(
                    "{node} is listed twice; hint: list each node once"
                )));
            }
        }
        if nodes.is_empty() {
            return Err(de::Error::custom("the list is empty; hint: name a node, or leave the fault out"));
        }
        Ok(Target::Nodes(nodes))
    }
}

/// A node within a list; parsing a role there is an error.
struct Member(NodeName);

impl<'de> Deserialize<'de> for Member {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        if Target::from_word(&text).is_some() {
            return Err(de::Error::custom(format_args!(
                "`{text}` is a role, and a list holds names; hint: write `{text}` alone, or list nodes"
            )));
        }
        text.parse().map(Member).map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, from_value, json, to_value};

    use super::*;

    fn error(value: Value) -> String {
        from_value::<Target>(value).unwrap_err().to_string()
    }

    #[test]
    fn words_names_and_lists_come_back_as_written() {
        let words = WORDS.split(", ").map(|word| json!(word));
        for written in words.chain([json!("m1"), json!("w12"), json!(["m2", "m10"])]) {
            let target: Target = from_value(written.clone()).unwrap();
            assert_eq!(to_value(&target).unwrap(), written);
        }
        assert_eq!(from_value::<Target>(json!(["m1"])).unwrap(), from_value::<Target>(json!("m1")).unwrap());
        assert_eq!(from_value::<Target>(json!(["m10", "m2"])).unwrap().to_string(), "m2, m10");
    }

    #[test]
    fn what_is_no_target_is_refused_with_a_hint() {
        assert_eq!(
            error(json!("lead")),
            "`lead` is no target; hint: take leader, follower, any, all, minority, majority, \
             a node like m1 or w1, or a list of nodes"
        );
        assert_eq!(
            error(json!(["m1", "leader"])),
            "`leader` is a role, and a list holds names; hint: write `leader` alone, or list nodes"
        );
        assert_eq!(error(json!(["m1", "m1"])), "m1 is listed twice; hint: list each node once");
        assert_eq!(error(json!([])), "the list is empty; hint: name a node, or leave the fault out");
        assert!(error(json!(3)).contains("expected leader, follower"), "{}", error(json!(3)));
    }

    #[test]
    fn a_name_has_a_letter_and_a_number_from_one() {
        for bad in ["m0", "m01", "m", "w", "x1", "m-1", "m+1", "M1", "m1 ", "m99999999999", ""] {
            assert!(bad.parse::<NodeName>().is_err(), "{bad}");
        }
        assert_eq!("m10".parse::<NodeName>().unwrap(), NodeName::master(10).unwrap());
        assert!(NodeName::master(2) < NodeName::master(10) && NodeName::master(10) < NodeName::worker(1));
    }

    #[test]
    fn one_node_is_told_from_several() {
        for (written, one) in [(json!("leader"), true), (json!("all"), false), (json!("m1"), true)] {
            assert_eq!(from_value::<Target>(written).unwrap().is_one(), one);
        }
        assert!(!from_value::<Target>(json!(["m1", "m2"])).unwrap().is_one());
    }
}
