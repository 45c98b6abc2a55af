//! Prometheus metrics under stock's names, served at `/metrics`. `chain.rs` records every request, `watch.rs`
//! counts open watches, `metrics/store.rs` adds the metrics of the master itself.

mod store;

use std::time::SystemTime;

use http::{HeaderValue, Response, StatusCode};
use prometheus::{
    Encoder, GaugeVec, HistogramOpts, HistogramVec, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
    TextEncoder,
};

use crate::body::{self, Body};
use crate::context::Context;
use crate::registry::Registry as Objects;

const DURATION_BUCKETS: [f64; 16] =
    [0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0, 1.5, 2.0, 4.0, 8.0, 15.0, 60.0];

/// All metrics of one API server.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    requests: IntCounterVec,
    duration: HistogramVec,
    in_flight: IntGaugeVec,
    watches: IntGauge,
    panics: IntCounterVec,
    certificates: GaugeVec,
}

/// Counts an open watch until it is dropped.
#[derive(Debug)]
pub struct WatchGuard(IntGauge);

impl Drop for WatchGuard {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// Counts a running request until it is dropped.
#[derive(Debug)]
pub struct InFlightGuard(IntGauge);

impl Drop for InFlightGuard {
    fn drop(&mut self) {
        self.0.dec();
    }
}

impl Metrics {
    /// Registers all metrics.
    ///
    /// # Errors
    ///
    /// Fails if two metrics have the same name, which only a change of this file can cause.
    pub fn new() -> Result<Self, prometheus::Error> {
        let labels = ["verb", "group", "version", "resource", "subresource", "scope"];
        let mut with_code = labels.to_vec();
        with_code.push("code");
        let requests = IntCounterVec::new(
            Opts::new("apiserver_request_total", "Counter of apiserver requests by verb, resource and code."),
            &with_code,
        )?;
        let duration = HistogramVec::new(
            HistogramOpts::new("apiserver_request_duration_seconds", "Response latency in seconds.")
                .buckets(DURATION_BUCKETS.to_vec()),
            &labels,
        )?;
        let in_flight = IntGaugeVec::new(
            Opts::new("apiserver_current_inflight_requests", "Requests being served, by kind."),
            &["request_kind"],
        )?;
        let watches = IntGauge::new("apiserver_longrunning_requests", "Open watches.")?;
        let panics = IntCounterVec::new(
            Opts::new("apiserver_request_panics_total", "Handlers that panicked."),
            &["verb"],
        )?;
        let certificates = GaugeVec::new(
            Opts::new(
                "ephor_certificate_expiration_timestamp_seconds",
                "When certificates of this master end, in seconds since 1970.",
            ),
            &["certificate"],
        )?;
        let registry = Registry::new();
        registry.register(Box::new(certificates.clone()))?;
        registry.register(Box::new(requests.clone()))?;
        registry.register(Box::new(duration.clone()))?;
        registry.register(Box::new(in_flight.clone()))?;
        registry.register(Box::new(watches.clone()))?;
        registry.register(Box::new(panics.clone()))?;
        Ok(Self { registry, requests, duration, in_flight, watches, panics, certificates })
    }

    /// Counts a request as running until the guard is dropped.
    pub fn request_started(&self, mutating: bool) -> InFlightGuard {
        let gauge = self.in_flight.with_label_values(&[if mutating { "mutating" } else { "readOnly" }]);
        gauge.inc();
        InFlightGuard(gauge)
    }

    /// Records an answer. Label values are limited to those the server knows, never free text of a client.
    pub fn answered(&self, ctx: &Context, code: StatusCode, seconds: f64) {
        let info = &ctx.info;
        let known = info.is_resource
            && proto_api::kinds::by_resource(&info.group, &info.version, &info.resource)
                .is_some_and(|k| info.subresource.is_empty() || k.subresource(&info.subresource).is_some());
        let verb = match info.verb.as_str() {
            "deletecollection" => "DELETECOLLECTION",
            "create" => "POST",
            "update" => "PUT",
            "patch" => "PATCH",
            "delete" => "DELETE",
            "list" => "LIST",
            "watch" => "WATCH",
            "get" => "GET",
            _ => "other",
        };
        let scope = if !known {
            ""
        } else if !info.name.is_empty() {
            "resource"
        } else if !info.namespace.is_empty() {
            "namespace"
        } else {
            "cluster"
        };
        let pick = |text: &'_ str| if known { text.to_owned() } else { String::new() };
        let (group, version) = (pick(&info.group), pick(&info.version));
        let (resource, subresource) = (pick(&info.resource), pick(&info.subresource));
        let labels = [verb, &group, &version, &resource, &subresource, scope];
        if verb != "WATCH" {
            self.duration.with_label_values(&labels).observe(seconds);
        }
        let code = code.as_u16().to_string();
        let with_code = [verb, &group, &version, &resource, &subresource, scope, &code];
        self.requests.with_label_values(&with_code).inc();
    }

    /// Records a panic that was caught.
    pub fn panicked(&self, verb: &str) {
        self.panics.with_label_values(&[verb]).inc();
    }

    /// Records when each named certificate expires.
    pub fn certificates_expire(&self, expirations: &[(&str, SystemTime)]) {
        for (name, at) in expirations {
            let since_1970 = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
            self.certificates.with_label_values(&[name]).set(since_1970.as_secs_f64());
        }
    }

    /// Counts a watch as open until the guard is dropped.
    pub fn watch_started(&self) -> WatchGuard {
        self.watches.inc();
        WatchGuard(self.watches.clone())
    }

    /// Returns all metrics in Prometheus' text format.
    pub fn render(&self, objects: &Objects) -> Response<Body> {
        let mut out = Vec::new();
        let encoder = TextEncoder::new();
        let mut families = self.registry.gather();
        match store::gather(&objects.consensus) {
            Ok(more) => families.extend(more),
            Err(error) => return body::text_response(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
        }
        if let Err(error) = encoder.encode(&families, &mut out) {
            return body::text_response(StatusCode::INTERNAL_SERVER_ERROR, error.to_string());
        }
        let kind = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
        body::bytes_response(StatusCode::OK, kind, out)
    }
}
