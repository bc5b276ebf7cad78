//! What is asked for at a terminal, which shows nothing of what is typed.

use std::{
    fs::File,
    io::{Read, Write},
    os::{
        fd::{AsFd, AsRawFd, FromRawFd, OwnedFd},
        unix::process::{CommandExt, ExitStatusExt},
    },
    process::{Command, ExitStatus},
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

/// Returns how a terminal is set.
fn settings(user: &File) -> libc::termios {
    // SAFETY: all bytes of it may be zero, and it is there to be written.
    unsafe {
        let mut settings = std::mem::zeroed();
        assert_eq!(libc::tcgetattr(user.as_raw_fd(), &mut settings), 0);
        settings
    }
}

/// Waits until a terminal does not show what is typed.
fn wait_until_hidden(user: &File) {
    let started = Instant::now();
    while settings(user).c_lflag & libc::ECHO != 0 {
        assert!(started.elapsed() < PATIENCE, "it shows what is typed");
        thread::sleep(Duration::from_millis(1));
    }
}

/// What someone does at a prompt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Deed<'a> {
    Line(&'a str),
    Key(u8),
    Signal(i32),
}

/// Runs a command at a terminal where someone does something at each prompt; returns how it ended and all that the terminal has shown. The terminal is as
/// before then.
fn at_terminal(mut command: Command, deeds: &[Deed<'_>]) -> (ExitStatus, String) {
    let (mut user, program) = terminal();
    let before = settings(&user);
    let own = || program.as_fd().try_clone_to_owned().unwrap();
    command.stdin(own()).stdout(own()).stderr(own());
    // SAFETY: only system calls between fork and exec. Standard input is the terminal by then.
    unsafe {
        command.pre_exec(|| {
            // A shell has what it starts in the background ignore these.
            for signal in [libc::SIGHUP, libc::SIGINT, libc::SIGQUIT, libc::SIGTERM, libc::SIGTSTP] {
                libc::signal(signal, libc::SIG_DFL);
            }
            match (libc::setsid(), libc::ioctl(0, libc::TIOCSCTTY, 0)) {
                (-1, _) | (_, -1) => Err(std::io::Error::last_os_error()),
                _ => Ok(()),
            }
        });
    }
    let mut child = command.spawn().unwrap();
    // The command has its own.
    drop((command, program));
    let mut shown = String::new();
    let mut bytes = [0; 1024];
    let mut next = deeds.iter();
    let mut answered = 0;
    // The end of the last process at a terminal is an error to who sits there.
    while let Ok(got @ 1..) = user.read(&mut bytes) {
        shown.push_str(std::str::from_utf8(&bytes[..got]).unwrap());
        let is_asked = ["for vault: ", "for keys: ", "Again: "]
            .iter()
            .any(|end| shown.ends_with(end));
        if shown.len() > answered && is_asked {
            answered = shown.len();
            // Nobody types so soon after a prompt that the terminal shows it.
            wait_until_hidden(&user);
            match next.next().unwrap_or_else(|| panic!("one prompt too many: {shown}")) {
                Deed::Line(line) => user.write_all(format!("{line}\n").as_bytes()).unwrap(),
                Deed::Key(key) => user.write_all(&[b'x', *key]).unwrap(),
                Deed::Signal(signal) => {
                    // SAFETY: the child is there: nobody has waited for it.
                    assert_eq!(unsafe { libc::kill(child.id() as i32, *signal) }, 0);
                }
            }
        }
    }
    assert_eq!(next.next(), None, "nobody has asked: {shown}");
    for deed in deeds {
        assert!(!matches!(deed, Deed::Line(line) if shown.contains(line)), "{shown}");
    }
    let after = settings(&user);
    assert_eq!(
        (after.c_lflag, after.c_iflag, after.c_oflag, after.c_cc),
        (before.c_lflag, before.c_iflag, before.c_oflag, before.c_cc),
        "the terminal is another after {deeds:?}"
    );
    (child.wait().unwrap(), shown.replace("\r\n", "\n"))
}

impl Place {
    /// Runs hushfs at a terminal where someone types a line when there is a prompt; returns exit code and all that the terminal has shown.
    fn at_terminal(&self, arguments: &str, typed: &[&str]) -> (i32, String) {
        let lines: Vec<_> = typed.iter().map(|line| Deed::Line(line)).collect();
        let (status, shown) = at_terminal(self.command(&arguments.split(' ').collect::<Vec<_>>()), &lines);
        (status.code().unwrap(), shown)
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

#[test]
fn a_signal_at_a_prompt_ends_the_command_and_leaves_the_terminal_as_it_was() {
    let place = Place::with_vault();
    let (interrupt, quit) = (Deed::Key(3), Deed::Key(0o34));
    for (deed, signal) in [
        (interrupt, libc::SIGINT),
        (quit, libc::SIGQUIT),
        (Deed::Signal(libc::SIGTERM), libc::SIGTERM),
        (Deed::Signal(libc::SIGHUP), libc::SIGHUP),
    ] {
        let (status, shown) = at_terminal(place.command(&["ls", "vault"]), &[deed]);
        assert_eq!((status.signal(), &*shown), (Some(signal), "Passphrase for vault: \n"));
    }
    // Two processes: who is to go to the background asks.
    assert_eq!(place.run("keystore init --key-file key keys").code, 0);
    let (status, _) = at_terminal(
        place.command(&["agent", "--keystore", "keys", "--socket", "agent.sock"]),
        &[interrupt],
    );
    assert_eq!(status.signal(), Some(libc::SIGINT));
}

#[test]
fn who_stops_a_prompt_is_asked_again() {
    let place = Place::with_vault();
    // What a shell with job control does, and what the terminal is like meanwhile.
    let hushfs = place.command(&[]);
    let mut shell = Command::new("/bin/sh");
    shell.current_dir(hushfs.get_current_dir().unwrap());
    let script = format!("{} ls vault; stty -a; fg", hushfs.get_program().display());
    shell.args(["-m", "-c", &script]);
    let (status, shown) = at_terminal(shell, &[Deed::Key(0o32), Deed::Line("no passphrase")]);
    assert_eq!(status.code(), Some(3), "{shown}");
    let (_, stopped) = shown.split_once("for vault: \n").unwrap();
    let (stopped, _) = stopped.split_once("Passphrase for vault: ").unwrap();
    assert!(stopped.contains(" echo ") && stopped.contains(" icanon "), "{shown}");
}

#[test]
fn a_line_that_a_terminal_may_have_cut_is_refused() {
    let place = Place::with_vault();
    let (code, shown) = place.at_terminal("ls vault", &[&"p".repeat(5000)]);
    assert_eq!(code, 1, "{shown}");
    assert!(shown.contains("too long for a passphrase"), "{shown}");
}
