use bytes::BytesMut;

use super::super::protocol::put;
use super::*;

/// Feeds `frames` to a link as an agent would send them, and gives how the link ended.
async fn hear(link: &Link, frames: &[(Kind, u32, &[u8])]) -> SandboxError {
    let mut wire = BytesMut::new();
    for (kind, id, payload) in frames {
        put(&mut wire, *kind, *id, payload);
    }
    let (ours, mut theirs) = tokio::net::UnixStream::pair().unwrap();
    theirs.write_all(&wire).await.unwrap();
    drop(theirs);
    let (read, _write) = ours.into_split();
    link.receive(read, Decoder::default()).await
}

fn broke(fate: &SandboxError) -> bool {
    matches!(fate, SandboxError::Gone(why) if why.contains("broke the protocol"))
}

#[tokio::test]
async fn frames_that_fit_no_operation_end_the_link() {
    for frames in [
        &[(Kind::Stdout, 1, b"x".as_slice())],
        &[(Kind::Exec, 0, b"{}")],
        &[(Kind::Hello, 0, b"{}")],
        &[(Kind::Exit, 9, &[0, 0, 0, 0])],
    ] {
        let (link, _queue) = Link::new();
        let fate = hear(&link, frames).await;
        assert!(broke(&fate), "{frames:?}: {fate}");
    }
}

#[tokio::test]
async fn an_agent_can_not_send_more_output_than_was_paid_for() {
    let (link, _queue) = Link::new();
    let (id, _events) = link.open_exec().await.unwrap();
    let chunk = [7_u8; 100];
    let frames = vec![(Kind::Stdout, id, chunk.as_slice()); EVENTS + 1];
    let fate = hear(&link, &frames).await;
    assert!(broke(&fate), "{fate}");
}

#[tokio::test]
async fn an_agent_can_not_send_more_of_a_file_than_was_asked_for() {
    let (link, _queue) = Link::new();
    let (id, _content) = link.open_read(10).await.unwrap();
    let fate = hear(
        &link,
        &[(Kind::Data, id, b"12345"), (Kind::Data, id, b"678901")],
    )
    .await;
    assert!(broke(&fate), "{fate}");
}

#[tokio::test]
async fn an_operation_takes_only_frames_of_its_own_kind() {
    let (link, _queue) = Link::new();
    let (id, _done) = link.open_write().await.unwrap();
    assert!(broke(&hear(&link, &[(Kind::Data, id, b"x")]).await));
    let (id, _events) = link.open_exec().await.unwrap();
    assert!(broke(&hear(&link, &[(Kind::DataEnd, id, b"")]).await));
    let (id, _events) = link.open_exec().await.unwrap();
    assert!(broke(&hear(&link, &[(Kind::Exit, id, b"?")]).await));
}

#[tokio::test]
async fn a_closed_link_fails_what_is_open_and_what_comes_later() {
    let (link, queue) = Link::new();
    let (_, mut events) = link.open_exec().await.unwrap();
    link.doom(SandboxError::OutOfMemory("all".to_owned()));
    link.doom(SandboxError::Gone("later".to_owned()));
    link.close();
    drop(queue);
    assert!(events.recv().await.is_none());
    let all = SandboxError::OutOfMemory("all".to_owned());
    assert_eq!(link.open_write().await.unwrap_err(), all);
    assert_eq!(link.gone().await, all);
}

#[tokio::test]
async fn operations_beyond_the_most_wait_for_a_place() {
    let (link, _queue) = Link::new();
    let mut open = Vec::new();
    for _ in 0..MAX_OPEN {
        open.push(link.open_exec().await.unwrap());
    }
    let (first, _) = open[0];
    let mut next = Box::pin(link.open_exec());
    assert!(futures::poll!(&mut next).is_pending());
    let ended = hear(&link, &[(Kind::Exit, first, &[0, 0, 0, 0])]).await;
    assert!(!broke(&ended), "{ended}");
    next.await.unwrap();
}
