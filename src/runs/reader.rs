//! The reading end of a run's log: replay and live are the same loop over one cursor.

use std::collections::VecDeque;
use std::sync::Arc;

use tokio::sync::watch;

use super::tail::{Head, Live};
use crate::events::StoredEvent;
use crate::ids::{RunId, Seq};
use crate::store::{RunStore, StoreError};

/// Events that a reader takes from the store at once.
const PAGE: u32 = 32;

/// Why there is no reader.
#[derive(Clone, Debug, thiserror::Error)]
pub enum CursorError {
    /// The cursor is past the last committed event.
    #[error("the cursor is past the end of the log, which is at {head}")]
    Ahead {
        /// The last committed event.
        head: Seq,
    },
    /// There is no such run, or the store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Reads a run's log in order, without gap or repeat. Costs a cursor, and a page of at most 64 KiB (or one
/// event) while it is behind.
pub struct LogReader {
    store: Arc<dyn RunStore>,
    run: RunId,
    /// The last event given out.
    sent: Seq,
    done: bool,
    source: Source,
    page: VecDeque<Arc<StoredEvent>>,
}

enum Source {
    /// A run that is written by this process.
    Live {
        live: Arc<Live>,
        watch: watch::Receiver<Head>,
    },
    /// A run that has ended, or is written by another process.
    Stored,
}

impl LogReader {
    /// A reader of the events after `after`: those that are there, then those that come. `live` if the run is
    /// written by this process.
    ///
    /// # Errors
    /// When there is no such run, the cursor is past its head, or the store fails.
    pub async fn open(
        store: Arc<dyn RunStore>,
        run: &RunId,
        after: Seq,
        live: Option<Arc<Live>>,
    ) -> Result<Self, CursorError> {
        let (source, head, ended) = if let Some(live) = live {
            let watch = live.watch();
            let head = *watch.borrow();
            (
                Source::Live { live, watch },
                head.committed,
                head.ended || head.abandoned,
            )
        } else {
            let head = store.head(run).await?;
            (Source::Stored, head.last_seq, head.ended)
        };
        // What is committed may not have been told yet.
        if after > head && (ended || after > store.head(run).await?.last_seq) {
            return Err(CursorError::Ahead { head });
        }
        Ok(Self {
            store,
            run: run.clone(),
            sent: after,
            done: ended && after == head,
            source,
            page: VecDeque::new(),
        })
    }

    /// The run.
    pub fn run_id(&self) -> &RunId {
        &self.run
    }

    /// The next event; `None` after the terminal one. Waits while the run is silent. Cancel-safe.
    ///
    /// # Errors
    /// When the store fails, or the run's writer has gone without ending it. What follows is then unknown:
    /// the stream must look cut.
    pub async fn next(&mut self) -> Result<Option<Arc<StoredEvent>>, StoreError> {
        loop {
            if self.done {
                return Ok(None);
            }
            if let Some(event) = self.page.pop_front() {
                return self.give(event).map(Some);
            }
            match &mut self.source {
                Source::Live { live, watch } => {
                    let head = *watch.borrow_and_update();
                    if self.sent >= head.committed {
                        if head.ended {
                            self.done = true;
                        } else if head.abandoned {
                            return Err(StoreError::Failed(
                                "the run is no longer written".to_owned(),
                            ));
                        } else {
                            // The sender lives in `live`, which is held here.
                            drop(watch.changed().await);
                        }
                    } else if let Some(event) = live.after(self.sent) {
                        return self.give(event).map(Some);
                    } else {
                        self.turn_page(head.committed).await?;
                    }
                }
                Source::Stored => {
                    self.turn_page(Seq::MAX).await?;
                    if self.page.is_empty() {
                        self.store.watch(&self.run, self.sent).await?;
                    }
                }
            }
        }
    }

    fn give(&mut self, event: Arc<StoredEvent>) -> Result<Arc<StoredEvent>, StoreError> {
        if event.seq != self.sent.next() {
            return Err(StoreError::Failed(format!(
                "the log of {} goes from {} to {}",
                self.run, self.sent, event.seq
            )));
        }
        self.sent = event.seq;
        self.done = event.kind.terminal();
        if self.page.is_empty() {
            self.page = VecDeque::new();
        }
        Ok(event)
    }

    /// Reads on in the store. Events past `head` stay unread: they are not yet told to anyone.
    async fn turn_page(&mut self, head: Seq) -> Result<(), StoreError> {
        let events = self.store.read(&self.run, self.sent, PAGE).await?;
        if events.is_empty() && head != Seq::MAX {
            return Err(StoreError::Failed(format!(
                "the log of {} ends at {} before its head",
                self.run, self.sent
            )));
        }
        self.page = events
            .into_iter()
            .take_while(|event| event.seq <= head)
            .map(Arc::new)
            .collect();
        Ok(())
    }
}
