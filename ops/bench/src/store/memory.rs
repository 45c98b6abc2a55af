//! Measures resident memory of each member, empty and with many objects.

use std::time::Duration;

use anyhow::{Context, Result};

use super::Setup;
use super::group::{Group, PREFIX};
use super::load;
use super::table::{Figure, Line, Unit, thousands};
use crate::usage::Resident;

/// Period in which memory must change by less than a percent to count as settled.
const SETTLED: Duration = Duration::from_secs(2);
/// Maximum number of such periods to wait.
const LOOKS: usize = 10;

/// Key of the object with this number.
pub fn key(number: u64) -> String {
    format!("{PREFIX}/objects/{number:06}")
}

/// Writes the objects of the measurement.
pub async fn fill(group: &Group, setup: &Setup) -> Result<()> {
    load::write(group, setup, setup.objects, key).await
}

/// Measures the memory before and after filling the group.
pub async fn measure(group: &Group, setup: &Setup) -> Result<Vec<Line>> {
    let empty = settled(group).await?;
    fill(group, setup).await?;
    let full = settled(group).await?;
    Ok(vec![
        line("memory of a member, empty".to_owned(), &empty)?,
        line(format!("memory of a member, {} objects", thousands(setup.objects as f64)), &full)?,
    ])
}

fn line(what: String, members: &[Resident]) -> Result<Line> {
    let count = members.len() as f64;
    let mean = |of: fn(&Resident) -> u64| members.iter().map(of).sum::<u64>() as f64 / count;
    let most = members.iter().map(|member| member.all).max().context("no member")?;
    let figures = vec![
        Figure::new("mean", mean(|member| member.all), Unit::Bytes),
        Figure::new("most", most as f64, Unit::Bytes),
        Figure::new("without files", mean(|member| member.anonymous), Unit::Bytes),
    ];
    Ok(Line { what, figures, targets: vec![] })
}

async fn settled(group: &Group) -> Result<Vec<Resident>> {
    let mut before = group.resident()?;
    for _ in 0..LOOKS {
        tokio::time::sleep(SETTLED).await;
        let now = group.resident()?;
        let still =
            now.iter().zip(&before).all(|(now, before)| now.all.abs_diff(before.all) * 100 < before.all);
        before = now;
        if still {
            break;
        }
    }
    Ok(before)
}
