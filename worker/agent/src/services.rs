//! The Services that a pod sees as environment variables (`WEB_SERVICE_HOST`, `WEB_PORT_80_TCP_ADDR`, ...),
//! from a watch over all Services.

use std::collections::BTreeMap;
use std::time::Duration;

use futures::StreamExt as _;
use k8s_openapi::api::core::v1::Service;
use kube::runtime::watcher::{Error, Event};
use kube::runtime::{WatchStreamExt as _, reflector, watcher};
use kube::{Api, Client};
use proto_decode::{BrokenObjects, Decoded};
use tokio_util::sync::CancellationToken;
use tracing::warn;

/// Maximum time a container start waits for the first list of Services.
const FIRST_LIST: Duration = Duration::from_secs(10);

/// The Services known to the node; clones share them.
#[derive(Clone)]
pub struct Services {
    store: reflector::Store<Service>,
}

/// Unwraps the decoded Service of an event; `None` drops the event of a Service that does not decode, which
/// then yields no variables.
fn readable(
    event: Result<Event<Decoded<Service>>, Error>,
    broken: &BrokenObjects,
) -> Option<Result<Event<Service>, Error>> {
    let keep = |service| match service {
        Decoded::Object(service) => Some(service),
        Decoded::Broken(service) => {
            broken.add("services", &service);
            None
        }
    };
    Some(Ok(match event {
        Ok(Event::Init) => Event::Init,
        Ok(Event::InitApply(service)) => Event::InitApply(keep(service)?),
        Ok(Event::InitDone) => Event::InitDone,
        Ok(Event::Apply(service)) => Event::Apply(keep(service)?),
        // A deleted Service needs only its name.
        Ok(Event::Delete(Decoded::Broken(service))) => {
            Event::Delete(Service { metadata: service.meta, ..Service::default() })
        }
        Ok(Event::Delete(Decoded::Object(service))) => Event::Delete(service),
        Err(error) => return Some(Err(error)),
    }))
}

impl Services {
    /// Creates an empty set of Services, and the task that keeps it up to date until `shutdown`.
    pub fn new(client: Client, shutdown: CancellationToken) -> (Self, impl Future<Output = ()> + Send) {
        let (store, writer) = reflector::store();
        let broken = BrokenObjects::default();
        let stream = watcher(Api::<Decoded<Service>>::all(client), watcher::Config::default())
            .default_backoff()
            .filter_map(move |event| std::future::ready(readable(event, &broken)))
            .reflect(writer);
        let follow = async move {
            let mut stream = std::pin::pin!(stream);
            loop {
                tokio::select! {
                    biased;
                    () = shutdown.cancelled() => return,
                    event = stream.next() => match event {
                        Some(Ok(_)) => {}
                        Some(Err(error)) => warn!(%error, "watching Services"),
                        None => return,
                    }
                }
            }
        };
        (Self { store }, follow)
    }

    /// Returns the variables for a pod in `namespace`: those of the API server's Service, and those of the
    /// namespace's own Services if `links`.
    pub async fn environment(
        &self,
        namespace: &str,
        links: bool,
    ) -> Result<BTreeMap<String, String>, String> {
        if !matches!(tokio::time::timeout(FIRST_LIST, self.store.wait_until_ready()).await, Ok(Ok(()))) {
            return Err("services have not yet been read at least once, cannot construct envvars".to_owned());
        }
        let mut variables = BTreeMap::new();
        let mut services = self.store.state();
        services.sort_by(|a, b| a.metadata.name.cmp(&b.metadata.name));
        for service in services {
            let meta = &service.metadata;
            let (own, name) =
                (meta.namespace.as_deref() == Some(namespace), meta.name.as_deref().unwrap_or_default());
            let master = meta.namespace.as_deref() == Some("default") && name == "kubernetes";
            if (own && links) || (master && !variables.contains_key("KUBERNETES_SERVICE_HOST")) {
                add_service(&mut variables, &service);
            }
        }
        Ok(variables)
    }
}

/// Adds the variables of one Service: `{NAME}_SERVICE_HOST`, `_SERVICE_PORT` and Docker's link variables.
fn add_service(variables: &mut BTreeMap<String, String>, service: &Service) {
    let Some(spec) = &service.spec else { return };
    let ip = spec.cluster_ip.as_deref().unwrap_or_default();
    let ports = spec.ports.as_deref().unwrap_or_default();
    if ip.is_empty() || ip == "None" || ports.is_empty() {
        return;
    }
    let name = variable_name(service.metadata.name.as_deref().unwrap_or_default());
    let host = if ip.contains(':') { format!("[{ip}]") } else { ip.to_owned() };
    variables.insert(format!("{name}_SERVICE_HOST"), ip.to_owned());
    variables.insert(format!("{name}_SERVICE_PORT"), ports[0].port.to_string());
    for port in ports {
        if let Some(port_name) = port.name.as_deref().filter(|n| !n.is_empty()) {
            variables
                .insert(format!("{name}_SERVICE_PORT_{}", variable_name(port_name)), port.port.to_string());
        }
    }
    for (index, port) in ports.iter().enumerate() {
        let protocol = port.protocol.as_deref().unwrap_or("TCP");
        let url = format!("{}://{host}:{}", protocol.to_lowercase(), port.port);
        if index == 0 {
            variables.insert(format!("{name}_PORT"), url.clone());
        }
        let prefix = format!("{name}_PORT_{}_{}", port.port, protocol.to_uppercase());
        variables.insert(prefix.clone(), url);
        variables.insert(format!("{prefix}_PROTO"), protocol.to_lowercase());
        variables.insert(format!("{prefix}_PORT"), port.port.to_string());
        variables.insert(format!("{prefix}_ADDR"), ip.to_owned());
    }
}

fn variable_name(name: &str) -> String {
    name.to_uppercase().replace('-', "_")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_becomes_the_variables_that_docker_links_had() {
        let service: Service = serde_json::from_value(serde_json::json!({
            "metadata": {"name": "my-web", "namespace": "n"},
            "spec": {"clusterIP": "10.96.0.7", "ports": [{"name": "http", "port": 80}, {"port": 53, "protocol": "UDP"}]}
        }))
        .unwrap();
        let mut variables = BTreeMap::new();
        add_service(&mut variables, &service);
        assert_eq!(variables["MY_WEB_SERVICE_HOST"], "10.96.0.7");
        assert_eq!(variables["MY_WEB_SERVICE_PORT_HTTP"], "80");
        assert_eq!(variables["MY_WEB_PORT"], "tcp://10.96.0.7:80");
        assert_eq!(variables["MY_WEB_PORT_53_UDP_PROTO"], "udp");
    }
}
