//! Text for places that take less than any text.

/// `text` with every byte but unreserved characters (RFC 3986) and those of `keep` percent-encoded.
pub fn percent_encoded(text: &str, keep: &[u8]) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) || keep.contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.extend(['%', hex_digit(byte >> 4), hex_digit(byte & 15)]);
        }
    }
    out
}

fn hex_digit(nibble: u8) -> char {
    char::from_digit(u32::from(nibble), 16).map_or('0', |digit| digit.to_ascii_uppercase())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_unreserved_and_kept_bytes_stay() {
        assert_eq!(percent_encoded("a-b_c.d~e/é?", b"/"), "a-b_c.d~e/%C3%A9%3F");
        assert_eq!(percent_encoded("a/b", b""), "a%2Fb");
    }
}
