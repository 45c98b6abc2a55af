//! The header in which a leading master tells balancers which masters its failure detector calls silent.
//! Written by the API server's `/readyz`, read by the balancers of `worker/network`, which take a master
//! that is merely late for dead only when a ready one calls it silent.

use std::net::SocketAddr;

/// Name of the header.
pub const HEADER: &str = "ephor-silent-masters";

/// The header's value: `HOST:PORT` of the API servers, separated by commas.
pub fn format(masters: &[SocketAddr]) -> String {
    masters.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}

/// Reads a value of the header; what is no address is left out.
pub fn parse(value: &str) -> Vec<SocketAddr> {
    value.split(',').filter_map(|address| address.trim().parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_again_and_nonsense_is_left_out() {
        let masters: Vec<SocketAddr> =
            vec!["10.0.0.1:6443".parse().unwrap(), "[fd00::2]:6443".parse().unwrap()];
        assert_eq!(parse(&format(&masters)), masters);
        assert_eq!(parse(" 10.0.0.1:6443, nonsense,,"), masters[..1]);
        assert_eq!(parse(""), []);
    }
}
