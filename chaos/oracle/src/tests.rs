//! Tests the whole oracle on random runs of a correct store, which must pass, and on the same runs with one
//! thing spoiled, which must fail.

mod spoil;
mod store;

use std::collections::BTreeMap;

use super::check;
use super::fixtures::Random;

const SEEDS: std::ops::Range<u64> = 1..41;
const STEPS: usize = 400;

#[test]
fn correct_runs_pass() {
    let mut kinds: BTreeMap<String, usize> = BTreeMap::new();
    for seed in SEEDS {
        let history = store::run(seed, STEPS);
        assert_eq!(check(&history), [], "seed {seed}");
        for operation in &history.operations {
            let outcome = format!("{:?}", operation.outcome);
            let kind = outcome.split([' ', '{']).next().unwrap_or_default().to_owned();
            *kinds.entry(kind).or_default() += 1;
        }
    }
    // The runs are useful only if all outcomes occur.
    for kind in [
        "Written",
        "Deleted",
        "Unknown",
        "NotEntered",
        "Listed",
        "Read(None)",
        "Read(Some(Versioned",
        "Refused(AlreadyExists)",
        "Refused(Conflict)",
        "Refused(NotFound)",
    ] {
        assert!(kinds.get(kind).is_some_and(|count| *count >= 20), "{kind}: {kinds:?}");
    }
}

#[test]
fn the_same_seed_gives_the_same_verdict() {
    let mut history = store::run(3, STEPS);
    assert_eq!(history, store::run(3, STEPS));
    for (_, spoil) in spoil::ALL {
        let _ = spoil(&mut history, &mut Random::new(3));
    }
    let found = check(&history);
    assert!(!found.is_empty());
    assert_eq!(found, check(&history));
}

#[test]
fn one_thing_spoiled_is_found() {
    for (name, spoil) in spoil::ALL {
        let mut applied = 0;
        for seed in SEEDS {
            let mut history = store::run(seed, STEPS);
            let Some(expected) = spoil(&mut history, &mut Random::new(seed)) else { continue };
            applied += 1;
            let found = check(&history);
            for by in expected {
                assert!(found.iter().any(|v| v.check == *by), "seed {seed}, {name}: not by {by}: {found:#?}");
            }
        }
        assert!(applied >= 10, "{name} was possible in {applied} runs only");
    }
}
