//! About how many tokens something has, where its provider does not tell.

use std::ops::AddAssign;

/// Tokens of a picture.
pub const IMAGE_TOKENS: u64 = 1600;
/// Tenths of a token of an ASCII character, and of another.
const ASCII_TENTHS: u64 = 3;
const OTHER_TENTHS: u64 = 8;

/// The size of text that comes in pieces: rounded only at the end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Size {
    tenths: u64,
}

impl Size {
    /// Of `text`.
    pub fn of(text: &str) -> Self {
        let ascii = text.bytes().filter(u8::is_ascii).count() as u64;
        let other = text.chars().count() as u64 - ascii;
        Self {
            tenths: ascii * ASCII_TENTHS + other * OTHER_TENTHS,
        }
    }

    /// Of so many bytes of text that is not looked at.
    pub const fn of_bytes(bytes: usize) -> Self {
        Self {
            tenths: (bytes as u64).saturating_mul(ASCII_TENTHS),
        }
    }

    /// Whether it is none.
    pub const fn is_empty(self) -> bool {
        self.tenths == 0
    }

    /// In tokens.
    pub const fn tokens(self) -> u64 {
        self.tenths.div_ceil(10)
    }
}

impl AddAssign for Size {
    fn add_assign(&mut self, other: Self) {
        self.tenths = self.tenths.saturating_add(other.tenths);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_have_the_size_of_the_whole() {
        let mut pieces = Size::default();
        for piece in ["a", "b", "é", "漢"] {
            pieces += Size::of(piece);
        }
        assert_eq!(pieces, Size::of("abé漢"));
        assert_eq!(pieces.tokens(), 3);
        assert!(Size::default().is_empty() && !Size::of("a").is_empty());
    }
}
