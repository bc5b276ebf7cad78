//! The processor: what it is called, what it has for ciphers, how long a cycle is.

use std::{fs, thread};

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// What matters of a processor.
pub struct Processor {
    /// What it calls itself, or else its architecture.
    pub name: String,
    /// How many threads run at a time.
    pub threads: usize,
    /// Instructions that ciphers use, and whether they are there.
    pub features: Vec<(&'static str, bool)>,
    /// How long a cycle is, where that can be known.
    pub cycles: Option<Cycles>,
}

/// The frequency of what is counted as cycles.
pub struct Cycles {
    /// Cycles in a second.
    pub hertz: f64,
    /// Where it is known from.
    pub source: &'static str,
}

impl Processor {
    /// Looks at the processor this runs on.
    pub fn look() -> Self {
        let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        Processor {
            name: field(&cpuinfo, "model name")
                .unwrap_or(std::env::consts::ARCH)
                .to_owned(),
            threads: thread::available_parallelism().map_or(1, usize::from),
            features: features(),
            cycles: time_stamp_counter(&cpuinfo).or_else(stated_frequency),
        }
    }

    /// Returns a rate per second as one per cycle.
    pub fn per_cycle(&self, rate: f64) -> Option<f64> {
        let per_cycle = rate / self.cycles.as_ref()?.hertz;
        Some((per_cycle * 1000.0).round() / 1000.0)
    }
}

/// Keeps this thread to one of the processors that the process may use, by its number among them: the scheduler takes longer than a measurement to spread
/// threads.
pub fn keep_to(number: usize) {
    let Ok(allowed) = sched_getaffinity(None) else { return };
    if let Some(processor) = (0..CpuSet::MAX_CPU).filter(|&at| allowed.is_set(at)).nth(number) {
        let mut only = CpuSet::new();
        only.set(processor);
        // Where it is not allowed the rate may come out lower.
        let _ = sched_setaffinity(None, &only);
    }
}

/// Returns a field of /proc/cpuinfo, of its first processor.
fn field<'t>(cpuinfo: &'t str, name: &str) -> Option<&'t str> {
    cpuinfo.lines().find_map(|line| {
        let (field, value) = line.split_once(':')?;
        (field.trim() == name).then(|| value.trim())
    })
}

#[cfg(target_arch = "x86_64")]
fn features() -> Vec<(&'static str, bool)> {
    use std::arch::is_x86_feature_detected as has;
    vec![
        ("aes-ni", has!("aes")),
        ("vaes", has!("vaes")),
        ("pclmul", has!("pclmulqdq")),
        ("vpclmul", has!("vpclmulqdq")),
        ("avx2", has!("avx2")),
        ("avx-512", has!("avx512f") && has!("avx512vl") && has!("avx512bw")),
    ]
}

#[cfg(target_arch = "aarch64")]
fn features() -> Vec<(&'static str, bool)> {
    use std::arch::is_aarch64_feature_detected as has;
    vec![
        ("neon", has!("neon")),
        ("aes", has!("aes")),
        ("pmull", has!("pmull")),
        ("sha3", has!("sha3")),
        ("sve2", has!("sve2")),
    ]
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn features() -> Vec<(&'static str, bool)> {
    Vec::new()
}

/// Measures the frequency of the time-stamp counter, where it counts evenly. A processor that speeds up does more than a cycle in one of its.
#[cfg(target_arch = "x86_64")]
fn time_stamp_counter(cpuinfo: &str) -> Option<Cycles> {
    use std::time::{Duration, Instant};

    /// Long against the time that asking for the time takes.
    const PERIOD: Duration = Duration::from_millis(20);

    if !field(cpuinfo, "flags")?.split(' ').any(|flag| flag == "constant_tsc") {
        return None;
    }
    // SAFETY: every x86-64 processor has the instruction, and Linux lets programs use it.
    let count = || unsafe { std::arch::x86_64::_rdtsc() };
    let (from, started) = (count(), Instant::now());
    thread::sleep(PERIOD);
    let (to, elapsed) = (count(), started.elapsed());
    Some(Cycles {
        hertz: to.checked_sub(from)? as f64 / elapsed.as_secs_f64(),
        source: "of the time-stamp counter",
    })
}

#[cfg(not(target_arch = "x86_64"))]
fn time_stamp_counter(_: &str) -> Option<Cycles> {
    None
}

/// Reads the highest frequency that the system states for the first processor.
fn stated_frequency() -> Option<Cycles> {
    let text = fs::read_to_string("/sys/devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq").ok()?;
    let kilohertz: f64 = text.trim().parse().ok()?;
    Some(Cycles {
        hertz: kilohertz * 1000.0,
        source: "the highest that the system states",
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_those_of_the_first_processor() {
        let cpuinfo = "processor\t: 0\nmodel name\t: A: B\nflags\t\t: fpu tsc\n\nprocessor\t: 1\nmodel name\t: C\n";
        assert_eq!(field(cpuinfo, "model name"), Some("A: B"));
        assert_eq!(field(cpuinfo, "flags"), Some("fpu tsc"));
        assert_eq!(field(cpuinfo, "model"), None);
        assert_eq!(field("", "flags"), None);
    }

    #[test]
    fn rates_per_cycle_need_a_frequency() {
        let processor = |cycles| Processor {
            name: String::new(),
            threads: 1,
            features: features(),
            cycles,
        };
        let source = "";
        assert_eq!(processor(Some(Cycles { hertz: 2e9, source })).per_cycle(3e9), Some(1.5));
        assert_eq!(processor(None).per_cycle(3e9), None);
    }
}
