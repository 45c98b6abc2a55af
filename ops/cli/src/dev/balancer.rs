//! The balancer of a dev cluster: one endpoint on 127.0.0.1 in front of all masters.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use anyhow::{Context, Result};
use rustls::pki_types::ServerName;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use worker_network::{Balancer, BalancerConfig, ListenerLimits, ReadyzProbe};

use super::layout::Layout;

/// Runs the balancer until a stop signal.
pub async fn run(layout: Layout) -> Result<()> {
    crate::logging::init(crate::logging::LogFormat::Text);
    let (_keep, masters) = watch::channel(layout.api_addresses());
    let shutdown = CancellationToken::new();
    crate::signals::cancel_on_termination(shutdown.clone())?;
    let listen = SocketAddr::from((Ipv4Addr::LOCALHOST, layout.api_port));
    let material = crate::kubeconfig::material(&layout.kubeconfig())?;
    let name = ServerName::try_from("kubernetes")?;
    let probe = ReadyzProbe::new(worker_node::tls::trusting(&material)?, name);
    let balancer = Balancer::start(BalancerConfig::default(), masters, Arc::new(probe), shutdown.clone());
    let listener = TcpListener::bind(listen).await.with_context(|| format!("listening on {listen}"))?;
    balancer.serve(listener, ListenerLimits::HOST, shutdown).await;
    Ok(())
}
