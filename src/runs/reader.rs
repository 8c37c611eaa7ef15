//! The reading end of a run's log: replay and live are the same loop over one cursor.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use super::log::Logs;
use super::tail::{Head, Live};
use crate::events::StoredEvent;
use crate::ids::{RunId, Seq};
use crate::store::StoreError;

/// Events that a reader takes from the store at once.
const PAGE: u32 = 32;

/// How often the log of a run of another process is looked at.
const POLL: Duration = Duration::from_millis(250);

/// Why there is no reader.
#[derive(Clone, Debug, thiserror::Error)]
pub enum CursorError {
    /// No such run.
    #[error("there is no run {0}")]
    NotFound(RunId),
    /// The cursor is past the last committed event.
    #[error("the cursor is past the end of the log, which is at {head}")]
    Ahead {
        /// The last committed event.
        head: Seq,
    },
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Reads a run's log in order, without gap or repeat. Costs a cursor, and a page of at most 64 KiB (or one
/// event) while it is behind.
pub struct LogReader {
    logs: Logs,
    run: RunId,
    /// The last event given out.
    sent: Seq,
    head: Seq,
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

impl Logs {
    /// A reader of the events after `after`: those that are there, then those that come.
    ///
    /// # Errors
    /// When there is no such run, the cursor is past its head, or the store fails.
    pub async fn reader(&self, run: &RunId, after: Seq) -> Result<LogReader, CursorError> {
        LogReader::open(self, run, after).await
    }
}

impl LogReader {
    async fn open(logs: &Logs, run: &RunId, after: Seq) -> Result<Self, CursorError> {
        let (source, head, ended) = if let Some(live) = logs.live(run) {
            let watch = live.watch();
            let head = watch.borrow().committed;
            (Source::Live { live, watch }, head, false)
        } else {
            let record = logs
                .store()
                .get(run)
                .await?
                .ok_or_else(|| CursorError::NotFound(run.clone()))?;
            (Source::Stored, record.last_seq, record.state.terminal())
        };
        if after > head {
            return Err(CursorError::Ahead { head });
        }
        Ok(Self {
            logs: logs.clone(),
            run: run.clone(),
            sent: after,
            head,
            done: ended && after == head,
            source,
            page: VecDeque::new(),
        })
    }

    /// The run.
    pub fn run_id(&self) -> &RunId {
        &self.run
    }

    /// The last committed event that the reader knows of.
    pub fn head(&self) -> Seq {
        match &self.source {
            Source::Live { watch, .. } => watch.borrow().committed,
            Source::Stored => self.head,
        }
    }

    /// Whether the terminal event was given out, or lay before the reader's start: nothing more comes.
    pub fn at_end(&self) -> bool {
        self.done
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
                        if head.abandoned {
                            return Err(StoreError::Failed(
                                "the run is no longer written".to_owned(),
                            ));
                        }
                        // The sender lives in `live`, which is held here.
                        drop(watch.changed().await);
                    } else if let Some(event) = live.after(self.sent) {
                        return self.give(event).map(Some);
                    } else {
                        self.turn_page(head.committed).await?;
                    }
                }
                Source::Stored => {
                    self.turn_page(Seq::MAX).await?;
                    if self.page.is_empty() {
                        self.wait_for_others().await;
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
        self.head = self.head.max(event.seq);
        self.done = event.kind.terminal();
        if self.page.is_empty() {
            self.page = VecDeque::new();
        }
        Ok(event)
    }

    /// Reads on in the store. Events past `head` stay unread: they are not yet told to anyone.
    async fn turn_page(&mut self, head: Seq) -> Result<(), StoreError> {
        let events = self.logs.store().read(&self.run, self.sent, PAGE).await?;
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

    async fn wait_for_others(&mut self) {
        match self.logs.live(&self.run) {
            // Created by this process, between its commit and our look.
            Some(live) => {
                let watch = live.watch();
                self.source = Source::Live { live, watch };
            }
            None => tokio::time::sleep(POLL).await,
        }
    }
}
