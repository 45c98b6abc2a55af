//! Parses addresses and networks as stock Kubernetes does in older fields (leading zeros are decimal), and
//! returns its warnings about unusual spellings. Service, Pod, Node and endpoint strategies call it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use proto_api::field::Path;

/// Parses an address; drops leading zeros in IPv4 parts and converts IPv4-mapped IPv6 to IPv4. `None` for any
/// other text.
pub fn parse(value: &str) -> Option<IpAddr> {
    if value.contains(':') {
        let v6: Ipv6Addr = value.parse().ok()?;
        return Some(v6.to_ipv4_mapped().map_or(IpAddr::V6(v6), IpAddr::V4));
    }
    let parts: Vec<&str> = value.split('.').collect();
    let octets: Option<Vec<u8>> = parts.iter().map(|p| octet(p)).collect();
    let octets: [u8; 4] = octets?.try_into().ok()?;
    Some(IpAddr::V4(Ipv4Addr::from(octets)))
}

fn octet(part: &str) -> Option<u8> {
    if part.is_empty() || !part.bytes().all(|c| c.is_ascii_digit()) {
        return None;
    }
    match part.trim_start_matches('0') {
        "" => Some(0),
        digits => digits.parse().ok(),
    }
}

/// Returns whether the text is an IPv6 address.
pub fn is_v6(value: &str) -> bool {
    parse(value).is_some_and(|ip| ip.is_ipv6())
}

/// Returns whether the text is an IPv4 address.
pub fn is_v4(value: &str) -> bool {
    parse(value).is_some_and(|ip| ip.is_ipv4())
}

/// Parses `address/length`; host bits are allowed.
pub fn parse_cidr(value: &str) -> Option<(IpAddr, u8)> {
    let (addr, bits) = value.split_once('/')?;
    let addr = parse(addr)?;
    if bits.is_empty() || !bits.bytes().all(|c| c.is_ascii_digit()) {
        return None;
    }
    let bits: u8 = bits.parse().ok()?;
    (bits <= if addr.is_ipv4() { 32 } else { 128 }).then_some((addr, bits))
}

/// Returns the network address of an address: all but the first `bits` bits are zero.
fn masked(addr: IpAddr, bits: u8) -> IpAddr {
    match addr {
        IpAddr::V4(v4) => {
            let mask = u32::MAX.checked_shl(32 - u32::from(bits)).unwrap_or(0);
            IpAddr::V4(Ipv4Addr::from(u32::from(v4) & mask))
        }
        IpAddr::V6(v6) => {
            let mask = u128::MAX.checked_shl(128 - u32::from(bits)).unwrap_or(0);
            IpAddr::V6(Ipv6Addr::from(u128::from(v6) & mask))
        }
    }
}

/// Returns whether the addresses include both families.
pub fn dual_stack(values: &[&str]) -> bool {
    values.iter().any(|v| is_v4(v)) && values.iter().any(|v| is_v6(v))
}

/// Returns the warnings about an address in an unusual spelling.
pub fn warnings(path: &Path, value: &str) -> Vec<String> {
    let Some(ip) = parse(value) else { return Vec::new() };
    let strict = value.parse::<IpAddr>().ok();
    let mapped = strict.is_some_and(|a| matches!(a, IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some()));
    if strict.is_none() || mapped {
        return vec![format!(
            "{path}: non-standard IP address {value:?} will be considered invalid in a future Kubernetes release: \
             use {:?}",
            ip.to_string()
        )];
    }
    if ip.is_ipv6() && ip.to_string() != value {
        return vec![format!(
            "{path}: IPv6 address {value:?} should be in RFC 5952 canonical format ({:?})",
            ip.to_string()
        )];
    }
    Vec::new()
}

/// Returns the warnings about a network in an unusual spelling.
pub fn cidr_warnings(path: &Path, value: &str) -> Vec<String> {
    let Some((addr, bits)) = parse_cidr(value) else { return Vec::new() };
    let mut out = Vec::new();
    let network = format!("{}/{bits}", masked(addr, bits));
    if masked(addr, bits) != addr {
        let single = format!("{addr}/{}", if addr.is_ipv4() { 32 } else { 128 });
        out.push(format!(
            "{path}: CIDR value {value:?} is ambiguous in this context (should be {network:?} or {single:?}?)"
        ));
    }
    let text = value.split_once('/').map_or(value, |(a, _)| a);
    if text.parse::<IpAddr>().is_err() {
        out.push(format!(
            "{path}: non-standard CIDR value {value:?} will be considered invalid in a future Kubernetes release: \
             use {network:?}"
        ));
    } else if out.is_empty() && addr.is_ipv6() && format!("{addr}/{bits}") != value {
        out.push(format!(
            "{path}: IPv6 CIDR value {value:?} should be in RFC 5952 canonical format ({:?})",
            format!("{addr}/{bits}")
        ));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leading_zeros_are_decimal() {
        assert_eq!(parse("010.001.0.08"), Some(IpAddr::V4(Ipv4Addr::new(10, 1, 0, 8))));
        assert_eq!(parse("10.1.1"), None);
        assert_eq!(parse("256.1.1.1"), None);
        assert_eq!(parse("::ffff:1.2.3.4"), Some(IpAddr::V4(Ipv4Addr::new(1, 2, 3, 4))));
    }

    #[test]
    fn networks_may_have_host_bits() {
        assert!(parse_cidr("10.0.0.1/8").is_some());
        assert!(parse_cidr("10.0.0.0/33").is_none());
        assert!(parse_cidr("10.0.0.0").is_none());
    }
}
