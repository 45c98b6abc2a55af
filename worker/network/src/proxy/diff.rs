//! An nftables ruleset as data, and the script that changes one ruleset into another. Pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write,
};

/// Content of a table. Names are complete nftables identifiers; rules and elements are in nftables syntax.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ruleset {
    /// Name of the table, of family `ip`.
    pub table: String,
    /// Sets and maps by name: `set` or `map`, and the definition in braces.
    pub sets: BTreeMap<String, (&'static str, String)>,
    /// Chains by name: the hook definition in braces (empty for a regular chain), and the rules.
    pub chains: BTreeMap<String, (String, Vec<String>)>,
    /// Elements by set: the key, and the text after it (comment, value).
    pub elements: BTreeMap<String, BTreeMap<String, String>>,
}

/// Scripts that [`difference`] returns.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Difference {
    /// Script to apply first; empty if nothing differs.
    pub script: String,
    /// Script to apply afterwards, which deletes chains and sets that are no longer referenced.
    /// Separate, because kernels refuse to delete a chain in the transaction that removes the last
    /// map element leading to it.
    pub cleanup: String,
}

/// Returns the script that replaces the table's content, whatever it is, by `wanted`.
pub fn replacement(wanted: &Ruleset) -> String {
    let table = &wanted.table;
    let mut script = format!("add table ip {table}\ndelete table ip {table}\nadd table ip {table}\n");
    let empty = Ruleset { table: table.clone(), ..Ruleset::default() };
    script.push_str(&difference(&empty, wanted).script);
    script
}

/// Returns the scripts that change `present` into `wanted`. The definition of a set or hook never
/// changes under the same name.
pub fn difference(present: &Ruleset, wanted: &Ruleset) -> Difference {
    let mut lines = Lines { table: &wanted.table, text: String::new() };
    let mut cleanup = Lines { table: &wanted.table, text: String::new() };
    for (name, (kind, definition)) in &wanted.sets {
        if !present.sets.contains_key(name) {
            lines.add(format_args!("add {kind}"), name, definition);
        }
    }
    for (name, (hook, _)) in &wanted.chains {
        if !present.chains.contains_key(name) {
            lines.add(format_args!("add chain"), name, hook);
        }
    }
    for (name, (_, rules)) in &wanted.chains {
        let before = present.chains.get(name).map_or(&[] as &[_], |(_, rules)| rules);
        if before == rules {
            continue;
        }
        if !before.is_empty() {
            lines.add(format_args!("flush chain"), name, "");
        }
        for rule in rules {
            lines.add(format_args!("add rule"), name, rule);
        }
    }
    elements(&mut lines, present, wanted);
    let gone: Vec<_> = present.chains.keys().filter(|name| !wanted.chains.contains_key(*name)).collect();
    // The chains to be deleted are flushed first, because they may refer to each other and to sets.
    for name in &gone {
        cleanup.add(format_args!("flush chain"), name, "");
    }
    for name in &gone {
        cleanup.add(format_args!("delete chain"), name, "");
    }
    for (name, (kind, _)) in &present.sets {
        if !wanted.sets.contains_key(name) {
            cleanup.add(format_args!("delete {kind}"), name, "");
        }
    }
    Difference { script: lines.text, cleanup: cleanup.text }
}

fn elements(lines: &mut Lines<'_>, present: &Ruleset, wanted: &Ruleset) {
    let none = BTreeMap::new();
    let names: BTreeSet<_> = wanted.elements.keys().chain(present.elements.keys()).collect();
    for name in names.into_iter().filter(|name| wanted.sets.contains_key(*name)) {
        let before = present.elements.get(name).unwrap_or(&none);
        let after = wanted.elements.get(name).unwrap_or(&none);
        let gone: Vec<_> = before
            .iter()
            .filter(|(key, value)| after.get(*key) != Some(value))
            .map(|(key, value)| format!("{key}{value}"))
            .collect();
        let new: Vec<_> = after
            .iter()
            .filter(|(key, value)| before.get(*key) != Some(value))
            .map(|(key, value)| format!("{key}{value}"))
            .collect();
        // Many elements per command, because parsing a command for each element makes large syncs slow.
        for chunk in gone.chunks(256) {
            lines.add(format_args!("delete element"), name, &format!("{{ {} }}", chunk.join(", ")));
        }
        for chunk in new.chunks(256) {
            lines.add(format_args!("add element"), name, &format!("{{ {} }}", chunk.join(", ")));
        }
    }
}

struct Lines<'a> {
    table: &'a str,
    text: String,
}

impl Lines<'_> {
    fn add(&mut self, command: std::fmt::Arguments<'_>, name: &str, rest: &str) {
        let _infallible = writeln!(self.text, "{command} ip {} {name} {rest}", self.table);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ruleset(chain: &str, rule: &str, element: &str) -> Ruleset {
        Ruleset {
            table: "t".into(),
            sets: BTreeMap::from([("m".into(), ("map", "{ type ipv4_addr : verdict; }".into()))]),
            chains: BTreeMap::from([(chain.into(), (String::new(), vec![rule.into()]))]),
            elements: BTreeMap::from([(
                "m".into(),
                BTreeMap::from([(element.to_string(), format!(" : goto {chain}"))]),
            )]),
        }
    }

    #[test]
    fn equal_rulesets_need_no_script() {
        let one = ruleset("c", "accept", "10.0.0.1");
        assert_eq!(difference(&one, &one), Difference::default());
    }

    #[test]
    fn a_changed_rule_rewrites_its_chain_alone() {
        let diff = difference(&ruleset("c", "accept", "10.0.0.1"), &ruleset("c", "drop", "10.0.0.1"));
        assert_eq!(diff.script, "flush chain ip t c \nadd rule ip t c drop\n");
        assert_eq!(diff.cleanup, "");
    }

    #[test]
    fn a_chain_is_deleted_after_the_element_that_led_to_it() {
        let diff = difference(&ruleset("c", "accept", "10.0.0.1"), &ruleset("d", "accept", "10.0.0.2"));
        assert!(diff.script.contains("delete element ip t m { 10.0.0.1 : goto c }"));
        assert!(diff.script.find("add chain ip t d").unwrap() < diff.script.find("add element").unwrap());
        assert_eq!(diff.cleanup, "flush chain ip t c \ndelete chain ip t c \n");
    }
}
