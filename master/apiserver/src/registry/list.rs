//! Reads lists: chooses the revision and the page, and filters by selectors. `handlers/list.rs` and
//! deletecollection call it.

use std::sync::Arc;

use proto_api::status::Status;
use proto_env::planted::{self, Bug};
use storage::{Object, Revision};

use super::continue_token::ContinueToken;
use super::selection::Selection;
use super::store::{Registry, Target};
use super::{key, object};
use crate::context::Context;
use crate::options::{ListOptions, VersionMatch};

/// Minimum number of objects read at a time when a selector filters a limited list.
const CHUNK: usize = 1000;

/// Number of objects a selector examines (each may have to be parsed) before other tasks get their turn.
const YIELD_EVERY: usize = 128;

const EXPIRED_CONTINUE: &str = "The provided continue parameter is too old to display a consistent list \
    result. You can start a new list without the continue parameter, or use the continue token in this response \
    to retrieve the remainder of the results. Continuing with the provided token results in an inconsistent list \
    - objects that were created, modified, or deleted between the time the first chunk was returned and now may \
    show up in the list.";

/// One page of a list.
#[derive(Debug, Default)]
pub struct ListPage {
    /// The objects that matched.
    pub objects: Vec<Arc<Object>>,
    /// The revision at which the whole list is read.
    pub revision: Revision,
    /// Token for the next page; empty on the last page.
    pub continue_token: String,
    /// Number of objects after this page; `None` on the last page and where a selector makes it unknown.
    pub remaining: Option<u64>,
}

/// Key after which and revision at which to read.
struct Start {
    after: Option<String>,
    at: Option<Revision>,
    from_token: bool,
}

impl Registry {
    /// Returns one page of the objects in a namespace, or in all namespaces.
    ///
    /// # Errors
    ///
    /// 400 for invalid tokens and versions, 410 for expired ones, 503 and 504 where the state cannot be read
    /// now.
    pub async fn list(
        &self,
        ctx: &Context,
        target: Target<'_>,
        selection: &Selection,
        options: &ListOptions,
    ) -> Result<ListPage, Status> {
        let prefix = key::prefix(target.kind, target.namespace);
        let start = self.list_start(ctx, &prefix, options).await?;
        let from_token = start.from_token;
        let requested = start.at;
        let page = self.collect(target, &prefix, selection, options.limit, start).await;
        // Planted bug: the revision is read after the objects.
        if planted::is(Bug::TornList) {
            self.barrier().await?;
            return Ok(ListPage { revision: self.store().revision(), ..page.unwrap_or_default() });
        }
        page.map_err(|Expired(last)| {
            if from_token {
                let token = ContinueToken::new(-1, &prefix, &last);
                let mut status = Status::expired(EXPIRED_CONTINUE);
                status.metadata.continue_token = token.encode();
                status
            } else {
                tracing::debug!(?requested, "a list of a compacted revision was asked for");
                Status::expired("The resourceVersion for the provided list is too old.")
            }
        })
    }

    async fn list_start(&self, ctx: &Context, prefix: &str, options: &ListOptions) -> Result<Start, Status> {
        let version = options.version()?;
        if !options.continue_token.is_empty() {
            if version.is_some_and(|v| v != 0) {
                return Err(Status::bad_request(
                    "specifying resource version is not allowed when using continue",
                ));
            }
            let token = ContinueToken::decode(&options.continue_token)?;
            let after = Some(token.start_after(prefix));
            let Ok(revision) = Revision::try_from(token.rv) else {
                self.barrier().await?;
                return Ok(Start { after, at: None, from_token: true });
            };
            self.reach(revision).await?;
            return Ok(Start { after, at: Some(revision), from_token: true });
        }
        self.freshen(ctx, version).await?;
        let exact = match options.version_match {
            Some(VersionMatch::Exact) => true,
            Some(VersionMatch::NotOlderThan) => false,
            // As before resourceVersionMatch existed, a limit together with a version means exactly that
            // version.
            None => options.limit > 0 && version.is_some_and(|v| v > 0),
        };
        Ok(Start { after: None, at: version.filter(|_| exact), from_token: false })
    }

    async fn collect(
        &self,
        target: Target<'_>,
        prefix: &str,
        selection: &Selection,
        limit: usize,
        start: Start,
    ) -> Result<ListPage, Expired> {
        let everything = selection.is_everything();
        let (mut after, mut at) = (start.after, start.at);
        let mut objects = Vec::new();
        loop {
            let chunk = if limit == 0 {
                0
            } else if everything {
                limit
            } else {
                CHUNK.max(limit)
            };
            let page = self
                .store()
                .range(prefix, after.as_deref(), chunk, at)
                .map_err(|_| Expired(after.clone().unwrap_or_default()))?;
            at = Some(page.revision);
            after = page.objects.last().map(|o| o.key.to_string());
            let total = page.objects.len();
            for (i, candidate) in page.objects.into_iter().enumerate() {
                if !everything {
                    if i % YIELD_EVERY == YIELD_EVERY - 1 {
                        tokio::task::yield_now().await;
                    }
                    if !selection.matches(&object::view(&candidate, target)) {
                        continue;
                    }
                }
                let last_key = candidate.key.to_string();
                objects.push(candidate);
                let more = page.more || i + 1 < total;
                if limit > 0 && objects.len() == limit && more {
                    let token = i64::try_from(page.revision).unwrap_or(i64::MAX);
                    return Ok(ListPage {
                        objects,
                        revision: page.revision,
                        continue_token: ContinueToken::new(token, prefix, &last_key).encode(),
                        remaining: everything.then_some(page.remaining),
                    });
                }
            }
            if !page.more {
                return Ok(ListPage {
                    objects,
                    revision: page.revision,
                    continue_token: String::new(),
                    remaining: None,
                });
            }
        }
    }
}

/// The history of the requested revision is compacted; holds the last key already delivered.
struct Expired(String);
