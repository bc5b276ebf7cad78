//! Reading a log: line by line for showing, and as a whole for verifying.

use std::{
    fs::File,
    io::{self, BufRead, BufReader, Read},
    path::{Path, PathBuf},
};

use super::{AuditError, AuditLog, Known, files::AuditNames};
use crate::{
    format::{
        audit::{LINE_SIZE_MAX, Line, Problem, Verifier},
        keystore::AuditHead,
    },
    keystore::LocalKeystore,
    vault::home::KeystoreHome,
};

/// The lines of a log. A line that is too long is given in part.
#[derive(Debug)]
pub struct LogReader {
    path: PathBuf,
    lines: BufReader<File>,
}

/// What was found in a log.
#[derive(Debug, Default)]
pub struct Verified {
    /// How many records were as they should be.
    pub good: u64,
    /// The number of the last one.
    pub last: Option<u64>,
    /// Of these the keystore knows itself.
    pub head: AuditHead,
    /// What is wrong, with the number of the line.
    pub problems: Vec<(u64, Problem)>,
    /// What is wrong besides the lines.
    pub besides: Option<AuditError>,
}

impl LogReader {
    /// Opens the log of a keystore.
    ///
    /// # Errors
    ///
    /// [`AuditError::Missing`], [`AuditError::Io`].
    pub fn of(home: &KeystoreHome) -> Result<Self, AuditError> {
        let name = AuditNames::of(home.is_embedded()).log;
        let file = home.dir().open_file(name, true);
        let file = file.and_then(|file| file.fd().try_clone());
        Self::new(home.path().join(name), file.map(File::from))
    }

    /// Opens a file that is a log.
    ///
    /// # Errors
    ///
    /// As for [`of`](Self::of).
    pub fn open(path: &Path) -> Result<Self, AuditError> {
        Self::new(path.to_owned(), File::open(path))
    }

    fn new(path: PathBuf, file: io::Result<File>) -> Result<Self, AuditError> {
        match file {
            Ok(file) => Ok(LogReader {
                path,
                lines: BufReader::new(file),
            }),
            Err(source) if source.kind() == io::ErrorKind::NotFound => Err(AuditError::Missing { file: path }),
            Err(source) => Err(AuditError::Io { file: path, source }),
        }
    }

    /// Returns the path of the log.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the next line, without its end; nothing at the end of the log. A last line that has no end is not there yet.
    ///
    /// # Errors
    ///
    /// [`AuditError::Io`]; [`AuditError::Strange`] where there are zeros for longer than a line may be: a hole of terabytes costs nothing to make.
    pub fn next_line(&mut self) -> Result<Option<Vec<u8>>, AuditError> {
        let failed = |source| AuditError::Io {
            file: self.path.clone(),
            source,
        };
        let mut line = Vec::new();
        let mut limited = (&mut self.lines).take(LINE_SIZE_MAX as u64);
        limited.read_until(b'\n', &mut line).map_err(failed)?;
        match line.pop_if(|last| *last == b'\n') {
            Some(_) => Ok(Some(line)),
            None if line.len() < LINE_SIZE_MAX => Ok(None),
            None if line.iter().all(|&byte| byte == 0) => Err(AuditError::Strange {
                file: self.path.clone(),
            }),
            None => Ok(Some(line)),
        }
    }
}

/// Verifies the log of a keystore, or one that it had before.
pub(in crate::vault::home) fn verify(
    home: &KeystoreHome,
    keystore: &LocalKeystore,
    other: Option<&Path>,
) -> Result<Option<Verified>, AuditError> {
    let Some(settings) = keystore.audit_settings() else {
        return Ok(None);
    };
    let log = AuditLog::find(home, keystore, settings.log)?;
    let mut reader = match other {
        Some(path) => LogReader::open(path)?,
        None => LogReader::of(home)?,
    };
    let seed = keystore.audit_seed(&settings).map_err(|_| log.no_seed())?;
    let head = keystore.audit_head();
    let mut found = Verified {
        head,
        ..Verified::default()
    };
    let mut pinned = vec![head];
    let mut verifier = None;
    if other.is_none() {
        // Nobody appends between the two.
        match log.state_for_reading(Known::of(keystore)) {
            Ok(end) => pinned.push(end),
            Err(error) => found.besides = Some(error),
        }
        verifier = Some(Verifier::new(&seed, settings.log, settings.first, &pinned));
    }
    let mut number = 0;
    loop {
        let line = match reader.next_line() {
            Ok(Some(line)) => line,
            Ok(None) => break,
            Err(error) if error.is_damage() => {
                found.besides.get_or_insert(error);
                break;
            }
            Err(error) => return Err(error),
        };
        number += 1;
        let verifier = verifier.get_or_insert_with(|| {
            // A log from before says itself which it is; that it is one of this keystore's shows in its first record.
            let (log, first) = Line::decode(&line).map_or((settings.log, 1), |line| (line.log, line.seq));
            Verifier::new(&seed, log, first, &[])
        });
        let problems = verifier.check(&line);
        found
            .problems
            .extend(problems.into_iter().map(|problem| (number, problem)));
    }
    if number == 0 && other.is_some() && found.besides.is_none() {
        // Its first record says that it was begun.
        let file = reader.path().to_owned();
        found.besides = Some(AuditError::Cut { file });
    }
    if let Some(verifier) = verifier {
        found
            .problems
            .extend(verifier.finish().map(|problem| (number, problem)));
        found.good = verifier.good();
        found.last = verifier.next().checked_sub(1).filter(|_| found.good > 0);
    }
    Ok(Some(found))
}
