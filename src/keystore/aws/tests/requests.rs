//! What is asked, and what counts as an answer.

use super::*;

#[test]
fn a_key_is_made_in_its_region_and_context() {
    let answer = format!(
        r#"{{"Plaintext": "{}", "CiphertextBlob": "{}", "KeyId": "{ARN}"}}"#,
        BASE64.encode(&[7; 32]),
        BASE64.encode(b"blob")
    );
    let server = Server::new(move |_, _| ok(answer.clone()));
    let (secret, blob) = kms_at(&server).generate(&key(ARN), &context()).unwrap();
    assert_eq!((secret.as_bytes(), blob.as_slice()), (&[7; 32], b"blob".as_slice()));
    let asked = &server.asked()[0];
    assert_eq!(asked.line, "POST / HTTP/1.1");
    assert_eq!(asked.header("x-amz-target"), "TrentService.GenerateDataKey");
    assert_eq!(asked.header("content-type"), "application/x-amz-json-1.1");
    let expected = serde_json::json!({
        "KeyId": ARN, "KeySpec": "AES_256",
        "EncryptionContext": { "hushfs:vault": "01010101010101010101010101010101", "hushfs:epoch": "1" },
    });
    assert_eq!(asked.json(), expected);
}

#[test]
fn a_blob_is_opened_by_the_key_that_was_named() {
    let server = Server::new(|_, _| ok(plaintext()));
    assert_eq!(unwrap(&kms_at(&server)), Ok([7; 32]));
    let asked = &server.asked()[0];
    assert_eq!(asked.header("x-amz-target"), "TrentService.Decrypt");
    assert_eq!(asked.json()["KeyId"], ARN);
    assert_eq!(asked.json()["CiphertextBlob"], BASE64.encode(b"blob"));
}

#[test]
fn what_is_sent_is_signed() {
    let server = Server::new(|_, _| ok(plaintext()));
    let variables = [
        ("AWS_SESSION_TOKEN", "token"),
        ("AWS_ENDPOINT_URL", &server.url()),
        ("AWS_REGION", "us-east-1"),
    ];
    unwrap(&kms(&[STATIC.as_slice(), &variables].concat())).unwrap();
    let asked = &server.asked()[0];
    let authorization = asked.header("authorization");
    let (before, after) = authorization.split_once("AKIDEXAMPLE/").unwrap();
    assert_eq!(before, "AWS4-HMAC-SHA256 Credential=");
    // The date comes between.
    assert!(after[8..].starts_with(
        "/eu-west-1/kms/aws4_request, SignedHeaders=content-type;host;x-amz-date;x-amz-security-token;x-amz-target, Signature="
    ));
    assert_eq!(asked.header("host"), server.address.to_string());
    assert_eq!(asked.header("x-amz-security-token"), "token");
    assert!(!format!("{asked:?}").contains("verysecret"));
}

#[test]
fn a_key_is_looked_up_by_any_name() {
    let server = Server::new(|number, _| {
        let state = ["Enabled", "Disabled", "PendingDeletion", "Unavailable"][number];
        ok(format!(
            r#"{{"KeyMetadata": {{"Arn": "{ARN}", "KeyState": "{state}", "DeletionDate": 1.8E9, "KeyUsage": "ENCRYPT_DECRYPT", "KeySpec": "SYMMETRIC_DEFAULT"}}}}"#
        ))
    });
    let variables = [
        ("AWS_ENDPOINT_URL_KMS", server.url()),
        ("AWS_DEFAULT_REGION", "eu-west-1".to_owned()),
    ];
    let variables: Vec<_> = variables.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let kms = kms(&[STATIC.as_slice(), &variables].concat());
    let found = kms.look_up("alias/a").unwrap();
    assert_eq!((found.arn.as_str(), found.state), (ARN, RemoteKeyState::Enabled));
    assert_eq!(server.asked()[0].json(), serde_json::json!({ "KeyId": "alias/a" }));
    assert_eq!(kms.describe(&key(ARN)), Ok(RemoteKeyState::Disabled));
    let date = Some(1_800_000_000);
    assert_eq!(kms.describe(&key(ARN)), Ok(RemoteKeyState::PendingDeletion { date }));
    assert_eq!(kms.describe(&key(ARN)), Ok(RemoteKeyState::Unavailable));
}

#[test]
fn only_what_is_no_arn_of_a_key_is_looked_up_to_be_stored() {
    let server = Server::new(|_, _| {
        ok(format!(
            r#"{{"KeyMetadata": {{"Arn": "{ARN}", "KeyState": "Enabled"}}}}"#
        ))
    });
    let kms = kms_at(&server);
    assert_eq!(kms.resolve(ARN).unwrap(), key(ARN));
    assert!(server.asked().is_empty());
    assert_eq!(
        kms.resolve("arn:aws:kms:eu-west-1:111122223333:alias/key/a").unwrap(),
        key(ARN)
    );
    assert_eq!(server.asked().len(), 1);
    let liar = Server::new(|_, _| ok(r#"{"KeyMetadata": {"Arn": "arn:aws:kms:x:1:alias/a", "KeyState": "Enabled"}}"#));
    let error = kms_at(&liar).resolve("arn:aws:kms:x:1:alias/a").unwrap_err();
    assert!(matches!(error, AwsError::Answer { .. }), "{error}");
}

#[test]
fn a_key_that_is_not_for_this_is_not_taken() {
    let server = Server::new(|number, _| {
        let (usage, spec) = [("SIGN_VERIFY", "ECC_NIST_P256"), ("ENCRYPT_DECRYPT", "RSA_2048")][number];
        ok(format!(
            r#"{{"KeyMetadata": {{"Arn": "{ARN}", "KeyState": "Enabled", "KeyUsage": "{usage}", "KeySpec": "{spec}"}}}}"#
        ))
    });
    let kms = kms_at(&server);
    for _ in 0..2 {
        assert_eq!(kms.describe(&key(ARN)), Err(ProviderError::Unsupported));
    }
}

#[test]
fn an_answer_that_is_none_is_noticed() {
    let key_of = |len: usize| format!(r#"{{"Plaintext": "{}"}}"#, BASE64.encode(&vec![7; len]));
    let bodies = [
        (String::new(), ProviderError::Unavailable),
        ("<html>".to_owned(), ProviderError::Unavailable),
        ("{}".to_owned(), ProviderError::Unavailable),
        (r#"{"Plaintext": 1}"#.to_owned(), ProviderError::Unavailable),
        (r#"{"Plaintext": "!"}"#.to_owned(), ProviderError::Rejected),
        (key_of(31), ProviderError::Rejected),
        (key_of(33), ProviderError::Rejected),
        (key_of(0), ProviderError::Rejected),
        ("[".repeat(60_000), ProviderError::Unavailable),
    ];
    for (body, reason) in bodies {
        let sent = body.clone();
        let server = Server::new(move |_, _| ok(sent.clone()));
        assert_eq!(unwrap(&kms_at(&server)), Err(reason), "{body}");
    }
    let escaped = BASE64.encode(&[0xFF; 32]).replace('/', "\\/");
    let server = Server::new(move |_, _| ok(format!(r#"{{"Plaintext": "{escaped}"}}"#)));
    assert_eq!(unwrap(&kms_at(&server)), Ok([0xFF; 32]), "a slash may be escaped");
}

#[test]
fn an_answer_is_read_up_to_a_limit() {
    let server = Server::new(|_, _| ok(" ".repeat(64 * 1024) + &plaintext()));
    assert_eq!(unwrap(&kms_at(&server)), Err(ProviderError::Unavailable));
    assert_eq!(server.asked().len(), 1, "it would be as large again");
}

#[test]
fn what_cannot_be_a_blob_is_not_sent() {
    let server = Server::new(|_, _| ok(plaintext()));
    let kms = kms_at(&server);
    for blob in [vec![], vec![0; 6145]] {
        assert_eq!(
            kms.unwrap(&key(ARN), &context(), &blob).map(drop),
            Err(ProviderError::Rejected)
        );
    }
    assert_eq!(
        kms.unwrap(&key("arn:aws:kms:x/:1:key/1"), &context(), b"b").map(drop),
        Err(ProviderError::NotFound)
    );
    assert!(server.asked().is_empty());
    assert!(kms.unwrap(&key(ARN), &context(), &[0; 6144]).is_ok());
}

#[test]
fn a_redirect_is_not_followed() {
    let other = Server::new(|_, _| ok(plaintext()));
    let url = other.url();
    let server = Server::new(move |_, _| Say::This(307, vec![("location", url.clone())], Vec::new()));
    assert_eq!(unwrap(&kms_at(&server)), Err(ProviderError::Unavailable));
    assert!(other.asked().is_empty());
}

#[test]
fn nothing_that_is_printed_holds_a_secret() {
    let kms = kms(&[STATIC.as_slice(), &[("AWS_SESSION_TOKEN", "tokensecret")]].concat());
    let _ = unwrap(&kms);
    let printed = format!("{kms:?}");
    assert!(
        !printed.contains("verysecret") && !printed.contains("tokensecret"),
        "{printed}"
    );
}
