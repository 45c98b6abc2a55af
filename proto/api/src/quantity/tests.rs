//! Tests of quantities: canonical forms, errors, rounding, sums.

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

/// The results of k8s.io/apimachinery v0.37.2 for each text: its error, or its canonical form, sign, form
/// rounded to thousandths, sum with 1500m, difference to 1Ki, value and milli value.
const CASES: &str = include_str!("cases.json");

#[test]
fn every_amount_is_what_upstream_makes_of_it() {
    let cases: Vec<Vec<serde_json::Value>> = serde_json::from_str(CASES).expect("a list");
    let mut wrong = Vec::new();
    for case in &cases {
        let text = case[0].as_str().expect("a string");
        let got = match Quantity::parse(text) {
            Err(error) => vec![error.to_string()],
            Ok(q) => {
                // Upstream loses suffixes above E, and the higher half of values beyond 64 bits; ours are capped.
                let huge = q.nanos.abs() >= 1_000_000 * i128::from(i64::MAX);
                let plus = q.clone() + &Quantity::parse("1500m").expect("parses");
                let minus = q.clone() - &Quantity::parse("1Ki").expect("parses");
                let mut all = vec![q.to_string(), q.sign().to_string(), q.rounded_to_milli().to_string()];
                if !huge {
                    all.extend([plus.to_string(), minus.to_string()]);
                }
                // Upstream rounds some negative amounts toward zero, and adds one to others.
                if !huge && q.sign() >= 0 {
                    all.extend([q.value().to_string(), q.milli_value().to_string()]);
                }
                all
            }
        };
        let shown = |v: &serde_json::Value| v.as_str().map_or_else(|| v.to_string(), str::to_owned);
        let expected: Vec<String> = case[1..].iter().take(got.len()).map(shown).collect();
        let lost_suffix = got[0].ends_with('E') && !expected[0].ends_with('E');
        if got != expected && !lost_suffix {
            wrong.push(format!("{text:?}\n  got      {got:?}\n  expected {expected:?}"));
        }
    }
    assert!(cases.len() > 900, "{}", cases.len());
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), cases.len(), wrong.join("\n"));
}

#[test]
fn nothing_overflows() {
    let parse = |text: &str| Quantity::parse(text).expect("parses");
    for huge in ["1e99", "1e100", "10e99", "1e1000000000000", "8Ei", "123456789012345678901234567890E"] {
        let q = parse(huge);
        assert_eq!((q.value(), q.milli_value(), q.sign()), (i64::MAX, i64::MAX, 1), "{huge}");
        assert_eq!((-q.clone()).value(), -i64::MAX - i64::from(huge != "8Ei"), "{huge}");
        assert_eq!(q.rounded_to_milli(), q, "{huge}");
        assert!((q.clone() + &q).sign() > 0 && (-q.clone() - &q).sign() < 0, "{huge}");
    }
    assert!(parse("1e99") > parse("1e98") && parse("-1e99") < parse("-1e98"));
    assert!(parse("1e99") == parse("10e98") && parse("2e99") > parse("1e99") && parse("1e99") > parse("1E"));
    assert_eq!(parse("1e-1000000000").to_string(), "1e-9");
    assert_eq!(parse("1e99").rounded_to_milli().to_string(), "1e99");
    assert_eq!(parse("1e100").to_string(), "10e99");
    assert_eq!((parse("1e99") + &parse("1e99")).to_string(), "100e27");
}
