use futures::FutureExt as _;
use futures::StreamExt as _;
use serde_json::Value;

use super::*;
use crate::chat::{CallIds, Reply};
use crate::llm::asked::Asked;

/// Everything here is ready at once.
fn block_on<F: Future>(future: F) -> F::Output {
    future.now_or_never().unwrap()
}

fn request(prompt: &str) -> Asked {
    Asked::new("demo", &["bash"], vec![Message::user(prompt)])
}

struct Answer {
    text: String,
    command: Option<String>,
    blocks: Vec<Block>,
    deltas: Vec<LlmDelta>,
}

fn ask(request: &Asked) -> Answer {
    let stream = block_on(Demo.open(&request.request())).unwrap();
    let deltas: Vec<LlmDelta> = block_on(stream.map(Result::unwrap).collect());
    let mut reply = Answer {
        text: String::new(),
        command: None,
        blocks: Vec::new(),
        deltas: deltas.clone(),
    };
    for delta in deltas {
        match delta {
            LlmDelta::Text(piece) => reply.text.push_str(&piece),
            LlmDelta::Block(block) => {
                if let Block::Call(call) = &block {
                    let ToolArgs::Json(args) = &call.args else {
                        panic!("{call:?}")
                    };
                    reply.command = args
                        .get("command")
                        .and_then(Value::as_str)
                        .map(str::to_owned);
                }
                reply.blocks.push(block);
            }
            _ => {}
        }
    }
    reply
}

fn answer_with(request: &mut Asked, reply: &Answer, output: &str, is_error: bool) {
    let id = reply
        .blocks
        .iter()
        .find_map(|block| match block {
            Block::Call(call) => Some(call.id.clone()),
            _ => None,
        })
        .unwrap();
    request.messages.push(Message::Assistant(Reply {
        provider: DEF.name,
        blocks: reply.blocks.clone(),
    }));
    request.messages.push(Message::ToolResults {
        results: vec![ToolResult {
            id,
            name: "bash".to_owned(),
            content: vec![Part::Text(output.to_owned())],
            is_error,
        }],
        notice: None,
    });
}

#[test]
fn each_dollar_line_is_one_turn_and_the_end_is_a_summary() {
    let mut request = request(
        "<environment>\n$ echo not a prompt\n</environment>\nPlease:\n$ echo hi\n $ no\n$ false",
    );
    let first = ask(&request);
    assert!(first.text.starts_with(NO_LLM));
    assert_eq!(first.command.as_deref(), Some("echo hi"));
    assert_eq!(first.deltas.last(), Some(&LlmDelta::Stop(LlmStop::ToolUse)));
    answer_with(&mut request, &first, "hi", false);

    let second = ask(&request);
    assert_eq!(second.command.as_deref(), Some("false"));
    assert_ne!(second.blocks, first.blocks);
    answer_with(&mut request, &second, "[exit 1 · 0.1 s]", true);

    let last = ask(&request);
    assert_eq!(last.command, None);
    assert_eq!(
        last.text,
        "This is sandcaster's demo, not an LLM. 2 of the 2 lines of the prompt that start with `$ ` \
         ran.\n\n`$ echo hi`: exit 0\n```\nhi\n```\n\n`$ false`: exit 1"
    );
    assert_eq!(last.deltas.last(), Some(&LlmDelta::Stop(LlmStop::End)));
    assert!(last.deltas.contains(&LlmDelta::Usage(Usage::default())));
}

#[test]
fn a_command_that_was_refused_did_not_run() {
    let mut request = request("$ echo hi\n$ echo no");
    for (output, is_error) in [("hi", false), ("Not run: this call was made before.", true)] {
        let reply = ask(&request);
        answer_with(&mut request, &reply, output, is_error);
    }
    let last = ask(&request);
    assert!(last.text.contains("1 of the 2 lines"), "{}", last.text);
    assert!(last.text.contains("Not run: this call"), "{}", last.text);
}

#[test]
fn text_comes_in_several_deltas_that_add_up_to_its_block() {
    let reply = ask(&request("hello"));
    let pieces = reply
        .deltas
        .iter()
        .filter(|delta| matches!(delta, LlmDelta::Text(_)))
        .count();
    assert!(pieces > 3);
    assert_eq!(reply.blocks, [Block::text(reply.text.clone())]);
    assert!(reply.text.starts_with(NO_LLM) && reply.text.contains("no such line"));
}

#[test]
fn with_tools_off_it_says_which_lines_did_not_run() {
    let mut request = request("$ echo 1\n$ echo 2");
    let first = ask(&request);
    answer_with(&mut request, &first, "1", false);
    request.tool_choice = ToolChoice::None;
    let last = ask(&request);
    assert_eq!(last.command, None);
    assert!(last.text.contains("1 of the 2 lines"), "{}", last.text);
    assert!(last.text.ends_with("- `$ echo 2`"), "{}", last.text);
}

#[test]
fn without_bash_it_says_so_and_names_the_lines() {
    let mut request = request("$ echo 1");
    request.tools.clear();
    let reply = ask(&request);
    assert_eq!(reply.command, None);
    assert!(reply.text.starts_with(NO_LLM));
    assert!(reply.text.contains("`bash`") && reply.text.ends_with("- `$ echo 1`"));
}

#[test]
fn exit_codes_come_from_the_last_line_of_failed_calls_only() {
    for (output, is_error, end) in [
        ("[exit 3 · 0.1 s]", false, "exit 0"),
        ("x\n[exit 127 · now in /tmp]", true, "exit 127"),
        ("x\n[exit 1]\n", true, "exit 1"),
        ("[exit 9]\nmore", true, "failed"),
        ("[timed out after 120 s and was stopped.]", true, "failed"),
        ("", true, "failed"),
        ("", false, "exit 0"),
    ] {
        let result = ToolResult {
            id: CallIds::default().issue("1"),
            name: "bash".to_owned(),
            content: vec![Part::Text(output.to_owned())],
            is_error,
        };
        assert_eq!(outcome(&result).1, end, "{output}");
    }
}

#[test]
fn long_outputs_are_shortened_and_fences_hold() {
    let many = "line\n".repeat(500);
    assert_eq!(shortened(&many).lines().count(), SHOWN_LINES + 1);
    let wide = shortened(&"é".repeat(5000));
    assert!(wide.chars().count() < SHOWN_CHARS + 10 && wide.ends_with("[…]"));
    assert_eq!(fence_for("a\n````\nb"), "`````");
    assert_eq!(fence_for("a"), "```");
}

#[test]
fn a_conversation_without_a_prompt_is_refused() {
    let mut request = request("x");
    request.messages.clear();
    assert_eq!(
        answer(&request.request()).unwrap_err().kind,
        LlmErrorKind::BadRequest
    );
}
