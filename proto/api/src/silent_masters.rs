//! The header in which a leading master lists the masters that its failure detector finds silent. Written
//! by the API server's `/readyz`, read by the load balancers of `worker/network`: they give up a master
//! that answers late only if a ready master lists it as silent.

use std::net::SocketAddr;

/// The name of the header.
pub const HEADER: &str = "ephor-silent-masters";

/// Formats the header's value: `HOST:PORT` of the API servers, separated by commas.
pub fn format(masters: &[SocketAddr]) -> String {
    masters.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}

/// Parses the header's value; parts that are not addresses are left out.
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
