//! Against swtpm, which `scripts/keyservers start swtpm` runs.

use std::{
    io,
    sync::atomic::{AtomicUsize, Ordering},
};

use parking_lot::{Mutex, MutexGuard};
use tss_esapi::{
    handles::{AuthHandle, PcrHandle},
    interface_types::session_handles::AuthSession,
    structures::DigestValues,
};

use super::*;

/// The debug register: it can be reset.
const DEBUG_PCR: u32 = 1 << 16;

/// The register of secure boot, which nothing changes here.
const BOOT_PCR: u32 = 1 << 7;

/// A TPM takes one client at a time, and has one state.
static TURN: Mutex<()> = Mutex::new(());

struct Bench {
    name: String,
    _turn: MutexGuard<'static, ()>,
}

impl Bench {
    fn new() -> Option<Self> {
        if let Ok(name) = std::env::var("HUSHFS_TEST_TPM") {
            let bench = Bench {
                name,
                _turn: TURN.lock(),
            };
            bench.directly(|context| context.pcr_reset(PcrHandle::Pcr16));
            // Wrong PINs of earlier tests count.
            bench.directly(|context| context.clear(AuthHandle::Platform));
            return Some(bench);
        }
        let missing = "no HUSHFS_TEST_TPM: see scripts/keyservers";
        assert!(std::env::var_os("HUSHFS_TESTS_MUST_NOT_SKIP").is_none(), "{missing}");
        eprintln!("SKIPPED: {missing}");
        None
    }

    fn with_pin(&self, pin: &'static [u8]) -> Tpm2 {
        Tpm2::new(&self.name, Box::new(|_| Ok(Zeroizing::new(pin.to_vec())))).unwrap()
    }

    fn without_pin(&self) -> Tpm2 {
        let none = || io::Error::other("no terminal");
        Tpm2::new(&self.name, Box::new(move |_| Err(none()))).unwrap()
    }

    /// Does something that hushfs never does.
    fn directly(&self, act: impl FnOnce(&mut Context) -> Result<(), EsapiError>) {
        let mut context = Context::new(TctiNameConf::from_str(&self.name).unwrap()).unwrap();
        context.execute_with_session(Some(AuthSession::Password), act).unwrap();
    }
}

fn opened(tpm: &Tpm2, object: &TpmObject) -> Result<[u8; KEY_SIZE], TpmError> {
    tpm.unseal(object).map(|secret| *secret.as_bytes())
}

#[test]
fn what_is_sealed_is_unsealed_with_its_pin() {
    let Some(bench) = Bench::new() else { return };
    let tpm = bench.with_pin(b"1234");
    tpm.check().unwrap();
    for (pcrs, pin) in [
        (BOOT_PCR, Some(b"1234".as_slice())),
        (BOOT_PCR | DEBUG_PCR, Some(b"1234")),
        (0, Some(b"1234")),
    ] {
        let (object, secret) = tpm.seal(pcrs, pin).unwrap();
        assert_eq!((object.pcrs, object.pin), (pcrs, true));
        assert_eq!(opened(&tpm, &object), Ok(*secret.as_bytes()));
        let (again, other) = tpm.seal(pcrs, pin).unwrap();
        assert_ne!(secret.as_bytes(), other.as_bytes());
        assert_ne!(again, object);
        assert_eq!(opened(&bench.without_pin(), &object), Err(TpmError::NoPin));
    }
    let (object, _) = tpm.seal(BOOT_PCR, Some(b"1234")).unwrap();
    assert_eq!(opened(&bench.with_pin(b"1235"), &object), Err(TpmError::WrongPin));
    assert_eq!(opened(&bench.with_pin(b""), &object), Err(TpmError::WrongPin));
}

#[test]
fn without_a_pin_none_is_asked_for() {
    let Some(bench) = Bench::new() else { return };
    let tpm = bench.without_pin();
    for pcrs in [BOOT_PCR, 0] {
        let (object, secret) = tpm.seal(pcrs, None).unwrap();
        assert_eq!(opened(&tpm, &object), Ok(*secret.as_bytes()));
    }
}

#[test]
fn a_machine_that_started_differently_gets_nothing() {
    let Some(bench) = Bench::new() else { return };
    let tpm = bench.with_pin(b"1234");
    let (object, secret) = tpm.seal(BOOT_PCR | DEBUG_PCR, Some(b"1234")).unwrap();
    let (other, _) = tpm.seal(BOOT_PCR, Some(b"1234")).unwrap();
    bench.directly(|context| {
        let mut values = DigestValues::new();
        values.set(HashingAlgorithm::Sha256, Digest::try_from([1; 32].as_slice())?);
        context.pcr_extend(PcrHandle::Pcr16, values)
    });
    assert_eq!(opened(&tpm, &object), Err(TpmError::Registers));
    assert!(opened(&tpm, &other).is_ok());
    // To say that other registers, or none, matter is no way around.
    for pcrs in [BOOT_PCR, 0] {
        let changed = TpmObject { pcrs, ..object.clone() };
        assert_eq!(opened(&tpm, &changed), Err(TpmError::Registers));
    }
    bench.directly(|context| context.pcr_reset(PcrHandle::Pcr16));
    assert_eq!(opened(&tpm, &object), Ok(*secret.as_bytes()));
}

#[test]
fn what_was_changed_is_not_this_tpm_s() {
    let Some(bench) = Bench::new() else { return };
    let tpm = bench.without_pin();
    let (object, _) = tpm.seal(BOOT_PCR, None).unwrap();
    for at in 0..object.private.len() {
        let mut changed = object.clone();
        changed.private[at] ^= 1;
        assert_eq!(opened(&tpm, &changed), Err(TpmError::OtherTpm), "private {at}");
    }
    for at in 0..object.public.len() {
        let mut changed = object.clone();
        changed.public[at] ^= 1;
        assert!(opened(&tpm, &changed).is_err(), "public {at}");
    }
    for (public, private) in [
        (Vec::new(), object.private.clone()),
        (object.public.clone(), vec![0]),
        (object.public[..20].to_vec(), object.private.clone()),
        (vec![0xFF; 2048], vec![0xFF; 2048]),
        (with_size(&[0; 2046]), with_size(&[0; 2046])),
        (object.public.clone(), with_size(&[7; 158])),
    ] {
        let changed = TpmObject {
            public,
            private,
            ..object.clone()
        };
        assert_eq!(opened(&tpm, &changed), Err(TpmError::OtherTpm));
    }
    // A PIN that is asked for where there is none.
    let asked: &'static AtomicUsize = Box::leak(Box::default());
    let ask = |_: &str| {
        asked.fetch_add(1, Ordering::Relaxed);
        Ok(Zeroizing::new(b"1234".to_vec()))
    };
    let changed = TpmObject { pin: true, ..object };
    let tpm = Tpm2::new(&bench.name, Box::new(ask)).unwrap();
    assert!(opened(&tpm, &changed).is_err());
    assert_eq!(asked.load(Ordering::Relaxed), 1);
}

#[test]
fn after_some_wrong_pins_the_tpm_locks_itself_and_is_cleared_it_opens_nothing_old() {
    let Some(bench) = Bench::new() else { return };
    let (right, wrong) = (bench.with_pin(b"1234"), bench.with_pin(b"4321"));
    let (object, _) = right.seal(BOOT_PCR, Some(b"1234")).unwrap();
    let (free, secret) = right.seal(BOOT_PCR, None).unwrap();
    let locked = (0..100).find(|_| opened(&wrong, &object) == Err(TpmError::LockedOut));
    assert!(locked.is_some_and(|tries| tries > 0), "{locked:?}");
    assert_eq!(opened(&right, &object), Err(TpmError::LockedOut));
    assert_eq!(opened(&right, &free), Ok(*secret.as_bytes()), "no PIN, no lock");
    bench.directly(|context| context.clear(AuthHandle::Platform));
    for object in [&object, &free] {
        assert_eq!(opened(&right, object), Err(TpmError::OtherTpm));
    }
}

#[test]
fn what_is_no_tpm_is_named() {
    let ask = || Box::new(|_: &str| -> io::Result<Zeroizing<Vec<u8>>> { unreachable!() });
    for name in ["", "nothing", "swtpm:host=", "device:/dev/tpm0;rm -rf"] {
        let error = Tpm2::new(name, ask()).and_then(|tpm| tpm.check()).unwrap_err();
        assert!(matches!(error, TpmError::Name | TpmError::NoTpm), "{name}: {error}");
    }
    for name in ["device:/dev/null/none", "swtpm:host=127.0.0.1,port=9"] {
        assert_eq!(Tpm2::new(name, ask()).unwrap().check(), Err(TpmError::NoTpm), "{name}");
    }
}

#[test]
fn a_pin_has_a_length() {
    assert_eq!(authorization(&[1; 33]).map(drop), Err(TpmError::PinLength));
    assert_eq!(authorization(b"1234\0").map(drop), Err(TpmError::PinLength));
    assert!(authorization(&[1; 32]).is_ok());
}
