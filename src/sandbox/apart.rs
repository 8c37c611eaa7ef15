//! Work that would hold up the runtime's threads.

/// Does `work` where it holds nobody up, and gives what came of it: `None` if the runtime is ending. A panic goes on
/// here.
pub(crate) async fn apart<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Option<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => Some(done),
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(_) => None,
        },
    }
}

#[cfg(test)]
mod tests {
    use std::panic::AssertUnwindSafe;

    use futures::FutureExt as _;

    use super::*;

    #[tokio::test]
    async fn work_is_done_on_another_thread_and_its_panic_goes_on() {
        let here = std::thread::current().id();
        let there = apart(|| std::thread::current().id()).await;
        assert!(there.is_some_and(|there| there != here));
        let end = AssertUnwindSafe(apart(|| assert_eq!(1, 2)))
            .catch_unwind()
            .await;
        assert!(end.is_err());
    }
}
