//! A page in a real browser.
