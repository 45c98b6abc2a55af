//! The protobuf messages, with the field numbers of etcd's `rpc.proto` and `kv.proto`
//! (api/etcdserverpb, api/mvccpb of 3.6), as far as the bench uses them.

use bytes::Bytes;

/// Header of every answer (etcdserverpb.ResponseHeader).
#[derive(Clone, PartialEq, prost::Message)]
pub struct ResponseHeader {
    /// Id of the member that answers.
    #[prost(uint64, tag = "2")]
    pub member_id: u64,
    /// Revision of the store.
    #[prost(int64, tag = "3")]
    pub revision: i64,
}

/// A key with its value (mvccpb.KeyValue).
#[derive(Clone, PartialEq, prost::Message)]
pub struct KeyValue {
    /// Name of the key.
    #[prost(bytes = "bytes", tag = "1")]
    pub key: Bytes,
    /// Revision at which the key was created.
    #[prost(int64, tag = "2")]
    pub create_revision: i64,
    /// Revision at which the key was last changed.
    #[prost(int64, tag = "3")]
    pub mod_revision: i64,
    /// Value of the key.
    #[prost(bytes = "bytes", tag = "5")]
    pub value: Bytes,
}

/// Request to write one key (etcdserverpb.PutRequest).
#[derive(Clone, PartialEq, prost::Message)]
pub struct PutRequest {
    /// Key to write.
    #[prost(bytes = "bytes", tag = "1")]
    pub key: Bytes,
    /// New value of the key.
    #[prost(bytes = "bytes", tag = "2")]
    pub value: Bytes,
}

/// Answer to a write (etcdserverpb.PutResponse).
#[derive(Clone, PartialEq, prost::Message)]
pub struct PutResponse {
    /// Header; its revision is that of the write.
    #[prost(message, optional, tag = "1")]
    pub header: Option<ResponseHeader>,
}

/// Request to read one key (etcdserverpb.RangeRequest); without `serializable` the read is linearizable.
#[derive(Clone, PartialEq, prost::Message)]
pub struct RangeRequest {
    /// Key to read.
    #[prost(bytes = "bytes", tag = "1")]
    pub key: Bytes,
    /// End of a range of keys; empty to read `key` alone.
    #[prost(bytes = "bytes", tag = "2")]
    pub range_end: Bytes,
    /// Revision to read at; 0 for the newest.
    #[prost(int64, tag = "4")]
    pub revision: i64,
}

/// Answer to a read (etcdserverpb.RangeResponse).
#[derive(Clone, PartialEq, prost::Message)]
pub struct RangeResponse {
    /// Header; names the member that answers.
    #[prost(message, optional, tag = "1")]
    pub header: Option<ResponseHeader>,
    /// The keys found, with their values.
    #[prost(message, repeated, tag = "2")]
    pub kvs: Vec<KeyValue>,
    /// Number of keys found.
    #[prost(int64, tag = "4")]
    pub count: i64,
}

/// Request to discard old versions (etcdserverpb.CompactionRequest).
#[derive(Clone, PartialEq, prost::Message)]
pub struct CompactionRequest {
    /// Revision before which replaced versions are discarded.
    #[prost(int64, tag = "1")]
    pub revision: i64,
    /// Whether to answer only once the compacted versions are removed from the backend.
    #[prost(bool, tag = "2")]
    pub physical: bool,
}

/// etcdserverpb.CompactionResponse, of which no field is used; also serves as StatusRequest.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Empty {}

/// State of a member (etcdserverpb.StatusResponse).
#[derive(Clone, PartialEq, prost::Message)]
pub struct StatusResponse {
    /// Header; names the member that answers.
    #[prost(message, optional, tag = "1")]
    pub header: Option<ResponseHeader>,
    /// Id of the leader; 0 when there is none.
    #[prost(uint64, tag = "4")]
    pub leader: u64,
    /// Index of the member's last log entry.
    #[prost(uint64, tag = "5")]
    pub raft_index: u64,
    /// Raft term of the member.
    #[prost(uint64, tag = "6")]
    pub raft_term: u64,
    /// Index of the last log entry that the member has applied.
    #[prost(uint64, tag = "7")]
    pub raft_applied_index: u64,
    /// Whether the member is a learner, which does not vote.
    #[prost(bool, tag = "10")]
    pub is_learner: bool,
}

/// Request on a watch stream (etcdserverpb.WatchRequest, whose `oneof` has the same encoding).
#[derive(Clone, PartialEq, prost::Message)]
pub struct WatchRequest {
    /// Request to start a watch.
    #[prost(message, optional, tag = "1")]
    pub create_request: Option<WatchCreateRequest>,
}

/// Parameters of a new watch (etcdserverpb.WatchCreateRequest).
#[derive(Clone, PartialEq, prost::Message)]
pub struct WatchCreateRequest {
    /// First key of the range.
    #[prost(bytes = "bytes", tag = "1")]
    pub key: Bytes,
    /// End of the range: the first key after it.
    #[prost(bytes = "bytes", tag = "2")]
    pub range_end: Bytes,
    /// First revision to report; 0 to report from now on.
    #[prost(int64, tag = "3")]
    pub start_revision: i64,
}

/// Message on a watch stream (etcdserverpb.WatchResponse).
#[derive(Clone, PartialEq, prost::Message)]
pub struct WatchResponse {
    /// Header; its revision is the one the watch has reached.
    #[prost(message, optional, tag = "1")]
    pub header: Option<ResponseHeader>,
    /// Whether the watch has just started.
    #[prost(bool, tag = "3")]
    pub created: bool,
    /// Whether the watch has ended.
    #[prost(bool, tag = "4")]
    pub canceled: bool,
    /// Why the watch ended.
    #[prost(string, tag = "6")]
    pub cancel_reason: String,
    /// Changes of keys in the watched range.
    #[prost(message, repeated, tag = "11")]
    pub events: Vec<Event>,
}

/// A change of one key (mvccpb.Event).
#[derive(Clone, PartialEq, prost::Message)]
pub struct Event {
    /// Kind of the change: [`Event::PUT`] or [`Event::DELETE`].
    #[prost(int32, tag = "1")]
    pub kind: i32,
    /// The key and its new value.
    #[prost(message, optional, tag = "2")]
    pub kv: Option<KeyValue>,
}

impl Event {
    /// The key was created or replaced.
    pub const PUT: i32 = 0;
    /// The key was removed.
    pub const DELETE: i32 = 1;
}

/// Returns the first key after all keys that begin with `prefix`, which must end in ASCII.
pub fn end_of(prefix: &str) -> Bytes {
    let mut end = prefix.as_bytes().to_vec();
    if let Some(last) = end.last_mut() {
        *last += 1;
    }
    end.into()
}
