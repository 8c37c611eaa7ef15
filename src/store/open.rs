//! The one place that knows which store there is.

use std::sync::Arc;

use super::sqlite::{SqliteStore, StoreOptions};
use super::types::{RunStore, StoreError};

/// Opens the run store, making or migrating what needs it.
///
/// # Errors
/// `InUse` when another server has the directory; `Unusable` when it can't be written, or its database is
/// damaged or newer than this program.
pub async fn open(options: StoreOptions) -> Result<Arc<dyn RunStore>, StoreError> {
    let opening = tokio::task::spawn_blocking(move || SqliteStore::open(options));
    let store = opening.await.map_err(|_panicked| StoreError::Closed)??;
    Ok(store)
}
