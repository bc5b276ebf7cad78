//! What can go wrong on the way to AWS and back, in full for the log, and in a keystore's few words for who calls.

use std::{
    fmt, io,
    path::PathBuf,
    time::{Duration, SystemTime},
};

use aws_smithy_types::date_time::{DateTime, Format};
use serde::Deserialize;

use super::client::Reply;
use crate::keystore::provider::ProviderError;

/// The most characters of a server's message that are shown.
const MESSAGE_CHARS_MAX: usize = 400;

/// Why something could not be had from AWS.
///
/// No variant holds a secret: they are shown and logged.
#[derive(Debug)]
pub enum AwsError {
    /// A setting is not what it must be.
    Setting { name: String, problem: &'static str },
    /// A file that the settings or AWS's tools name cannot be read.
    File { path: PathBuf, source: io::Error },
    /// A line of one of AWS's two files is neither a section nor a setting.
    Syntax { path: PathBuf, line: usize },
    /// The profile that was asked for is in neither file.
    NoProfile { name: String },
    /// A profile gets its credentials in a way that hushfs does not know.
    Unsupported { profile: String, what: &'static str },
    /// This does not name a key.
    KeyName { name: String },
    /// The key is not a symmetric one for encryption.
    KeyKind { arn: String },
    /// KMS opened a blob, and what was in it is no key.
    NotAKey,
    /// Nothing says in which region the key is.
    NoRegion { name: String },
    /// No source has credentials; the last one that was asked, and why it had none.
    NoCredentials { last: Option<Box<AwsError>> },
    /// A source of credentials gave something else.
    BadCredentials {
        source: &'static str,
        problem: &'static str,
    },
    /// A program of a profile ended without giving credentials.
    Process { profile: String, problem: ProcessProblem },
    /// The server could not be reached, or did not answer in time.
    Transport { host: String, source: ureq::Error },
    /// The server answered something that is not an answer.
    Answer {
        operation: &'static str,
        problem: &'static str,
    },
    /// The service refused.
    Service(Box<Refusal>),
}

/// Why a program did not give credentials.
#[derive(Debug)]
pub enum ProcessProblem {
    /// It could not be started, or not be read from.
    Io(io::Error),
    /// It ended with this.
    Failed(std::process::ExitStatus),
    /// It ran for too long.
    TooSlow(Duration),
}

/// An answer of a service that says no.
#[derive(Debug)]
pub struct Refusal {
    /// What was asked.
    pub operation: &'static str,
    /// The HTTP status.
    pub status: u16,
    /// What the service calls it, such as `DisabledException`; empty where it did not say.
    pub code: String,
    /// The service's own words, made fit to print.
    pub message: String,
    /// The time on the server's clock.
    pub date: Option<SystemTime>,
    /// What AWS's support and CloudTrail know the request by.
    pub request: String,
}

/// What may help after a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Remedy {
    /// To ask again a little later.
    Wait,
    /// To set the clock by the server's, should they differ.
    Clock,
    /// To ask with other credentials, should there be newer ones.
    Credentials,
    /// Nothing.
    None,
}

/// The body of an error in JSON. Services differ in how they spell the message.
#[derive(Deserialize)]
struct JsonError {
    #[serde(rename = "__type", alias = "code", alias = "Code", default)]
    kind: String,
    #[serde(alias = "Message", default)]
    message: Option<String>,
}

impl Refusal {
    /// Makes the best of an answer: JSON with `__type`, XML as IAM writes it, or anything else.
    pub fn decode(operation: &'static str, reply: &Reply) -> Self {
        let (code, message) = decode_json(&reply.body)
            .or_else(|| decode_xml(&reply.body))
            .unwrap_or_default();
        // `com.amazonaws.kms#DisabledException`; in headers, `DisabledException:http://...`.
        let code = code.rsplit('#').next().unwrap_or_default();
        let code = code.split(':').next().unwrap_or_default();
        Refusal {
            operation,
            status: reply.status,
            code: printable(code),
            message: printable(&message),
            date: DateTime::from_str(&reply.date, Format::HttpDate)
                .ok()
                .and_then(|date| SystemTime::try_from(date).ok()),
            request: printable(&reply.request),
        }
    }

    fn remedy(&self) -> Remedy {
        match self.code.as_str() {
            "ThrottlingException"
            | "Throttling"
            | "ThrottledException"
            | "RequestThrottled"
            | "RequestThrottledException"
            | "TooManyRequestsException"
            | "RequestLimitExceeded"
            | "SlowDown"
            | "DependencyTimeoutException"
            | "KeyUnavailableException"
            | "KMSInternalException"
            | "IDPCommunicationError" => Remedy::Wait,
            "RequestTimeTooSkewed"
            | "RequestExpired"
            | "RequestInTheFuture"
            | "InvalidSignatureException"
            | "SignatureDoesNotMatch" => Remedy::Clock,
            "ExpiredToken"
            | "ExpiredTokenException"
            | "InvalidClientTokenId"
            | "UnrecognizedClientException"
            | "InvalidToken" => Remedy::Credentials,
            // It may be there later, but not within this call.
            "KMSInvalidStateException" => Remedy::None,
            _ if self.status == 429 || self.status >= 500 => Remedy::Wait,
            _ => Remedy::None,
        }
    }

    fn reason(&self) -> ProviderError {
        match self.code.as_str() {
            "NotFoundException" | "InvalidArnException" => ProviderError::NotFound,
            "DisabledException" => ProviderError::Disabled,
            // One name for all states but disabled; the sentence is the one documented. A key store that does not answer has it too.
            "KMSInvalidStateException" if self.message.contains("pending") && self.message.contains("deletion") => {
                ProviderError::PendingDeletion
            }
            "InvalidCiphertextException" => ProviderError::Rejected,
            "IncorrectKeyException" => ProviderError::IncorrectKey,
            "LimitExceededException" => ProviderError::Limit,
            "InvalidKeyUsageException" | "UnsupportedOperationException" | "ValidationException" => {
                ProviderError::Unsupported
            }
            "KMSInvalidStateException" => ProviderError::Unavailable,
            // As KMS says it, and as servers do that take the word of other services.
            "AccessDeniedException" | "AccessDenied" => ProviderError::AccessDenied,
            _ if matches!(self.remedy(), Remedy::Clock | Remedy::Credentials) => ProviderError::Unauthorized,
            // Without a code it is the word of something in front of the service, which refuses no key.
            _ if self.remedy() == Remedy::None && matches!(self.status, 400 | 401 | 403) && !self.code.is_empty() => {
                ProviderError::Unauthorized
            }
            // Throttling, faults of the server, and answers of something that is not KMS.
            _ => ProviderError::Unavailable,
        }
    }
}

impl AwsError {
    /// Returns what may help.
    pub fn remedy(&self) -> Remedy {
        match self {
            AwsError::Transport { source, .. } if passes(source) => Remedy::Wait,
            AwsError::Service(refusal) => refusal.remedy(),
            _ => Remedy::None,
        }
    }

    /// Tells whether what the user has said or set is wrong, rather than something that was asked.
    pub fn is_usage(&self) -> bool {
        matches!(
            self,
            AwsError::Setting { .. }
                | AwsError::Syntax { .. }
                | AwsError::NoProfile { .. }
                | AwsError::KeyName { .. }
                | AwsError::NoRegion { .. }
        )
    }

    /// Says it in a keystore's words. Only what may pass by itself is [`ProviderError::Unavailable`].
    pub fn reason(&self) -> ProviderError {
        match self {
            AwsError::KeyName { .. } => ProviderError::NotFound,
            AwsError::KeyKind { .. } => ProviderError::Unsupported,
            AwsError::NotAKey => ProviderError::Rejected,
            AwsError::Service(refusal) => refusal.reason(),
            AwsError::Transport { .. } | AwsError::Answer { .. } => ProviderError::Unavailable,
            AwsError::Process {
                problem: ProcessProblem::TooSlow(_),
                ..
            } => ProviderError::Unavailable,
            AwsError::Setting { .. }
            | AwsError::File { .. }
            | AwsError::Syntax { .. }
            | AwsError::NoProfile { .. }
            | AwsError::Unsupported { .. }
            | AwsError::NoRegion { .. }
            | AwsError::NoCredentials { .. }
            | AwsError::BadCredentials { .. }
            | AwsError::Process { .. } => ProviderError::Unauthorized,
        }
    }
}

/// Tells whether a failure to reach a server may be another one's next time. A certificate that is not trusted stays so.
fn passes(error: &ureq::Error) -> bool {
    match error {
        // So rustls's errors arrive, and bodies that are too large.
        ureq::Error::Io(error) => error.kind() != io::ErrorKind::InvalidData,
        ureq::Error::Timeout(_) | ureq::Error::HostNotFound | ureq::Error::ConnectionFailed => true,
        ureq::Error::Protocol(_) => true,
        _ => false,
    }
}

fn decode_json(body: &[u8]) -> Option<(String, String)> {
    let error: JsonError = serde_json::from_slice(body).ok()?;
    Some((error.kind, error.message.unwrap_or_default()))
}

/// Reads `<Code>` and `<Message>`, wherever they stand: IAM and STS differ in what is around them.
fn decode_xml(body: &[u8]) -> Option<(String, String)> {
    let document = roxmltree::Document::parse(std::str::from_utf8(body).ok()?).ok()?;
    let text = |name| {
        let mut nodes = document.descendants();
        nodes.find(|node| node.is_element_named(name))?.text()
    };
    Some((text("Code")?.to_owned(), text("Message").unwrap_or_default().to_owned()))
}

/// Finds elements by name alone: AWS's namespaces differ by service and year.
pub(super) trait AnyNamespace {
    /// Tells whether it is an element with this name.
    fn is_element_named(&self, name: &str) -> bool;
}

impl AnyNamespace for roxmltree::Node<'_, '_> {
    fn is_element_named(&self, name: &str) -> bool {
        self.is_element() && self.tag_name().name() == name
    }
}

/// Leaves out what could act on a terminal, and what is too long.
fn printable(text: &str) -> String {
    let mut shown = text.chars().filter(|c| !c.is_control());
    shown.by_ref().take(MESSAGE_CHARS_MAX).collect()
}

impl fmt::Display for AwsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            AwsError::Setting { name, problem } => write!(f, "{name} {problem}"),
            AwsError::File { path, .. } => write!(f, "{} cannot be read", path.display()),
            AwsError::Syntax { path, line } => {
                write!(
                    f,
                    "line {line} of {} is neither a section nor a setting",
                    path.display()
                )
            }
            AwsError::NoProfile { name } => {
                write!(f, "there is no AWS profile {name:?}; see AWS_PROFILE and ~/.aws/config")
            }
            AwsError::Unsupported { profile, what } => write!(
                f,
                "AWS profile {profile:?} uses {what}, which hushfs does not do itself; add to another profile: \
                 credential_process = aws configure export-credentials --profile {profile}"
            ),
            AwsError::KeyName { name } => {
                write!(f, "{name:?} is not the ARN, the id or the alias of an AWS KMS key")
            }
            AwsError::KeyKind { arn } => write!(f, "{arn} is not a symmetric key for encryption"),
            AwsError::NotAKey => f.write_str("Decrypt: what was wrapped is not a key of 32 bytes"),
            AwsError::NoRegion { name } => {
                write!(
                    f,
                    "nothing says in which region {name} is; give its ARN or set AWS_REGION"
                )
            }
            AwsError::NoCredentials { last: None } => {
                f.write_str("no AWS credentials; see docs/KEYS.md for where they may be")
            }
            AwsError::NoCredentials { last: Some(last) } => {
                write!(
                    f,
                    "no AWS credentials; see docs/KEYS.md for where they may be. Asked last: {last}"
                )
            }
            AwsError::BadCredentials { source, problem } => write!(f, "the credentials of {source} {problem}"),
            AwsError::Process { profile, problem } => {
                write!(f, "the credential_process of AWS profile {profile:?} ")?;
                match problem {
                    ProcessProblem::Io(error) => write!(f, "cannot be run: {error}"),
                    ProcessProblem::Failed(status) => write!(f, "failed: {status}"),
                    ProcessProblem::TooSlow(limit) => write!(f, "took more than {} s", limit.as_secs()),
                }
            }
            AwsError::Transport { host, source } => write!(f, "{host} does not answer: {source}"),
            AwsError::Answer { operation, problem } => write!(f, "{operation}: the answer {problem}"),
            AwsError::Service(refusal) => refusal.fmt(f),
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.operation)?;
        match self.code.as_str() {
            "" => write!(f, "HTTP status {}", self.status)?,
            code => f.write_str(code)?,
        }
        if !self.message.is_empty() {
            write!(f, ": {}", self.message)?;
        }
        if !self.request.is_empty() {
            write!(f, " (request {})", self.request)?;
        }
        Ok(())
    }
}

impl std::error::Error for AwsError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            AwsError::File { source, .. } => Some(source),
            _ => None,
        }
    }
}
