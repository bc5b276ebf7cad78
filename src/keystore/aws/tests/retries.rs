//! What is asked again, and when that ends.

use super::*;

#[test]
fn a_call_that_is_throttled_is_made_again() {
    let server = Server::new(|number, _| match number {
        0 => refuse(400, "ThrottlingException", "Rate exceeded"),
        1 => Say::This(429, Vec::new(), Vec::new()),
        _ => ok(plaintext()),
    });
    assert_eq!(unwrap(&kms_at(&server)), Ok([7; 32]));
    assert_eq!(server.asked().len(), 3);
}

#[test]
fn a_fault_of_the_server_or_the_network_may_pass() {
    let server = Server::new(|number, _| match number {
        0 => refuse(500, "KMSInternalException", "x"),
        1 => Say::HangUp,
        2 => Say::This(503, Vec::new(), b"<html>busy</html>".to_vec()),
        _ => ok(plaintext()),
    });
    assert_eq!(unwrap(&kms_at(&server)), Ok([7; 32]));
    assert_eq!(server.asked().len(), 4);
}

#[test]
fn a_fault_that_does_not_pass_ends_the_call() {
    let server = Server::new(|_, _| refuse(503, "DependencyTimeoutException", "x"));
    let start = Instant::now();
    assert_eq!(unwrap(&kms_at(&server)), Err(ProviderError::Unavailable));
    assert_eq!(server.asked().len(), 5);
    assert!(start.elapsed() < LIMITS.call);
}

#[test]
fn a_server_that_says_nothing_is_given_up_in_time() {
    let server = Server::new(|_, _| Say::Silence);
    let start = Instant::now();
    assert_eq!(unwrap(&kms_at(&server)), Err(ProviderError::Unavailable));
    let took = start.elapsed();
    assert!(
        took > LIMITS.attempt && took < LIMITS.call + Duration::from_millis(500),
        "{took:?}"
    );
    assert!(server.asked().len() > 1, "one silence is not all");
}

#[test]
fn a_server_that_answers_drop_by_drop_is_given_up_in_time() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            thread::spawn(move || {
                let _ = read_request(&mut stream);
                let head = b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n";
                let mut sent = stream.write_all(head);
                while sent.is_ok() {
                    thread::sleep(Duration::from_millis(100));
                    sent = stream.write_all(b" ");
                }
            });
        }
    });
    let url = format!("http://{address}");
    let kms = kms(&[STATIC.as_slice(), &[("AWS_ENDPOINT_URL", &url)]].concat());
    let start = Instant::now();
    assert_eq!(unwrap(&kms), Err(ProviderError::Unavailable));
    assert!(start.elapsed() < LIMITS.call + Duration::from_millis(500));
}

#[test]
fn a_server_that_is_not_there_is_unavailable() {
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let url = format!("http://{closed}");
    let kms = kms(&[STATIC.as_slice(), &[("AWS_ENDPOINT_URL", &url)]].concat());
    assert_eq!(unwrap(&kms), Err(ProviderError::Unavailable));
}

/// Returns the time that a request was signed at, in hours since 1970.
fn signed_at(asked: &Asked) -> u64 {
    let date = asked.header("x-amz-date");
    let text = format!("{}-{}-{}T{}:00:00Z", &date[..4], &date[4..6], &date[6..8], &date[9..11]);
    let time = humantime::parse_rfc3339(&text).unwrap();
    time.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs() / 3600
}

fn http_date(ahead: Duration) -> String {
    let time = aws_smithy_types::DateTime::from(SystemTime::now() + ahead);
    time.fmt(aws_smithy_types::date_time::Format::HttpDate).unwrap()
}

fn wrong_clock(ahead: Duration) -> Say {
    let body = br#"{"__type": "InvalidSignatureException", "message": "Signature expired"}"#;
    Say::This(403, vec![("date", http_date(ahead))], body.to_vec())
}

#[test]
fn a_wrong_clock_is_set_once_and_stays_set() {
    let day = Duration::from_secs(24 * 3600);
    let server = Server::new(move |number, _| match number {
        0 => wrong_clock(day),
        _ => ok(plaintext()),
    });
    let kms = kms_at(&server);
    assert_eq!(unwrap(&kms), Ok([7; 32]));
    assert_eq!(unwrap(&kms), Ok([7; 32]));
    let at: Vec<_> = server.asked().iter().map(signed_at).collect();
    assert!((24..=25).contains(&(at[1] - at[0])), "{at:?}");
    assert!((24..=25).contains(&(at[2] - at[0])), "{at:?}");
}

#[test]
fn a_clock_that_is_right_is_not_what_a_signature_fails_by() {
    let server = Server::new(|_, _| wrong_clock(Duration::from_secs(60)));
    assert_eq!(unwrap(&kms_at(&server)), Err(ProviderError::Unauthorized));
    assert_eq!(server.asked().len(), 1);
    let runs_away = Server::new(|number, _| wrong_clock(Duration::from_secs(3600 * (1 + number as u64))));
    assert_eq!(unwrap(&kms_at(&runs_away)), Err(ProviderError::Unauthorized));
    assert_eq!(
        runs_away.asked().len(),
        2,
        "once, however often the server changes its mind"
    );
}
