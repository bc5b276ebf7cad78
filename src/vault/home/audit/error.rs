//! Why a call could not be recorded, or a log not be read.

use std::{fmt, io, path::PathBuf};

/// Why an audit log could not be appended to, or read. A call that is not recorded is refused.
#[derive(Debug)]
pub enum AuditError {
    /// The log or its state is not there.
    Missing { file: PathBuf },
    /// The log or its state may not be written.
    ReadOnly { file: PathBuf },
    /// The log is shorter than it was.
    Cut { file: PathBuf },
    /// The end of the log, or its state, is not what hushfs wrote.
    Strange { file: PathBuf },
    /// The state is that of another log.
    OtherLog { path: PathBuf },
    /// The log goes less far than the keystore knows.
    LogOlder { path: PathBuf },
    /// The log speaks of changes that the keystore does not have.
    KeystoreOlder { path: PathBuf },
    /// The key of the log does not open.
    NoSeed { path: PathBuf },
    /// The call has more to say than a record can hold.
    TooLong,
    /// Someone else appends, and goes on doing so.
    InUse { path: PathBuf },
    /// A file could not be read or written.
    Io { file: PathBuf, source: io::Error },
}

/// What is said before the error of a call that was refused for it.
pub(in crate::vault::home) const REFUSED: &str = "refused, for it could not be recorded in the audit log";

/// What gets on from a log that cannot be continued.
const ANEW: &str = "put the files of the keystore back from one backup, or begin another log with `hushfs keystore audit on --new-log`";

impl AuditError {
    /// Tells whether somebody must have changed the files of the log or the keystore.
    pub fn is_damage(&self) -> bool {
        match self {
            AuditError::Missing { .. }
            | AuditError::Cut { .. }
            | AuditError::Strange { .. }
            | AuditError::OtherLog { .. }
            | AuditError::LogOlder { .. }
            | AuditError::KeystoreOlder { .. }
            | AuditError::NoSeed { .. } => true,
            AuditError::ReadOnly { .. } | AuditError::TooLong | AuditError::InUse { .. } | AuditError::Io { .. } => {
                false
            }
        }
    }
}

impl fmt::Display for AuditError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            AuditError::Missing { file } => write!(f, "{}: is missing: {ANEW}", file.display()),
            AuditError::ReadOnly { file } => write!(
                f,
                "{}: may not be written: whoever uses the keystore must be able to",
                file.display()
            ),
            AuditError::Cut { file } => write!(f, "{}: was cut off: {ANEW}", file.display()),
            AuditError::Strange { file } => write!(f, "{}: was changed: {ANEW}", file.display()),
            AuditError::OtherLog { path } => {
                write!(f, "{}: log and keystore do not belong together: {ANEW}", path.display())
            }
            AuditError::LogOlder { path } => {
                write!(f, "{}: the log is older than the keystore: {ANEW}", path.display())
            }
            AuditError::KeystoreOlder { path } => {
                write!(f, "{}: the keystore is older than its log: {ANEW}", path.display())
            }
            AuditError::NoSeed { path } => write!(f, "{}: the key of the log does not open", path.display()),
            AuditError::TooLong => f.write_str("a record would have more than 1 MiB"),
            AuditError::InUse { path } => {
                write!(f, "{}: another hushfs holds the log: try again", path.display())
            }
            AuditError::Io { file, source } => write!(f, "{}: {source}", file.display()),
        }
    }
}

impl std::error::Error for AuditError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            AuditError::Io { source, .. } => Some(source),
            _ => None,
        }
    }
}
