//! Regular expressions as models write them (Rust and PCRE style), said again for `grep -E`.
//!
//! `grep -E` finds nothing for `\d` and `(?:…)`, silently; so the pattern is parsed and printed anew in
//! what GNU and `BusyBox` both know. What can't be said is refused, with the way out.

use std::fmt::Write as _;

use regex_syntax::ast::{
    self, AssertionKind, Ast, ClassAsciiKind, ClassPerl, ClassPerlKind, ClassSet, ClassSetItem,
    ClassUnicodeKind, ErrorKind, Flag, FlagsItemKind, GroupKind, RepetitionKind, RepetitionRange,
};

/// A pattern for `grep`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Pattern {
    /// What to give after `-e`.
    pub(super) text: String,
    /// Plain text, for `-F`; an extended regular expression otherwise.
    pub(super) fixed: bool,
    /// Begins with `(?i)`.
    pub(super) ignore_case: bool,
}

const WITH_BASH: &str = "use bash with grep -P, or python3";

/// Translates `pattern`.
///
/// # Errors
/// Why it can't be searched for, and the nearest thing that can.
pub(super) fn translate(pattern: &str) -> Result<Pattern, String> {
    if pattern.is_empty() {
        return Err("pattern is empty; give a text or a regular expression".to_owned());
    }
    if pattern.contains(['\n', '\0']) {
        return Err(format!(
            "pattern has a line end or NUL, but the search is by line; {WITH_BASH}"
        ));
    }
    if !pattern.chars().any(regex_syntax::is_meta_character) {
        return Ok(Pattern {
            text: pattern.to_owned(),
            fixed: true,
            ignore_case: false,
        });
    }
    let ast = ast::parse::Parser::new()
        .parse(pattern)
        .map_err(|error| refused(pattern, &error))?;
    let (ignore_case, ast) = leading_flag(&ast);
    let mut text = String::new();
    for ast in ast {
        print(ast, &mut text)?;
    }
    Ok(Pattern {
        text,
        fixed: false,
        ignore_case,
    })
}

fn refused(pattern: &str, error: &ast::Error) -> String {
    match error.kind() {
        ErrorKind::UnsupportedLookAround => {
            format!("look-ahead and look-behind are not supported; {WITH_BASH}")
        }
        ErrorKind::UnsupportedBackreference => {
            format!("back-references are not supported; {WITH_BASH}")
        }
        kind => format!(
            "pattern is no regular expression: {kind}, at character {}. To find the text itself: {}",
            error.span().start.column,
            regex_syntax::escape(pattern)
        ),
    }
}

/// Whether the pattern begins with `(?i)`, and what follows.
fn leading_flag(ast: &Ast) -> (bool, Vec<&Ast>) {
    match ast {
        Ast::Concat(concat) => match concat.asts.split_first() {
            Some((Ast::Flags(flags), rest)) if only_i(&flags.flags) => {
                (true, rest.iter().collect())
            }
            _ => (false, vec![ast]),
        },
        Ast::Flags(flags) if only_i(&flags.flags) => (true, Vec::new()),
        Ast::Group(group) => match &group.kind {
            GroupKind::NonCapturing(flags) if only_i(flags) => (true, vec![&group.ast]),
            _ => (false, vec![ast]),
        },
        _ => (false, vec![ast]),
    }
}

fn only_i(flags: &ast::Flags) -> bool {
    flags.flag_state(Flag::CaseInsensitive) == Some(true) && harmless_but_i(flags)
}

/// Flags that make no difference for one line, `i` left aside.
fn harmless_but_i(flags: &ast::Flags) -> bool {
    flags
        .items
        .iter()
        .all(|item| !matches!(item.kind, FlagsItemKind::Negation))
}

fn print(ast: &Ast, out: &mut String) -> Result<(), String> {
    match ast {
        Ast::Empty(_) => {}
        Ast::Flags(flags) => check_flags(&flags.flags)?,
        Ast::Literal(literal) => print_literal(literal.c, out)?,
        Ast::Dot(_) => out.push('.'),
        Ast::Assertion(assertion) => out.push_str(match assertion.kind {
            AssertionKind::StartLine | AssertionKind::StartText => "^",
            AssertionKind::EndLine | AssertionKind::EndText => "$",
            AssertionKind::WordBoundary => r"\b",
            AssertionKind::NotWordBoundary => r"\B",
            AssertionKind::WordBoundaryStart
            | AssertionKind::WordBoundaryStartAngle
            | AssertionKind::WordBoundaryStartHalf => r"\<",
            AssertionKind::WordBoundaryEnd
            | AssertionKind::WordBoundaryEndAngle
            | AssertionKind::WordBoundaryEndHalf => r"\>",
        }),
        Ast::ClassPerl(class) => {
            let mut set = Bracket {
                negated: class.negated,
                ..Bracket::default()
            };
            set.perl(&class.kind);
            set.print(out)?;
        }
        Ast::ClassUnicode(class) => {
            let mut set = Bracket {
                negated: class.is_negated(),
                ..Bracket::default()
            };
            set.classes.push(unicode(&class.kind)?);
            set.print(out)?;
        }
        Ast::ClassBracketed(class) => {
            let mut set = Bracket {
                negated: class.negated,
                ..Bracket::default()
            };
            set.add_set(&class.kind)?;
            set.print(out)?;
        }
        Ast::Repetition(repetition) => {
            // `a**` and `^*` mean other things in other dialects: a group makes them one.
            let single = matches!(
                *repetition.ast,
                Ast::Literal(_)
                    | Ast::Dot(_)
                    | Ast::Group(_)
                    | Ast::ClassPerl(_)
                    | Ast::ClassUnicode(_)
                    | Ast::ClassBracketed(_)
            );
            if single {
                print(&repetition.ast, out)?;
            } else {
                out.push('(');
                print(&repetition.ast, out)?;
                out.push(')');
            }
            match &repetition.op.kind {
                RepetitionKind::ZeroOrOne => out.push('?'),
                RepetitionKind::ZeroOrMore => out.push('*'),
                RepetitionKind::OneOrMore => out.push('+'),
                RepetitionKind::Range(range) => match range {
                    RepetitionRange::Exactly(n) => write!(out, "{{{n}}}").unwrap_or_default(),
                    RepetitionRange::AtLeast(n) => write!(out, "{{{n},}}").unwrap_or_default(),
                    RepetitionRange::Bounded(n, m) => {
                        write!(out, "{{{n},{m}}}").unwrap_or_default();
                    }
                },
            }
        }
        Ast::Group(group) => {
            if let GroupKind::NonCapturing(flags) = &group.kind {
                check_flags(flags)?;
            }
            out.push('(');
            print(&group.ast, out)?;
            out.push(')');
        }
        Ast::Alternation(alternation) => {
            for (at, branch) in alternation.asts.iter().enumerate() {
                if at > 0 {
                    out.push('|');
                }
                print(branch, out)?;
            }
        }
        Ast::Concat(concat) => {
            for part in &concat.asts {
                // An alternation binds weaker than the sequence around it, but the parser gives it a group.
                print(part, out)?;
            }
        }
    }
    Ok(())
}

fn check_flags(flags: &ast::Flags) -> Result<(), String> {
    if flags.flag_state(Flag::CaseInsensitive) == Some(true) {
        return Err(
            "(?i) is supported at the pattern's beginning only; or set ignore_case".to_owned(),
        );
    }
    Ok(())
}

fn print_literal(c: char, out: &mut String) -> Result<(), String> {
    match c {
        '\n' | '\0' => {
            return Err(format!(
                "the search is by line, so no line end or NUL can be found; {WITH_BASH}"
            ));
        }
        '.' | '[' | '(' | ')' | '{' | '*' | '+' | '?' | '^' | '$' | '|' | '\\' => {
            out.push('\\');
            out.push(c);
        }
        c => out.push(c),
    }
    Ok(())
}

fn unicode(kind: &ClassUnicodeKind) -> Result<&'static str, String> {
    let name = match kind {
        ClassUnicodeKind::OneLetter(letter) => letter.to_string(),
        ClassUnicodeKind::Named(name) => name.clone(),
        ClassUnicodeKind::NamedValue { value, .. } => value.clone(),
    };
    Ok(match name.to_lowercase().as_str() {
        "l" | "letter" | "alphabetic" | "alpha" => "alpha",
        "lu" | "uppercase" | "uppercase_letter" => "upper",
        "ll" | "lowercase" | "lowercase_letter" => "lower",
        "n" | "nd" | "number" | "digit" => "digit",
        "p" | "punctuation" => "punct",
        "z" | "zs" | "white_space" | "space" => "space",
        _ => return Err(format!("\\p{{{name}}} is not supported; {WITH_BASH}")),
    })
}

/// A bracket expression of POSIX, whose own rules for `]`, `^` and `-` differ from everybody's.
#[derive(Debug, Default)]
struct Bracket {
    negated: bool,
    chars: Vec<char>,
    ranges: Vec<(char, char)>,
    classes: Vec<&'static str>,
}

impl Bracket {
    fn perl(&mut self, kind: &ClassPerlKind) {
        match kind {
            ClassPerlKind::Digit => self.ranges.push(('0', '9')),
            ClassPerlKind::Space => self.classes.push("space"),
            ClassPerlKind::Word => {
                self.classes.push("alnum");
                self.chars.push('_');
            }
        }
    }

    fn add_set(&mut self, set: &ClassSet) -> Result<(), String> {
        match set {
            ClassSet::Item(item) => self.add(item),
            ClassSet::BinaryOp(_) => Err(format!(
                "operations on character classes (&&, --, ~~) are not supported; {WITH_BASH}"
            )),
        }
    }

    fn add(&mut self, item: &ClassSetItem) -> Result<(), String> {
        let inside = |what: &str| {
            Err(format!(
                "{what} within a character class is not supported; {WITH_BASH}"
            ))
        };
        match item {
            ClassSetItem::Empty(_) => {}
            ClassSetItem::Literal(literal) => self.chars.push(literal.c),
            ClassSetItem::Range(range) => self.range(range.start.c, range.end.c),
            ClassSetItem::Ascii(class) if class.negated => return inside("a negated class"),
            ClassSetItem::Ascii(class) => match class.kind {
                ClassAsciiKind::Word => self.perl(&ClassPerlKind::Word),
                ClassAsciiKind::Ascii => self.ranges.push(('\u{1}', '\u{7f}')),
                ClassAsciiKind::Alnum => self.classes.push("alnum"),
                ClassAsciiKind::Alpha => self.classes.push("alpha"),
                ClassAsciiKind::Blank => self.classes.push("blank"),
                ClassAsciiKind::Cntrl => self.classes.push("cntrl"),
                ClassAsciiKind::Digit => self.classes.push("digit"),
                ClassAsciiKind::Graph => self.classes.push("graph"),
                ClassAsciiKind::Lower => self.classes.push("lower"),
                ClassAsciiKind::Print => self.classes.push("print"),
                ClassAsciiKind::Punct => self.classes.push("punct"),
                ClassAsciiKind::Space => self.classes.push("space"),
                ClassAsciiKind::Upper => self.classes.push("upper"),
                ClassAsciiKind::Xdigit => self.classes.push("xdigit"),
            },
            ClassSetItem::Unicode(class) if class.is_negated() => return inside("a negated \\P"),
            ClassSetItem::Unicode(class) => self.classes.push(unicode(&class.kind)?),
            ClassSetItem::Perl(class) if class.negated => return self.negated_perl(class),
            ClassSetItem::Perl(class) => self.perl(&class.kind),
            ClassSetItem::Bracketed(class) if class.negated => {
                return inside("a negated class");
            }
            ClassSetItem::Bracketed(class) => self.add_set(&class.kind)?,
            ClassSetItem::Union(union) => {
                let both_ways = [
                    ClassPerlKind::Space,
                    ClassPerlKind::Digit,
                    ClassPerlKind::Word,
                ]
                .iter()
                .any(|kind| has_both(&union.items, kind));
                if both_ways && !self.negated {
                    // `[\s\S]`: any character.
                    self.ranges.push(('\u{1}', '\u{10ffff}'));
                    return Ok(());
                }
                for item in &union.items {
                    self.add(item)?;
                }
            }
        }
        Ok(())
    }

    /// `[^\S]` is `[[:space:]]`; other negations within a class can't be said.
    fn negated_perl(&mut self, class: &ClassPerl) -> Result<(), String> {
        let alone = self.chars.is_empty() && self.ranges.is_empty() && self.classes.is_empty();
        if !alone {
            return Err(format!(
                "\\D, \\S and \\W within a character class are not supported; {WITH_BASH}"
            ));
        }
        self.negated = !self.negated;
        self.perl(&class.kind);
        Ok(())
    }

    /// A range whose ends are not special in brackets; those are taken out of it.
    fn range(&mut self, mut from: char, mut to: char) {
        let special = |c: char| matches!(c, ']' | '[' | '-' | '^' | '\\');
        while special(from) && from < to {
            self.chars.push(from);
            from = char::from_u32(u32::from(from) + 1).unwrap_or(to);
        }
        while special(to) && from < to {
            self.chars.push(to);
            to = char::from_u32(u32::from(to) - 1).unwrap_or(from);
        }
        if from == to {
            self.chars.push(from);
        } else {
            self.ranges.push((from, to));
        }
    }

    fn print(mut self, out: &mut String) -> Result<(), String> {
        // `.` matches what no class of a locale may: the whole range of characters.
        if self.ranges.contains(&('\u{1}', '\u{10ffff}')) {
            out.push('.');
            return Ok(());
        }
        self.chars.retain(|c| *c != '\n');
        self.chars.sort_unstable();
        self.chars.dedup();
        let mut take = |special: char| {
            let at = self.chars.iter().position(|c| *c == special);
            at.map(|at| self.chars.remove(at))
        };
        let (close, open, caret, dash) = (take(']'), take('['), take('^'), take('-'));
        let mut body: String = close.into_iter().collect();
        for (from, to) in &self.ranges {
            body.extend([*from, '-', *to]);
        }
        for class in &self.classes {
            body.push_str("[:");
            body.push_str(class);
            body.push_str(":]");
        }
        body.extend(&self.chars);
        if body.is_empty() && caret.is_some() && open.is_none() && !self.negated {
            // A caret first would negate.
            out.push_str(if dash.is_some() { "[-^]" } else { r"\^" });
            return Ok(());
        }
        body.extend(open);
        body.extend(caret);
        body.extend(dash);
        if body.is_empty() {
            return Err("the pattern has an empty character class".to_owned());
        }
        out.push('[');
        if self.negated {
            out.push('^');
        }
        out.push_str(&body);
        out.push(']');
        Ok(())
    }
}

fn has_both(items: &[ClassSetItem], kind: &ClassPerlKind) -> bool {
    let has = |negated: bool| {
        items.iter().any(|item| {
            matches!(item, ClassSetItem::Perl(class) if class.kind == *kind && class.negated == negated)
        })
    };
    has(true) && has(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_are_said_again_in_ere() {
        for (pattern, ere) in [
            (r"\d+", "[0-9]+"),
            (r"(?:a|b)c", "(a|b)c"),
            (
                r"\w+\s*=\s*\S",
                "[[:alnum:]_]+[[:space:]]*=[[:space:]]*[^[:space:]]",
            ),
            (r"fn \w+\(", r"fn [[:alnum:]_]+\("),
            (r".*?x", ".*x"),
            (r"a{2,3}?", "a{2,3}"),
            (r"\bfoo\b", r"\bfoo\b"),
            (r"^use .*;$", "^use .*;$"),
            (r"(?P<name>x)", "(x)"),
            (r"[\w.-]+@", "[[:alnum:]._-]+@"),
            (r"[^\]]", "[^]]"),
            (r"[\]^-]x", "[]^-]x"),
            (r"[\^]", r"\^"),
            (r"[\^-]", "[-^]"),
            (r"[+-\-]", "[+-,-]"),
            (r"[\s\S]", "."),
            (r"[^\S]", "[[:space:]]"),
            (r"\$\{x\}", r"\$\{x}"),
            (r"\t", "\t"),
            (r"\x41.", "A."),
            (r"\p{Lu}\pL", "[[:upper:]][[:alpha:]]"),
            (r"a\.b", r"a\.b"),
            (r"(a*)*", "(a*)*"),
            (r"\Ax\z", "^x$"),
        ] {
            assert_eq!(
                translate(pattern).map(|p| p.text).as_deref(),
                Ok(ere),
                "{pattern}"
            );
        }
    }

    #[test]
    fn plain_text_is_searched_as_it_is() {
        let plain = translate("hello world").unwrap();
        assert!(plain.fixed && !plain.ignore_case);
        let folded = translate("(?i)hello").unwrap();
        assert_eq!((folded.text.as_str(), folded.ignore_case), ("hello", true));
        assert!(translate("(?i:a|b)").unwrap().ignore_case);
    }

    #[test]
    fn what_cannot_be_said_is_refused_with_a_way_out() {
        for (pattern, words) in [
            ("", "empty"),
            ("(?=x)", "bash"),
            ("(?<!x)y", "bash"),
            (r"(a)\1", "bash"),
            ("foo(", r"foo\("),
            ("a\nb", "line"),
            (r"a\nb", "line"),
            ("x(?i)y", "ignore_case"),
            ("[a&&b]", "bash"),
        ] {
            let why = translate(pattern).unwrap_err();
            assert!(why.contains(words), "{pattern}: {why}");
        }
    }

    proptest::proptest! {
        #[test]
        fn translating_never_panics(pattern in "[\\[\\]^a-c\\\\dsSwW(|)?*+{},0-9.:&-]{0,16}") {
            drop(translate(&pattern));
        }
    }
}
