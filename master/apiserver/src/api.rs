//! State that all requests of one master share. `server.rs` creates it; `chain.rs` and the handlers read it.

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

/// Maximum size of a request body in bytes, as in stock.
pub const MAX_BODY_BYTES: usize = crate::decode::MAX_BODY;
/// Maximum duration of a request that is not a watch or a stream.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);

/// The state of one API server.
pub struct Api {
    /// Reads and writes objects.
    pub registry: Registry,
    /// Determines the user of a request.
    pub authenticator: Authenticator,
    /// Decides whether the user may carry out a request.
    pub authorizer: Authorizer,
    /// Limits the number of running requests.
    pub in_flight: InFlight,
    /// Thread pool that encodes and decodes large answers and bodies.
    pub heavy: HeavyWork,
    /// Cache of Table rows.
    pub rows: Rows,
    /// Counters for `/metrics`.
    pub metrics: Metrics,
    /// Issues and verifies ServiceAccount tokens.
    pub tokens: Arc<TokenIssuer>,
    /// Connects to nodes' HTTPS servers.
    pub nodes: NodeDialer,
    /// `HOST:PORT` at which clients reach this API server; discovery reports it.
    pub advertise_address: String,
    /// Cancelled when the server stops; watches and streams end then.
    pub shutdown: CancellationToken,
}
