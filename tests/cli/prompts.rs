//! What is asked for at a terminal, which shows nothing of what is typed.

use std::{
    fs::File,
    io::{Read, Write},
    os::{
        fd::{AsFd, AsRawFd, FromRawFd, OwnedFd},
        unix::process::CommandExt,
    },
    ptr, thread,
    time::{Duration, Instant},
};

use super::{Place, given};

/// Long enough for a loaded machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// 32 sevens, as the file `key` of a [`Place`] has them.
const BASE64: &str = "BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc=";

/// Makes a terminal: who sits at it, and what a program has of it.
fn terminal() -> (File, OwnedFd) {
    let (mut user, mut program) = (-1, -1);
    // SAFETY: both numbers are there to be written, and nothing else is.
    let opened = unsafe { libc::openpty(&mut user, &mut program, ptr::null_mut(), ptr::null(), ptr::null()) };
    assert_eq!(opened, 0, "{}", std::io::Error::last_os_error());
    // SAFETY: they were just opened, and nobody else has them.
    unsafe { (File::from_raw_fd(user), OwnedFd::from_raw_fd(program)) }
}

/// Waits until a terminal does not show what is typed.
fn wait_until_hidden(user: &File) {
    let started = Instant::now();
    loop {
        // SAFETY: all bytes of it may be zero, and it is there to be written.
        let settings = unsafe {
            let mut settings: libc::termios = std::mem::zeroed();
            assert_eq!(libc::tcgetattr(user.as_raw_fd(), &mut settings), 0);
            settings
        };
        if settings.c_lflag & libc::ECHO == 0 {
            return;
        }
        assert!(started.elapsed() < PATIENCE, "it shows what is typed");
        thread::sleep(Duration::from_millis(1));
    }
}

impl Place {
    /// Runs a command at a terminal where someone types a line when there is a prompt; returns exit code and all that the terminal has shown.
    fn at_terminal(&self, arguments: &str, typed: &[&str]) -> (i32, String) {
        let (mut user, program) = terminal();
        let mut command = self.command(&arguments.split(' ').collect::<Vec<_>>());
        let own = || program.as_fd().try_clone_to_owned().unwrap();
        command.stdin(own()).stdout(own()).stderr(own());
        // SAFETY: only system calls between fork and exec. Standard input is the terminal by then.
        unsafe {
            command.pre_exec(|| match (libc::setsid(), libc::ioctl(0, libc::TIOCSCTTY, 0)) {
                (-1, _) | (_, -1) => Err(std::io::Error::last_os_error()),
                _ => Ok(()),
            });
        }
        let mut child = command.spawn().unwrap();
        // The command has its own.
        drop((command, program));
        let mut shown = String::new();
        let mut bytes = [0; 1024];
        let mut lines = typed.iter();
        let mut answered = 0;
        // The end of the last process at a terminal is an error to who sits there.
        while let Ok(got @ 1..) = user.read(&mut bytes) {
            shown.push_str(std::str::from_utf8(&bytes[..got]).unwrap());
            let is_asked = ["for vault: ", "Again: "].iter().any(|end| shown.ends_with(end));
            if shown.len() > answered && is_asked {
                answered = shown.len();
                // Nobody types so soon after a prompt that the terminal shows it.
                wait_until_hidden(&user);
                let line = lines.next().unwrap_or_else(|| panic!("one prompt too many: {shown}"));
                user.write_all(format!("{line}\n").as_bytes()).unwrap();
            }
        }
        assert_eq!(lines.next(), None, "nobody has asked: {shown}");
        for line in typed {
            assert!(!shown.contains(line), "{shown}");
        }
        (child.wait().unwrap().code().unwrap(), shown.replace("\r\n", "\n"))
    }
}

#[test]
fn a_passphrase_is_typed_and_not_shown() {
    let place = Place::new();
    let init = "init --kdf-memory 64M --kdf-time 1ms vault";
    assert_eq!(
        place.at_terminal(init, &["correct horse", "correct hose"]).0,
        1,
        "they differ"
    );
    assert_eq!(
        place.at_terminal(init, &["correct horse", "correct horse"]),
        (0, "Passphrase for vault: \nAgain: \n".to_owned())
    );
    assert_eq!(place.run("ls --passfile pass vault"), given(0, "", ""));
    assert_eq!(
        place.at_terminal("ls vault", &["correct horse"]),
        (0, "Passphrase for vault: \n".to_owned())
    );
}

#[test]
fn a_customer_key_is_typed_and_not_shown() {
    let place = Place::with_vault();
    let add = "vault customer-key add --key-file key --new-customer-key-prompt vault";
    assert_eq!(place.at_terminal(add, &["0707", "0707"]).0, 3, "too short");
    assert_eq!(
        place.at_terminal(add, &[BASE64, &"07".repeat(32)]).0,
        1,
        "it is to be typed the same way twice"
    );
    let (code, shown) = place.at_terminal(add, &[BASE64, BASE64]);
    let id = shown.strip_prefix("Customer key for vault: \nAgain: \n").unwrap();
    assert_eq!((code, id.trim_end().len()), (0, 32), "{shown}");
    // The same key by a file and by the terminal, in either way to write it.
    assert_eq!(
        place.run("ls --key-file key --customer-key key vault"),
        given(0, "", "")
    );
    let list = "ls --key-file key --customer-key-prompt vault";
    for typed in [BASE64, &"07".repeat(32)] {
        assert_eq!(
            place.at_terminal(list, &[typed]),
            (0, "Customer key for vault: \n".to_owned())
        );
    }
    let (code, shown) = place.at_terminal(list, &[&"08".repeat(32)]);
    assert_eq!(code, 3);
    assert!(shown.contains("hushfs: wrong customer key: "), "{shown}");
    let (code, shown) = place.at_terminal(list, &["a word"]);
    assert_eq!(code, 3);
    assert!(shown.contains("hushfs: not a customer key: "), "{shown}");
    // Nobody is there to be asked.
    assert_eq!(place.run(list).code, 2);
}
