//! Creating a sandbox, once and only once.
//!
//! A create may succeed while its answer is lost (`reliability-security`, RT-8). So: all requests of one
//! call carry one `Idempotency-Key`; after a request whose outcome isn't known, the sandbox is looked for
//! by its labels before another request is sent, and taken over if it is there; and whatever may be left
//! when the call fails, or is dropped, is looked for and killed in the background for a while. What even
//! that doesn't find, the reaper does.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::timeout_at;

use super::control::{ATTEMPT, Control, Created, INSTANCE, NewSandbox, RUN, metadata, seconds};
use super::errors::{Answer, Fault};
use super::facts::DEFAULT_TEMPLATE;
use crate::ids;
use crate::sandbox::{Labels, SandboxError, SandboxSpec};
use crate::spec::Network;

const DOING: &str = "creating the sandbox";
/// Retries of what isn't throttling.
const RETRIES: u32 = 3;
/// Retries of throttling: what ends them in practice is the deadline.
const THROTTLED_RETRIES: u32 = 30;

/// A sandbox that was created.
pub(super) struct Made {
    pub(super) sandbox: Created,
    /// An answer got lost on the way: there might be another one with the same labels.
    pub(super) doubtful: bool,
}

/// What to do after a create request failed.
#[derive(Debug, PartialEq, Eq)]
enum Next {
    /// Give up.
    Fail(SandboxError),
    /// Send it again after a pause; whether the failed one left a sandbox isn't known if `doubtful`.
    Again { doubtful: bool, throttled: bool },
    /// Send it with this many seconds of life.
    Shorten(u64),
}

/// Creates a sandbox.
///
/// # Errors
/// Any of [`SandboxError`] but `Gone`.
pub(super) async fn create(
    control: &Arc<Control>,
    spec: &SandboxSpec,
    labels: &Labels,
) -> Result<Made, SandboxError> {
    let template = spec.template.as_deref().unwrap_or(DEFAULT_TEMPLATE);
    let until = spec.deadline.within(control.timing.create);
    let mut new = NewSandbox {
        template: template.to_owned(),
        timeout: seconds(spec.lifetime),
        metadata: metadata(labels),
        allow_internet_access: match spec.network {
            Network::Full => None,
            Network::None => Some(false),
        },
    };
    let mut key = ids::nonce();
    let mut shortened = false;
    let mut doubtful = false;
    let (mut retries, mut throttled_retries) = (0, 0);
    let mut leftovers = Leftovers::of(control, labels);
    loop {
        if until.passed() {
            return Err(Fault::Late.control_error(DOING));
        }
        leftovers.possible = true;
        let limit = until.within(control.timing.create_try);
        let fault = match control.create_once(&new, &key, limit).await {
            Ok(sandbox) => {
                leftovers.keep_only(&sandbox, doubtful);
                return Ok(Made { sandbox, doubtful });
            }
            Err(fault) => fault,
        };
        leftovers.possible = doubtful;
        match next(&fault, template, shortened, retries) {
            Next::Fail(error) => {
                leftovers.possible |= may_have_created(&fault);
                return Err(error);
            }
            Next::Shorten(secs) => {
                // Another body needs another key, or E2B takes it for a misuse of the first.
                shortened = true;
                new.timeout = secs;
                key = ids::nonce();
            }
            Next::Again {
                doubtful: unsure,
                throttled,
            } => {
                doubtful |= unsure;
                leftovers.possible = doubtful;
                let count = if throttled {
                    &mut throttled_retries
                } else {
                    &mut retries
                };
                let most = if throttled {
                    THROTTLED_RETRIES
                } else {
                    RETRIES
                };
                let pause = control.timing.pause(*count, fault.retry_after());
                *count += 1;
                if *count > most || pause >= until.remaining() {
                    return Err(fault.control_error(DOING));
                }
                tokio::time::sleep(pause).await;
                if doubtful {
                    let found = timeout_at(until.instant(), adopt(control, labels)).await;
                    let late = |_| Err(Fault::Late.control_error(DOING));
                    if let Some(sandbox) = found.unwrap_or_else(late)? {
                        leftovers.keep_only(&sandbox, true);
                        return Ok(Made { sandbox, doubtful });
                    }
                }
            }
        }
    }
}

/// Whether a request that failed so may have left a sandbox behind.
fn may_have_created(fault: &Fault) -> bool {
    match fault {
        Fault::Unsent(_) => false,
        Fault::Lost(_) | Fault::Late | Fault::Protocol(_) => true,
        Fault::Refused(answer) => match answer.error_code.as_deref() {
            Some("idempotency_in_progress" | "idempotency_outcome_unknown") => true,
            Some("sandbox_create_refused") => false,
            // 503 is the control plane's own refusal; the others may come from a balancer that gave up.
            _ => answer.status >= 500 && answer.status != 503,
        },
    }
}

fn next(fault: &Fault, template: &str, shortened: bool, retries: u32) -> Next {
    let doubtful = may_have_created(fault);
    let again = Next::Again {
        doubtful,
        throttled: false,
    };
    match fault {
        Fault::Unsent(_) | Fault::Lost(_) | Fault::Late | Fault::Protocol(_) => again,
        Fault::Refused(answer) => {
            if let (false, Some(hours)) = (shortened, answer.longest_hours()) {
                return Next::Shorten(hours * 3600);
            }
            if let Some(error) = final_answer(answer, template) {
                return Next::Fail(error);
            }
            match answer.status {
                429 => Next::Again {
                    doubtful,
                    throttled: true,
                },
                // Only on request, and only once.
                500 if answer.should_retry != Some(true) || retries > 0 => {
                    Next::Fail(answer.control_error(DOING))
                }
                500 | 409 => again,
                _ if answer.retryable() => again,
                _ => Next::Fail(answer.control_error(DOING)),
            }
        }
    }
}

/// The error, if another try with the same request is senseless.
fn final_answer(answer: &Answer, template: &str) -> Option<SandboxError> {
    let message = answer.message.to_ascii_lowercase();
    let about_template = message.contains("template");
    match answer.status {
        400 | 422 if about_template && message.contains("not found") => {
            Some(not_found(answer, template))
        }
        400 | 422
            if about_template && (message.contains("compatible") || message.contains("rebuil")) =>
        {
            Some(SandboxError::TemplateIncompatible(format!(
                "E2B can't use the template `{template}`: {}",
                answer.message
            )))
        }
        404 => Some(not_found(answer, template)),
        429 if answer.at_capacity() => Some(answer.control_error(DOING)),
        409 if answer.error_code.as_deref() == Some("idempotency_request_mismatch") => {
            Some(answer.control_error(DOING))
        }
        _ if answer.error_code.as_deref() == Some("sandbox_create_refused") => {
            Some(answer.control_error(DOING))
        }
        _ if answer.should_retry == Some(false) => Some(answer.control_error(DOING)),
        _ => None,
    }
}

fn not_found(answer: &Answer, template: &str) -> SandboxError {
    let said = if answer.message.is_empty() {
        String::new()
    } else {
        format!(" ({})", answer.message)
    };
    SandboxError::TemplateNotFound(format!(
        "E2B knows no template `{template}` for this key{said}; build it, or leave the template out to \
         get `{DEFAULT_TEMPLATE}`"
    ))
}

/// The sandbox that a create with these labels left, if there is one that can be used. Others are killed.
async fn adopt(control: &Control, labels: &Labels) -> Result<Option<Created>, SandboxError> {
    let mut adopted: Option<Created> = None;
    for id in labelled(control, labels).await? {
        if adopted.is_none() {
            adopted = control
                .detail(&id)
                .await?
                .filter(|found| found.token.is_some());
            if adopted.is_some() {
                continue;
            }
        }
        control.kill(&id).await?;
    }
    Ok(adopted)
}

async fn labelled(control: &Control, labels: &Labels) -> Result<Vec<String>, SandboxError> {
    let attempt = labels.attempt.to_string();
    let filter = [
        (RUN, labels.run.as_str()),
        (INSTANCE, labels.instance.as_str()),
        (ATTEMPT, attempt.as_str()),
    ];
    let listed = control.list(&filter).await?;
    Ok(listed.into_iter().map(|listed| listed.id).collect())
}

/// Kills all sandboxes with these labels but `keep`. Gives how many there were.
pub(super) async fn kill_labelled(
    control: &Control,
    labels: &Labels,
    keep: Option<&str>,
) -> Result<usize, SandboxError> {
    let mut killed = 0;
    for id in labelled(control, labels).await? {
        if Some(id.as_str()) != keep {
            control.kill(&id).await?;
            killed += 1;
        }
    }
    Ok(killed)
}

/// What a create may have left behind. Dropped while something is `possible`, it has that killed.
struct Leftovers {
    control: Arc<Control>,
    labels: Labels,
    possible: bool,
}

impl Leftovers {
    fn of(control: &Arc<Control>, labels: &Labels) -> Self {
        Self {
            control: Arc::clone(control),
            labels: labels.clone(),
            possible: false,
        }
    }

    /// `sandbox` is the one. Were there doubts, others are looked for.
    fn keep_only(&mut self, sandbox: &Created, doubtful: bool) {
        self.possible = false;
        if doubtful {
            sweep(&self.control, &self.labels, Some(sandbox.id.clone()));
        }
    }
}

impl Drop for Leftovers {
    fn drop(&mut self) {
        if self.possible {
            sweep(&self.control, &self.labels, None);
        }
    }
}

/// When to look for what a create left: a lost request may still be worked on for a while.
const LOOKS: [Duration; 5] = [
    Duration::from_millis(50),
    Duration::from_secs(1),
    Duration::from_secs(3),
    Duration::from_secs(8),
    Duration::from_secs(20),
];

/// Looks for sandboxes with these labels a few times within half a minute, and kills all but `keep`.
#[expect(
    clippy::disallowed_methods,
    reason = "runs when the create's caller is gone already; ends by itself within a few minutes at \
              worst, and the reaper does its work if the process ends before"
)]
fn sweep(control: &Arc<Control>, labels: &Labels, keep: Option<String>) {
    if tokio::runtime::Handle::try_current().is_err() {
        return;
    }
    let (control, labels) = (Arc::clone(control), labels.clone());
    let looking = async move {
        for pause in LOOKS {
            tokio::time::sleep(pause).await;
            match kill_labelled(&control, &labels, keep.as_deref()).await {
                Ok(0) => {}
                Ok(_) => return,
                Err(error) => {
                    tracing::debug!(run.id = %labels.run, %error, "could not look for a lost sandbox");
                }
            }
        }
    };
    tokio::spawn(looking);
}

#[cfg(test)]
#[path = "create_tests.rs"]
mod tests;
