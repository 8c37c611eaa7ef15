//! The file `.env`: what it gives, and what of it is refused.

use sandcaster::config::{Config, Overrides, Source};

use super::load_in;

fn dotenv(text: impl AsRef<[u8]>, variables: &[(&str, &str)]) -> Result<Config, String> {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join(".env"), text).unwrap();
    load_in(dir.path(), &Overrides::default(), variables)
}

#[test]
fn dotenv_stands_below_the_environment_and_differences_are_told() {
    let text =
        "# keys\nANTHROPIC_API_KEY=\"sk-from-file\"\nexport SANDCASTER_MAX_TURNS=8\nOTHER=x\n";
    let config = dotenv(text, &[]).unwrap();
    assert_eq!(config.keys["ANTHROPIC_API_KEY"].expose(), "sk-from-file");
    assert_eq!(config.key_sources["ANTHROPIC_API_KEY"], Source::DotEnv);
    assert_eq!(config.project.max_turns, 8);

    let other = [("ANTHROPIC_API_KEY", "sk-ant-from-the-environment")];
    let config = dotenv(text, &other).unwrap();
    assert_eq!(
        config.keys["ANTHROPIC_API_KEY"].expose(),
        "sk-ant-from-the-environment"
    );
    assert_eq!(config.key_sources["ANTHROPIC_API_KEY"], Source::Environment);
    assert_eq!(config.warnings.len(), 1, "{:?}", config.warnings);
    assert!(
        config.warnings[0]
            .starts_with("ANTHROPIC_API_KEY is set in the environment and differently")
    );
    assert!(!config.warnings[0].contains("sk-from"));
}

#[test]
fn a_broken_dotenv_never_loses_a_key_in_silence() {
    let config = dotenv("GREETING=two words\nSANDCASTER_MAX_TURNS=8\n", &[]).unwrap();
    assert_eq!(config.project.max_turns, 8);
    assert!(
        config.warnings[0].contains("line 1"),
        "{:?}",
        config.warnings
    );
    let error = dotenv("A=1\nSANDCASTER_API_KEY=hunter2 hunter2\n", &[]).unwrap_err();
    assert!(
        error.contains("line 2") && error.contains("SANDCASTER_API_KEY"),
        "{error}"
    );
    assert!(!error.contains("hunter2"), "{error}");
    let error = dotenv(b"A=\xff\n", &[]).unwrap_err();
    assert!(error.contains("UTF-8"), "{error}");
}

#[test]
fn a_dotenv_that_is_no_settings_file_is_refused_by_its_size() {
    dotenv("\n".repeat(1 << 20), &[]).unwrap();
    let error = dotenv("\n".repeat((1 << 20) + 1), &[]).unwrap_err();
    assert_eq!(error, ".env has more than 1048576 bytes");
}

#[test]
fn a_line_of_dotenv_is_about_the_name_before_its_sign() {
    for (text, error) in [
        ("SUPPORT_NAME=Jane Doe\n", ""),
        ("MY-PORT=a b\n", ""),
        ("GREETING=the PORT is 1\n", ""),
        ("# PORT=1\n", ""),
        ("URL=h;PORT=1\n", ""),
        ("LOG=1 PORT=1\n", ".env, line 1: PORT can't"),
        ("# a\rPORT=1\r", ".env, line 1: PORT can't"),
        (
            "\nLOG=1;SANDCASTER_API_KEY=k\n",
            ".env, line 2: SANDCASTER_API_KEY can't",
        ),
        ("SUPPORT_NAME\n", ""),
        ("A=1\nA=2\n", ""),
        ("PORT=a b\n", ".env, line 1: PORT can't"),
        ("A=1\n export PORT = a b\n", ".env, line 2: PORT can't"),
        ("set PORT=1\n", ".env, line 1: PORT can't"),
        ("PORT: 1\n", ".env, line 1: PORT can't"),
        ("PORT=1\nA=1\nPORT=2\n", ".env, line 3: PORT is set twice"),
        ("PORT=1\nexport PORT=1\n", ".env, line 2: PORT is set twice"),
        (
            "A=\"x\nPORT=1\nB=y\"\n",
            ".env, line 1: PORT can't be read: a quote",
        ),
    ] {
        let told = dotenv(text, &[]).err().unwrap_or_default();
        assert!(
            told.starts_with(error) && told.is_empty() == error.is_empty(),
            "{text}: {told}"
        );
    }
}

#[test]
fn a_value_of_dotenv_is_taken_as_it_is_written() {
    let text = "\u{feff}SANDCASTER_API_KEY=abcdefgh$ijklmnop1234\nANTHROPIC_API_KEY=\"sk-$HOME-0123456789\"\n";
    let config = dotenv(text, &[("HOME", "/x")]).unwrap();
    assert_eq!(config.server.api_keys[0].expose(), "abcdefgh$ijklmnop1234");
    assert_eq!(
        config.keys["ANTHROPIC_API_KEY"].expose(),
        "sk-$HOME-0123456789"
    );
}

#[test]
fn a_dotenv_of_any_text_is_told_in_a_few_lines() {
    let dir = tempfile::tempdir().unwrap();
    let write = |text: &str| std::fs::write(dir.path().join(".env"), text).unwrap();
    let load = || load_in(dir.path(), &Overrides::default(), &[]);
    write(&"x\n".repeat(1 << 19));
    let config = load().unwrap();
    assert_eq!(config.warnings.len(), 20);
    let last = &config.warnings[19];
    assert!(last.contains("and 524268 more"), "{last}");
    write(&"SANDCASTER_MAX_TURNS=8\n".repeat(1000));
    let error = load().unwrap_err();
    assert_eq!(error.lines().count(), 20, "{error}");
    assert!(error.contains("and 979 more"), "{error}");
}

#[cfg(unix)]
#[test]
fn settings_that_are_a_pipe_do_not_hang_the_start_and_a_device_is_read_in_part() {
    let dir = tempfile::tempdir().unwrap();
    let load = || load_in(dir.path(), &Overrides::default(), &[]);
    for name in [".env", "sandcaster.json"] {
        let path = dir.path().join(name);
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let error = load().unwrap_err();
        assert!(
            error.starts_with(&format!("{name} can't be read: it is a pipe")),
            "{error}"
        );
        std::fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink("/dev/zero", &path).unwrap();
        let error = load().unwrap_err();
        assert_eq!(error, format!("{name} has more than 1048576 bytes"));
        std::fs::remove_file(&path).unwrap();
    }
}
