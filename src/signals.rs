//! The signals that ask the process to stop: Ctrl-C, SIGTERM, and the hang-up of its terminal.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};

/// The signals that ask the process to stop.
pub(crate) struct Signals {
    interrupt: Signal,
    terminate: Signal,
    /// Absent where whoever started the process wants it to outlive its terminal, as `nohup` does.
    hang_up: Option<Signal>,
    asked: bool,
}

impl Signals {
    /// Takes the signals over; from here on they no longer end the process.
    pub(crate) fn new() -> io::Result<Self> {
        let hang_up = SignalKind::hangup();
        let ignored = ignores(hang_up);
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hang_up: if ignored {
                None
            } else {
                Some(signal(hang_up)?)
            },
            asked: false,
        })
    }

    /// Waits for the next one. Cancel-safe.
    pub(crate) async fn next(&mut self) {
        // Not as the second one: who ends a session sends it beside another, or twice.
        let hang_up = self.hang_up.as_mut().filter(|_| !self.asked);
        let hung_up = async {
            match hang_up {
                Some(hang_up) => hang_up.recv().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
            _ = hung_up => {}
        }
        self.asked = true;
    }
}

/// Whether the process was started with the signal ignored. Where that can't be told it may have been: the signal is
/// left as it is, which ends a process that doesn't ignore it.
fn ignores(kind: SignalKind) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    ignored_in(&status, kind.as_raw_value()).unwrap_or(true)
}

/// Reads the mask of ignored signals, in hexadecimal; the lowest bit is of signal 1. `None` without one.
fn ignored_in(status: &str, signal: i32) -> Option<bool> {
    let mask = status
        .lines()
        .find_map(|line| line.strip_prefix("SigIgn:"))
        .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    let bit = u32::try_from(signal - 1).ok();
    mask.zip(bit)
        .map(|(mask, bit)| mask.checked_shr(bit).is_some_and(|rest| rest & 1 == 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_ignored_at_the_start_is_read_from_the_mask() {
        let status = |mask: &str| format!("Name:\tx\nSigBlk:\tffffffffffffffff\nSigIgn:\t{mask}\n");
        for (mask, hang_up, interrupt) in [
            ("0000000000000000", Some(false), Some(false)),
            ("0000000000000001", Some(true), Some(false)),
            ("0000000000001002", Some(false), Some(true)),
            ("garbage", None, None),
        ] {
            let status = status(mask);
            assert_eq!(ignored_in(&status, 1), hang_up, "{mask}");
            assert_eq!(ignored_in(&status, 2), interrupt, "{mask}");
        }
        assert_eq!(ignored_in("", 1), None);
    }
}
