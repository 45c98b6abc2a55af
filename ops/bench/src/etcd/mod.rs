//! A part of etcd's gRPC API: a client for both sides, and a server for Ephor's store,
//! so that both are called in the same way: put, linearizable get, watch, status
//! and compaction.

mod client;
mod messages;
mod server;

pub use client::Client;
pub use messages::WatchResponse;
pub use server::serve;

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use bytes::Bytes;
    use proto_env::{Network, TlsNetwork};

    use super::Client;
    use super::messages::Event;
    use crate::{member, pki};

    #[tokio::test(flavor = "multi_thread")]
    async fn a_member_answers_as_etcd_would() {
        let directory = tempfile::tempdir().unwrap();
        pki::make(directory.path()).unwrap();
        let material = pki::load(directory.path()).unwrap();
        let network: Arc<dyn Network> = Arc::new(TlsNetwork::new(&material).unwrap());
        let (consensus, address) = member::alone(network.clone(), directory.path()).await.unwrap();
        let client = Client::new(network, &address).unwrap();

        let status = client.status().await.unwrap();
        assert_eq!((status.leader, status.is_learner), (consensus.node_id(), false));
        assert_eq!(status.header.unwrap().member_id, consensus.node_id());
        client.nothing().await.unwrap();
        assert!(client.compact(1).await.is_err());

        let mut events = client.watch("/registry/bench/a/").await.unwrap();
        assert_eq!(client.get("/registry/bench/a/1".to_owned()).await.unwrap(), None);
        let value = Bytes::from_static(b"value");
        client.put("/registry/bench/b/1".to_owned(), value.clone()).await.unwrap();
        let revision = client.put("/registry/bench/a/1".to_owned(), value.clone()).await.unwrap();
        assert_eq!(client.get("/registry/bench/a/1".to_owned()).await.unwrap(), Some(value.clone()));
        let response = events.message().await.unwrap().unwrap();
        assert_eq!(response.header.unwrap().revision, revision);
        let [event] = response.events.try_into().unwrap();
        let kv = event.kv.unwrap();
        assert_eq!((event.kind, kv.mod_revision), (Event::PUT, revision));
        assert_eq!((kv.key, kv.value), (Bytes::from_static(b"/registry/bench/a/1"), value));
    }
}
