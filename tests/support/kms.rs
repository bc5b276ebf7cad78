//! The key servers of `scripts/keyservers`: where they are, and what is asked of those that imitate AWS KMS beside hushfs.

#![allow(dead_code, reason = "each test program uses a part of it")]

use std::{
    io::{self, Read, Write},
    net::TcpStream,
};

use serde_json::{Value, json};

pub const MOTO: &str = "HUSHFS_TEST_MOTO_URL";

pub const LOCALSTACK: &str = "HUSHFS_TEST_LOCALSTACK_URL";

/// Returns what `scripts/keyservers env` says.
pub fn server(variable: &str) -> Option<String> {
    if let Ok(value) = std::env::var(variable) {
        return Some(value);
    }
    let missing = format!("no {variable}: see scripts/keyservers");
    assert!(std::env::var_os("HUSHFS_TESTS_MUST_NOT_SKIP").is_none(), "{missing}");
    // Past the test harness, which shows only what failed.
    let _ = writeln!(io::stderr(), "SKIPPED: {missing}");
    None
}

/// Asks a server that takes any credentials for something that hushfs does not ask for.
pub fn ask(url: &str, operation: &str, question: &Value) -> Value {
    let host = url.strip_prefix("http://").unwrap();
    let body = question.to_string();
    let mut stream = TcpStream::connect(host).unwrap();
    let signature =
        "AWS4-HMAC-SHA256 Credential=AKID/20260101/eu-west-1/kms/aws4_request, SignedHeaders=host, Signature=0";
    write!(
        stream,
        "POST / HTTP/1.0\r\nhost: {host}\r\ncontent-type: application/x-amz-json-1.1\r\nx-amz-target: TrentService.{operation}\r\n\
         authorization: {signature}\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
    .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.split(' ').nth(1) == Some("200"), "{operation}: {answer}");
    serde_json::from_str(body).unwrap_or_default()
}

/// Makes a key; returns its ARN.
pub fn new_key(url: &str) -> String {
    let made = ask(url, "CreateKey", &json!({}));
    made["KeyMetadata"]["Arn"].as_str().unwrap().to_owned()
}
