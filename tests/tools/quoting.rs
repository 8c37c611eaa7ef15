use proptest::strategy::{Strategy as _, ValueTree as _};
use shlex::try_quote;

use super::in_every_shell;

in_every_shell! {
    async fn any_text_survives_quoting_and_the_shell(rig) {
        let mut runner = proptest::test_runner::TestRunner::deterministic();
        let any = "[^\\x00]{0,40}";
        let mut texts: Vec<String> = ["", "'", "''", "\\", "\n", "-n", "$HOME", "`id`", "a'\"b", "*", "~", "é😀", "\u{1e}", "%s", "! x"]
            .map(str::to_owned)
            .to_vec();
        for _ in 0..40 {
            texts.push(any.new_tree(&mut runner).unwrap().current());
        }
        // Each between marks, one command for all: the shell sees every quoted text as one word.
        let mut command = String::new();
        for text in &texts {
            command.push_str("printf '%s\\037' ");
            command.push_str(&try_quote(text).unwrap());
            command.push('\n');
        }
        command = format!("{{\n{command}}} > out.bin");
        let answer = rig.bash(&command).await;
        assert_eq!(answer.exit_code, Some(0), "{}", answer.text);
        let out = String::from_utf8(rig.get("out.bin")).unwrap();
        let mut expected = String::new();
        for text in &texts {
            expected.push_str(text);
            expected.push('\u{1f}');
        }
        assert_eq!(out, expected);
    }
}
