//! Decodes the messages of Kubernetes' scalar-like types to their JSON forms: times, durations, quantities,
//! int-or-strings and raw JSON.

use jiff::tz::Offset;
use jiff::{SignedDuration, Timestamp};

use super::wire::{Error, Reader};
use crate::json::{self, Node};

/// Decodes `Timestamp{seconds=1, nanos=2}`, with 0 or 6 decimals of seconds. An empty message is Go's zero
/// time, which is null in JSON.
pub(super) fn time(data: &[u8], decimals: usize) -> Result<Node, Error> {
    if data.is_empty() {
        return Ok(Node::Null);
    }
    let (mut seconds, mut nanos) = (0, 0);
    let mut fields = Reader::new(data);
    while let Some((tag, wire)) = fields.next()? {
        match tag {
            1 => seconds = wire.varint("Seconds")?.cast_signed(),
            2 => nanos = low_bits(wire.varint("Nanos")?),
            _ => {}
        }
    }
    let nanos = if decimals == 0 { 0 } else { i64::from(nanos / 1000 * 1000) };
    let out_of_range = || Error::Value("Time.MarshalJSON: year outside of range [0,9999]".into());
    let at = Timestamp::from_second(seconds)
        .and_then(|at| at.checked_add(SignedDuration::from_nanos(nanos)))
        .map_err(|_| out_of_range())?;
    let at = Offset::UTC.to_datetime(at);
    if at.year() < 0 {
        return Err(out_of_range());
    }
    let whole = at.strftime("%Y-%m-%dT%H:%M:%S");
    let micros = at.subsec_nanosecond() / 1000;
    Ok(Node::String(if decimals == 0 { format!("{whole}Z") } else { format!("{whole}.{micros:06}Z") }))
}

/// Decodes `Duration{duration=1}` in nanoseconds, printed as Go prints durations: `1h0m5s`, `1.5s`, `20ms`.
pub(super) fn duration(data: &[u8]) -> Result<Node, Error> {
    let mut nanos = 0;
    let mut fields = Reader::new(data);
    while let Some((tag, wire)) = fields.next()? {
        if tag == 1 {
            nanos = wire.varint("Duration")?.cast_signed();
        }
    }
    let sign = if nanos < 0 { "-" } else { "" };
    let nanos = nanos.unsigned_abs();
    let text = match nanos {
        0 => "0s".to_owned(),
        n if n < 1_000 => format!("{n}ns"),
        n if n < 1_000_000 => format!("{}µs", decimal(n, 1_000)),
        n if n < 1_000_000_000 => format!("{}ms", decimal(n, 1_000_000)),
        n => {
            let minutes = n / 60_000_000_000;
            let seconds = decimal(n % 60_000_000_000, 1_000_000_000);
            match (minutes / 60, minutes % 60) {
                (0, 0) => format!("{seconds}s"),
                (0, m) => format!("{m}m{seconds}s"),
                (h, m) => format!("{h}h{m}m{seconds}s"),
            }
        }
    };
    Ok(Node::String(format!("{sign}{text}")))
}

/// Formats `n / unit` without trailing zeros.
fn decimal(n: u64, unit: u64) -> String {
    let width = unit.ilog10() as usize;
    let fraction = format!("{:0width$}", n % unit);
    let fraction = fraction.trim_end_matches('0');
    let dot = if fraction.is_empty() { "" } else { "." };
    format!("{}{dot}{fraction}", n / unit)
}

/// Decodes `Quantity{string=1}`.
pub(super) fn quantity(data: &[u8]) -> Result<Node, Error> {
    let mut text = "0".to_owned();
    let mut fields = Reader::new(data);
    while let Some((tag, wire)) = fields.next()? {
        if tag == 1 {
            text = wire.text("String_")?;
        }
    }
    Ok(Node::String(text))
}

/// Decodes `IntOrString{type=1, intVal=2, strVal=3}`.
pub(super) fn int_or_string(data: &[u8]) -> Result<Node, Error> {
    let (mut of, mut int, mut text) = (0, 0, String::new());
    let mut fields = Reader::new(data);
    while let Some((tag, wire)) = fields.next()? {
        match tag {
            1 => of = wire.varint("Type")?,
            2 => int = low_bits(wire.varint("IntVal")?),
            3 => text = wire.text("StrVal")?,
            _ => {}
        }
    }
    match of {
        0 => Ok(Node::Number(int.to_string())),
        1 => Ok(Node::String(text)),
        _ => Err(Error::Value("impossible IntOrString.Type".into())),
    }
}

/// Decodes `RawExtension{raw=1}` and `FieldsV1{raw=1}`: JSON in bytes; null if there is none.
pub(super) fn raw(data: &[u8]) -> Result<Node, Error> {
    let mut raw: &[u8] = &[];
    let mut fields = Reader::new(data);
    while let Some((tag, wire)) = fields.next()? {
        if tag == 1 {
            raw = wire.bytes("Raw")?;
        }
    }
    if raw.is_empty() { Ok(Node::Null) } else { json::parse(raw).map_err(Error::Value) }
}

/// Returns an int32 as Go reads it: the low 32 bits.
pub(super) fn low_bits(n: u64) -> i32 {
    ((n & u64::from(u32::MAX)) as u32).cast_signed()
}
