//! `bash`: commands, their directory and what is told of their end.

use std::time::{Duration, Instant};

use serde_json::json;

use super::failing::Limited;
use super::in_every_shell;
use crate::support::host_sandbox::Shell;

#[expect(clippy::disallowed_methods, reason = "tests measure real time")]
fn now() -> Instant {
    Instant::now()
}

in_every_shell! {
    async fn output_and_exit_code_come_back(rig) {
        let answer = rig.bash("echo out; echo err >&2").await;
        assert_eq!(answer.text, "out\nerr\n");
        assert_eq!((answer.exit_code, answer.is_error), (Some(0), false));
        let answer = rig.bash("true").await;
        assert_eq!(answer.text, "(no output)");
        let answer = rig.bash("printf 'no line end'; exit 4").await;
        assert!(answer.text.starts_with("no line end\n[exit 4 · 0."), "{}", answer.text);
        assert!(answer.is_error);
    }

    async fn the_directory_carries_over_and_variables_do_not(rig) {
        rig.bash("mkdir -p 'sub dir/x'").await;
        let answer = rig.bash("cd 'sub dir'; export X=1; Y=2").await;
        let dir = format!("{}/sub dir", rig.home());
        assert_eq!(answer.cwd.as_deref(), Some(dir.as_str()));
        assert_eq!(answer.text, format!("[now in {dir}]"));
        let answer = rig.bash("pwd; echo \"[$X$Y$1$@]\"").await;
        assert_eq!(answer.text, format!("{dir}\n[]\n"));
        assert_eq!(answer.cwd, None);
        // In a subshell it is nobody's business.
        assert_eq!(rig.bash("(cd x)").await.cwd, None);
        assert_eq!(rig.context.session.cwd(), dir);
    }

    async fn the_directory_is_kept_after_a_failure_and_when_it_is_unknown(rig) {
        rig.bash("mkdir a b").await;
        let answer = rig.bash("cd a; exit 3").await;
        assert_eq!(answer.exit_code, Some(3));
        let dir = format!("{}/a", rig.home());
        assert_eq!(rig.context.session.cwd(), dir);
        let answer = rig.bash("cd ../b; kill -9 $$").await;
        assert_eq!(answer.exit_code, Some(137), "{}", answer.text);
        assert!(answer.text.contains("SIGKILL"), "{}", answer.text);
        assert!(answer.text.contains("is not known; the next one starts in"), "{}", answer.text);
        assert!(!answer.text.contains("Killed"), "{}", answer.text);
        assert_eq!(rig.bash("pwd").await.text, format!("{dir}\n"));
        let answer = rig.bash("cd ../b; exec true").await;
        assert!(answer.text.contains("is not known; the next one starts in"), "{}", answer.text);
        assert_eq!(rig.context.session.cwd(), dir);
        let answer = rig.bash("set -e; cd ../b; false; echo never").await;
        assert_eq!(answer.exit_code, Some(1));
        assert_eq!(rig.context.session.cwd(), format!("{}/b", rig.home()));
    }

    async fn a_directory_that_is_gone_falls_back_to_the_start(rig) {
        rig.bash("mkdir d; cd d").await;
        rig.bash("rmdir ../d").await;
        let answer = rig.bash("pwd").await;
        assert!(answer.text.starts_with(&rig.home()), "{}", answer.text);
        assert!(answer.text.contains("no longer exists"), "{}", answer.text);
        assert_eq!(answer.cwd.as_deref(), Some(rig.home().as_str()));
        assert_eq!(rig.bash("pwd").await.text, format!("{}\n", rig.home()));
    }

    async fn nothing_waits_for_a_keyboard(rig) {
        assert_eq!(rig.bash("cat").await.text, "(no output)");
        assert_eq!(rig.bash("read x").await.exit_code, Some(1));
    }

    async fn scripts_of_every_form_work(rig) {
        let answer = rig.bash("cat <<'EOF'\na $x `b`\nEOF\nf() { echo in f; }\nf\necho \"it's\"").await;
        assert_eq!(answer.text, "a $x `b`\nin f\nit's\n");
        let answer = rig.bash("if true; then").await;
        assert_ne!(answer.exit_code, Some(0));
        assert!(!answer.text.is_empty());
        let answer = rig.bash("nosuchprogram --x").await;
        assert_eq!(answer.exit_code, Some(127));
        assert!(answer.text.contains("not found\n[exit 127 · "), "{}", answer.text);
        assert!(answer.text.contains("python3"), "{}", answer.text);
    }

    async fn a_command_of_150_kb_runs_through_a_file(rig) {
        let command = format!("x='{}'; echo ${{#x}}; exit 6", "y".repeat(150_000));
        let answer = rig.bash(&command).await;
        assert!(answer.text.starts_with("150000\n"), "{}", answer.text);
        assert_eq!(answer.exit_code, Some(6));
    }

    async fn unusable_commands_are_complained_about(rig) {
        for (command, word) in [("  ", "empty"), ("[{\"cmd\": \"ls\"}]", "literal"), ("a\u{0}b", "NUL")] {
            let why = rig.complaint("bash", json!({ "command": command })).await;
            assert!(why.contains(word), "{why}");
        }
        let why = rig.complaint("bash", json!({"command": "ls", "timeout_seconds": 0})).await;
        assert!(why.contains("between 1 and 600"), "{why}");
    }

    async fn the_environment_is_quiet_and_the_facts_are_told_once(rig) {
        let answer = rig.bash("echo $PAGER $TERM $CI $LANG").await;
        assert_eq!(answer.text, "cat dumb 1 C.UTF-8\n");
        let notice = rig.context.session.take_notice().unwrap();
        let shell = if rig.shell == Shell::Bash { "shell bash" } else { "shell sh" };
        assert!(notice.contains(shell) && notice.contains(&rig.home()), "{notice}");
        assert!(notice.contains("uid "), "{notice}");
        assert_eq!(rig.context.session.take_notice(), None);
    }

    async fn the_wrapper_does_not_show_through(rig) {
        // The command's own line numbers, where the shell tells any.
        let answer = rig.bash("echo one\necho two\nnosuchprogram").await;
        let line = if rig.shell == Shell::Dash { " 3: " } else { "line 3: " };
        assert!(answer.text.contains(line), "{}", answer.text);
        // No arguments, options or variables of ours.
        let answer = rig.bash("echo \"$#|$*|$-\"; env | grep -c -e sandcaster -e sc_; echo ${OLDPWD-none}").await;
        let options = if rig.shell == Shell::Bash { "0||hBc" } else { "0||" };
        assert!(answer.text.starts_with(options) && answer.text.contains("\n0\nnone\n"), "{}", answer.text);
        // Nothing of ours is traced, and what the command sets doesn't disturb the end.
        for (command, code) in [
            ("set -x; cd /usr", 0),
            ("set -v; cd /usr", 0),
            ("set -eu; cd /usr", 0),
            ("set -C; cd /usr", 0),
            ("cd /usr; exit 3", 3),
            ("cd /usr; false", 1),
            ("set -e; cd /usr; false; cd /", 1),
            ("set -u; cd /usr; echo $nope; cd /", 127),
            ("exec 1>&- 2>&-; cd /usr", 0),
            ("pwd() { echo mine; }; cd() { command cd \"$@\"; }; cd /usr", 0),
            ("cd /usr # no line end", 0),
            ("cat <<END; cd /usr\nhere\nEND", 0),
            ("trap 'echo bye' EXIT; cd /usr", 0),
        ] {
            rig.bash(&format!("cd {}", rig.home())).await;
            let answer = rig.bash(command).await;
            let code = if command.starts_with("set -u;") && rig.shell != Shell::Bash { 2 } else { code };
            assert_eq!(answer.exit_code, Some(code), "{command}: {}", answer.text);
            assert_eq!(answer.cwd.as_deref(), Some("/usr"), "{command}: {}", answer.text);
            for ours in ["sandcaster", "sc_", "pwd -P"] {
                assert!(!answer.text.contains(ours), "{command}: {}", answer.text);
            }
        }
    }

    async fn scripts_that_do_not_end_are_told_in_their_own_words(rig) {
        for (command, code) in [("echo a\nif true; then", 2), ("echo a; echo \"b", 2), ("fi", 2), ("echo a; exit 9; (", 9)] {
            let answer = rig.bash(command).await;
            if command.ends_with('(') && rig.shell == Shell::Bash {
                // bash reads the whole line first.
                assert_eq!(answer.exit_code, Some(2));
            } else if !command.ends_with('(') {
                assert_eq!(answer.exit_code, Some(code), "{command}: {}", answer.text);
            }
            assert!(!answer.text.contains("sandcaster"), "{command}: {}", answer.text);
        }
        let answer = rig.bash("cat <<END\nno end").await;
        assert!(answer.text.contains("no end") && answer.exit_code == Some(0), "{}", answer.text);
    }

    async fn a_lost_directory_is_told(rig) {
        rig.bash("mkdir d").await;
        for command in [
            "trap 'echo bye' EXIT; cd d; exit 3",
            "cd d; exec true",
        ] {
            let answer = rig.bash(command).await;
            let told = format!("not known; the next one starts in {}", rig.home());
            assert!(answer.text.contains(&told), "{command}: {}", answer.text);
            assert_eq!(rig.bash("pwd").await.text, format!("{}\n", rig.home()));
        }
    }

    async fn a_directory_that_cannot_be_entered_has_not_gone(rig) {
        let mut rig = rig;
        // Root may enter all.
        Limited::of(&mut rig).await;
        rig.bash("mkdir d; cd d; chmod 0 ../d").await;
        let answer = rig.bash("pwd").await;
        assert!(answer.text.contains("d can't be entered; ran in"), "{}", answer.text);
        rig.bash("chmod 700 d").await;
    }

    async fn reasons_are_given_only_where_they_are_so(rig) {
        rig.put("bad.sh", "#!/no/such/interpreter\n");
        rig.bash("chmod 755 bad.sh; mkdir dir").await;
        for (command, code) in [
            ("set -u; echo $nope", None),
            ("exit 127", Some(127)),
            ("exit 126", Some(126)),
            ("exit 137", Some(137)),
            ("./bad.sh", None),
            ("./dir", Some(126)),
        ] {
            let answer = rig.bash(command).await;
            let (_, ours) = answer.text.rsplit_once('[').unwrap();
            for reason in ["command not found", "found", "perhaps", "killed"] {
                assert!(!ours.contains(reason), "{command}: {}", answer.text);
            }
            if let Some(code) = code {
                assert_eq!(answer.exit_code, Some(code), "{command}");
            }
        }
        let answer = rig.bash("set -u; echo $nope").await;
        assert!(!answer.text.contains("Installed"), "{}", answer.text);
    }

    async fn equal_outcomes_have_equal_fingerprints(rig) {
        let many = "i=0; while [ $i -lt 9000 ]; do echo line $i; i=$((i+1)); done";
        for command in ["echo a; sleep 0.3; exit 3", "false", many, "nosuchprogram"] {
            let first = rig.bash(command).await;
            let second = rig.bash(command).await;
            assert_eq!(first.fingerprint(), second.fingerprint(), "{command}");
        }
        let background = json!({"command": "echo up; sleep 613", "background": true});
        let first = rig.answer("bash", background.clone()).await;
        let second = rig.answer("bash", background).await;
        assert_ne!(first.text, second.text);
        assert_eq!(first.fingerprint(), second.fingerprint());
        let a = rig.bash("echo a; exit 1").await.fingerprint();
        assert_ne!(a, rig.bash("echo a; exit 2").await.fingerprint());
        assert_ne!(a, rig.bash("echo b; exit 1").await.fingerprint());
        rig.bash("mkdir -p one/two").await;
        let (one, two) = (rig.bash("cd one").await, rig.bash("cd two").await);
        assert_ne!(one.fingerprint(), two.fingerprint());
    }
}

#[tokio::test]
#[cfg_attr(not(program = "bash"), ignore = "needs bash")]
async fn the_path_of_a_login_shell_is_used() {
    let rig = super::Rig::new(Shell::Bash);
    rig.put(
        ".bash_profile",
        "echo noise; export PATH=/opt/conda/bin:$PATH\n",
    );
    let answer = rig.bash("echo $PATH").await;
    assert!(
        answer.text.starts_with("/opt/conda/bin:"),
        "{}",
        answer.text
    );
}

#[tokio::test]
#[cfg_attr(not(program = "bash"), ignore = "needs bash")]
async fn a_profile_that_hangs_costs_two_seconds_and_no_facts() {
    let rig = super::Rig::new(Shell::Bash);
    rig.put(".bash_profile", "sleep 100\n");
    let started = now();
    let facts = rig.context.session.probe(rig.sandbox.as_ref()).await;
    assert!(started.elapsed() < Duration::from_secs(20));
    assert_eq!(facts.shell, "bash");
    let own = facts.path.as_deref().unwrap();
    assert!(facts.uid.is_some() && own.contains("/usr/bin"), "{own}");
}
