//! `speed`: how fast this machine seals and opens, measured on what files are sealed and opened with, and what a guess at a passphrase takes.

mod processor;

use std::{
    fmt::Write,
    hint::black_box,
    sync::Barrier,
    thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use self::processor::Processor;
use super::{CliResult, args::SpeedArgs, error::CliError, info::print_json, print, progress::Progress, secret};
use crate::{
    crypto::{
        block::{BlockCipher, Library, Run, Suite},
        keys::DataKey,
        passphrase::{Hardness, MEMORY_KIB_DEFAULT},
        random,
        seal::SealKey,
    },
    format::layout::{BLOCK_SIZE_MAX, BLOCK_SIZE_MIN},
    ids::FileId,
    units::BlockIndex,
};

/// Bytes sealed or opened in one go: a read as the kernel asks for it. Both sides stay in the processor's cache.
const REQUEST_SIZE: usize = 256 << 10;

/// The sizes of block measured: the default, and the largest.
const BLOCK_SIZES: [u32; 2] = [BLOCK_SIZE_MIN, BLOCK_SIZE_MAX];

/// Turns in which the time of a measurement is spent, one after another with the others: so a busy moment of the machine hits all alike.
const TURNS: u32 = 11;

/// What is measured of each suite, library and size of block.
const WORKS: [Work; 6] = [
    Work::new(Direction::Seal, Extent::Framed, false),
    Work::new(Direction::Seal, Extent::Bare, false),
    Work::new(Direction::Seal, Extent::Framed, true),
    Work::new(Direction::Open, Extent::Framed, false),
    Work::new(Direction::Open, Extent::Bare, false),
    Work::new(Direction::Open, Extent::Framed, true),
];

#[derive(Clone, Copy, PartialEq, Eq)]
enum Direction {
    Seal,
    Open,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Extent {
    /// As the filesystem does it: sealing draws nonces and adds to the sum of the file's seal, opening looks for holes.
    Framed,
    /// The cipher alone, under a nonce that is there.
    Bare,
}

#[derive(Clone, Copy)]
struct Work {
    direction: Direction,
    extent: Extent,
    /// On all processors at once.
    everywhere: bool,
}

impl Work {
    const fn new(direction: Direction, extent: Extent, everywhere: bool) -> Self {
        Work {
            direction,
            extent,
            everywhere,
        }
    }
}

/// A suite as one library implements it.
#[derive(Clone, Copy)]
struct Subject {
    suite: Suite,
    library: Library,
    block_size: u32,
}

/// The rates of a subject, in bytes per second, in the order of [`WORKS`].
struct Rates {
    subject: Subject,
    rates: [f64; WORKS.len()],
}

/// What one guess at a passphrase takes.
struct Guess {
    hardness: Hardness,
    time: Duration,
}

/// Measures, and prints what was found.
pub fn speed(args: &SpeedArgs) -> CliResult {
    let processor = Processor::look();
    let subjects = subjects();
    let bar = Progress::items("measuring", subjects.len() as u64 + 1);
    let measure = |subject| {
        let rates = Rates::measure(subject, args.time, processor.threads);
        bar.advance(1);
        rates
    };
    let found: Vec<Rates> = subjects.into_iter().map(measure).collect();
    let guess = Guess::measure()?;
    drop(bar);
    if args.json {
        return print_json(&as_json(&processor, &found, &guess, args.time));
    }
    print(as_text(&processor, &found, &guess).as_bytes())
}

/// Returns all that can be measured in this build.
fn subjects() -> Vec<Subject> {
    let key = DataKey::new(random::key());
    let mut subjects = Vec::new();
    for suite in Suite::ALL {
        for library in Library::ALL {
            if BlockCipher::of_library(library, suite, &key, FileId(random::bytes())).is_some() {
                subjects.extend(BLOCK_SIZES.map(|block_size| Subject {
                    suite,
                    library,
                    block_size,
                }));
            }
        }
    }
    subjects
}

/// What one thread works on: keys that nothing else is sealed with, and a request in plaintext and sealed.
struct Bench {
    cipher: BlockCipher,
    seal_key: SealKey,
    run: Run,
    plain: Vec<u8>,
    sealed: Vec<u8>,
}

impl Bench {
    fn new(subject: Subject) -> Self {
        let Subject { suite, library, .. } = subject;
        let (id, key) = random::id_and_key();
        let (key, file) = (DataKey::new(key), FileId(id));
        let block_size = subject.block_size as usize;
        let mut bench = Bench {
            cipher: BlockCipher::of_library(library, suite, &key, file).expect("only what is built in is measured"),
            seal_key: key.seal_key(file, suite.number()),
            run: Run {
                first: BlockIndex(0),
                block_size,
            },
            plain: vec![7; REQUEST_SIZE],
            sealed: vec![0; REQUEST_SIZE / block_size * (block_size + suite.overhead())],
        };
        bench.seal();
        bench
    }

    fn work(&mut self, work: Work) {
        match (work.direction, work.extent) {
            (Direction::Seal, Extent::Framed) => self.seal(),
            (Direction::Seal, Extent::Bare) => self.seal_bare(),
            (Direction::Open, Extent::Framed) => self.open(),
            (Direction::Open, Extent::Bare) => self.open_bare(),
        }
    }

    fn seal(&mut self) {
        black_box(
            self.cipher
                .seal_run(&self.seal_key, self.run, &self.plain, &mut self.sealed),
        );
    }

    /// Seals the same bytes under the same nonces again and again, which gives nothing away.
    fn seal_bare(&mut self) {
        let size = self.run.block_size;
        let sealed = self.sealed.chunks_mut(size + self.cipher.suite().overhead());
        for ((plain, sealed), index) in self.plain.chunks(size).zip(sealed).zip(0..) {
            self.cipher.seal(BlockIndex(index), plain, sealed);
        }
        black_box(&self.sealed);
    }

    fn open(&mut self) {
        let opened = self.cipher.open_run(self.run, false, &self.sealed, &mut self.plain);
        opened.expect("what was just sealed opens");
        black_box(&self.plain);
    }

    fn open_bare(&mut self) {
        let size = self.run.block_size;
        let sealed = self.sealed.chunks(size + self.cipher.suite().overhead());
        for ((sealed, plain), index) in sealed.zip(self.plain.chunks_mut(size)).zip(0..) {
            let opened = self.cipher.open(BlockIndex(index), sealed, plain);
            opened.expect("what was just sealed opens");
        }
        black_box(&self.plain);
    }
}

impl Subject {
    /// Tells whether files of the suite are sealed and opened with this library.
    fn is_used(self) -> bool {
        self.suite.library() == self.library
    }

    /// Returns how many bytes of plaintext go through in a second.
    fn rate(self, work: Work, time: Duration, threads: usize) -> f64 {
        let threads = if work.everywhere { threads } else { 1 };
        let start = Barrier::new(threads);
        let start = &start;
        let measure = |number| {
            if work.everywhere {
                processor::keep_to(number);
            }
            let mut bench = Bench::new(self);
            // Once before, so that pages and caches are there.
            bench.work(work);
            start.wait();
            let started = Instant::now();
            let mut requests = 0_u64;
            loop {
                bench.work(work);
                requests += 1;
                let elapsed = started.elapsed();
                if elapsed >= time {
                    return (requests * REQUEST_SIZE as u64) as f64 / elapsed.as_secs_f64();
                }
            }
        };
        thread::scope(|scope| {
            let workers: Vec<_> = (0..threads)
                .map(|number| scope.spawn(move || measure(number)))
                .collect();
            let rates = workers.into_iter().map(|worker| worker.join());
            rates.map(|rate| rate.expect("a measurement does not fail")).sum()
        })
    }
}

impl Rates {
    /// Measures a subject: the medians of all turns.
    fn measure(subject: Subject, time: Duration, threads: usize) -> Self {
        let turn = |_| WORKS.map(|work| subject.rate(work, time / TURNS, threads));
        let turns: Vec<_> = (0..TURNS).map(turn).collect();
        let median = |at| {
            let mut rates: Vec<f64> = turns.iter().map(|rates| rates[at]).collect();
            rates.sort_by(f64::total_cmp);
            rates[rates.len() / 2]
        };
        Rates {
            subject,
            rates: std::array::from_fn(median),
        }
    }

    fn of(&self, direction: Direction, extent: Extent, everywhere: bool) -> f64 {
        let is_wanted =
            |work: &Work| work.direction == direction && work.extent == extent && work.everywhere == everywhere;
        let at = WORKS.iter().position(is_wanted);
        self.rates[at.expect("only what is measured is asked for")]
    }

    /// Returns how long it takes to seal a byte and open it again.
    fn seconds_per_byte(&self) -> f64 {
        let of = |direction| 1.0 / self.of(direction, Extent::Framed, false);
        of(Direction::Seal) + of(Direction::Open)
    }
}

impl Guess {
    /// Makes a slot's parameters as `init` does, and tries one guess.
    fn measure() -> CliResult<Self> {
        let hardness = Hardness::calibrated(MEMORY_KIB_DEFAULT, secret::KDF_TIME).map_err(CliError::Hardness)?;
        let started = Instant::now();
        hardness.stretch(b"a guess").map_err(CliError::Hardness)?;
        Ok(Guess {
            hardness,
            time: started.elapsed(),
        })
    }
}

/// The suite that is fastest here, with how long it takes beside the one that `init` takes.
struct Advice {
    fastest: Suite,
    /// The time of the default suite, over that of the fastest other one.
    ratio: f64,
}

impl Advice {
    fn new(found: &[Rates]) -> Self {
        let time = |suite| {
            let of_suite = found.iter().find(|rates| {
                let Subject { suite: other, .. } = rates.subject;
                other == suite && rates.subject.is_used() && rates.subject.block_size == BLOCK_SIZE_MIN
            });
            of_suite.expect("every suite is measured").seconds_per_byte()
        };
        let [default, other] = Suite::ALL;
        let ratio = time(default) / time(other);
        Advice {
            fastest: if ratio > 1.0 { other } else { default },
            ratio,
        }
    }

    fn sentence(&self) -> String {
        let [default, other] = Suite::ALL;
        if self.fastest == default {
            let times = 1.0 / self.ratio;
            format!("init takes {default}, which is right: {other} takes {times:.1} times as long here")
        } else {
            let times = self.ratio;
            format!(
                "init takes {default}, which takes {times:.1} times as long here as {other}: use `init --suite {other}`"
            )
        }
    }
}

fn as_text(processor: &Processor, found: &[Rates], guess: &Guess) -> String {
    let mut out = String::new();
    let threads = processor.threads;
    let _ = writeln!(out, "{:11} {}, {threads} threads", "processor", processor.name);
    let (has, lacks): (Vec<_>, Vec<_>) = processor.features.iter().partition(|(_, has)| *has);
    for (word, features) in [("has", has), ("lacks", lacks)] {
        if !features.is_empty() {
            let names: Vec<_> = features.iter().map(|(name, _)| *name).collect();
            let _ = writeln!(out, "{word:11} {}", names.join(" "));
        }
    }
    if let Some(cycles) = &processor.cycles {
        let _ = writeln!(out, "{:11} {:.0} MHz, {}", "cycles", cycles.hertz / 1e6, cycles.source);
    }
    let all = format!("on {threads}");
    let half = |what| format!("{:>41}", format!("{what}, MB/s and bytes per cycle (B/c)"));
    let _ = writeln!(out, "\n{:37}{}{}", "", half("sealing"), half("opening"));
    let columns = format!("{:>8}{:>6}{:>13}{:>6}{all:>8}", "on 1", "B/c", "cipher alone", "B/c");
    let _ = writeln!(out, "{:20}{:11}{:>6}{columns}{columns}", "suite", "library", "block");
    for rates in found {
        let Subject {
            suite,
            library,
            block_size,
        } = rates.subject;
        let used = if rates.subject.is_used() { " *" } else { "" };
        let library = format!("{}{used}", library.name());
        let _ = write!(out, "{:20}{library:11}{block_size:>6}", suite.name());
        for direction in [Direction::Seal, Direction::Open] {
            let of = |extent, everywhere| rates.of(direction, extent, everywhere);
            let (one, bare) = (of(Extent::Framed, false), of(Extent::Bare, false));
            let cycle = |rate| processor.per_cycle(rate).map_or("-".to_owned(), |n| format!("{n:.2}"));
            let _ = write!(
                out,
                "{:8.0}{:>6}{:13.0}{:>6}",
                mega(one),
                cycle(one),
                mega(bare),
                cycle(bare)
            );
            let _ = write!(out, "{:8.0}", mega(of(Extent::Framed, true)));
        }
        out.push('\n');
    }
    let _ = writeln!(out, "* what files are sealed and opened with\n");
    let Hardness {
        memory_kib,
        passes,
        lanes,
        ..
    } = guess.hardness;
    let seconds = guess.time.as_secs_f64();
    let _ = writeln!(
        out,
        "{:11} {seconds:.2} s for a guess at a passphrase: {} MiB, {passes} passes, {lanes} lanes",
        "Argon2id",
        memory_kib / 1024
    );
    let _ = writeln!(out, "{:11} {}", "suite", Advice::new(found).sentence());
    out
}

fn as_json(processor: &Processor, found: &[Rates], guess: &Guess, time: Duration) -> Value {
    let cipher = |rates: &Rates| {
        let of_direction = |direction| {
            let of = |extent, everywhere| rates.of(direction, extent, everywhere);
            let (one, bare) = (of(Extent::Framed, false), of(Extent::Bare, false));
            json!({
                "one_thread": mega(one),
                "one_thread_bytes_per_cycle": processor.per_cycle(one),
                "cipher_alone": mega(bare),
                "cipher_alone_bytes_per_cycle": processor.per_cycle(bare),
                "all_threads": mega(of(Extent::Framed, true)),
            })
        };
        json!({
            "suite": rates.subject.suite.name(),
            "library": rates.subject.library.name(),
            "used": rates.subject.is_used(),
            "block_size": rates.subject.block_size,
            "seal": of_direction(Direction::Seal),
            "open": of_direction(Direction::Open),
        })
    };
    let features = processor
        .features
        .iter()
        .map(|(name, has)| ((*name).to_owned(), json!(has)));
    let cycles = processor
        .cycles
        .as_ref()
        .map(|cycles| json!({"hertz": cycles.hertz, "source": cycles.source}));
    json!({
        "processor": processor.name,
        "threads": processor.threads,
        "features": Value::Object(features.collect()),
        "cycles": cycles,
        "seconds_per_measurement": time.as_secs_f64(),
        "unit": "MB/s",
        "ciphers": found.iter().map(cipher).collect::<Vec<_>>(),
        "argon2id": {
            "memory_kib": guess.hardness.memory_kib,
            "passes": guess.hardness.passes,
            "lanes": guess.hardness.lanes,
            "seconds": guess.time.as_secs_f64(),
        },
        "suite_of_init": Suite::ALL[0].name(),
        "suite_fastest_here": Advice::new(found).fastest.name(),
    })
}

/// Returns a rate in MB/s: millions of bytes, to one decimal.
fn mega(rate: f64) -> f64 {
    (rate / 1e5).round() / 10.0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rates(suite: Suite, rate: f64) -> Rates {
        Rates {
            subject: Subject {
                suite,
                library: suite.library(),
                block_size: BLOCK_SIZE_MIN,
            },
            rates: [rate; WORKS.len()],
        }
    }

    #[test]
    fn the_faster_suite_is_advised() {
        let [aes, chacha] = Suite::ALL;
        let with_aes = Advice::new(&[rates(aes, 3e9), rates(chacha, 6e8)]);
        assert_eq!(
            with_aes.sentence(),
            "init takes aes-256-gcm-siv, which is right: xchacha20-poly1305 takes 5.0 times as long here"
        );
        let without = Advice::new(&[rates(aes, 1e8), rates(chacha, 4e8)]);
        assert_eq!(without.fastest, chacha);
        assert_eq!(
            without.sentence(),
            "init takes aes-256-gcm-siv, which takes 4.0 times as long here as xchacha20-poly1305: \
             use `init --suite xchacha20-poly1305`"
        );
    }

    #[test]
    fn what_is_measured_is_what_was_sealed() {
        for subject in subjects() {
            let mut bench = Bench::new(subject);
            for work in WORKS {
                bench.work(work);
                assert!(bench.plain.iter().all(|&byte| byte == 7));
            }
            assert_ne!(bench.sealed[..1000], vec![7; 1000]);
        }
    }
}
