//! RFC 3339 times as Go reads and writes them, with Go's parse errors.

/// Parses a time and writes it in UTC with `decimals` digits of seconds (0 or 6). The error is Go's
/// message.
pub fn canonical(text: &str, decimals: usize) -> Result<String, String> {
    let layout = if decimals == 0 { "2006-01-02T15:04:05Z07:00" } else { "2006-01-02T15:04:05.000000Z07:00" };
    check(text, decimals).map_err(|(rest, element)| {
        let (value, rest) = (crate::go::quote(text), crate::go::quote(rest));
        match element {
            Some(element) => {
                format!("parsing time {value} as \"{layout}\": cannot parse {rest} as \"{element}\"")
            }
            None => format!("parsing time {value}: {}", rest.trim_matches('"')),
        }
    })?;
    let range = || format!("parsing time {}: day out of range", crate::go::quote(text));
    let at: jiff::Timestamp = text.parse().map_err(|_| range())?;
    // The offset may lead to a year that RFC 3339 cannot express: once stored, such a time could not be
    // read again.
    if jiff::tz::Offset::UTC.to_datetime(at).year() < 0 {
        return Err(format!("parsing time {}: year outside of range [0,9999]", crate::go::quote(text)));
    }
    let whole = at.strftime("%Y-%m-%dT%H:%M:%S").to_string();
    if decimals == 0 {
        return Ok(format!("{whole}Z"));
    }
    let micros = at.subsec_nanosecond() / 1000;
    Ok(format!("{whole}.{micros:06}Z"))
}

type Deviation<'a> = (&'a str, Option<&'static str>);

/// Follows the layout element by element; the error says where the text deviates from it.
fn check(text: &str, decimals: usize) -> Result<(), Deviation<'_>> {
    let mut rest = text;
    for (digits, element, after) in
        [(4, "2006", "-"), (2, "01", "-"), (2, "02", "T"), (2, "15", ":"), (2, "04", ":"), (2, "05", "")]
    {
        let fits = rest.len() >= digits && rest.as_bytes()[..digits].iter().all(u8::is_ascii_digit);
        if !fits {
            return Err((rest, Some(element)));
        }
        let value: u32 = rest[..digits].parse().unwrap_or(0);
        let complaint = match element {
            "01" if !(1..=12).contains(&value) => "month out of range",
            "02" if !(1..=31).contains(&value) => "day out of range",
            "15" if value > 23 => "hour out of range",
            "04" if value > 59 => "minute out of range",
            "05" if value > 59 => "second out of range",
            _ => "",
        };
        if !complaint.is_empty() {
            return Err((complaint, None));
        }
        rest = &rest[digits..];
        rest = rest.strip_prefix(after).ok_or((rest, Some(separator(after))))?;
    }
    if let Some(fraction) = rest.strip_prefix(['.', ',']) {
        let digits = fraction.find(|c: char| !c.is_ascii_digit()).unwrap_or(fraction.len());
        if digits == 0 || (decimals > 0 && digits != decimals) {
            return Err((rest, Some(if decimals > 0 { ".000000" } else { "Z07:00" })));
        }
        rest = &fraction[digits..];
    } else if decimals > 0 {
        return Err((rest, Some(".000000")));
    }
    let zone = rest.as_bytes();
    let offset = zone.len() == 6
        && matches!(zone[0], b'+' | b'-')
        && zone[3] == b':'
        && [1, 2, 4, 5].iter().all(|i| zone[*i].is_ascii_digit());
    if rest == "Z" || offset { Ok(()) } else { Err((rest, Some("Z07:00"))) }
}

fn separator(after: &str) -> &'static str {
    match after {
        "T" => "T",
        ":" => ":",
        _ => "-",
    }
}

#[cfg(test)]
mod tests {
    use super::canonical;

    #[test]
    fn times_are_written_in_utc() {
        assert_eq!(canonical("2026-01-02T03:04:05+02:00", 0), Ok("2026-01-02T01:04:05Z".into()));
        assert_eq!(canonical("2026-01-02T03:04:05.123456Z", 6), Ok("2026-01-02T03:04:05.123456Z".into()));
        assert_eq!(canonical("2026-01-02T03:04:05.9Z", 0), Ok("2026-01-02T03:04:05Z".into()));
    }

    #[test]
    fn every_time_that_is_accepted_can_be_read_again() {
        for offset in ["Z", "+00:01", "-00:01", "+23:59", "-23:59"] {
            for year in ["0000-01-01", "0000-12-31", "0001-01-01", "9999-12-31", "9999-12-30"] {
                for clock in ["00:00:00", "23:59:59"] {
                    let text = format!("{year}T{clock}{offset}");
                    let Ok(stored) = canonical(&text, 0) else { continue };
                    assert_eq!(canonical(&stored, 0), Ok(stored.clone()), "{text}");
                }
            }
        }
        assert_eq!(
            canonical("0000-01-01T00:00:00+01:00", 0),
            Err("parsing time \"0000-01-01T00:00:00+01:00\": year outside of range [0,9999]".into())
        );
        assert_eq!(canonical("0000-01-01T00:00:00Z", 0), Ok("0000-01-01T00:00:00Z".into()));
    }

    #[test]
    fn parse_errors_are_those_of_go() {
        let error = |t: &str| canonical(t, 0).err().unwrap_or_default();
        assert_eq!(
            error("UPPER"),
            "parsing time \"UPPER\" as \"2006-01-02T15:04:05Z07:00\": cannot parse \"UPPER\" as \"2006\""
        );
        assert_eq!(
            error("2026-13-01T00:00:00Z"),
            "parsing time \"2026-13-01T00:00:00Z\": month out of range"
        );
        assert_eq!(error("2026-02-30T00:00:00Z"), "parsing time \"2026-02-30T00:00:00Z\": day out of range");
    }
}
