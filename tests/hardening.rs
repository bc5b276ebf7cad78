//! What a mount gives up, tried: its privileges and limits from outside, its calls and files from inside, its memory, and what someone who may write to
//! the vault puts in its way.

mod support;

use std::{
    collections::BTreeMap,
    fs::{self, Permissions},
    io::{self, Write},
    os::unix::{
        fs::{FileExt, MetadataExt, PermissionsExt, symlink},
        net::UnixListener,
        process::ExitStatusExt,
    },
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

use hushfs::sandbox::{Needs, Outside, Sandbox};
use rustix::fs::{
    AtFlags, CWD, Mode, RenameFlags, Timespec, Timestamps, XattrFlags, mknodat, renameat_with, setxattr, utimensat,
};
use support::{Bench, can_mount, is_root};

/// CAP_CHOWN, CAP_DAC_OVERRIDE, CAP_FOWNER, CAP_FSETID, CAP_SYS_ADMIN, CAP_MKNOD of linux/capability.h.
const CAPABILITIES_MAX: u64 = 1 << 0 | 1 << 1 | 1 << 3 | 1 << 4 | 1 << 21 | 1 << 27;

/// Long enough for a loaded machine; what hangs is not waited for longer.
const PATIENCE: Duration = Duration::from_secs(30);

/// What the kernel says of a process or a thread; nothing of one that has ended.
fn find_status(path: &Path) -> Option<BTreeMap<String, String>> {
    let text = fs::read_to_string(path.join("status")).ok()?;
    let fields = text.lines().filter_map(|line| line.split_once(':'));
    let fields = fields.map(|(name, value)| (name.to_owned(), value.trim().to_owned()));
    Some(fields.collect())
}

fn status(path: &Path) -> BTreeMap<String, String> {
    find_status(path).expect("it is there")
}

/// What the kernel says of each thread of a process.
fn statuses(pid: u32) -> Vec<BTreeMap<String, String>> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    tasks.filter_map(|task| find_status(&task.unwrap().path())).collect()
}

/// The process that unmounts for a mount.
fn helper_of(pid: u32) -> Option<u32> {
    let processes = fs::read_dir("/proc").unwrap().filter_map(Result::ok);
    let mut processes = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    processes.find(|process| {
        let stat = fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
        stat.lines().any(|line| line == format!("PPid:\t{pid}"))
    })
}

fn transports() -> Vec<&'static str> {
    let offered = fs::read_to_string("/sys/module/fuse/parameters/enable_uring").unwrap_or_default();
    if offered.trim() == "Y" {
        vec!["device", "io-uring"]
    } else {
        eprintln!("SKIPPED for io_uring: the kernel does not offer it");
        vec!["device"]
    }
}

#[test]
fn every_thread_of_a_mount_has_given_up_what_it_does_not_need() {
    if !can_mount() {
        return;
    }
    for transport in transports() {
        let mut bench = Bench::new();
        bench.mount_over(transport, &[]);
        // Whatever is started by use is there.
        fs::write(bench.mnt().join("file"), "text").unwrap();
        fs::File::open(bench.mnt().join("file")).unwrap().sync_all().unwrap();
        let pid = bench.pid();
        // The mount can be seen, and used, a moment before calls are taken from all threads at once.
        wait_until("system calls are taken", || {
            statuses(pid).iter().all(|status| status["Seccomp"] == "2")
        });
        for status in statuses(pid) {
            let of = format!("{transport}, {} {}", status["Name"], status["Pid"]);
            for set in ["CapPrm", "CapEff", "CapBnd"] {
                let has = u64::from_str_radix(&status[set], 16).unwrap();
                // The bounding set of who is not root cannot be changed, and counts for nothing with NoNewPrivs.
                if set != "CapBnd" || is_root() {
                    assert_eq!(has & !CAPABILITIES_MAX, 0, "{of}: {set} {has:x}");
                }
            }
            for set in ["CapInh", "CapAmb"] {
                assert_eq!(status[set], "0000000000000000", "{of}: {set}");
            }
            assert_eq!(status["NoNewPrivs"], "1", "{of}");
            assert_eq!(status["Seccomp"], "2", "{of}");
        }
        let limits = fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
        let core = limits.lines().find(|line| line.starts_with("Max core file size"));
        assert_eq!(core.unwrap().split_whitespace().nth(4), Some("0"), "{core:?}");
        // A process that can be dumped owns its files in /proc; root's are root's in any case.
        assert_eq!(fs::metadata(format!("/proc/{pid}/mem")).unwrap().uid(), 0);
        let helper = status_of_helper(pid);
        if is_root() {
            let has = u64::from_str_radix(&helper["CapEff"], 16).unwrap();
            assert_eq!(has & !(1 << 21), 0, "what unmounts has {has:x}");
        }
        bench.unmount();
    }
}

fn status_of_helper(pid: u32) -> BTreeMap<String, String> {
    let helper = helper_of(pid).expect("a process unmounts for the mount");
    status(Path::new(&format!("/proc/{helper}")))
}

/// The names of a mount's threads, as far as they last.
fn names_of_threads(transport: &str, options: &[&str]) -> Vec<String> {
    let mut bench = Bench::new();
    bench.mount_over(transport, options);
    fs::write(bench.mnt().join("file"), "text").unwrap();
    let deadline = Instant::now() + PATIENCE;
    let mut names: Vec<String> = loop {
        let statuses = statuses(bench.pid());
        let names: Vec<_> = statuses.iter().map(|status| status["Name"].clone()).collect();
        // The last one to be started, but for those that fuser makes; each has the name of the first until it has its own.
        let is_last_there = names.iter().any(|name| name == "signals");
        if is_last_there && names.iter().filter(|&name| name == "hushfs").count() == 1 {
            break names;
        }
        assert!(Instant::now() < deadline, "{names:?}");
        thread::sleep(Duration::from_millis(10));
    };
    // Without a journal its thread ends at once.
    names.retain(|name| !name.starts_with("fuser-") && !name.starts_with("iou-") && name != "journal");
    names.sort();
    bench.unmount();
    names
}

#[test]
fn a_confined_mount_has_the_threads_that_any_mount_has() {
    if !can_mount() {
        return;
    }
    for transport in transports() {
        let confined = names_of_threads(transport, &[]);
        assert_eq!(confined, names_of_threads(transport, &["--no-sandbox"]), "{transport}");
    }
}

#[test]
fn no_sandbox_takes_nothing_away_and_is_warned_of() {
    if !can_mount() {
        return;
    }
    let mut bench = Bench::new();
    bench.mount(&["--no-sandbox"]);
    let status = status(Path::new(&format!("/proc/{}", bench.pid())));
    assert_eq!((&*status["NoNewPrivs"], &*status["Seccomp"]), ("0", "0"));
    assert_eq!(helper_of(bench.pid()), None);
    bench.unmount();
    wait_until("it is warned of", || bench.log().contains("no sandbox"));
}

#[test]
fn what_a_mount_in_the_background_writes_beside_the_vault_it_can_still_write() {
    if !can_mount() {
        return;
    }
    let bench = Bench::new();
    // As relative names of a directory that the process has left when it writes there.
    let mounted = bench
        .command("mount")
        .args(["-v", "--record=record", "--log-file=log", "--journal"])
        .args([bench.vault(), bench.mnt()])
        .current_dir(bench.plain())
        .output()
        .unwrap();
    assert!(mounted.status.success(), "{}", String::from_utf8_lossy(&mounted.stderr));
    let shown = bench.mnt().join("file");
    for content in ["first", "other"] {
        fs::write(&shown, content).unwrap();
        fs::File::open(&shown).unwrap().sync_all().unwrap();
    }
    let journals = || {
        let names = fs::read_dir(bench.vault())
            .unwrap()
            .map(|entry| entry.unwrap().file_name());
        names
            .filter(|name| name.to_str().unwrap().starts_with("journal-"))
            .count()
    };
    let of_mount = journals();
    assert!(bench.run_unmount().status.success());
    assert_eq!(
        (of_mount, journals()),
        (1, 0),
        "journals while it was mounted, and afterwards"
    );
    let noted = Command::new(support::HUSHFS)
        .args(["record", "show", "--record=record", "--passfile"])
        .args([bench.passfile(), bench.vault()])
        .current_dir(bench.plain())
        .output()
        .unwrap();
    let noted = String::from_utf8_lossy(&noted.stdout).into_owned();
    assert!(noted.contains("\nfiles         1\n"), "{noted}");
    let log = fs::read_to_string(bench.plain().join("log")).unwrap();
    assert!(!log.contains("WARN") && !log.contains("ERROR"), "{log}");
}

#[test]
fn a_mount_says_what_is_in_force_and_ends_by_a_signal() {
    if !can_mount() {
        return;
    }
    let mut bench = Bench::new();
    bench.mount(&["-vv"]);
    fs::write(bench.mnt().join("file"), "text").unwrap();
    let (pid, helper) = (bench.pid(), helper_of(bench.pid()).unwrap());
    // As a service manager does it, to all at once.
    for process in [helper, pid] {
        // SAFETY: plain kill(2) on processes of this test.
        assert_eq!(unsafe { libc::kill(process as i32, libc::SIGTERM) }, 0);
    }
    wait_until("the mount ends", || !bench.is_mounted());
    wait_until("and what unmounts", || helper_of(pid).is_none());
    // Who copies what it has said may be behind.
    wait_until("it has said what is in force", || {
        let log = bench.log();
        log.contains("sandbox: asks nobody else; capabilities") && log.contains("seccomp allows what is needed")
    });
}

#[test]
fn what_unmounts_ends_with_a_mount_that_is_killed() {
    if !can_mount() {
        return;
    }
    let mut bench = Bench::mounted();
    let helper = helper_of(bench.pid()).unwrap();
    bench.kill();
    let path = format!("/proc/{helper}/status");
    wait_until("it ends", || {
        fs::read_to_string(&path).map_or(true, |status| status.contains("\nState:\tZ"))
    });
    // It has not kept the vault's lock.
    bench.mount_again();
    bench.unmount();
}

fn wait_until(what: &str, holds: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "{what}");
        thread::sleep(Duration::from_millis(10));
    }
}

/// Runs the test `inside` in a process of its own, confined to a directory; returns what it could do.
fn could_do(outside: &str) -> BTreeMap<String, String> {
    let dir = tempfile::tempdir().unwrap();
    for sub in ["vault/a", "vault/b", "outside", "removes"] {
        fs::create_dir_all(dir.path().join(sub)).unwrap();
    }
    fs::write(dir.path().join("removes/file"), "text").unwrap();
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "inside", "--nocapture"])
        .env("HUSHFS_TEST_INSIDE", dir.path())
        .env("HUSHFS_TEST_OUTSIDE", outside)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success(),
        "{text}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let lines = text.lines().filter_map(|line| line.strip_prefix("tried: "));
    let tried: BTreeMap<_, _> = lines
        .filter_map(|line| line.split_once('='))
        .map(|(name, result)| (name.to_owned(), result.to_owned()))
        .collect();
    assert!(tried.len() > 15, "{text}");
    tried
}

/// Not by itself: [`could_do`] runs it.
#[test]
#[ignore = "gives up rights for good: other tests run it in a process of its own"]
fn inside() {
    let dir = PathBuf::from(std::env::var_os("HUSHFS_TEST_INSIDE").expect("another test runs this one"));
    let outside = match &*std::env::var("HUSHFS_TEST_OUTSIDE").unwrap() {
        "nobody" => Outside::Nobody,
        "unix" => Outside::UnixSockets,
        "network" => Outside::Network,
        "foreign" => Outside::ForeignCode,
        other => panic!("{other}"),
    };
    let (ask, asked) = mpsc::channel::<()>();
    // One that was there before, and enters nothing by itself: calls are taken from it all the same.
    let earlier = thread::spawn(move || {
        asked.recv().unwrap();
        result_of(|| syscall(libc::SYS_ptrace, [0; 4]))
    });
    let sandbox = Sandbox::new(Needs {
        directories: vec![dir.join("vault")],
        removes_in: vec![dir.join("removes")],
        filesystem: true,
        outside,
    });
    sandbox.enter_thread();
    sandbox.enter_process();
    ask.send(()).unwrap();
    say("ptrace of an earlier thread", earlier.join().unwrap());
    let of_later = thread::spawn(|| result_of(|| fs::read("/etc/shadow").map(drop)));
    say("read /etc/shadow in a later thread", of_later.join().unwrap());

    let vault = dir.join("vault");
    try_it("write in the vault", || fs::write(vault.join("a/file"), "text"));
    try_it("rename in the vault", || {
        fs::rename(vault.join("a/file"), vault.join("b/file"))
    });
    try_it("make a fifo in the vault", || {
        Ok(mknodat(
            CWD,
            vault.join("fifo"),
            rustix::fs::FileType::Fifo,
            Mode::RUSR,
            0,
        )?)
    });
    try_it("remove its own file", || fs::remove_file(dir.join("removes/file")));
    try_it("write beside its own file", || {
        fs::write(dir.join("removes/new"), "text")
    });
    try_it("write outside", || fs::write(dir.join("outside/file"), "text"));
    try_it("rename to outside", || {
        fs::rename(vault.join("b/file"), dir.join("outside/file"))
    });
    symlink("/etc/shadow", vault.join("link")).unwrap();
    try_it("read through a link", || fs::read(vault.join("link")).map(drop));
    try_it("read /etc/passwd", || fs::read("/etc/passwd").map(drop));
    try_it("read a status", || fs::read("/proc/self/status").map(drop));
    try_it("read memory of another", || {
        fs::File::open(format!("/proc/{}/mem", std::os::unix::process::parent_id())).map(drop)
    });
    try_it("run a program", || Command::new("/bin/true").status().map(drop));
    try_it("ptrace", || syscall(libc::SYS_ptrace, [0; 4]));
    try_it("kill", || {
        syscall(libc::SYS_kill, [std::os::unix::process::parent_id() as usize, 0, 0, 0])
    });
    try_it("Unix socket", || socket(libc::AF_UNIX));
    try_it("TCP socket", || socket(libc::AF_INET));
    try_it("packet socket", || socket(libc::AF_PACKET));
    try_it("connect by TCP", || match std::net::TcpStream::connect("127.0.0.1:9") {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Ok(()),
        result => result.map(drop),
    });
    try_it("make a ring", || io_uring::IoUring::new(1).map(drop));
    try_it("unmount", || {
        syscall(libc::SYS_umount2, [c"/nowhere".as_ptr() as usize, 0, 0, 0])
    });
    try_it("unshare", || {
        syscall(libc::SYS_unshare, [libc::CLONE_NEWNS as usize, 0, 0, 0])
    });
    try_it("bpf", || syscall(libc::SYS_bpf, [0; 4]));
    try_it("memory that is code", || {
        let access = rustix::mm::ProtFlags::READ | rustix::mm::ProtFlags::EXEC;
        // SAFETY: a new mapping at an address of the kernel's choice.
        let map =
            unsafe { rustix::mm::mmap_anonymous(std::ptr::null_mut(), 4096, access, rustix::mm::MapFlags::PRIVATE) };
        Ok(map.map(drop)?)
    });
    try_it("another thread", || {
        thread::Builder::new().spawn(|| ()).map(|thread| thread.join().unwrap())
    });
}

fn try_it(what: &str, act: impl FnOnce() -> io::Result<()>) {
    say(what, result_of(act));
}

fn say(what: &str, result: String) {
    // Not by println, which goes another way in a test.
    let mut output = io::stdout();
    writeln!(output, "tried: {what}={result}").unwrap();
}

fn result_of(act: impl FnOnce() -> io::Result<()>) -> String {
    match act() {
        Ok(()) => "done".to_owned(),
        Err(error) => match error.raw_os_error() {
            Some(libc::ENOSYS) => "no such call".to_owned(),
            Some(libc::EACCES | libc::EPERM) => "refused".to_owned(),
            _ => error.to_string(),
        },
    }
}

fn socket(family: libc::c_int) -> io::Result<()> {
    syscall(libc::SYS_socket, [family as usize, libc::SOCK_DGRAM as usize, 0, 0])
}

fn syscall(number: libc::c_long, arguments: [usize; 4]) -> io::Result<()> {
    let [a, b, c, d] = arguments;
    // SAFETY: none of the calls made here writes to memory with these arguments.
    match unsafe { libc::syscall(number, a, b, c, d) } {
        -1 => Err(std::io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// What a mount must go on doing, whomever it asks.
const DONE: [&str; 5] = [
    "remove its own file",
    "write in the vault",
    "make a fifo in the vault",
    "read a status",
    "another thread",
];

/// What gets no further than the filter, whomever the process asks.
const NEVER: [&str; 6] = [
    "ptrace",
    "ptrace of an earlier thread",
    "make a ring",
    "unmount",
    "unshare",
    "bpf",
];

fn has_landlock() -> bool {
    // SAFETY: with this flag the call reads nothing, and gives a number.
    let version = unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, 0, 0, 1) };
    if version < 3 {
        eprintln!("SKIPPED for places: Landlock {version} in this kernel");
    }
    version >= 3
}

#[test]
fn a_confined_process_does_what_a_mount_does_and_no_more() {
    let tried = could_do("nobody");
    for what in DONE {
        assert_eq!(tried[what], "done", "{what}");
    }
    let calls = [
        "run a program",
        "kill",
        "Unix socket",
        "TCP socket",
        "packet socket",
        "connect by TCP",
        "memory that is code",
    ];
    for what in NEVER.into_iter().chain(calls) {
        assert_eq!(tried[what], "no such call", "{what}");
    }
    if has_landlock() {
        assert_eq!(tried["rename in the vault"], "done");
        let places = [
            "write outside",
            "write beside its own file",
            "read through a link",
            "read /etc/passwd",
            "read /etc/shadow in a later thread",
            "read memory of another",
        ];
        for what in places {
            assert_eq!(tried[what], "refused", "{what}");
        }
        assert_ne!(tried["rename to outside"], "done");
    }
}

#[test]
fn who_asks_an_agent_has_unix_sockets_besides() {
    let tried = could_do("unix");
    assert_eq!(tried["Unix socket"], "done");
    for what in NEVER
        .into_iter()
        .chain(["run a program", "TCP socket", "connect by TCP"])
    {
        assert_eq!(tried[what], "no such call", "{what}");
    }
}

#[test]
fn who_asks_a_key_server_may_read_and_connect_but_neither_write_nor_run() {
    let tried = could_do("network");
    for what in ["TCP socket", "connect by TCP", "read /etc/passwd"]
        .into_iter()
        .chain(DONE)
    {
        assert_eq!(tried[what], "done", "{what}");
    }
    for what in NEVER.into_iter().chain(["run a program", "packet socket", "kill"]) {
        assert_eq!(tried[what], "no such call", "{what}");
    }
    if has_landlock() {
        assert_eq!(tried["write outside"], "refused");
        assert_eq!(tried["read memory of another"], "refused");
    }
}

#[test]
fn who_needs_foreign_code_is_kept_from_what_that_does_not_use() {
    let tried = could_do("foreign");
    for what in ["run a program", "TCP socket", "write outside"].into_iter().chain(DONE) {
        assert_eq!(tried[what], "done", "{what}");
    }
    for what in NEVER {
        assert_eq!(tried[what], "no such call", "{what}");
    }
}

#[test]
fn a_mount_by_a_token_goes_on_asking_it() {
    const MODULE: &str = "HUSHFS_TEST_SOFTHSM";
    if !can_mount() {
        return;
    }
    let Ok(module) = std::env::var(MODULE) else {
        let missing = format!("no {MODULE}: see scripts/keyservers");
        assert!(std::env::var_os("HUSHFS_TESTS_MUST_NOT_SKIP").is_none(), "{missing}");
        return eprintln!("SKIPPED: {missing}");
    };
    let mut bench = Bench::new();
    let pin = bench.plain().join("pin");
    fs::write(&pin, "123456").unwrap();
    let token = ["--pkcs11-module", &module, "--pin-file", pin.to_str().unwrap()];
    let key = format!("pkcs11:token=hushfs;object=mount-{}", std::process::id());
    let run = |words: &[&str], options: &[&str]| {
        let mut command = Command::new(support::HUSHFS);
        command.args(words).args(token).arg("--passfile").arg(bench.passfile());
        let output = command.args(options).arg(bench.vault()).output().unwrap();
        assert!(
            output.status.success(),
            "{words:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    };
    run(
        &["key", "create"],
        &["--pkcs11", &key, "--generate", "--alias", "alias/token"],
    );
    run(&["vault", "encryption", "set"], &["--key", "alias/token"]);
    bench.mount(&[&token[..], &["-vv", "--key-ttl=1s", "--key-max-stale=2s"]].concat());
    let file = bench.mnt().join("file");
    fs::write(&file, "text").unwrap();
    // Twice as long as it could be used without an answer.
    thread::sleep(Duration::from_secs(4));
    fs::write(&file, "other").unwrap();
    fs::File::open(&file).unwrap().sync_all().unwrap();
    bench.unmount();
    wait_until("it says whom it asks", || {
        bench.log().contains("sandbox: asks foreign code;")
            && bench.log().contains("seccomp refuses what only an attack would use")
    });
    assert!(!bench.log().contains("for a while without"), "{}", bench.log());
}

/// Tells whether memory of a process that can be read has some bytes; nothing where it cannot be read at all.
fn memory_has(pid: u32, wanted: &[u8]) -> Option<bool> {
    let memory = fs::File::open(format!("/proc/{pid}/mem")).ok()?;
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).ok()?;
    for line in maps.lines() {
        let (range, rest) = line.split_once(' ').unwrap();
        let (from, to) = range.split_once('-').unwrap();
        let (from, to) = (
            u64::from_str_radix(from, 16).unwrap(),
            u64::from_str_radix(to, 16).unwrap(),
        );
        if !rest.starts_with('r') || rest.contains("[vvar") {
            continue;
        }
        let mut bytes = vec![0; (to - from) as usize];
        // What cannot be read, such as secret memory, is what was wanted.
        if memory.read_exact_at(&mut bytes, from).is_ok() && contains(&bytes, wanted) {
            return Some(true);
        }
    }
    Some(false)
}

/// Tells whether some bytes stand among others; quick, also where nothing is optimized.
fn contains(bytes: &[u8], wanted: &[u8]) -> bool {
    // SAFETY: both pointers go with their lengths.
    let found = unsafe { libc::memmem(bytes.as_ptr().cast(), bytes.len(), wanted.as_ptr().cast(), wanted.len()) };
    !found.is_null()
}

#[test]
fn neither_memory_nor_what_proc_shows_has_the_passphrase() {
    if !can_mount() {
        return;
    }
    let mut bench = Bench::mounted();
    fs::write(bench.mnt().join("file"), "text").unwrap();
    let passphrase = fs::read(bench.passfile()).unwrap();
    let passphrase = passphrase.trim_ascii_end();
    for pid in [bench.pid(), helper_of(bench.pid()).unwrap()] {
        for file in ["cmdline", "environ"] {
            let Ok(bytes) = fs::read(format!("/proc/{pid}/{file}")) else {
                assert!(!is_root(), "{file} can be read by root");
                continue;
            };
            assert!(
                !bytes.windows(passphrase.len()).any(|part| part == passphrase),
                "{file}"
            );
        }
        if let Some(found) = memory_has(pid, passphrase) {
            assert!(is_root(), "memory of a process that cannot be dumped is for root only");
            assert!(!found, "the passphrase is in the memory of process {pid}");
            let path = bench.mnt();
            let known = path.as_os_str().as_encoded_bytes();
            assert_eq!(memory_has(pid, known), Some(true), "what is there is found");
        }
    }
    bench.unmount();
}

#[test]
fn a_mount_that_is_aborted_leaves_no_core() {
    if !can_mount() {
        return;
    }
    let bench = Bench::new();
    let mut mount = bench
        .command("mount")
        .arg("--foreground")
        .args([bench.vault(), bench.mnt()])
        .current_dir(bench.plain())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    wait_until("the mount appears", || bench.is_mounted());
    // SAFETY: plain kill(2) on a child of this test.
    assert_eq!(unsafe { libc::kill(mount.id() as i32, libc::SIGABRT) }, 0);
    let status = mount.wait().unwrap();
    assert_eq!(status.signal(), Some(libc::SIGABRT));
    assert!(!status.core_dumped());
    assert_eq!(fs::read_dir(bench.plain()).unwrap().count(), 0);
    // The mount is without a process.
    assert!(bench.run_unmount().status.success());
}

/// The one entry of a backing directory that is a directory, or not.
fn entry(dir: &Path, is_dir: bool) -> PathBuf {
    let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap());
    let mut entries = entries.filter(|entry| !entry.file_name().to_str().unwrap().contains('.'));
    let found = entries.find(|entry| entry.file_type().unwrap().is_dir() == is_dir);
    found.expect("it is there").path()
}

#[test]
fn a_directory_exchanged_for_a_link_in_a_race_leads_nowhere() {
    if !can_mount() {
        return;
    }
    // By what the filesystem does itself, and with the sandbox before it, which would refuse what is led out.
    for options in [&["--shared", "--no-sandbox"][..], &["--shared"]] {
        race_with_a_link(options);
    }
}

/// Uses a directory, and one in it, while the one above is exchanged for a link to a copy of itself, again and again.
fn race_with_a_link(options: &[&str]) {
    let mut bench = Bench::new();
    bench.mount(options);
    let shown = bench.mnt().join("dir/sub");
    fs::create_dir_all(&shown).unwrap();
    fs::write(shown.join("file"), "of the copy").unwrap();
    fs::write(shown.join("changed"), "of the copy").unwrap();
    bench.remount();
    let backing = entry(&bench.vault(), true);
    // What a link that was followed would lead to, in which names and files open.
    let outside = bench.plain().join("outside");
    let copied = Command::new("cp").arg("-a").args([&backing, &outside]).status();
    assert!(copied.unwrap().success());
    fs::write(shown.join("file"), "of the vault").unwrap();
    bench.remount();
    let before = support::snapshot(&outside);
    let link = bench.vault().join("swap.tmp");
    symlink(&outside, &link).unwrap();
    let ended = Arc::new(AtomicBool::new(false));
    let swapping = {
        let ended = ended.clone();
        thread::spawn(move || {
            let mut swaps: u64 = 0;
            while !ended.load(Ordering::Relaxed) || swaps % 2 == 1 {
                renameat_with(CWD, &link, CWD, &backing, RenameFlags::EXCHANGE).unwrap();
                swaps += 1;
                // Operations shall be cut at each of their steps, and some get through.
                thread::sleep(Duration::from_micros(swaps % 7 * 30));
            }
            swaps
        })
    };
    let start = Instant::now();
    let (mut worked, mut failed, mut number) = (0, 0, 0);
    let took_place = |worked: i32, failed: i32| worked > 100 && failed > 100;
    // The kernel keeps for a second whether it was a directory or a link.
    while start.elapsed() < Duration::from_secs(4) || !took_place(worked, failed) && start.elapsed() < PATIENCE {
        number += 1;
        for result in use_directory(&shown, number) {
            match result {
                Ok(()) => worked += 1,
                Err(_) => failed += 1,
            }
        }
        if let Ok(text) = fs::read_to_string(shown.join("file")) {
            assert_eq!(text, "of the vault", "a file outside was read");
        }
    }
    ended.store(true, Ordering::Relaxed);
    let swaps = swapping.join().unwrap();
    eprintln!("{options:?}: {swaps} exchanges, {worked} operations worked, {failed} failed");
    assert!(took_place(worked, failed) && swaps > 100, "the race took place");
    assert_eq!(
        support::snapshot(&outside),
        before,
        "something was led out of the vault"
    );
    let _ = bench.run_unmount();
}

/// Does what changes something in a directory, each time with other names.
fn use_directory(dir: &Path, number: u32) -> Vec<io::Result<()>> {
    let name = |what: &str| dir.join(format!("{what}-{number}"));
    let seconds = |seconds| Timespec {
        tv_sec: seconds,
        tv_nsec: 0,
    };
    let times = Timestamps {
        last_access: seconds(1),
        last_modification: seconds(2),
    };
    vec![
        fs::write(dir.join("changed"), format!("{number}")),
        fs::write(name("new"), "new"),
        fs::rename(name("new"), name("moved")),
        fs::rename(name("moved"), dir.with_file_name(format!("up-{number}"))),
        fs::hard_link(dir.join("file"), name("link")),
        fs::remove_file(name("link")),
        symlink("target", name("symlink")),
        fs::create_dir(name("dir")),
        fs::remove_dir(name("dir")),
        mknodat(CWD, name("fifo"), rustix::fs::FileType::Fifo, Mode::RUSR, 0).map_err(Into::into),
        fs::set_permissions(dir, Permissions::from_mode(0o700 + number % 8)),
        fs::set_permissions(dir.join("file"), Permissions::from_mode(0o600 + number % 8)),
        utimensat(CWD, dir.join("file"), &times, AtFlags::empty()).map_err(Into::into),
        setxattr(dir.join("file"), "user.name", b"value", XattrFlags::empty()).map_err(Into::into),
        fs::OpenOptions::new()
            .append(true)
            .create(true)
            .open(name("appended"))
            .and_then(|mut file| file.write_all(b"more")),
        fs::read_dir(dir).and_then(|mut entries| entries.try_for_each(|entry| entry.map(drop))),
    ]
}

#[test]
fn what_is_put_in_the_place_of_files_is_refused_at_once() {
    if !can_mount() {
        return;
    }
    let bench = Bench::mounted();
    let shown = bench.mnt().join("file");
    fs::write(&shown, "text").unwrap();
    let mut bench = bench;
    bench.remount();
    // Looked up as a file, and exchanged before it is opened.
    assert_eq!(fs::metadata(&shown).unwrap().len(), 4);
    let data = entry(&bench.vault(), false);
    let kept = bench.plain().join("kept");
    fs::rename(&data, &kept).unwrap();
    for kind in ["fifo", "socket", "device", "directory", "link"] {
        if kind == "device" && !is_root() {
            eprintln!("SKIPPED for devices: not root");
            continue;
        }
        put(kind, &data, &kept);
        let error = in_time(kind, {
            let shown = shown.clone();
            move || fs::read(shown)
        });
        assert!(error.is_err(), "{kind}: {error:?}");
        let error = in_time(kind, {
            let shown = shown.clone();
            move || {
                let mut file = fs::OpenOptions::new().write(true).open(shown)?;
                file.write_all(b"new").and_then(|()| file.sync_all())
            }
        });
        assert!(error.is_err(), "{kind}: {error:?}");
        take_away(&data);
    }
    fs::rename(&kept, &data).unwrap();
    assert_eq!(fs::read(&shown).unwrap(), b"text");
    bench.unmount();

    // What a command reads when it opens the vault, and what a mount reads with a file.
    for name in ["vault.hush", "keystore.hush"] {
        let file = bench.vault().join(name);
        fs::rename(&file, &kept).unwrap();
        for kind in ["fifo", "socket", "directory"] {
            put(kind, &file, &kept);
            let mut command = bench.command("mount");
            command.args([bench.vault(), bench.mnt()]).stderr(Stdio::piped());
            let output = in_time(kind, move || command.output()).unwrap();
            assert!(!output.status.success(), "{name} as {kind}");
            take_away(&file);
        }
        fs::rename(&kept, &file).unwrap();
    }
}

fn put(kind: &str, at: &Path, kept: &Path) {
    match kind {
        "fifo" => mknodat(CWD, at, rustix::fs::FileType::Fifo, Mode::from_raw_mode(0o666), 0).unwrap(),
        // /dev/zero
        "device" => {
            let number = rustix::fs::makedev(1, 5);
            mknodat(
                CWD,
                at,
                rustix::fs::FileType::CharacterDevice,
                Mode::from_raw_mode(0o666),
                number,
            )
            .unwrap();
        }
        "socket" => drop(UnixListener::bind(at).unwrap()),
        "directory" => fs::create_dir(at).unwrap(),
        "link" => symlink(kept, at).unwrap(),
        other => panic!("{other}"),
    }
}

fn take_away(at: &Path) {
    if fs::symlink_metadata(at).unwrap().is_dir() {
        fs::remove_dir(at).unwrap();
    } else {
        fs::remove_file(at).unwrap();
    }
}

/// Runs something that must not hang.
fn in_time<T: Send + 'static>(what: &str, act: impl FnOnce() -> T + Send + 'static) -> T {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || sender.send(act()));
    let result = receiver.recv_timeout(PATIENCE);
    result.unwrap_or_else(|_| panic!("{what}: it hangs"))
}
