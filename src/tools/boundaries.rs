//! Word boundaries said in other words: `\b` and its kin look at what stands beside them, and to a grep in the C
//! locale a letter beyond ASCII is no part of a word.
//!
//! A search asks only whether a line matches, so a boundary can be said by what its two sides are: the text
//! before it ends with a character of a word and the text after it begins with another, or the other way
//! round. At the edges of the pattern the character beyond is taken into the match.

use regex_syntax::hir::{
    Class, ClassBytes, ClassBytesRange, ClassUnicode, ClassUnicodeRange, Hir, HirKind, Look,
    Repetition,
};

/// Ways through a pattern that are told apart.
const MOST_WAYS: usize = 64;
/// Parts of patterns that are looked at or copied, a large class being several: some 10 ms.
const MOST_PARTS: usize = 256 * 1024;

type Way = Vec<Hir>;

/// `hir` without word boundaries.
///
/// # Errors
/// When there are too many of them, or when it can never match.
pub(super) fn resolved(hir: &Hir) -> Result<Hir, String> {
    if !has_boundary(hir) {
        return Ok(hir.clone());
    }
    let mut budget = Budget(MOST_PARTS);
    let mut open = ways(hir, &mut budget)?;
    let mut done = Vec::new();
    let mut steps = 0;
    while let Some(way) = open.pop() {
        budget.spend(&way)?;
        steps += 1;
        if steps > MOST_WAYS * 4 || open.len() + done.len() > MOST_WAYS {
            return Err(too_many());
        }
        let boundary = way
            .iter()
            .enumerate()
            .find_map(|(at, part)| match part.kind() {
                HirKind::Look(look) if is_boundary(*look) => Some((at, *look)),
                _ => None,
            });
        let Some((at, look)) = boundary else {
            done.push(Hir::concat(way));
            continue;
        };
        let (before, after) = way.split_at(at);
        let after = after.get(1..).unwrap_or_default();
        let word = words(look);
        for (left, right) in sides(look) {
            let lefts = Edge::new(Side::Last, *left, &word, look).of(before, &mut budget)?;
            let rights = Edge::new(Side::First, *right, &word, look).of(after, &mut budget)?;
            for left in &lefts {
                for right in &rights {
                    budget.spend(left)?;
                    budget.spend(right)?;
                    open.push([left.as_slice(), right].concat());
                }
            }
        }
    }
    if done.is_empty() {
        return Err(
            "pattern asks for a word boundary where none can be, so it never matches".to_owned(),
        );
    }
    Ok(Hir::alternation(done))
}

/// What taking a pattern apart may still cost.
struct Budget(usize);

impl Budget {
    fn spend(&mut self, parts: &[Hir]) -> Result<(), String> {
        let cost = parts.iter().map(weight).sum::<usize>() + 1;
        self.0 = self.0.checked_sub(cost).ok_or_else(too_many)?;
        Ok(())
    }
}

/// What it costs to copy `hir`. As deep as patterns may be nested.
fn weight(hir: &Hir) -> usize {
    let inner = match hir.kind() {
        HirKind::Empty | HirKind::Look(_) => 0,
        HirKind::Literal(literal) => literal.0.len() / 8,
        HirKind::Class(Class::Unicode(class)) => class.ranges().len() / 8,
        HirKind::Class(Class::Bytes(class)) => class.ranges().len() / 8,
        HirKind::Repetition(repetition) => weight(&repetition.sub),
        HirKind::Capture(capture) => weight(&capture.sub),
        HirKind::Concat(parts) | HirKind::Alternation(parts) => parts.iter().map(weight).sum(),
    };
    inner + 1
}

pub(super) fn too_many() -> String {
    "pattern has too many word boundaries, or one inside a repetition; leave some out, or use bash with grep -P"
        .to_owned()
}

fn has_boundary(hir: &Hir) -> bool {
    hir.properties().look_set().contains_word()
}

fn is_boundary(look: Look) -> bool {
    regex_syntax::hir::LookSet::singleton(look).contains_word()
}

/// The characters of words, as `look` knows them.
fn words(look: Look) -> ClassUnicode {
    let pattern = if regex_syntax::hir::LookSet::singleton(look).contains_word_ascii() {
        r"(?-u:\w)"
    } else {
        r"\w"
    };
    match regex_syntax::parse(pattern).map(Hir::into_kind) {
        Ok(HirKind::Class(Class::Unicode(class))) => class,
        Ok(HirKind::Class(Class::Bytes(class))) => {
            class.to_unicode_class().unwrap_or_else(ClassUnicode::empty)
        }
        _ => ClassUnicode::empty(),
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Want {
    /// A character of a word.
    Word,
    /// Another, or the end of the line.
    Other,
    Any,
}

/// What may stand before and after `look`.
fn sides(look: Look) -> &'static [(Want, Want)] {
    use Want::{Any, Other, Word};
    match look {
        Look::WordAscii | Look::WordUnicode => &[(Other, Word), (Word, Other)],
        Look::WordAsciiNegate | Look::WordUnicodeNegate => &[(Word, Word), (Other, Other)],
        Look::WordStartAscii | Look::WordStartUnicode => &[(Other, Word)],
        Look::WordEndAscii | Look::WordEndUnicode => &[(Word, Other)],
        Look::WordStartHalfAscii | Look::WordStartHalfUnicode => &[(Other, Any)],
        Look::WordEndHalfAscii | Look::WordEndHalfUnicode => &[(Any, Other)],
        Look::Start | Look::End | Look::StartLF | Look::EndLF | Look::StartCRLF | Look::EndCRLF => {
            &[(Any, Any)]
        }
    }
}

/// The ways through `hir` in which all boundaries are parts of their own.
fn ways(hir: &Hir, budget: &mut Budget) -> Result<Vec<Way>, String> {
    if !has_boundary(hir) {
        budget.spend(std::slice::from_ref(hir))?;
        return Ok(vec![vec![hir.clone()]]);
    }
    let mut found: Vec<Way> = Vec::new();
    match hir.kind() {
        HirKind::Capture(capture) => found = ways(&capture.sub, budget)?,
        HirKind::Alternation(branches) => {
            for branch in branches {
                found.extend(ways(branch, budget)?);
            }
        }
        HirKind::Concat(parts) => {
            found.push(Vec::new());
            for part in parts {
                let next = ways(part, budget)?;
                if found.len() * next.len() > MOST_WAYS {
                    return Err(too_many());
                }
                if let [only] = next.as_slice() {
                    for way in &mut found {
                        budget.spend(only)?;
                        way.extend_from_slice(only);
                    }
                    continue;
                }
                let mut longer = Vec::new();
                for way in &found {
                    for part in &next {
                        budget.spend(way)?;
                        budget.spend(part)?;
                        longer.push([way.as_slice(), part].concat());
                    }
                }
                found = longer;
            }
        }
        HirKind::Repetition(repetition) if repetition.min == 0 && repetition.max == Some(1) => {
            found = ways(&repetition.sub, budget)?;
            found.push(Vec::new());
        }
        HirKind::Repetition(_) => return Err(too_many()),
        HirKind::Look(_) | HirKind::Empty | HirKind::Literal(_) | HirKind::Class(_) => {
            found.push(vec![hir.clone()]);
        }
    }
    if found.len() > MOST_WAYS {
        return Err(too_many());
    }
    Ok(found)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    /// The first character of what follows.
    First,
    /// The last of what goes before.
    Last,
}

/// One side of a boundary.
struct Edge {
    side: Side,
    want: Want,
    allowed: ClassUnicode,
    /// Only what is a character counts as another than of a word.
    strict: bool,
}

impl Edge {
    fn new(side: Side, want: Want, word: &ClassUnicode, look: Look) -> Self {
        let mut allowed = word.clone();
        if want == Want::Other {
            allowed.negate();
        }
        // Else what stands at the other side is a whole character, and a stray byte can't be a part of it.
        let strict = !matches!(
            sides(look),
            [(Want::Other, Want::Word) | (Want::Word, Want::Other), ..]
        );
        Self {
            side,
            want,
            allowed,
            strict,
        }
    }

    /// `parts`, restricted to what has the wanted character at this edge: in as many ways as it takes.
    fn of(&self, parts: &[Hir], budget: &mut Budget) -> Result<Vec<Way>, String> {
        budget.spend(parts)?;
        if self.want == Want::Any {
            return Ok(vec![parts.to_vec()]);
        }
        let split = match self.side {
            Side::First => parts.split_first(),
            Side::Last => parts.split_last(),
        };
        let Some((part, rest)) = split else {
            return Ok(vec![vec![self.beyond()]]);
        };
        let (chars, may_be_empty) = self.chars(part);
        let mut hits = chars.clone();
        hits.intersect(&self.allowed);
        if !may_be_empty && hits == chars {
            return Ok(vec![parts.to_vec()]);
        }
        if !may_be_empty && hits.ranges().is_empty() {
            return Ok(Vec::new());
        }
        let mut found = Vec::new();
        match part.kind() {
            HirKind::Look(look) if self.is_end(*look) => {
                found.extend((self.want == Want::Other).then(|| parts.to_vec()));
            }
            HirKind::Look(_) => {
                for way in self.of(rest, budget)? {
                    found.push(self.joined(std::slice::from_ref(part), &way));
                }
            }
            HirKind::Empty => found = self.of(rest, budget)?,
            HirKind::Class(_) | HirKind::Literal(_) => {
                found.push(self.joined(&[Hir::class(Class::Unicode(hits))], rest));
            }
            HirKind::Capture(capture) => {
                found = self.of(
                    &self.joined(std::slice::from_ref(&capture.sub), rest),
                    budget,
                )?;
            }
            HirKind::Concat(inner) => found = self.of(&self.joined(inner, rest), budget)?,
            HirKind::Alternation(branches) => {
                for branch in branches {
                    found
                        .extend(self.of(&self.joined(std::slice::from_ref(branch), rest), budget)?);
                }
            }
            HirKind::Repetition(repetition) => {
                let Repetition { min, max, sub, .. } = repetition;
                if sub.properties().minimum_len() == Some(0) {
                    return Err(too_many());
                }
                let more = Hir::repetition(Repetition {
                    min: min.saturating_sub(1),
                    max: max.map(|max| max.saturating_sub(1)),
                    ..repetition.clone()
                });
                let inner = self.joined(std::slice::from_ref(sub), &[more]);
                found = self.of(&self.joined(&inner, rest), budget)?;
                if *min == 0 {
                    found.extend(self.of(rest, budget)?);
                }
            }
        }
        if found.len() > MOST_WAYS {
            return Err(too_many());
        }
        Ok(found)
    }

    /// `near`, which stands at this edge, and what is farther from it, in the pattern's order.
    fn joined(&self, near: &[Hir], far: &[Hir]) -> Way {
        match self.side {
            Side::First => [near, far].concat(),
            Side::Last => [far, near].concat(),
        }
    }

    fn is_end(&self, look: Look) -> bool {
        let end = matches!(look, Look::End | Look::EndLF | Look::EndCRLF);
        let start = matches!(look, Look::Start | Look::StartLF | Look::StartCRLF);
        if self.side == Side::First { end } else { start }
    }

    /// The characters that `part` may have at this edge, and whether it may be empty.
    fn chars(&self, part: &Hir) -> (ClassUnicode, bool) {
        let mut ranges = Vec::new();
        let may_be_empty = self.gather(part, &mut ranges);
        (ClassUnicode::new(ranges), may_be_empty)
    }

    fn gather(&self, part: &Hir, ranges: &mut Vec<ClassUnicodeRange>) -> bool {
        match part.kind() {
            HirKind::Empty | HirKind::Look(_) => {}
            HirKind::Literal(literal) => {
                let text = String::from_utf8_lossy(&literal.0);
                let c = match self.side {
                    Side::First => text.chars().next(),
                    Side::Last => text.chars().next_back(),
                };
                ranges.extend(c.map(|c| ClassUnicodeRange::new(c, c)));
            }
            HirKind::Class(Class::Unicode(class)) => ranges.extend(class.ranges()),
            HirKind::Class(Class::Bytes(class)) => match class.to_unicode_class() {
                Some(class) => ranges.extend(class.ranges()),
                None => ranges.push(ClassUnicodeRange::new('\u{fffd}', '\u{fffd}')),
            },
            HirKind::Repetition(repetition) => {
                self.gather(&repetition.sub, ranges);
            }
            HirKind::Capture(capture) => {
                self.gather(&capture.sub, ranges);
            }
            HirKind::Alternation(branches) => {
                for branch in branches {
                    self.gather(branch, ranges);
                }
            }
            HirKind::Concat(parts) => {
                let mut parts = parts.iter();
                while let Some(part) = match self.side {
                    Side::First => parts.next(),
                    Side::Last => parts.next_back(),
                } {
                    if !self.gather(part, ranges) {
                        break;
                    }
                }
            }
        }
        part.properties().minimum_len() == Some(0)
    }

    /// What stands beyond the pattern.
    fn beyond(&self) -> Hir {
        let class = Hir::class(Class::Unicode(self.allowed.clone()));
        if self.want == Want::Word {
            return class;
        }
        let (start, end) = (Hir::look(Look::Start), Hir::look(Look::End));
        let ascii = || bytes(&[(1, 0x7f)]);
        // Bytes that are no character, as in a file in Latin-1, are no part of a word either.
        let others = match (self.strict, self.side) {
            (true, Side::First) => vec![end, class],
            (true, Side::Last) => vec![start, class],
            (false, Side::First) => vec![
                end.clone(),
                class,
                bytes(&[(0x80, 0xc1), (0xf5, 0xff)]),
                Hir::concat(vec![
                    bytes(&[(0xc2, 0xf4)]),
                    Hir::alternation(vec![end, ascii(), bytes(&[(0xc0, 0xff)])]),
                ]),
            ],
            (false, Side::Last) => vec![
                start.clone(),
                class,
                bytes(&[(0xc0, 0xff)]),
                Hir::concat(vec![
                    Hir::alternation(vec![start, ascii()]),
                    bytes(&[(0x80, 0xbf)]),
                ]),
            ],
        };
        Hir::alternation(others)
    }
}

fn bytes(ranges: &[(u8, u8)]) -> Hir {
    let ranges = ranges
        .iter()
        .map(|(from, to)| ClassBytesRange::new(*from, *to));
    Hir::class(Class::Bytes(ClassBytes::new(ranges)))
}
