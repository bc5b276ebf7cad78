//! `agent` and `lock`: a keystore held for other users.

use std::{
    ffi::CString,
    path::{Path, PathBuf},
};

use serde_json::json;

use super::{
    CliResult,
    args::{AgentArgs, LockArgs},
    daemon::{self, Side},
    error::CliError,
    info::print_json,
    open, print, process, text,
};
use crate::{
    agent::{self, Access, Listener},
    keystore::AgentClient,
    sandbox::{Needs, Outside, Sandbox},
    vault::home::ChangeError,
};

/// Starts an agent, in the background unless told otherwise, or says what one is.
pub fn agent(args: &AgentArgs) -> CliResult {
    if args.status {
        return status(args);
    }
    // Before the process forks: what systemd passes is for this one.
    let passed = match args.socket {
        Some(_) => None,
        None => Listener::passed()?,
    };
    if args.foreground || passed.is_some() {
        return serve(args, passed, || {});
    }
    match daemon::fork(None)? {
        Side::Called(result) => result,
        Side::Background(background) => serve(args, None, || background.ready()),
    }
}

fn serve(args: &AgentArgs, passed: Option<Listener>, ready: impl FnOnce()) -> CliResult {
    let access = match &args.group {
        Some(group) => Access::Group(find_group(group)?),
        None => Access::All,
    };
    // Nobody is to type a passphrase in vain.
    let listener = match passed {
        Some(listener) => listener,
        None => Listener::bind(&socket(args.socket.clone())?, access)?,
    };
    process::raise_locked_limit();
    let keystore = open::open_for_agent(&args.unlock)?;
    let sandbox = match args.no_sandbox {
        true => Sandbox::off(),
        false => Sandbox::new(Needs {
            directories: vec![keystore.path().to_owned()],
            removes_in: listener.directory().map(Path::to_owned).into_iter().collect(),
            filesystem: false,
            outside: process::outside(keystore.keystore().reach()).max(Outside::UnixSockets),
        }),
    };
    agent::serve(&listener, keystore, args.rate, || {
        // Nobody listens where it was not started by systemd.
        let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
        ready();
        // No client has been let in yet, so no thread is there but this one.
        sandbox.enter_thread();
        sandbox.enter_process();
    })?;
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);
    Ok(())
}

fn status(args: &AgentArgs) -> CliResult {
    let socket = socket(args.socket.clone())?;
    let agent = AgentClient::connect(&socket).map_err(ChangeError::from)?;
    let status = agent.status();
    if args.json {
        return print_json(&json!({
            "keystore": status.keystore.to_hex(),
            "generation": status.generation,
            "uid": status.uid,
            "pid": status.pid,
            "started": text::time(status.started),
            "answered": status.answered,
            "refused": status.refused,
        }));
    }
    print(
        format!(
            "keystore {}\nuser     {}\nprocess  {}\nstarted  {}\nrequests {} answered, {} refused\n",
            status.keystore,
            status.uid,
            status.pid,
            text::time(status.started),
            status.answered,
            status.refused
        )
        .as_bytes(),
    )
}

/// Has an agent forget its keys and end.
pub fn lock(args: &LockArgs) -> CliResult {
    let socket = socket(args.agent.clone())?;
    let agent = AgentClient::connect(&socket).map_err(ChangeError::from)?;
    Ok(agent.lock().map_err(ChangeError::from)?)
}

fn socket(named: Option<PathBuf>) -> CliResult<PathBuf> {
    named.or_else(agent::default_socket).ok_or(CliError::WhichSocket)
}

/// Finds a group by its number or name.
fn find_group(text: &str) -> CliResult<u32> {
    if let Ok(number) = text.parse() {
        return Ok(number);
    }
    let none = || CliError::NoGroup { name: text.to_owned() };
    let name = CString::new(text).map_err(|_| none())?;
    // SAFETY: this process has one thread yet, so nobody else uses the buffer that the answer lies in.
    unsafe { libc::getgrnam(name.as_ptr()).as_ref() }
        .map(|group| group.gr_gid)
        .ok_or_else(none)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_is_found_by_number_or_name() {
        assert_eq!(find_group("123").unwrap(), 123);
        assert_eq!(find_group("root").unwrap(), 0);
        assert!(matches!(find_group("no such group"), Err(CliError::NoGroup { .. })));
    }
}
