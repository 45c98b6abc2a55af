//! The order of merged lists: items of the patch in the patch's order, and items that only the live list
//! has at the places where it had them.

use serde_json::Value;

use super::strategic::Error;

fn same(left: &Value, right: &Value, key: Option<&str>) -> bool {
    match key {
        Some(key) => left.get(key).is_some() && left.get(key) == right.get(key),
        None => left == right,
    }
}

fn index(list: &[Value], item: &Value, key: Option<&str>) -> Option<usize> {
    list.iter().position(|v| same(v, item, key))
}

/// Fails if the items of a patch are not in the order of its `$setElementOrder`.
pub(super) fn check(patch: &[Value], wanted: &[Value], key: Option<&str>) -> Result<(), Error> {
    if patch.is_empty() || wanted.is_empty() {
        return Ok(());
    }
    let mut rest = wanted.iter();
    for item in patch.iter().filter(|v| v.get("$patch").is_none()) {
        if !rest.any(|w| same(item, w, key)) {
            let message = "The order in patch list doesn't match $setElementOrder list";
            return Err(Error::Other(message.into()));
        }
    }
    Ok(())
}

/// Sorts a merged list by the wanted order, and items not named there by the order of the live list.
pub(super) fn arrange(merged: Vec<Value>, wanted: &[Value], live: &[Value], key: Option<&str>) -> Vec<Value> {
    let (mut ours, mut theirs): (Vec<Value>, Vec<Value>) =
        merged.into_iter().partition(|v| index(wanted, v, key).is_some());
    ours.sort_by_cached_key(|v| index(wanted, v, key));
    theirs.sort_by_cached_key(|v| index(live, v, key).unwrap_or(usize::MAX));
    let mut out = Vec::with_capacity(ours.len() + theirs.len());
    let (mut ours, mut theirs) = (ours.into_iter().peekable(), theirs.into_iter().peekable());
    loop {
        match (theirs.peek(), ours.peek()) {
            (Some(left), Some(right)) => {
                let before = index(live, left, key).zip(index(live, right, key)).is_some_and(|(l, r)| l < r);
                out.extend(if before { theirs.next() } else { ours.next() });
            }
            (Some(_), None) => out.extend(theirs.next()),
            (None, Some(_)) => out.extend(ours.next()),
            (None, None) => return out,
        }
    }
}
