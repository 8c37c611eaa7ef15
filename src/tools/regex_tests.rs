use std::collections::hash_map::RandomState;
use std::hash::BuildHasher as _;
use std::io::{Seek as _, Write as _};
use std::process::{Command, Stdio};
use std::time::Duration;

use super::*;

fn said(pattern: &str) -> String {
    let pattern = translate(pattern, false).unwrap_or_else(|why| panic!("{pattern}: {why}"));
    pattern.text.escape_ascii().to_string()
}

#[test]
fn patterns_are_said_again_in_bytes() {
    for (pattern, ere) in [
        (r"[0-9]+", "[0-9]+"),
        (r"(?:a|bc)d", "(a|bc)d"),
        (r"fn [a-z]+\(", r"fn [a-z]+\\("),
        (r".*?x", ".*x"),
        (
            r"^.$",
            r"^[]\x01-\t\x0b-,.-Z\\_-\x7f\xc0-\xff[^-][\x80-\xbf]*\r?$",
        ),
        (r"a{2,3}?", "a{2,3}"),
        (r"(ab){2}", "(ab){2}"),
        (
            r"[^\]]",
            r"[\x01-\t\x0b-,.-Z\\_-\x7f\xc0-\xff[^-][\x80-\xbf]*",
        ),
        (r"[\]^-]x", "[]^-]x"),
        (r"[\^]", r"\\^"),
        (r"[\^-]", "[-^]"),
        (r"[\^\[]", "[[^]"),
        (r"[+-\-]", "[+,-]"),
        (r"\$\{x\}", r"\\$\\{x}"),
        (r"\t\.", r"\t\\."),
        (
            r"\s",
            r"([\t\x0b-\r ]|\xc2([\x85\xa0])|\xe1(\x9a(\x80))|\xe2(\x80([\x80-\x8a\xa8\xa9\xaf])|\x81(\x9f))|\xe3(\x80(\x80)))",
        ),
        ("[а-и]", r"(\xd0([\xb0-\xb8]))"),
        ("é", r"(\xc3\xa9|e\xcc\x81)"),
        ("[aé]", r"(a|\xc3(\xa9)|e\xcc\x81)"),
        (r"(|a)b", "(a)?b"),
        (r"\Ax\z", r"^x\r?$"),
        (r"(?i)ab", "[Aa][Bb]"),
        (r"foo\b-", "foo-"),
        (r"(?i:k)(?-u:\b)a", r"\xe2\x84\xaaa"),
    ] {
        assert_eq!(said(pattern), ere, "{pattern}");
    }
}

#[test]
fn plain_text_is_searched_as_it_is() {
    for (pattern, ignore_case, fixed) in [
        ("hello world", false, true),
        ("中文", false, true),
        ("hello", true, false),
        // An accent may be a character of its own.
        ("Müller", false, false),
        ("a.b", false, false),
    ] {
        assert_eq!(
            translate(pattern, ignore_case).unwrap().fixed,
            fixed,
            "{pattern}"
        );
    }
}

#[test]
fn what_cannot_be_said_is_refused_with_a_way_out() {
    let long = "a".repeat(LONGEST + 1);
    let wide = r"\w".repeat(100);
    for (pattern, words) in [
        ("", "empty"),
        ("(?=x)", "look-ahead"),
        ("(?<!x)y", "bash"),
        (r"(a)\1", "back-references"),
        ("foo(", r"foo\("),
        ("a\nb", "line"),
        (r"a\nb", "line"),
        (r"[\n]", "line"),
        (r"[\x00]", "line"),
        ("[a&&b]", "never matches"),
        (r"x\by", "never matches"),
        (r"(\bx)+", "boundaries"),
        (r"(^a|b){2}", "repetition"),
        (r"\p{Klingon}", "character 1"),
        (r"x(\w{9}a{900}){90}y", "counts"),
        ("xa{1,30000}y", "counts"),
        (&long, "4000"),
        (&wide, "too long"),
    ] {
        let why = translate(pattern, false).unwrap_err();
        assert!(why.contains(words), "{pattern}: {why}");
    }
}

/// Each of these copied a long pattern for each of its parts, or went as deep as it is long.
#[test]
fn what_word_boundaries_cost_is_bounded() {
    for pattern in [
        format!("{}{}", r"(\ba|b)".repeat(6), ".a".repeat(1_950)),
        format!(r"\b{}", "^".repeat(3_900)),
        format!("{}{}", "x?".repeat(1_900), r"\b"),
        format!(r"{}\b{}", "(".repeat(200), ")".repeat(200)),
    ] {
        let start = tokio::time::Instant::now();
        let translated = translate(&pattern, false);
        let took = start.elapsed();
        assert!(took.as_millis() < 5_000, "{took:?}: {pattern:.20}");
        if let Err(why) = translated {
            assert!(
                why.contains("boundaries") || why.contains("too long"),
                "{why}"
            );
        }
    }
    // What people write has room.
    let long = format!(r"\b\w+@\w+\.\w+\b{}", ".a".repeat(100));
    assert!(translate(&long, false).is_ok());
}

/// Spelt out, the classes of each took a grep of this kind more than a GiB, or seconds.
fn large_repetitions_are_searched_for_in_no_time(program: &[&str]) {
    let lines = [
        "mail joe.doe@mail.example.org now",
        "aaaaa123zz",
        "function übermäßig()",
        "x",
        "ax",
        "joe@",
        "x–––––y",
        "xääääy",
        "x12345y",
    ]
    .map(str::to_owned);
    for (pattern, expected, wide) in [
        (
            r"[\w.-]{1,64}@[\w-]{1,63}(\.[\w-]{1,63}){1,5}",
            &[1][..],
            true,
        ),
        (r"\w{1,200}x", &[1, 5], false),
        (r"\w{1,64}@", &[1, 6], false),
        (r"\w{5,60}\d{3}zz", &[2], false),
        (r"\bfunction \w{3,30}\b", &[3], true),
        (r"^x\d{1,100}y", &[7, 8, 9], true),
        (r"x\w{2,4}y", &[8], false),
        (r"^\w{64}", &[], true),
        (r"x.{1,600}y", &[7, 8, 9], false),
    ] {
        let translated = translate(pattern, false).unwrap_or_else(|why| panic!("{pattern}: {why}"));
        let start = tokio::time::Instant::now();
        let seen = found(program, &translated, &lines);
        let took = start.elapsed();
        assert_eq!(seen.as_deref(), Ok(expected), "{pattern}");
        assert_eq!(translated.wide, wide, "{pattern}");
        assert!(took.as_millis() < 5_000, "{took:?}: {pattern}");
    }
}

/// Each with as much memory as a search may have.
const BOUNDED: [&str; 4] = ["sh", "-c", "ulimit -v 524288; exec \"$@\"", "sh"];

#[test]
fn gnu_grep_is_never_given_more_than_it_can_hold() {
    large_repetitions_are_searched_for_in_no_time(&[&BOUNDED[..], &["grep"]].concat());
}

#[test]
#[cfg_attr(not(program = "busybox"), ignore = "needs busybox")]
fn busybox_grep_is_never_given_more_than_it_can_hold() {
    large_repetitions_are_searched_for_in_no_time(&[&BOUNDED[..], &["busybox", "grep"]].concat());
}

proptest::proptest! {
    #[test]
    fn translating_never_panics_and_gives_no_line_end_or_nul(pattern in "[\\[\\]^a-c\\\\dsSwWbB(|)?*+{},0-9.:&~$iuü-]{0,24}") {
        if let Ok(pattern) = translate(&pattern, false) {
            assert!(!pattern.text.contains(&0) && !pattern.text.contains(&b'\n'));
        }
    }
}

/// A generator of its own, so that a seed gives the same patterns for ever.
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 >> 11).unwrap() % n
    }

    fn of<'a>(&mut self, words: &[&'a str]) -> &'a str {
        words[self.below(words.len())]
    }

    fn line(&mut self) -> String {
        let length = self.below(9);
        (0..length).map(|_| self.of(CHARS)).collect()
    }

    fn pattern(&mut self, depth: usize) -> String {
        let mut out = String::new();
        for at in 0..=self.below(4) {
            if at > 0 && self.below(8) == 0 {
                out.push('|');
            }
            if self.below(12) == 0 {
                out.push_str(self.of(LOOKS));
                continue;
            }
            match self.below(if depth > 0 { 8 } else { 6 }) {
                0..=2 => out.push_str(&regex_syntax::escape(self.of(CHARS))),
                3..=5 => out.push_str(self.of(CLASSES)),
                _ => {
                    let inner = self.pattern(depth - 1);
                    out.push_str(self.of(&["(", "(?:", "(?i:", "(?-i:"]));
                    out.push_str(&inner);
                    out.push(')');
                }
            }
            if self.below(3) == 0 {
                out.push_str(self.of(REPETITIONS));
            }
        }
        out
    }
}

const CHARS: &[&str] = &[
    "a", "b", "A", "1", "_", " ", "-", ".", "/", "[", "]", "^", "$", "{", "\\", "\t", "\u{1}",
    "\u{7f}", "ü", "Ü", "é", "я", "Я", "中", "“", "–", "\u{a0}", "\u{2028}", "٣", "ſ", "K", "😀",
    "ß", "҉",
];
const CLASSES: &[&str] = &[
    ".",
    r"\d",
    r"\w",
    r"\s",
    r"\W",
    r"\D",
    r"\S",
    "[ab]",
    "[^a]",
    r"[\W_]",
    r"[^\W\d]",
    r"[^\W_]",
    r"[\S ]",
    "[а-я]",
    "[^ü]",
    "[a-bü]",
    "[^\\x00-\\x7f]",
    r"[^\n]",
    "[[:alpha:]]",
    "[^[:space:]]",
    r"\p{L}",
    r"\p{Lu}",
    r"\P{L}",
    r"[\w&&[^a]]",
    r"[\w--[a-b]]",
    "[ -/]",
    r"[\]\[^-]",
    "[一-龥]",
    r"\pN",
    r"[\s\S]",
    r"\x41",
    "[\\-^]",
    r"\p{Greek}",
    r"[+-\]]",
    r"\t",
    r"\u{fc}",
];
const LOOKS: &[&str] = &[
    "^",
    "$",
    r"\b",
    r"\b",
    r"\B",
    r"\A",
    r"\z",
    r"\b{start}",
    r"\b{end}",
    r"\b{start-half}",
    r"\b{end-half}",
    r"\<",
    r"\>",
    r"(?-u:\b)",
];
const REPETITIONS: &[&str] = &[
    "*", "+", "?", "*?", "+?", "{2}", "{1,3}", "{0,2}", "{2,}", "{0}", "{1,40}",
];

/// The numbers, from 1, of the lines that `grep` finds.
fn found(program: &[&str], pattern: &Pattern, lines: &[String]) -> Result<Vec<usize>, String> {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt as _;
    let mut child = Command::new(program[0])
        .args(&program[1..])
        .arg(if pattern.fixed { "-anF" } else { "-anE" })
        .arg("-e")
        .arg(OsStr::from_bytes(&pattern.text))
        .env_clear()
        .env("LC_ALL", "C")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| format!("{program:?}: {error}"))?;
    // Small enough for a pipe.
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all((lines.join("\n") + "\n").as_bytes()).ok();
    drop(stdin);
    let output = child.wait_with_output().unwrap();
    if output.status.code().is_none_or(|code| code > 1) {
        return Err(format!(
            "{:?}: {}",
            output.status,
            output.stderr.escape_ascii()
        ));
    }
    let numbers = output
        .stdout
        .split(|b| *b == b'\n')
        .filter(|line| !line.is_empty());
    Ok(numbers.map(number_before).collect())
}

fn number_before(line: &[u8]) -> usize {
    let line = String::from_utf8_lossy(line);
    line.split_once(':').unwrap().0.parse().unwrap()
}

/// A pattern, and what it must find among the lines of its batch.
struct Case {
    pattern: String,
    insensitive: bool,
    translated: Pattern,
    expected: Vec<usize>,
}

/// So many patterns are tried on the same lines, by one shell.
const BATCH: usize = 100;

/// What each of the patterns finds, as [`found`], by one shell for all.
fn found_by_all(
    program: &[&str],
    cases: &[Case],
    lines: &[String],
) -> Vec<Result<Vec<usize>, String>> {
    const EACH: &str = r#"
lines=$1
shift
while IFS= read -r kind && IFS= read -r pattern; do
"$@" "$kind" -e "$pattern" "$lines" 2>&1
echo "= $?"
done"#;
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), lines.join("\n") + "\n").unwrap();
    let mut input = tempfile::tempfile().unwrap();
    for case in cases {
        let kind = if case.translated.fixed {
            "-anF\n"
        } else {
            "-anE\n"
        };
        input.write_all(kind.as_bytes()).unwrap();
        input.write_all(&case.translated.text).unwrap();
        input.write_all(b"\n").unwrap();
    }
    input.rewind().unwrap();
    let output = Command::new("sh")
        .args(["-c", EACH, "sh"])
        .arg(file.path())
        .args(program)
        .env("LC_ALL", "C")
        .stdin(input)
        .output()
        .unwrap();
    let mut all = Vec::new();
    let mut said = Vec::new();
    for line in output.stdout.split(|b| *b == b'\n') {
        match line.strip_prefix(b"= ") {
            Some(b"0" | b"1") => {
                let numbers = std::mem::take(&mut said).into_iter();
                all.push(Ok(numbers.map(number_before).collect()));
            }
            Some(code) => {
                let said = std::mem::take(&mut said).concat();
                all.push(Err(format!(
                    "{}: {}",
                    code.escape_ascii(),
                    said.escape_ascii()
                )));
            }
            None => said.push(line),
        }
    }
    assert_eq!(all.len(), cases.len(), "{}", output.stderr.escape_ascii());
    all
}

/// Every pattern finds in each `grep` what it finds in the `regex` crate, or it is refused; and few are. They are others
/// each time, as many as `time` allows, but one batch at least: `SANDCASTER_SEED` repeats those of a failure.
fn agree_with_the_regex_crate(programs: &[&[&str]], most: usize, time: Duration) {
    #[expect(clippy::disallowed_methods, reason = "tests have no settings")]
    let given = std::env::var("SANDCASTER_SEED").ok();
    let seed = given.map_or_else(
        || RandomState::new().hash_one(0),
        |seed| seed.parse::<u64>().unwrap(),
    );
    let started = tokio::time::Instant::now();
    // Of zero nothing but zeros would come.
    let mut random = Random(seed | 1 << 63);
    let (mut refused, mut wrong, mut tried, mut made) = (0, Vec::new(), 0, 0);
    while made == 0 || made < most && started.elapsed() < time {
        let lines: Vec<String> = (0..100).map(|_| random.line()).collect();
        let mut cases = Vec::new();
        for _ in 0..BATCH {
            made += 1;
            let pattern = random.pattern(2);
            let ignore_case = random.below(5) == 0;
            let Ok(reference) = regex::RegexBuilder::new(&pattern)
                .case_insensitive(ignore_case)
                .build()
            else {
                continue;
            };
            tried += 1;
            let Ok(translated) = translate(&pattern, ignore_case) else {
                refused += 1;
                continue;
            };
            let numbered = (1..).zip(&lines);
            let expected = numbered.filter(|(_, line)| reference.is_match(line));
            cases.push(Case {
                expected: expected.map(|(n, _)| n).collect(),
                pattern,
                insensitive: ignore_case,
                translated,
            });
        }
        for program in programs {
            for (case, mut seen) in cases.iter().zip(found_by_all(program, &cases, &lines)) {
                let expected = &case.expected;
                if let (true, Ok(seen)) = (case.translated.wide, &mut seen) {
                    // More may be found, but no line of ASCII.
                    seen.retain(|n| expected.contains(n) || lines[n - 1].is_ascii());
                }
                if seen.as_ref() == Ok(expected) {
                    continue;
                }
                let line = seen.map(|seen| {
                    let odd = (1..=lines.len())
                        .find(|n| seen.contains(n) != expected.contains(n))
                        .unwrap();
                    (seen.contains(&odd), lines[odd - 1].clone())
                });
                wrong.push(format!(
                    "{program:?}, {:?} (ignore case: {}): found and line {line:?}, as {}",
                    case.pattern,
                    case.insensitive,
                    case.translated.text.escape_ascii()
                ));
            }
        }
    }
    assert!(
        wrong.is_empty(),
        "{} of {tried} are wrong; SANDCASTER_SEED={seed} repeats them:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
    assert!(
        tried * 2 > made && refused * 10 < tried,
        "{refused} of {tried} were refused (SANDCASTER_SEED={seed})"
    );
}

const GNU: &[&str] = &["grep"];
const BUSYBOX: &[&str] = &["busybox", "grep"];

#[test]
#[cfg_attr(not(program = "busybox"), ignore = "needs busybox")]
fn gnu_and_busybox_grep_find_what_the_regex_crate_finds() {
    agree_with_the_regex_crate(&[GNU, BUSYBOX], 4_000, Duration::from_secs(10));
}

#[test]
#[ignore = "takes minutes"]
fn gnu_and_busybox_grep_find_what_the_regex_crate_finds_for_minutes() {
    agree_with_the_regex_crate(&[GNU, BUSYBOX], usize::MAX, Duration::from_mins(3));
}
