//! The messages, with the field numbers of etcd's `rpc.proto` and `kv.proto`
//! (api/etcdserverpb, api/mvccpb of 3.6) as far as they are used.

use bytes::Bytes;

/// etcdserverpb.ResponseHeader.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ResponseHeader {
    /// Who answers.
    #[prost(uint64, tag = "2")]
    pub member_id: u64,
    /// The revision of the store.
    #[prost(int64, tag = "3")]
    pub revision: i64,
}

/// mvccpb.KeyValue.
#[derive(Clone, PartialEq, prost::Message)]
pub struct KeyValue {
    /// The key.
    #[prost(bytes = "bytes", tag = "1")]
    pub key: Bytes,
    /// When it came into being.
    #[prost(int64, tag = "2")]
    pub create_revision: i64,
    /// When it was last changed.
    #[prost(int64, tag = "3")]
    pub mod_revision: i64,
    /// The value.
    #[prost(bytes = "bytes", tag = "5")]
    pub value: Bytes,
}

/// etcdserverpb.PutRequest.
#[derive(Clone, PartialEq, prost::Message)]
pub struct PutRequest {
    /// The key.
    #[prost(bytes = "bytes", tag = "1")]
    pub key: Bytes,
    /// The value.
    #[prost(bytes = "bytes", tag = "2")]
    pub value: Bytes,
}

/// etcdserverpb.PutResponse.
#[derive(Clone, PartialEq, prost::Message)]
pub struct PutResponse {
    /// Its revision is that of the write.
    #[prost(message, optional, tag = "1")]
    pub header: Option<ResponseHeader>,
}

/// etcdserverpb.RangeRequest for one key; without `serializable` the read is
/// linearizable.
#[derive(Clone, PartialEq, prost::Message)]
pub struct RangeRequest {
    /// The key.
    #[prost(bytes = "bytes", tag = "1")]
    pub key: Bytes,
    /// Not empty: more than one key is asked for.
    #[prost(bytes = "bytes", tag = "2")]
    pub range_end: Bytes,
    /// Not 0: as it was then.
    #[prost(int64, tag = "4")]
    pub revision: i64,
}

/// etcdserverpb.RangeResponse.
#[derive(Clone, PartialEq, prost::Message)]
pub struct RangeResponse {
    /// Who answers.
    #[prost(message, optional, tag = "1")]
    pub header: Option<ResponseHeader>,
    /// What was found.
    #[prost(message, repeated, tag = "2")]
    pub kvs: Vec<KeyValue>,
    /// How many.
    #[prost(int64, tag = "4")]
    pub count: i64,
}

/// etcdserverpb.CompactionRequest.
#[derive(Clone, PartialEq, prost::Message)]
pub struct CompactionRequest {
    /// Forget what was replaced before.
    #[prost(int64, tag = "1")]
    pub revision: i64,
    /// Answer only once it is gone from the backend.
    #[prost(bool, tag = "2")]
    pub physical: bool,
}

/// etcdserverpb.CompactionResponse, of which nothing is used; StatusRequest too.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Empty {}

/// etcdserverpb.StatusResponse.
#[derive(Clone, PartialEq, prost::Message)]
pub struct StatusResponse {
    /// Who answers.
    #[prost(message, optional, tag = "1")]
    pub header: Option<ResponseHeader>,
    /// Who leads, 0 for nobody.
    #[prost(uint64, tag = "4")]
    pub leader: u64,
    /// The last log index here.
    #[prost(uint64, tag = "5")]
    pub raft_index: u64,
    /// The term.
    #[prost(uint64, tag = "6")]
    pub raft_term: u64,
    /// The last log index applied here.
    #[prost(uint64, tag = "7")]
    pub raft_applied_index: u64,
    /// Whether this member does not vote.
    #[prost(bool, tag = "10")]
    pub is_learner: bool,
}

/// etcdserverpb.WatchRequest: its `oneof` looks the same on the wire.
#[derive(Clone, PartialEq, prost::Message)]
pub struct WatchRequest {
    /// Starts a watch.
    #[prost(message, optional, tag = "1")]
    pub create_request: Option<WatchCreateRequest>,
}

/// etcdserverpb.WatchCreateRequest.
#[derive(Clone, PartialEq, prost::Message)]
pub struct WatchCreateRequest {
    /// The first key.
    #[prost(bytes = "bytes", tag = "1")]
    pub key: Bytes,
    /// The key after the last.
    #[prost(bytes = "bytes", tag = "2")]
    pub range_end: Bytes,
    /// The first revision; 0: what comes from now on.
    #[prost(int64, tag = "3")]
    pub start_revision: i64,
}

/// etcdserverpb.WatchResponse.
#[derive(Clone, PartialEq, prost::Message)]
pub struct WatchResponse {
    /// The revision reached.
    #[prost(message, optional, tag = "1")]
    pub header: Option<ResponseHeader>,
    /// The watch has started.
    #[prost(bool, tag = "3")]
    pub created: bool,
    /// The watch has ended.
    #[prost(bool, tag = "4")]
    pub canceled: bool,
    /// Why.
    #[prost(string, tag = "6")]
    pub cancel_reason: String,
    /// What happened.
    #[prost(message, repeated, tag = "11")]
    pub events: Vec<Event>,
}

/// mvccpb.Event.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Event {
    /// [`Event::PUT`] or [`Event::DELETE`].
    #[prost(int32, tag = "1")]
    pub kind: i32,
    /// What the key became.
    #[prost(message, optional, tag = "2")]
    pub kv: Option<KeyValue>,
}

impl Event {
    /// Created or replaced.
    pub const PUT: i32 = 0;
    /// Removed.
    pub const DELETE: i32 = 1;
}

/// The first key after all that begin with `prefix`, which ends in ASCII.
pub fn end_of(prefix: &str) -> Bytes {
    let mut end = prefix.as_bytes().to_vec();
    if let Some(last) = end.last_mut() {
        *last += 1;
    }
    end.into()
}
