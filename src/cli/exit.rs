//! Exit codes beside 0.

/// The run or the server failed.
pub(super) const FAILED: u8 = 1;
/// Wrong usage or settings.
pub(super) const REFUSED: u8 = 2;
/// As a shell reports a process that Ctrl-C ended.
pub(super) const INTERRUPTED: u8 = 130;
