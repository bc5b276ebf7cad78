//! How many requests an operation costs, and how many system calls each makes: counted, because seconds differ from machine to machine.
//!
//! The table in docs/PERFORMANCE.md is this one. A change that makes a number smaller changes it here and there.

use std::{
    collections::HashSet,
    fs::{self, File, OpenOptions},
    io::{BufRead, BufReader, Read, Write},
    os::unix::fs::FileExt,
    path::Path,
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};

use crate::support::{Bench, can_mount, which};

/// How often each operation is done, so that what happens once does not count.
const TIMES: usize = 50;

/// How often all is measured, until it costs no more than it did.
const ATTEMPTS: usize = 3;

/// Requests and system calls of one operation, the latter without those that take the request and send the answer.
type Cost = (f64, f64);

/// Watches the system calls of the threads that serve requests.
struct Trace {
    strace: Child,
    output: std::path::PathBuf,
    threads: HashSet<String>,
}

impl Trace {
    fn start(bench: &Bench) -> Self {
        let output = bench.plain().join("trace");
        let _ = fs::remove_file(&output);
        let mut strace = Command::new("strace")
            .args(["-f", "-o"])
            .arg(&output)
            .args(["-p", &bench.pid().to_string()])
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let tasks = format!("/proc/{}/task", bench.pid());
        let threads: HashSet<_> = fs::read_dir(tasks)
            .unwrap()
            .map(|task| task.unwrap().path())
            .filter(|task| {
                let name = fs::read_to_string(task.join("comm")).unwrap_or_default();
                name.starts_with("fuser-") || name.starts_with("slow-")
            })
            .map(|task| task.file_name().unwrap().to_str().unwrap().to_owned())
            .collect();
        // One line for each thread that it has taken hold of.
        let mut lines = BufReader::new(strace.stderr.take().unwrap()).lines();
        let all = fs::read_dir(format!("/proc/{}/task", bench.pid())).unwrap().count();
        let attached = lines
            .by_ref()
            .map_while(Result::ok)
            .filter(|line| line.contains("attached"))
            .take(1)
            .count();
        assert_eq!(attached, 1, "strace cannot attach to {all} threads");
        thread::spawn(move || lines.for_each(drop));
        Trace {
            strace,
            output,
            threads,
        }
    }

    /// Stops, and returns requests and other system calls.
    fn stop(mut self) -> (usize, usize) {
        // What comes after the answer belongs to the operation too.
        thread::sleep(Duration::from_millis(100));
        let pid = rustix::process::Pid::from_child(&self.strace);
        rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
        self.strace.wait().unwrap();
        let (mut requests, mut calls) = (0, 0);
        for line in fs::read_to_string(&self.output).unwrap().lines() {
            let Some((thread, call)) = line.split_once(' ') else {
                continue;
            };
            let call = call.trim_start();
            if !self.threads.contains(thread) || call.starts_with("<...") || call.starts_with("---") {
                continue;
            }
            let name = call.split('(').next().unwrap_or_default();
            match name {
                // The answer, one for each request but FORGET.
                "writev" => requests += 1,
                "read" | "futex" | "sched_yield" | "restart_syscall" => {}
                _ => calls += 1,
            }
        }
        (requests, calls)
    }
}

fn cost(bench: &Bench, operation: impl FnOnce()) -> Cost {
    let trace = Trace::start(bench);
    operation();
    let (requests, calls) = trace.stop();
    let each = |count: usize| (count as f64 / TIMES as f64 * 10.0).round() / 10.0;
    (each(requests), each(calls))
}

#[test]
fn operations_cost_no_more_than_they_did() {
    if !can_mount() {
        return;
    }
    if which("strace").is_none() {
        assert!(
            std::env::var_os("HUSHFS_TESTS_MUST_NOT_SKIP").is_none(),
            "strace is not installed"
        );
        eprintln!("SKIPPED: strace is not installed");
        return;
    }
    // A busy machine lets the kernel send what was written and its times apart, and memory be asked for; nothing makes an operation cheaper.
    let grown = (0..ATTEMPTS).all(|_| has_grown(&measure_all()));
    assert!(!grown, "operations cost more than they did");
}

/// Prints the table; tells whether an operation costs more than it did.
fn has_grown(found: &[(&str, Cost)]) -> bool {
    let mut table = String::new();
    let mut grown = false;
    for ((name, found), (expected_name, expected)) in found.iter().zip(EXPECTED) {
        assert_eq!(*name, expected_name);
        let is_more = found.0 > expected.0 + 0.2 || found.1 > expected.1 + 0.4;
        let remark = if is_more {
            format!("more than {expected:?}")
        } else {
            String::new()
        };
        table += &format!("| {name} | {} | {} | {remark}\n", found.0, found.1);
        grown |= is_more;
    }
    eprintln!("{table}");
    grown
}

/// Does each operation in a vault of its own; returns what each cost.
fn measure_all() -> Vec<(&'static str, Cost)> {
    let mut bench = Bench::new();
    // What the rings carry shows in no system call. With a journal, as on a disk.
    bench.mount_over("device", &["--journal=always"]);
    let dir = bench.mnt().join("dir");
    fs::create_dir(&dir).unwrap();
    let all = |act: &dyn Fn(&Path)| (0..TIMES).for_each(|i| act(&dir.join(format!("file-{i}"))));
    let mut found = Vec::new();
    let mut measure = |name, bench: &Bench, operation: &dyn Fn()| found.push((name, cost(bench, operation)));

    measure("create, write 1 KB, close", &bench, &|| {
        all(&|path| fs::write(path, [7; 1000]).unwrap());
    });
    measure("stat after writing", &bench, &|| {
        all(&|path| assert!(path.metadata().is_ok()))
    });
    bench.remount();
    measure("stat", &bench, &|| all(&|path| assert!(path.metadata().is_ok())));
    measure("open, read, close", &bench, &|| {
        all(&|path| assert!(fs::read(path).is_ok()))
    });
    measure("open, read, close again", &bench, &|| {
        all(&|path| assert!(fs::read(path).is_ok()))
    });
    measure("rename, sealed", &bench, &|| {
        all(&|path| fs::rename(path, path.with_extension("new")).unwrap());
    });
    measure("rename back", &bench, &|| {
        all(&|path| fs::rename(path.with_extension("new"), path).unwrap());
    });
    let mut log = OpenOptions::new()
        .append(true)
        .create(true)
        .open(bench.mnt().join("log"))
        .unwrap();
    log.write_all(b"begin").unwrap();
    log.sync_all().unwrap();
    let log = std::cell::RefCell::new(log);
    measure("append 100 bytes", &bench, &|| {
        (0..TIMES).for_each(|_| log.borrow_mut().write_all(&[7; 100]).unwrap());
    });
    measure("append 100 bytes, fsync", &bench, &|| {
        (0..TIMES).for_each(|_| {
            log.borrow_mut().write_all(&[7; 100]).unwrap();
            log.borrow().sync_all().unwrap();
        });
    });
    drop(log);
    let file = OpenOptions::new().write(true).open(dir.join("file-0")).unwrap();
    measure("overwrite, fsync", &bench, &|| {
        (0..TIMES).for_each(|_| {
            file.write_all_at(&[8; 1000], 0).unwrap();
            file.sync_all().unwrap();
        });
    });
    drop(file);
    measure("unlink", &bench, &|| all(&|path| fs::remove_file(path).unwrap()));
    measure("mkdir", &bench, &|| all(&|path| fs::create_dir(path).unwrap()));
    bench.remount();
    measure("readdir, per entry", &bench, &|| {
        assert_eq!(fs::read_dir(&dir).unwrap().count(), TIMES);
    });
    measure("rmdir", &bench, &|| all(&|path| fs::remove_dir(path).unwrap()));
    let file = File::create(bench.mnt().join("large")).unwrap();
    file.set_len((TIMES as u64) << 20).unwrap();
    drop(file);
    bench.remount();
    measure("read 1 MiB in order", &bench, &|| {
        let mut file = File::open(bench.mnt().join("large")).unwrap();
        let mut buffer = vec![0; 1 << 20];
        (0..TIMES).for_each(|_| file.read_exact(&mut buffer).unwrap());
    });
    found
}

/// Requests and system calls, at most.
const EXPECTED: [(&str, Cost); 15] = [
    // Six, or seven where the kernel writes the bytes and the times at different moments.
    ("create, write 1 KB, close", (7.0, 14.8)),
    ("stat after writing", (1.0, 1.0)),
    ("stat", (1.1, 1.2)),
    ("open, read, close", (3.0, 9.4)),
    ("open, read, close again", (3.0, 1.0)),
    ("rename, sealed", (4.0, 12.2)),
    ("rename back", (4.0, 13.0)),
    ("append 100 bytes", (0.0, 0.0)),
    ("append 100 bytes, fsync", (3.0, 8.2)),
    ("overwrite, fsync", (3.0, 8.2)),
    ("unlink", (3.0, 6.2)),
    ("mkdir", (3.0, 4.0)),
    ("readdir, per entry", (0.1, 1.3)),
    ("rmdir", (2.0, 6.0)),
    ("read 1 MiB in order", (4.1, 4.5)),
];
