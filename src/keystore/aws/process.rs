//! Credentials from the program that a profile names: `credential_process`.

use std::{
    os::unix::process::CommandExt,
    process::{Child, Command, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use aws_credential_types::Credentials;
use zeroize::Zeroizing;

use super::{
    credentials::Document,
    error::{AwsError, ProcessProblem},
    input::read_all,
};

/// How long a program may take: some wait for the user to touch something.
pub const TIME_MAX: Duration = Duration::from_secs(60);

/// The most bytes that are read of what it writes.
const OUTPUT_SIZE_MAX: usize = 64 * 1024;

/// How often it is looked whether the program has ended.
const POLL: Duration = Duration::from_millis(10);

const SOURCE: &str = "a credential_process";

/// Runs a program, by the shell as AWS's tools do, and reads credentials from its standard output.
///
/// # Errors
///
/// [`AwsError::Process`], [`AwsError::BadCredentials`].
pub fn run(profile: &str, command: &str, time_max: Duration) -> Result<Credentials, AwsError> {
    let failed = |problem| AwsError::Process {
        profile: profile.to_owned(),
        problem,
    };
    let output = output_of(command, time_max).map_err(failed)?;
    let document = Document::decode(&output, SOURCE)?;
    match document.version {
        Some(1) => document.into_credentials(SOURCE),
        _ => Err(AwsError::BadCredentials {
            source: SOURCE,
            problem: "are not of version 1",
        }),
    }
}

fn output_of(command: &str, time_max: Duration) -> Result<Zeroizing<Vec<u8>>, ProcessProblem> {
    let deadline = Instant::now() + time_max;
    let mut child = Command::new("/bin/sh")
        .args(["-c", command])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        // A group of its own: what the shell starts ends with it.
        .process_group(0)
        .spawn()
        .map_err(ProcessProblem::Io)?;
    let output = child.stdout.take().expect("it was piped");
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || sender.send(read_all(output, OUTPUT_SIZE_MAX)));
    let read = receiver.recv_timeout(time_max);
    let Ok(read) = read else {
        end(&mut child);
        return Err(ProcessProblem::TooSlow(time_max));
    };
    let output = read.map_err(|error| {
        // Its status would tell of a pipe that nobody reads any more.
        end(&mut child);
        ProcessProblem::Io(error)
    })?;
    loop {
        match child.try_wait().map_err(ProcessProblem::Io)? {
            Some(status) if status.success() => return Ok(output),
            Some(status) => return Err(ProcessProblem::Failed(status)),
            None if Instant::now() >= deadline => {
                end(&mut child);
                return Err(ProcessProblem::TooSlow(time_max));
            }
            None => thread::sleep(POLL),
        }
    }
}

/// Kills a program and all it has started, and waits for it.
fn end(child: &mut Child) {
    // A process that was not waited for keeps its id, so these are the right ones.
    if let Some(group) = rustix::process::Pid::from_raw(child.id() as i32) {
        let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
    }
    let _ = child.wait();
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"{"Version": 1, "AccessKeyId": "AKID", "SecretAccessKey": "SECRET", "SessionToken": "TOKEN", "Expiration": "2099-01-02T03:04:05+00:00"}"#;

    fn run_for(command: &str, seconds: u64) -> Result<Credentials, AwsError> {
        run("work", command, Duration::from_secs(seconds))
    }

    #[test]
    fn a_program_gives_credentials() {
        let found = run_for(&format!("echo '{GOOD}'"), 30).unwrap();
        assert_eq!(found.access_key_id(), "AKID");
        assert_eq!(found.secret_access_key(), "SECRET");
        assert_eq!(found.session_token(), Some("TOKEN"));
        assert!(found.expiry().is_some());
    }

    #[test]
    fn a_program_that_gives_none_is_an_error() {
        let failed = run_for("echo no >/dev/null; exit 3", 30).unwrap_err();
        let is_failure = matches!(&failed, AwsError::Process { problem: ProcessProblem::Failed(status), .. } if status.code() == Some(3));
        assert!(is_failure, "{failed}");
        for command in [
            "echo nonsense".to_owned(),
            "true".to_owned(),
            format!("echo '{}'", GOOD.replace("\"Version\": 1", "\"Version\": 2")),
            format!("echo '{}'", GOOD.replace("AccessKeyId", "Other")),
            format!("echo '{}'", GOOD.replace("2099-01-02T03:04:05+00:00", "soon")),
            format!("echo '{}'", GOOD.replace("TOKEN", "a\\nb")),
        ] {
            let error = run_for(&command, 30).unwrap_err();
            assert!(matches!(error, AwsError::BadCredentials { .. }), "{command}: {error}");
            assert!(!error.to_string().contains("SECRET"), "{error}");
        }
    }

    #[test]
    fn a_program_that_does_not_end_is_ended_with_what_it_started() {
        let dir = tempfile::tempdir().unwrap();
        let mark = dir.path().join("mark");
        let command = format!("(sleep 2; touch {}) & sleep 100", mark.display());
        let error = run("work", &command, Duration::from_millis(200)).unwrap_err();
        assert!(
            matches!(
                error,
                AwsError::Process {
                    problem: ProcessProblem::TooSlow(_),
                    ..
                }
            ),
            "{error}"
        );
        thread::sleep(Duration::from_secs(3));
        assert!(!mark.exists());
        // One that closes its output and goes on.
        let error = run("work", "exec >/dev/null; sleep 100", Duration::from_millis(200)).unwrap_err();
        assert!(
            matches!(
                error,
                AwsError::Process {
                    problem: ProcessProblem::TooSlow(_),
                    ..
                }
            ),
            "{error}"
        );
    }

    #[test]
    fn a_program_that_writes_without_end_is_ended() {
        let error = run_for("cat /dev/zero", 30).unwrap_err();
        assert!(
            matches!(
                error,
                AwsError::Process {
                    problem: ProcessProblem::Io(_),
                    ..
                }
            ),
            "{error}"
        );
    }
}
