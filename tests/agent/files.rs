//! Files in and out: what is uploaded is there, what is made comes back byte for byte.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use sandcaster::sandbox::files::sha256_hex;
use serde_json::{Value, json};

use super::{bash, check_log, end};
use crate::support::app::{TestApp, of_kind, warnings};
use crate::support::fake_llm::{FakeLlm, Reply};
use crate::support::processes::TAKE_ALL;

#[tokio::test]
async fn both_forms_of_files_are_uploaded_read_and_returned_when_changed() {
    let forms = [
        json!([
            {"name": "data/in.csv", "content": STANDARD.encode("a,b\n1,2\n")},
            {"name": "keep.txt", "content": STANDARD.encode("as it is")}
        ]),
        json!({"data/in.csv": "a,b\n1,2\n", "keep.txt": "as it is"}),
    ];
    for files in forms {
        let llm = FakeLlm::start([
            Reply::new().call("file_read", &json!({"path": "data/in.csv"})),
            Reply::new()
                .call(
                    "bash",
                    &bash("printf '\\000\\377\\001bin' > out.bin; echo 3,4 >> data/in.csv"),
                )
                .call(
                    "file_write",
                    &json!({"path": "notes.md", "content": "# Héllo\n"}),
                ),
            Reply::says("Done."),
        ])
        .await;
        let app = TestApp::with_llm(&llm).await;
        let events = app
            .run(json!({"prompt": "hi", "model": "sonnet", "files": files}))
            .await;
        check_log(&events);
        let read = &llm.request(1).await.tool_results()[0];
        assert!(read.text.contains("a,b") && !read.is_error, "{read:?}");

        let made = of_kind(&events, "file");
        let paths: Vec<_> = made
            .iter()
            .map(|file| file["path"].as_str().unwrap())
            .collect();
        assert_eq!(paths, ["notes.md", "out.bin", "data/in.csv"]);
        let contents: [&[u8]; 3] = [
            "# Héllo\n".as_bytes(),
            b"\x00\xff\x01bin",
            b"a,b\n1,2\n3,4\n",
        ];
        for (file, bytes) in made.iter().zip(contents) {
            let content = file["content"].as_str().unwrap();
            match file["encoding"].as_str().unwrap() {
                "base64" => assert_eq!(STANDARD.decode(content).unwrap(), bytes),
                "utf-8" => assert_eq!(content.as_bytes(), bytes),
                other => panic!("{other}"),
            }
            assert_eq!(file["size"], bytes.len());
            assert_eq!(file["sha256"], sha256_hex(bytes));
            let downloaded = app.get(file["url"].as_str().unwrap()).await;
            assert_eq!(downloaded.bytes().await.unwrap(), bytes);
        }
        assert_eq!(made[1]["encoding"], "base64");
        assert_eq!(made[2]["mimeType"], "text/csv");
        assert_eq!(end(&events)["type"], "result");
        app.stop().await;
    }
}

#[tokio::test]
async fn files_that_are_left_out_are_named_with_the_reason() {
    let llm = FakeLlm::start([
        Reply::new().call(
            "bash",
            &bash("head -c 27000000 /dev/zero > big.bin; ln -s /etc/passwd link; for n in 0 1 2 3 4 5 6 7 8 9 a b; do echo $n > f$n; done"),
        ),
        Reply::says("Done."),
    ])
    .await;
    let app = TestApp::with_llm(&llm).await;
    let events = app.run(json!({"prompt": "hi", "model": "sonnet"})).await;
    check_log(&events);
    assert_eq!(of_kind(&events, "file").len(), 10);
    assert_eq!(warnings(&events), ["FILE_OMITTED"]);
    let warning = of_kind(&events, "warning")[0];
    let named: Vec<&str> = warning["files"]
        .as_array()
        .unwrap()
        .iter()
        .map(|file: &Value| file["path"].as_str().unwrap())
        .collect();
    assert_eq!(named, ["big.bin", "fa", "fb", "link"]);
    app.stop().await;
}

#[tokio::test]
#[cfg_attr(not(program = "python3"), ignore = "needs python3")]
async fn programs_that_are_ended_so_that_files_can_be_returned_are_told() {
    let llm = FakeLlm::start([
        Reply::new()
            .call("bash", &bash("echo x > made.txt"))
            .call("bash", &bash(TAKE_ALL)),
        Reply::says("Done."),
    ])
    .await;
    let app = TestApp::with_llm(&llm).await;
    let events = app.run(json!({"prompt": "hi", "model": "sonnet"})).await;
    check_log(&events);
    assert_eq!(of_kind(&events, "file")[0]["path"], "made.txt");
    assert_eq!(warnings(&events), ["PROCESSES_ENDED"]);
    let warning = of_kind(&events, "warning")[0];
    assert!(warning["count"].as_u64().unwrap() > 100, "{warning}");
    app.stop().await;
}

#[tokio::test]
async fn files_of_a_run_that_failed_are_returned_too() {
    let llm = FakeLlm::start([
        Reply::new().call("bash", &bash("echo half > half.txt")),
        Reply::error(401, "authentication_error", "invalid x-api-key"),
    ])
    .await;
    let app = TestApp::with_llm(&llm).await;
    let events = app.run(json!({"prompt": "hi", "model": "sonnet"})).await;
    check_log(&events);
    assert_eq!(of_kind(&events, "file")[0]["path"], "half.txt");
    assert_eq!(end(&events)["code"], "LLM_AUTH");
    app.stop().await;
}
