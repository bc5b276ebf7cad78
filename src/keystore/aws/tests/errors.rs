//! What servers refuse, in a keystore's words.

use super::*;

/// Has a server refuse so, and returns the reason and how often it was asked.
fn refused(say: impl Fn() -> Say + Send + 'static) -> (ProviderError, usize) {
    let server = Server::new(move |_, _| say());
    let error = unwrap(&kms_at(&server)).unwrap_err();
    (error, server.asked().len())
}

#[test]
fn each_error_of_kms_has_its_reason_and_is_not_asked_for_again() {
    for (code, message, reason) in [
        ("NotFoundException", "no", ProviderError::NotFound),
        ("InvalidArnException", "no", ProviderError::NotFound),
        ("DisabledException", "arn is disabled.", ProviderError::Disabled),
        (
            "KMSInvalidStateException",
            "arn is pending deletion.",
            ProviderError::PendingDeletion,
        ),
        (
            "KMSInvalidStateException",
            "arn is pending replica deletion.",
            ProviderError::PendingDeletion,
        ),
        (
            "KMSInvalidStateException",
            "arn is pending import.",
            ProviderError::Unavailable,
        ),
        (
            "KMSInvalidStateException",
            "arn is unavailable.",
            ProviderError::Unavailable,
        ),
        ("InvalidCiphertextException", "", ProviderError::Rejected),
        ("IncorrectKeyException", "no", ProviderError::IncorrectKey),
        ("LimitExceededException", "no", ProviderError::Limit),
        ("InvalidKeyUsageException", "no", ProviderError::Unsupported),
        ("ValidationException", "no", ProviderError::Unsupported),
        ("AccessDeniedException", "no", ProviderError::AccessDenied),
        ("InvalidGrantTokenException", "no", ProviderError::Unauthorized),
        ("MissingAuthenticationTokenException", "no", ProviderError::Unauthorized),
        // Static credentials have no newer ones, and the clock is right.
        ("UnrecognizedClientException", "no", ProviderError::Unauthorized),
        ("ExpiredTokenException", "no", ProviderError::Unauthorized),
        ("InvalidSignatureException", "no", ProviderError::Unauthorized),
    ] {
        assert_eq!(
            refused(move || refuse(400, code, message)),
            (reason, 1),
            "{code} {message}"
        );
    }
}

#[test]
fn bodies_of_all_shapes_are_understood() {
    let xml = r#"<?xml version="1.0"?><ErrorResponse xmlns="https://x/"><Errors><Error><Code>AccessDenied</Code><Message>no</Message></Error></Errors></ErrorResponse>"#;
    for (status, body, reason) in [
        (403, xml, ProviderError::AccessDenied),
        (400, r#"{"__type": "DisabledException"}"#, ProviderError::Disabled),
        (
            400,
            r#"{"__type": "DisabledException", "message": null}"#,
            ProviderError::Disabled,
        ),
        (
            400,
            r#"{"__type": "a#b#DisabledException:http://x", "Message": "x"}"#,
            ProviderError::Disabled,
        ),
        // Of something in front of the service.
        (403, "", ProviderError::Unavailable),
        (403, "{\"__type\": 1}", ProviderError::Unavailable),
        (401, "log in", ProviderError::Unavailable),
        (404, "not found", ProviderError::Unavailable),
        (418, "{}", ProviderError::Unavailable),
        (400, "<a", ProviderError::Unavailable),
    ] {
        let say = move || Say::This(status, Vec::new(), body.into());
        assert_eq!(refused(say), (reason, 1), "{body}");
    }
    let say = || Say::This(403, Vec::new(), vec![0xFF, 0xFE]);
    assert_eq!(refused(say), (ProviderError::Unavailable, 1));
}

#[test]
fn a_message_says_what_the_service_said_and_no_more_than_fits() {
    let server = Server::new(|_, _| {
        let headers = vec![("x-amzn-requestid", "1-2-3".to_owned())];
        let body = format!(
            r#"{{"__type": "DisabledException", "message": "a\u001bb {}"}}"#,
            "x".repeat(1000)
        );
        Say::This(400, headers, body.into_bytes())
    });
    let error = kms_at(&server).look_up(ARN).unwrap_err().to_string();
    assert!(error.starts_with("DescribeKey: DisabledException: ab xxx"), "{error}");
    assert!(error.ends_with("x (request 1-2-3)") && error.len() < 500, "{error}");
}

#[test]
fn messages_name_the_thing_and_what_to_do() {
    let text = |error: AwsError| error.to_string();
    let no_region = kms(&STATIC).look_up("alias/a").unwrap_err();
    assert_eq!(
        text(no_region),
        "nothing says in which region alias/a is; give its ARN or set AWS_REGION"
    );
    let none = kms(&[]).look_up(ARN).unwrap_err();
    assert_eq!(text(none), "no AWS credentials; see docs/KEYS.md for where they may be");
    let no_file = kms(&[("AWS_CONFIG_FILE", "/")]).look_up(ARN).unwrap_err();
    assert_eq!(text(no_file), "/ cannot be read");
}
