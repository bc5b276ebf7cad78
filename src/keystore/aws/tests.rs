//! AWS KMS against servers that say what a test wants them to say, and against those of `scripts/keyservers`.

mod errors;
mod requests;
mod retries;
mod servers;
mod sources;
mod tls;

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    path::PathBuf,
    sync::{Arc, mpsc},
    thread,
    time::{Duration, Instant, SystemTime},
};

use data_encoding::BASE64;
use parking_lot::Mutex;
use tempfile::TempDir;

use super::*;
use crate::ids::{Epoch, VaultId};

const ARN: &str = "arn:aws:kms:eu-west-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab";

const STATIC: [(&str, &str); 2] = [
    ("AWS_ACCESS_KEY_ID", "AKIDEXAMPLE"),
    ("AWS_SECRET_ACCESS_KEY", "verysecret"),
];

/// Shorter than those of users, so that the tests of them are.
const LIMITS: Limits = Limits {
    connect: Duration::from_secs(1),
    attempt: Duration::from_millis(1500),
    call: Duration::from_millis(3000),
};

/// A request as a server sees it.
#[derive(Clone, Debug)]
struct Asked {
    line: String,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
}

impl Asked {
    fn header(&self, name: &str) -> &str {
        let mut headers = self.headers.iter();
        headers.find(|(other, _)| other == name).map_or("", |(_, value)| value)
    }

    fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap()
    }
}

/// What a server does with a request.
enum Say {
    /// An answer: status, more headers, body.
    This(u16, Vec<(&'static str, String)>, Vec<u8>),
    /// Nothing, and the connection ends.
    HangUp,
    /// Nothing, and the connection stays.
    Silence,
}

fn ok(body: impl Into<String>) -> Say {
    Say::This(200, Vec::new(), body.into().into_bytes())
}

fn refuse(status: u16, code: &str, message: &str) -> Say {
    let body = format!(r#"{{"__type": "com.amazonaws.kms#{code}", "message": "{message}"}}"#);
    Say::This(status, Vec::new(), body.into_bytes())
}

/// A key of KMS: all its bytes are 7.
fn plaintext() -> String {
    format!(r#"{{"Plaintext": "{}", "KeyId": "{ARN}"}}"#, BASE64.encode(&[7; 32]))
}

/// An HTTP server on this machine, until the end of the test.
struct Server {
    address: SocketAddr,
    asked: Arc<Mutex<Vec<Asked>>>,
}

impl Server {
    /// Starts a server that answers the nth request, from 0, so.
    fn new(answer: impl Fn(usize, &Asked) -> Say + Send + 'static) -> Self {
        Self::over(Some, answer)
    }

    fn over<S: Read + Write + Send + 'static>(
        wrap: impl Fn(TcpStream) -> Option<S> + Send + 'static,
        answer: impl Fn(usize, &Asked) -> Say + Send + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let seen = asked.clone();
        thread::spawn(move || {
            let mut silent = Vec::new();
            for stream in listener.incoming() {
                let Some(mut stream) = wrap(stream.unwrap()) else {
                    continue;
                };
                let Some(request) = read_request(&mut stream) else {
                    continue;
                };
                let number = seen.lock().len();
                let say = answer(number, &request);
                seen.lock().push(request);
                match say {
                    Say::HangUp => {}
                    Say::Silence => silent.push(stream),
                    Say::This(status, headers, body) => {
                        let mut head = format!(
                            "HTTP/1.1 {status} Said\r\ncontent-length: {}\r\nconnection: close\r\n",
                            body.len()
                        );
                        for (name, value) in headers {
                            head += &format!("{name}: {value}\r\n");
                        }
                        head += "\r\n";
                        // Who asked may have gone.
                        let _ = stream.write_all(&[head.as_bytes(), &body].concat());
                        let _ = stream.flush();
                    }
                }
            }
        });
        Server { address, asked }
    }

    fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    fn asked(&self) -> Vec<Asked> {
        self.asked.lock().clone()
    }
}

fn read_request(stream: &mut impl Read) -> Option<Asked> {
    let mut reader = BufReader::new(stream);
    let mut line = || {
        let mut line = String::new();
        reader.read_line(&mut line).ok().filter(|&len| len > 0)?;
        Some(line.trim_end().to_owned())
    };
    let first = line()?;
    let mut headers = Vec::new();
    loop {
        let line = line()?;
        let Some((name, value)) = line.split_once(':') else {
            break;
        };
        headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
    }
    let len = headers.iter().find(|(name, _)| name == "content-length");
    let mut body = vec![0; len.map_or(0, |(_, len)| len.parse().unwrap())];
    reader.read_exact(&mut body).ok()?;
    Some(Asked {
        line: first,
        headers,
        body,
    })
}

/// Returns an environment in which nothing is found but what the test says.
fn environment(variables: &[(&str, &str)]) -> Environment {
    let nothing = [("HOME", "/nonexistent"), ("AWS_EC2_METADATA_DISABLED", "true")];
    Environment::of(&[nothing.as_slice(), variables].concat())
}

fn kms(variables: &[(&str, &str)]) -> AwsKms {
    AwsKms::new(environment(variables), LIMITS)
}

/// KMS at a server, with static credentials.
fn kms_at(server: &Server) -> AwsKms {
    kms(&[STATIC.as_slice(), &[("AWS_ENDPOINT_URL", &server.url())]].concat())
}

fn context() -> Context {
    Context::for_epoch(VaultId([1; 16]), Epoch(1))
}

fn key(arn: &str) -> RemoteKeyName {
    RemoteKeyName::AwsKms { arn: arn.to_owned() }
}

fn unwrap(kms: &AwsKms) -> Result<[u8; 32], ProviderError> {
    kms.unwrap(&key(ARN), &context(), b"blob").map(|key| *key.as_bytes())
}

/// Returns credentials as a JSON document that are good for this long.
fn document(id: &str, seconds: u64) -> String {
    let expires = humantime::format_rfc3339_seconds(SystemTime::now() + Duration::from_secs(seconds));
    format!(
        r#"{{"Code": "Success", "AccessKeyId": "{id}", "SecretAccessKey": "s", "Token": "t", "Expiration": "{expires}"}}"#
    )
}

/// Returns the access key that a request was signed with.
fn signer(asked: &Asked) -> String {
    let start = asked
        .header("authorization")
        .split("Credential=")
        .nth(1)
        .unwrap_or_default();
    start.split('/').next().unwrap_or_default().to_owned()
}
