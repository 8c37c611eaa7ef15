use super::*;

fn refused(status: u16, message: &str) -> Fault {
    Fault::Refused(Answer {
        status,
        message: message.to_owned(),
        ..Answer::default()
    })
}

fn coded(status: u16, error_code: &str) -> Fault {
    Fault::Refused(Answer {
        status,
        error_code: Some(error_code.to_owned()),
        ..Answer::default()
    })
}

fn again(doubtful: bool, throttled: bool) -> Next {
    Next::Again {
        doubtful,
        throttled,
    }
}

#[test]
fn each_failure_of_a_create_has_one_consequence() {
    let next = |fault: Fault| next(&fault, "base", false, 0);
    // Nothing was sent: no doubt.
    assert_eq!(
        next(Fault::Unsent("refused".to_owned())),
        again(false, false)
    );
    // Sent, and no answer that can be used: there may be a sandbox.
    for fault in [
        Fault::Lost("reset".to_owned()),
        Fault::Late,
        Fault::Protocol("x".to_owned()),
        refused(502, "<html>"),
        refused(504, "upstream request timeout"),
        coded(409, "idempotency_in_progress"),
        coded(409, "idempotency_outcome_unknown"),
    ] {
        assert_eq!(next(fault.clone()), again(true, false), "{fault:?}");
    }
    assert_eq!(
        next(coded(503, "sandbox_capacity_unavailable")),
        again(false, false)
    );
    assert_eq!(next(refused(409, "changing")), again(false, false));
    assert_eq!(next(refused(429, "too many requests")), again(false, true));
    assert_eq!(
        next(refused(400, "Timeout cannot be greater than 1 hours")),
        Next::Shorten(3600)
    );
    for (fault, code) in [
        (refused(400, "no"), "SANDBOX_ERROR"),
        (refused(401, "no"), "PROVIDER_AUTH_MISSING"),
        (refused(402, "no"), "SANDBOX_ERROR"),
        (refused(403, "no"), "PROVIDER_AUTH_MISSING"),
        (refused(404, "template 'x' not found"), "TEMPLATE_NOT_FOUND"),
        (refused(400, "Template not found"), "TEMPLATE_NOT_FOUND"),
        (
            refused(400, "template must be rebuilt"),
            "TEMPLATE_INCOMPATIBLE",
        ),
        (refused(422, "no"), "SANDBOX_ERROR"),
        (
            refused(
                429,
                "you have reached the maximum number of concurrent E2B sandboxes (20)",
            ),
            "RATE_LIMIT",
        ),
        (refused(500, "Failed to place sandbox"), "SANDBOX_ERROR"),
        (coded(503, "sandbox_create_refused"), "SANDBOX_ERROR"),
        (coded(409, "idempotency_request_mismatch"), "SANDBOX_ERROR"),
    ] {
        match next(fault.clone()) {
            Next::Fail(error) => assert_eq!(error.code().as_str(), code, "{fault:?}"),
            other => panic!("{fault:?}: {other:?}"),
        }
    }
}

#[test]
fn a_500_is_tried_once_more_only_when_asked_for() {
    let asked = |should_retry| {
        Fault::Refused(Answer {
            status: 500,
            should_retry,
            ..Answer::default()
        })
    };
    assert_eq!(
        next(&asked(Some(true)), "base", false, 0),
        again(true, false)
    );
    assert!(matches!(
        next(&asked(Some(true)), "base", false, 1),
        Next::Fail(_)
    ));
    assert!(matches!(
        next(&asked(None), "base", false, 0),
        Next::Fail(_)
    ));
    // Either way it may have left a sandbox.
    assert!(may_have_created(&asked(None)));
}

#[test]
fn a_shortened_life_is_not_shortened_again() {
    let fault = refused(400, "Timeout cannot be greater than 1 hours");
    assert!(matches!(next(&fault, "base", true, 0), Next::Fail(_)));
}

#[test]
fn should_retry_false_is_final() {
    let fault = Fault::Refused(Answer {
        status: 503,
        should_retry: Some(false),
        ..Answer::default()
    });
    assert!(matches!(next(&fault, "base", false, 0), Next::Fail(_)));
}
