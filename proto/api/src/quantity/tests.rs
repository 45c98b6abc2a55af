//! Quantities: canonical forms, errors, rounding, sums.

use super::*;

fn canonical(text: &str) -> String {
    Quantity::parse(text).map_or_else(|e| e.to_string(), |q| q.to_string())
}

#[test]
fn the_canonical_form_is_that_of_kubernetes() {
    for (given, printed) in [
        ("0", "0"),
        ("100m", "100m"),
        ("0.5", "500m"),
        ("1e8", "100e6"),
        ("1e3", "1e3"),
        ("64Mi", "64Mi"),
        ("1024Ki", "1Mi"),
        ("1.5Gi", "1536Mi"),
        ("1000m", "1"),
        ("100000k", "100M"),
        ("0.1Ki", "102400m"),
        ("1000", "1k"),
        ("-1", "-1"),
        ("1.1", "1100m"),
        ("0.0000000001", "1n"),
        ("512", "512"),
        ("2Ti", "2Ti"),
        ("1023Ki", "1023Ki"),
        ("12E", "12E"),
        ("+5", "+5"),
        ("1000Ki", "1000Ki"),
        ("0.5Mi", "512Ki"),
    ] {
        assert_eq!(canonical(given), printed, "{given}");
    }
}

#[test]
fn bad_quantities_say_why() {
    assert_eq!(Quantity::parse(""), Err(Error::Format));
    assert_eq!(Quantity::parse("UPPER_case!"), Err(Error::Format));
    assert_eq!(Quantity::parse("1ki"), Err(Error::Suffix));
    assert_eq!(Quantity::parse("1.2.3"), Err(Error::Format));
    assert_eq!(Quantity::parse("1Zi"), Err(Error::Format));
}

#[test]
fn values_round_up() {
    let q = Quantity::parse("1500m").expect("parses");
    assert_eq!((q.value(), q.milli_value()), (2, 1500));
    assert_eq!(Quantity::parse("1Ei").expect("parses").value(), 1 << 60);
    assert_eq!(Quantity::parse("100Ei").expect("parses").value(), i64::MAX);
}

#[test]
fn sums_keep_the_format_of_the_first() {
    let sum = Quantity::parse("1Gi").expect("parses") + &Quantity::parse("512Mi").expect("parses");
    assert_eq!(sum.to_string(), "1536Mi");
    assert!(sum > Quantity::parse("1.4G").expect("parses"));
}
