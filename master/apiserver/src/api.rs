//! What every request of one master shares. `server.rs` makes it, `chain.rs` and the handlers read it.

use std::sync::Arc;
use std::time::Duration;

use proto_env::CancellationToken;

use crate::authn::Authenticator;
use crate::authn::service_account::TokenIssuer;
use crate::authz::Authorizer;
use crate::dial::NodeDialer;
use crate::heavy::HeavyWork;
use crate::limits::InFlight;
use crate::metrics::Metrics;
use crate::registry::Registry;
use crate::table::Rows;

/// The largest request body, in bytes, as in stock.
pub const MAX_BODY_BYTES: usize = 3 * 1024 * 1024;
/// How long a request that is not a watch or a stream may take.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);

/// The state of one API server.
pub struct Api {
    /// Objects.
    pub registry: Registry,
    /// Who a request comes from.
    pub authenticator: Authenticator,
    /// What it may do.
    pub authorizer: Authorizer,
    /// How many requests run.
    pub in_flight: InFlight,
    /// Where large answers and bodies are encoded and decoded.
    pub heavy: HeavyWork,
    /// Rows of Tables, made once a revision.
    pub rows: Rows,
    /// Counters for `/metrics`.
    pub metrics: Metrics,
    /// Makes ServiceAccount tokens.
    pub tokens: Arc<TokenIssuer>,
    /// Connections to nodes' HTTPS servers, and to pods.
    pub nodes: NodeDialer,
    /// `HOST:PORT` clients reach this API server at, for discovery.
    pub advertise_address: String,
    /// Cancelled when the server stops: watches end, streams close.
    pub shutdown: CancellationToken,
}
