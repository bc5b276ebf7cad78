//! Stretches passphrases with Argon2id (RFC 9106).

use std::time::{Duration, Instant};

use argon2::{Algorithm, Argon2, Params, Version};
use serde::{Deserialize, Serialize};

use super::{
    derive,
    keys::{KeyBytes, SlotSecret},
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

/// Returned when a stored slot asks for more than hushfs will run, or less than it ever writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HardnessError;

impl std::fmt::Display for HardnessError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Argon2id parameters out of range")
    }
}

impl std::error::Error for HardnessError {}

impl Hardness {
    /// Chooses parameters that take about `target` here with the given memory, never below the RFC's recommendation.
    pub fn calibrated(memory_kib: u32, target: Duration) -> Self {
        let mut hardness = Hardness {
            salt: random::bytes(),
            memory_kib: memory_kib.clamp(MEMORY_KIB_MIN_NEW, MEMORY_KIB_MAX),
            passes: 1,
            lanes: LANES_DEFAULT,
        };
        let start = Instant::now();
        hardness
            .stretch(b"calibration")
            .expect("the parameters were put in range above");
        let pass = start.elapsed().max(Duration::from_millis(1));
        let passes = (target.as_secs_f64() / pass.as_secs_f64()).round() as u32;
        hardness.passes = passes.clamp(PASSES_MIN_NEW, PASSES_MAX);
        hardness
    }

    /// Stretches a passphrase into the secret of its slot.
    ///
    /// # Errors
    ///
    /// [`HardnessError`] when the parameters are out of range; nothing is run then.
    pub fn stretch(&self, passphrase: &[u8]) -> Result<SlotSecret, HardnessError> {
        let in_range = (MEMORY_KIB_MIN..=MEMORY_KIB_MAX).contains(&self.memory_kib)
            && (1..=PASSES_MAX).contains(&self.passes)
            && (1..=LANES_MAX).contains(&self.lanes);
        if !in_range {
            return Err(HardnessError);
        }
        let params =
            Params::new(self.memory_kib, self.passes, self.lanes, Some(super::KEY_SIZE)).map_err(|_| HardnessError)?;
        let mut stretched = KeyBytes::zero();
        Argon2::new(Algorithm::Argon2id, Version::V0x13, params)
            .hash_password_into(passphrase, &self.salt, stretched.as_mut_bytes())
            .map_err(|_| HardnessError)?;
        Ok(derive::passphrase_slot(&stretched))
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
            assert_eq!(hostile.stretch(b"x").err(), Some(HardnessError));
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
