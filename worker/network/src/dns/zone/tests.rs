//! Tests the zone's answers to questions.

use super::*;
use crate::cluster_state::{ServicePortView, SliceView};

fn content() -> ClusterContent {
    let mut content =
        ClusterContent { services_listed: true, slices_listed: true, ..ClusterContent::default() };
    let http = ServicePortView { name: "http".into(), protocol: Protocol::Tcp, port: 80, node_port: None };
    let web = ServiceView {
        cluster_ip: Some(Ipv4Addr::new(10, 96, 0, 7)),
        ports: vec![http.clone()],
        ..ServiceView::default()
    };
    content.put_service(ObjectKey::new("default", "web"), web);
    let db = ServiceView { headless: true, ports: vec![http], ..ServiceView::default() };
    content.put_service(ObjectKey::new("default", "db"), db);
    let out = ServiceView { external_name: Some("example.org".into()), ..ServiceView::default() };
    content.put_service(ObjectKey::new("default", "out"), out);
    let end = |last, ready, hostname: Option<&str>| EndpointView {
        ip: Ipv4Addr::new(10, 42, 0, last),
        ready,
        serving: ready,
        terminating: false,
        node: None,
        hostname: hostname.map(str::to_string),
    };
    let slice = SliceView {
        ports: vec![("http".into(), Protocol::Tcp, 8080)],
        endpoints: vec![end(2, true, Some("db-0")), end(3, true, None), end(4, false, None)],
    };
    content.put_slice(ObjectKey::new("default", "db-x"), Some(ObjectKey::new("default", "db")), slice);
    content
}

fn ask(name: &str, kind: RecordType) -> ZoneResult {
    let reverse = vec!["10.96.0.0/16".parse().unwrap(), "10.42.0.0/16".parse().unwrap()];
    let zone = Zone::new("cluster.local", reverse).unwrap();
    zone.answer(&content(), &Name::from_str(name).unwrap(), kind)
}

fn data(name: &str, kind: RecordType) -> Vec<String> {
    match ask(name, kind) {
        ZoneResult::Answer(answer) => answer.records.iter().map(|r| r.data.to_string()).collect(),
        other => panic!("{name}: {other:?}"),
    }
}

fn is_nodata(name: &str, kind: RecordType) -> bool {
    matches!(ask(name, kind), ZoneResult::Answer(a) if a.exists && a.records.is_empty())
}

fn is_absent(name: &str, kind: RecordType) -> bool {
    matches!(ask(name, kind), ZoneResult::Answer(a) if !a.exists)
}

#[test]
fn a_service_has_its_cluster_ip_whatever_the_case() {
    assert_eq!(data("WEB.default.svc.cluster.local.", RecordType::A), ["10.96.0.7"]);
    assert!(is_nodata("web.default.svc.cluster.local.", RecordType::AAAA));
    assert!(is_absent("gone.default.svc.cluster.local.", RecordType::A));
    assert!(is_absent("x.web.default.svc.cluster.local.", RecordType::A));
}

#[test]
fn a_headless_service_has_the_addresses_of_its_ready_endpoints() {
    assert_eq!(data("db.default.svc.cluster.local.", RecordType::A), ["10.42.0.2", "10.42.0.3"]);
    assert_eq!(data("db-0.db.default.svc.cluster.local.", RecordType::A), ["10.42.0.2"]);
    assert_eq!(data("10-42-0-3.db.default.svc.cluster.local.", RecordType::A), ["10.42.0.3"]);
    assert!(is_absent("10-42-0-4.db.default.svc.cluster.local.", RecordType::A));
}

#[test]
fn named_ports_have_srv_records() {
    assert_eq!(
        data("_http._tcp.web.default.svc.cluster.local.", RecordType::SRV),
        ["0 100 80 web.default.svc.cluster.local."]
    );
    let headless = data("_http._tcp.db.default.svc.cluster.local.", RecordType::SRV);
    assert_eq!(headless[0], "0 50 8080 db-0.db.default.svc.cluster.local.");
    assert!(is_absent("_other._tcp.web.default.svc.cluster.local.", RecordType::SRV));
    assert!(is_nodata("_http._tcp.web.default.svc.cluster.local.", RecordType::A));
}

#[test]
fn addresses_lead_back_to_names() {
    assert_eq!(data("7.0.96.10.in-addr.arpa.", RecordType::PTR), ["web.default.svc.cluster.local."]);
    assert_eq!(data("2.0.42.10.in-addr.arpa.", RecordType::PTR), ["db-0.db.default.svc.cluster.local."]);
    assert!(is_absent("9.0.96.10.in-addr.arpa.", RecordType::PTR));
    assert_eq!(ask("8.8.8.8.in-addr.arpa.", RecordType::PTR), ZoneResult::Elsewhere);
}

#[test]
fn external_names_are_aliases_to_be_resolved() {
    assert_eq!(data("out.default.svc.cluster.local.", RecordType::CNAME), ["example.org."]);
    let ZoneResult::Answer(answer) = ask("out.default.svc.cluster.local.", RecordType::A) else { panic!() };
    assert_eq!(answer.alias, Some(Name::from_str("example.org.").unwrap()));
}

#[test]
fn pods_have_names_of_their_addresses() {
    assert_eq!(data("10-42-0-9.default.pod.cluster.local.", RecordType::A), ["10.42.0.9"]);
    assert!(is_absent("web.default.pod.cluster.local.", RecordType::A));
    assert!(is_absent("10-42-0-999.default.pod.cluster.local.", RecordType::A));
}

#[test]
fn the_domain_itself_exists_and_others_are_not_ours() {
    assert!(is_nodata("cluster.local.", RecordType::A));
    assert!(is_nodata("svc.cluster.local.", RecordType::A));
    assert!(is_nodata("default.svc.cluster.local.", RecordType::A));
    assert!(is_absent("nowhere.svc.cluster.local.", RecordType::A));
    assert_eq!(data("dns-version.cluster.local.", RecordType::TXT), ["1.1.0"]);
    assert_eq!(ask("example.org.", RecordType::A), ZoneResult::Elsewhere);
}

#[test]
fn what_is_not_listed_yet_is_not_called_absent() {
    let zone = Zone::new("cluster.local", vec![]).unwrap();
    let name = Name::from_str("web.default.svc.cluster.local.").unwrap();
    assert_eq!(zone.answer(&ClusterContent::default(), &name, RecordType::A), ZoneResult::NotReady);
}
