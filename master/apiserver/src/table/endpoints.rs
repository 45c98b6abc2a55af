//! Printers of Endpoints and EndpointSlices.

use serde_json::Value;

use super::{AGE, Column, Doc, NAME, Printer, age, fixed, shortened};
use crate::registry::kinds::json_fields::{self, JsonFields};

pub(super) static ENDPOINTS: Printer = Printer {
    columns: &[NAME, Column::text("Endpoints", Doc::Field("core/v1.Endpoints", "subsets")), AGE],
    cells: |obj| vec![fixed(json_fields::name(obj)), fixed(subsets(obj)), age(obj)],
};

// Column descriptions from stock's printer, which differ from the fields' current documentation.
const ADDRESS_TYPE: &str = "addressType specifies the type of address carried by this EndpointSlice. All addresses \
                            in this slice must be the same type. This field is immutable after creation. The \
                            following address types are currently supported: * IPv4: Represents an IPv4 Address. * \
                            IPv6: Represents an IPv6 Address. * FQDN: Represents a Fully Qualified Domain Name.";
const PORTS: &str = "ports specifies the list of network ports exposed by each endpoint in this slice. Each port \
                     must have a unique name. When ports is empty, it indicates that there are no defined ports. \
                     When a port is defined with a nil port value, it indicates \"all ports\". Each slice may \
                     include a maximum of 100 ports.";

pub(super) static ENDPOINT_SLICE: Printer = Printer {
    columns: &[
        NAME,
        Column::text("AddressType", Doc::Text(ADDRESS_TYPE)),
        Column::text("Ports", Doc::Text(PORTS)),
        Column::text("Endpoints", Doc::Field("discovery/v1.EndpointSlice", "endpoints")),
        AGE,
    ],
    cells: |obj| {
        vec![
            fixed(json_fields::name(obj)),
            fixed(obj.text("addressType")),
            fixed(or_unset(&ports(obj))),
            fixed(or_unset(&addresses(obj))),
            age(obj),
        ]
    },
};

fn or_unset(list: &[String]) -> String {
    let text = shortened(list);
    if text.is_empty() { "<unset>".to_owned() } else { text }
}

fn subsets(obj: &Value) -> String {
    if obj.items("subsets").is_empty() {
        return "<none>".to_owned();
    }
    let mut list = Vec::new();
    for subset in obj.items("subsets") {
        let addresses = subset.items("addresses");
        if subset.items("ports").is_empty() {
            list.extend(addresses.iter().map(|a| a.text("ip").to_owned()));
        }
        for port in subset.items("ports") {
            list.extend(addresses.iter().map(|a| host_port(a.text("ip"), port.int("port"))));
        }
    }
    shortened(&list)
}

fn host_port(host: &str, port: i64) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

fn ports(obj: &Value) -> Vec<String> {
    let shown = |port: &Value| match (port.opt_int("port"), port.opt_text("name")) {
        (Some(number), _) => number.to_string(),
        (None, Some(name)) => name.to_owned(),
        (None, None) => "*".to_owned(),
    };
    obj.items("ports").iter().map(shown).collect()
}

fn addresses(obj: &Value) -> Vec<String> {
    obj.items("endpoints").iter().flat_map(|e| e.texts("addresses")).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn more_than_three_addresses_are_counted() {
        let addresses: Vec<Value> = (1..=5).map(|i| json!({"ip": format!("10.0.0.{i}")})).collect();
        let obj = json!({"subsets": [{"addresses": addresses, "ports": [{"port": 80}]}]});
        assert_eq!(subsets(&obj), "10.0.0.1:80,10.0.0.2:80,10.0.0.3:80 + 2 more...");
    }
}
