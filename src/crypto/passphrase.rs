//! Stretches passphrases with Argon2id (RFC 9106).

use std::{
    thread,
    time::{Duration, Instant},
};

use argon2::{Algorithm, Argon2, Error, Params, Version};
use serde::{Deserialize, Serialize};

use super::{
    derive,
    keys::{KeyBytes, SlotSecret, WrappingKey},
    random,
};

/// The least memory accepted when a slot is read, in KiB. A slot below it was not made by hushfs.
pub const MEMORY_KIB_MIN: u32 = 8 * 1024;

/// The least memory a slot may be made with, in KiB: the second recommended option of RFC 9106 section 4.
pub const MEMORY_KIB_MIN_NEW: u32 = 64 * 1024;

/// The most memory accepted, in KiB: a hostile file must not eat the machine.
pub const MEMORY_KIB_MAX: u32 = 4 * 1024 * 1024;

/// Memory used unless the user says otherwise, in KiB: four times the second recommended option of RFC 9106.
pub const MEMORY_KIB_DEFAULT: u32 = 256 * 1024;

/// The fewest passes a slot is made with, as RFC 9106 recommends for less than 2 GiB of memory.
pub const PASSES_MIN_NEW: u32 = 3;

/// The most passes accepted.
pub const PASSES_MAX: u32 = 64;

/// Lanes used for new slots, as RFC 9106 recommends.
pub const LANES_DEFAULT: u32 = 4;

/// The most lanes accepted.
pub const LANES_MAX: u32 = 64;

/// How hard a passphrase is to guess: what Argon2id is run with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hardness {
    /// Random per slot.
    pub salt: [u8; 16],
    /// Memory in KiB.
    pub memory_kib: u32,
    /// Passes over the memory.
    pub passes: u32,
    /// Lanes that can be filled in parallel.
    pub lanes: u32,
}

/// Why a passphrase cannot be stretched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum HardnessError {
    /// What is stored asks for more than hushfs will run, or less than it ever writes. Nothing was run.
    OutOfRange,
    /// There is not so much memory now, or this process may not have it.
    NoMemory { memory_kib: u32 },
}

impl std::fmt::Display for HardnessError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            HardnessError::OutOfRange => f.write_str("Argon2id parameters out of range"),
            HardnessError::NoMemory { memory_kib } => write!(
                f,
                "Argon2id needs {} MiB of memory, and there are not as many: free some, or raise the limit (`ulimit -v`, a container's)",
                memory_kib.div_ceil(1024)
            ),
        }
    }
}

impl std::error::Error for HardnessError {}

impl Hardness {
    /// Chooses parameters that take about `target` here with the given memory, never below the RFC's recommendation.
    ///
    /// # Errors
    ///
    /// [`HardnessError::NoMemory`].
    pub fn calibrated(memory_kib: u32, target: Duration) -> Result<Self, HardnessError> {
        let mut hardness = Hardness {
            salt: random::bytes(),
            memory_kib: memory_kib.clamp(MEMORY_KIB_MIN_NEW, MEMORY_KIB_MAX),
            passes: 1,
            lanes: LANES_DEFAULT,
        };
        let start = Instant::now();
        hardness.stretch(b"calibration")?;
        let pass = start.elapsed().max(Duration::from_millis(1));
        let passes = (target.as_secs_f64() / pass.as_secs_f64()).round() as u32;
        hardness.passes = passes.clamp(PASSES_MIN_NEW, PASSES_MAX);
        Ok(hardness)
    }

    /// Stretches a passphrase into the secret of its slot.
    ///
    /// # Errors
    ///
    /// The [`HardnessError`] that says why not; nothing was run then.
    pub fn stretch(&self, passphrase: &[u8]) -> Result<SlotSecret, HardnessError> {
        Ok(derive::passphrase_slot(&self.stretched(passphrase)?))
    }

    /// Stretches a passphrase into the key that an identity is wrapped under.
    ///
    /// # Errors
    ///
    /// As for [`stretch`](Self::stretch).
    pub fn stretch_for_identity(&self, passphrase: &[u8]) -> Result<WrappingKey, HardnessError> {
        Ok(derive::identity_passphrase(&self.stretched(passphrase)?))
    }

    /// Returns how many KiB stretching passes over, each as often as it does; none where it is refused.
    pub fn work(&self) -> Option<u64> {
        self.is_in_range()
            .then(|| u64::from(self.memory_kib) * u64::from(self.passes))
    }

    fn is_in_range(&self) -> bool {
        (MEMORY_KIB_MIN..=MEMORY_KIB_MAX).contains(&self.memory_kib)
            && (1..=PASSES_MAX).contains(&self.passes)
            && (1..=LANES_MAX).contains(&self.lanes)
    }

    fn stretched(&self, passphrase: &[u8]) -> Result<KeyBytes, HardnessError> {
        if !self.is_in_range() {
            return Err(HardnessError::OutOfRange);
        }
        let params = Params::new(self.memory_kib, self.passes, self.lanes, Some(super::KEY_SIZE))
            .map_err(|_| HardnessError::OutOfRange)?;
        let argon2 = Argon2::new(Algorithm::Argon2id, Version::V0x13, params);
        let mut stretched = KeyBytes::zero();
        self.on_own_threads(|| argon2.hash_password_into(passphrase, &self.salt, stretched.as_mut_bytes()))
            .map_err(|error| match error {
                Error::OutOfMemory => HardnessError::NoMemory {
                    memory_kib: self.memory_kib,
                },
                _ => HardnessError::OutOfRange,
            })?;
        Ok(stretched)
    }

    /// Runs something with a thread for each lane, or each processor where there are fewer, and ends them. The threads that rayon would share with everybody
    /// stay for the process's life, and one that is there before a mount gives up its rights would keep them.
    fn on_own_threads<T: Send>(&self, run: impl FnOnce() -> T + Send) -> T {
        let processors = thread::available_parallelism().map_or(1, usize::from);
        let threads = processors.min(self.lanes as usize);
        let mut run = Some(run);
        let mut result = None;
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .thread_name(|number| format!("argon2-{number}"));
        // Where none can be started, those are tried.
        let _ = pool.build_scoped(
            |thread| thread.run(),
            |pool| result = run.take().map(|run| pool.install(run)),
        );
        result
            .or_else(|| run.map(|run| run()))
            .expect("it has run here or there")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMALL: Hardness = Hardness {
        salt: [2; 16],
        memory_kib: MEMORY_KIB_MIN,
        passes: 1,
        lanes: 1,
    };

    #[test]
    fn threads_that_stretch_end_with_it() {
        let several = Hardness { lanes: 4, ..SMALL };
        let (name, task) = several.on_own_threads(|| {
            let name = thread::current().name().map(str::to_owned);
            (name, rustix::thread::gettid().as_raw_nonzero())
        });
        assert!(name.unwrap().starts_with("argon2-"));
        // Its last steps may be under way.
        let deadline = Instant::now() + Duration::from_secs(30);
        while std::fs::exists(format!("/proc/self/task/{task}")).unwrap() {
            assert!(Instant::now() < deadline, "a thread is left");
            thread::sleep(Duration::from_millis(5));
        }
    }

    #[test]
    fn hostile_parameters_are_refused_before_they_are_run() {
        for hostile in [
            Hardness {
                memory_kib: MEMORY_KIB_MAX + 1,
                ..SMALL
            },
            Hardness { memory_kib: 8, ..SMALL },
            Hardness {
                passes: PASSES_MAX + 1,
                ..SMALL
            },
            Hardness { passes: 0, ..SMALL },
            Hardness {
                lanes: LANES_MAX + 1,
                ..SMALL
            },
            Hardness { lanes: 0, ..SMALL },
        ] {
            assert_eq!(hostile.stretch(b"x").err(), Some(HardnessError::OutOfRange));
        }
    }

    #[test]
    fn every_parameter_matters() {
        let base = *SMALL.stretch(b"x").unwrap().as_bytes();
        assert_eq!(&base, SMALL.stretch(b"x").unwrap().as_bytes());
        for other in [
            Hardness { salt: [3; 16], ..SMALL },
            Hardness { passes: 2, ..SMALL },
            Hardness { lanes: 2, ..SMALL },
        ] {
            assert_ne!(&base, other.stretch(b"x").unwrap().as_bytes());
        }
        assert_ne!(&base, SMALL.stretch(b"y").unwrap().as_bytes());
    }
}
