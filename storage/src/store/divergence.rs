//! A divergence made on purpose, to test its detection: changes an object of one replica and all data that
//! depends on it, as if apply had produced another result. Used by tests of `consensus` and by the tool
//! `ephor-diverge`, never by a running master.

use std::sync::{Arc, PoisonError};

use bytes::Bytes;

use super::{Store, lock, records};
use crate::backend::Batch;
use crate::{Object, Result};

impl Store {
    /// Replaces `from` by `to`, of the same length, in the first object whose key ends with `suffix`.
    /// Returns its key; `None` if there is no such object.
    #[doc(hidden)]
    pub fn diverge(&self, suffix: &str, from: &str, to: &str) -> Result<Option<String>> {
        let mut current = lock(&self.backend);
        let mut live = self.live.write().unwrap_or_else(PoisonError::into_inner);
        let found = live.objects.values().find(|object| object.key.ends_with(suffix)).cloned();
        let Some(object) = found else { return Ok(None) };
        let text = String::from_utf8_lossy(&object.value).replace(from, to);
        if from.len() != to.len() || text.as_bytes() == object.value {
            return Ok(None);
        }
        let (created, changed) = (object.create_revision, object.mod_revision);
        let other = Arc::new(Object::new(object.key.clone(), Bytes::from(text), created, changed));
        live.fingerprint.remove_object(&object);
        live.fingerprint.add_object(&other);
        live.objects.insert(object.key.clone(), other.clone());
        let checkpoint = live.checkpoint();
        if let Some(last) = live.checkpoints.back_mut() {
            *last = checkpoint;
        }
        let mut batch = Batch::default();
        records::put_object(&mut batch, &other)?;
        records::put_state(&mut batch, &live.state())?;
        current.write(batch)?;
        Ok(Some(object.key.to_string()))
    }
}
