//! Against real tokens, which `scripts/keyservers start softhsm kryoptic` makes, and against one that fails when it is told to.
//!
//! What must hold: a wrap opens with its key and additional data only; a session, a login or a token that was lost costs one call
//! some time and no more; a wrong PIN is tried once; a key that can leave its token wraps nothing.

use std::{
    ffi::{CStr, CString, c_ulong, c_void},
    fs, io,
    os::unix::ffi::OsStrExt,
    path::PathBuf,
    process::Command,
    sync::atomic::{AtomicUsize, Ordering},
    thread,
};

use cryptoki::slot::Slot;
use parking_lot::{Mutex, MutexGuard};
use rustix::process::{Pid, WaitOptions, waitpid};
use tempfile::TempDir;

use super::*;
use crate::keystore::{LocalKeystore, Providers, custodian::check_custodian};

const PIN: &[u8] = b"123456";

/// Modules have one state for the process.
static TURN: Mutex<()> = Mutex::new(());

/// A module of the machine, for one test at a time.
struct Bench {
    module: PathBuf,
    _turn: MutexGuard<'static, ()>,
}

impl Bench {
    fn softhsm() -> Option<Self> {
        Self::with("HUSHFS_TEST_SOFTHSM")
    }

    fn kryoptic() -> Option<Self> {
        Self::with("HUSHFS_TEST_KRYOPTIC")
    }

    fn with(variable: &str) -> Option<Self> {
        if let Some(module) = std::env::var_os(variable) {
            return Some(Bench {
                module: module.into(),
                _turn: TURN.lock(),
            });
        }
        let missing = format!("no {variable}: see scripts/keyservers");
        assert!(std::env::var_os("HUSHFS_TESTS_MUST_NOT_SKIP").is_none(), "{missing}");
        eprintln!("SKIPPED: {missing}");
        None
    }

    fn open(&self) -> Pkcs11 {
        self.open_with(PIN)
    }

    fn open_with(&self, pin: &'static [u8]) -> Pkcs11 {
        Pkcs11::new(&self.module, Box::new(|_| Ok(Zeroizing::new(pin.to_vec())))).unwrap()
    }

    /// Makes a SoftHSM token by the program that comes with it; modules that run do not hear of it.
    fn new_token(&self) -> String {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let label = format!("test {} {}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let made = Command::new("softhsm2-util")
            .args([
                "--init-token",
                "--free",
                "--so-pin",
                "87654321",
                "--pin",
                "123456",
                "--label",
                &label,
            ])
            .output()
            .unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        label
    }
}

fn named(token: &str, label: &str) -> KeyUri {
    KeyUri {
        token: token.to_owned(),
        label: label.to_owned(),
        id: Vec::new(),
    }
}

/// A name that no key has yet, in the token that `scripts/keyservers` made.
fn fresh_name() -> KeyUri {
    named("hushfs", &format!("key {:x?}", random::bytes::<8>()))
}

fn both() -> impl Iterator<Item = Bench> {
    [Bench::softhsm, Bench::kryoptic]
        .into_iter()
        .filter_map(|bench| bench())
}

fn opens(pkcs11: &Pkcs11, key: &KeyUri, blob: &[u8]) -> Result<[u8; KEY_SIZE], Pkcs11Error> {
    pkcs11.unwrap(key, b"context", blob).map(|secret| *secret.as_bytes())
}

#[test]
fn a_key_in_a_token_does_what_every_custodians_key_must() {
    for bench in both() {
        let pkcs11 = bench.open();
        let name = pkcs11.create(&fresh_name()).unwrap().into_name();
        let providers = Providers {
            pkcs11: Some(Arc::new(pkcs11)),
            ..Providers::default()
        };
        let (keystore, key) = LocalKeystore::for_remote_key(name, providers);
        check_custodian(&keystore, &key);
    }
}

#[test]
fn what_a_token_says_is_said_in_the_words_of_cloud_key_services() {
    let Some(bench) = Bench::softhsm() else { return };
    let faulty = Faulty::over(bench);
    let provider: &dyn Provider = &faulty.bench.open();
    let context = Context::default();
    let generate = |key: &RemoteKeyName| provider.generate(key, &context).map(drop);
    let absent = fresh_name().into_name();
    assert_eq!(provider.describe(&absent), Err(ProviderError::NotFound));
    assert_eq!(
        generate(&named("nobody", "key").into_name()),
        Err(ProviderError::Unavailable)
    );
    let arn = RemoteKeyName::AwsKms { arn: "arn:1".into() };
    assert_eq!(generate(&arn), Err(ProviderError::NotFound));

    let pkcs11 = faulty.bench.open();
    let loose = fresh_name();
    make_key(
        &pkcs11,
        &loose,
        &[Attribute::Sensitive(true), Attribute::Extractable(true)],
    );
    let loose = loose.into_name();
    assert_eq!(provider.describe(&loose), Err(ProviderError::Unsupported));
    assert_eq!(generate(&loose), Err(ProviderError::Unsupported));

    let key = pkcs11.create(&fresh_name()).unwrap().into_name();
    assert_eq!(provider.describe(&key), Ok(RemoteKeyState::Enabled));
    let (secret, blob) = provider.generate(&key, &context).unwrap();
    assert_eq!(
        provider.unwrap(&key, &context, &blob).unwrap().as_bytes(),
        secret.as_bytes()
    );
    let other = Context::default().with("a", "b").unwrap();
    assert_eq!(
        provider.unwrap(&key, &other, &blob).map(drop),
        Err(ProviderError::Rejected)
    );
    for (code, reason) in [
        (0x32, ProviderError::Unavailable),
        (0x31, ProviderError::Limit),
        (0x68, ProviderError::AccessDenied),
        (0x70, ProviderError::Unsupported),
        (0x8000_0001, ProviderError::Unavailable),
    ] {
        faulty.fail(ENCRYPT, code, 100);
        assert_eq!(generate(&key), Err(reason), "{code:x}");
        faulty.fail(DECRYPT, code, 100);
        assert_eq!(
            provider.unwrap(&key, &context, &blob).map(drop),
            Err(reason),
            "{code:x}"
        );
        faulty.fail(ENCRYPT, 0, 0);
        faulty.fail(DECRYPT, 0, 0);
    }
}

const SECRET: [u8; KEY_SIZE] = [7; KEY_SIZE];

#[test]
fn a_key_made_in_a_token_wraps_there_and_stays_there() {
    for bench in both() {
        let pkcs11 = bench.open();
        let name = fresh_name();
        let key = pkcs11.create(&name).unwrap();
        assert_eq!((&key.label, key.id.len()), (&name.label, KEY_ID_SIZE));
        let expected = KeyDescription {
            key: key.clone(),
            is_local: true,
            is_never_extractable: true,
            fault: None,
        };
        let by_id = KeyUri {
            label: String::new(),
            ..key.clone()
        };
        let blob = pkcs11.wrap(&key, b"context", &SECRET).unwrap();
        assert_eq!(blob.len(), BLOB_SIZE);
        for name in [&name, &key, &by_id] {
            assert_eq!(pkcs11.describe(name).unwrap(), expected);
            assert_eq!(opens(&pkcs11, name, &blob).unwrap(), SECRET);
        }
        assert_ne!(pkcs11.wrap(&key, b"context", &SECRET).unwrap(), blob);
        for taken in [&name, &key] {
            assert!(matches!(pkcs11.create(taken), Err(Pkcs11Error::KeyExists { .. })));
        }
    }
}

#[test]
fn what_was_changed_or_is_anothers_is_rejected() {
    for bench in both() {
        let pkcs11 = bench.open();
        let key = pkcs11.create(&fresh_name()).unwrap();
        let other = pkcs11.create(&fresh_name()).unwrap();
        let blob = pkcs11.wrap(&key, b"context", &SECRET).unwrap();
        let rejected = |key: &KeyUri, aad: &[u8], blob: &[u8]| {
            let error = pkcs11.unwrap(key, aad, blob).unwrap_err();
            assert!(matches!(error, Pkcs11Error::Rejected { .. }), "{error}");
        };
        for at in 0..BLOB_SIZE {
            let mut changed = blob.clone();
            changed[at] ^= 1;
            rejected(&key, b"context", &changed);
        }
        for len in [0, 1, IV_SIZE, BLOB_SIZE - 1] {
            rejected(&key, b"context", &blob[..len]);
        }
        rejected(&key, b"context", &[blob.as_slice(), &[0]].concat());
        rejected(&key, b"contexts", &blob);
        rejected(&key, b"", &blob);
        rejected(&other, b"context", &blob);
        assert_eq!(opens(&pkcs11, &key, &blob).unwrap(), SECRET);
    }
}

#[test]
fn a_wrong_pin_is_tried_once() {
    for bench in both() {
        let asked: &'static AtomicUsize = Box::leak(Box::default());
        let ask = move |token: &str| {
            assert_eq!(token, "hushfs");
            asked.fetch_add(1, Ordering::Relaxed);
            Ok(Zeroizing::new(b"654321".to_vec()))
        };
        let pkcs11 = Pkcs11::new(&bench.module, Box::new(ask)).unwrap();
        for _ in 0..2 {
            let error = pkcs11.describe(&fresh_name()).unwrap_err();
            assert!(matches!(error, Pkcs11Error::Pin { .. }), "{error}");
            assert!(
                error.to_string().starts_with("wrong PIN for token \"hushfs\""),
                "{error}"
            );
        }
        assert_eq!(asked.load(Ordering::Relaxed), 1);
        let none = Pkcs11::new(&bench.module, Box::new(|_| Err(io::Error::other("no terminal")))).unwrap();
        let error = none.describe(&fresh_name()).unwrap_err();
        assert_eq!(error.to_string(), "PIN of token \"hushfs\": no terminal");
        let right = bench.open();
        let error = right.describe(&fresh_name()).unwrap_err();
        assert!(matches!(error, Pkcs11Error::NoSuchKey { .. }), "{error}");
    }
}

#[test]
fn what_is_not_there_is_named() {
    for bench in both() {
        let pkcs11 = bench.open();
        let error = pkcs11.describe(&named("nobody", "key")).unwrap_err();
        assert!(
            error.to_string().starts_with("no token \"nobody\": plug it in"),
            "{error}"
        );
        let error = pkcs11.describe(&named("hushfs", "nothing")).unwrap_err();
        assert_eq!(
            error.to_string(),
            "token \"hushfs\" has no AES key pkcs11:token=hushfs;object=nothing: make one with `hushfs key create`"
        );
        let absent = fresh_name();
        let error = pkcs11.create(&named("nobody", &absent.label)).unwrap_err();
        assert!(matches!(error, Pkcs11Error::NoSuchToken { .. }), "{error}");
    }
}

#[test]
fn a_name_that_fits_two_is_refused() {
    let Some(bench) = Bench::softhsm() else { return };
    let pkcs11 = bench.open();
    let one = fresh_name();
    make_key(
        &pkcs11,
        &one,
        &[Attribute::Sensitive(true), Attribute::Extractable(false)],
    );
    make_key(
        &pkcs11,
        &one,
        &[Attribute::Sensitive(true), Attribute::Extractable(false)],
    );
    let error = pkcs11.wrap(&one, b"", &SECRET).unwrap_err();
    assert!(matches!(error, Pkcs11Error::SeveralKeys { .. }), "{error}");

    let token = bench.new_token();
    let made = Command::new("softhsm2-util")
        .args([
            "--init-token",
            "--free",
            "--so-pin",
            "87654321",
            "--pin",
            "123456",
            "--label",
            &token,
        ])
        .output()
        .unwrap();
    assert!(made.status.success());
    let error = pkcs11.wrap(&named(&token, "key"), b"", &SECRET).unwrap_err();
    assert!(matches!(error, Pkcs11Error::SeveralTokens { .. }), "{error}");
}

/// Makes a key as another program might.
fn make_key(pkcs11: &Pkcs11, key: &KeyUri, more: &[Attribute]) {
    let attributes = [
        Attribute::Class(ObjectClass::SECRET_KEY),
        Attribute::KeyType(KeyType::AES),
        Attribute::ValueLen(Ulong::new(KEY_SIZE as _)),
        Attribute::Label(key.label.clone().into_bytes()),
        Attribute::Token(true),
        Attribute::Private(true),
        Attribute::Encrypt(true),
        Attribute::Decrypt(true),
    ];
    // What is given again takes the place of what stands there.
    let is_given = |attribute: &Attribute| {
        let same = |other: &Attribute| other.attribute_type() == attribute.attribute_type();
        more.iter().any(same)
    };
    let attributes: Vec<_> = attributes
        .into_iter()
        .filter(|a| !is_given(a))
        .chain(more.iter().cloned())
        .collect();
    pkcs11
        .module
        .call(Access::Write, &key.token, &pkcs11.pin, |session| {
            Ok(session.generate_key(&Mechanism::AesKeyGen, &attributes)?)
        })
        .unwrap();
}

#[test]
fn a_key_that_is_not_kept_well_wraps_nothing_but_opens_what_it_has_wrapped() {
    for bench in both() {
        let pkcs11 = bench.open();
        let good = || vec![Attribute::Sensitive(true), Attribute::Extractable(false)];
        let with = |change: Attribute| {
            let kept = good()
                .into_iter()
                .filter(|a| a.attribute_type() != change.attribute_type());
            kept.chain([change.clone()]).collect::<Vec<_>>()
        };
        for (attributes, fault) in [
            (with(Attribute::Extractable(true)), KeyFault::Extractable),
            (with(Attribute::Sensitive(false)), KeyFault::NotSensitive),
            (with(Attribute::ValueLen(Ulong::new(16))), KeyFault::Size),
            (with(Attribute::Encrypt(false)), KeyFault::Usage),
        ] {
            let key = fresh_name();
            make_key(&pkcs11, &key, &attributes);
            assert_eq!(pkcs11.describe(&key).unwrap().fault, Some(fault));
            let error = pkcs11.wrap(&key, b"context", &SECRET).unwrap_err();
            assert!(
                matches!(error, Pkcs11Error::UnfitKey { fault: f, .. } if f == fault),
                "{error}"
            );
            if fault == KeyFault::Usage {
                continue;
            }
            let wrapped = pkcs11.module.call(Access::Read, &key.token, &pkcs11.pin, |session| {
                let (handle, _) = find(session, &key)?;
                encrypt(session, handle, &key, b"context", &SECRET)
            });
            assert_eq!(opens(&pkcs11, &key, &wrapped.unwrap()).unwrap(), SECRET);
        }
        // One that was never anything else is fit.
        let key = fresh_name();
        make_key(&pkcs11, &key, &good());
        assert_eq!(pkcs11.describe(&key).unwrap().fault, None);
    }
}

#[test]
fn what_is_no_module_is_named() {
    let directory = TempDir::new().unwrap();
    let text = directory.path().join("text");
    fs::write(&text, "not a library").unwrap();
    let ask = || Box::new(|_: &str| -> io::Result<Zeroizing<Vec<u8>>> { unreachable!() });
    for (module, said) in [
        (text, "not a PKCS#11 module that starts here"),
        (directory.path().to_owned(), "not a PKCS#11 module that starts here"),
        (libm(), "it has no C_GetFunctionList"),
    ] {
        let error = Pkcs11::new(&module, ask())
            .unwrap()
            .describe(&fresh_name())
            .unwrap_err();
        assert!(matches!(error, Pkcs11Error::Module { .. }), "{error}");
        assert!(error.to_string().contains(said), "{error}");
    }
    let error = Pkcs11::new(&directory.path().join("none"), ask()).unwrap_err();
    assert!(matches!(error, Pkcs11Error::ModuleFile { .. }), "{error}");
}

/// A library that has nothing to do with PKCS#11.
fn libm() -> PathBuf {
    let maps = fs::read_to_string("/proc/self/maps").unwrap();
    let path = maps
        .lines()
        .find_map(|line| line.split(' ').next_back().filter(|path| path.contains("libc.so")));
    PathBuf::from(path.expect("the C library is a file"))
}

/// A module that fails when it is told to, and is another's else: tests/keystore/faulty_pkcs11.c.
struct Faulty {
    bench: Bench,
    library: *mut c_void,
    _directory: TempDir,
}

// The numbers of functions in CK_FUNCTION_LIST.
const LOGIN: usize = 18;
const OPEN_SESSION: usize = 12;
const ENCRYPT: usize = 30;
const DECRYPT: usize = 34;
const FIND_OBJECTS_INIT: usize = 26;

impl Faulty {
    fn over(bench: Bench) -> Self {
        let directory = TempDir::new().unwrap();
        let file = directory.path().join("faulty.so");
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/keystore/faulty_pkcs11.c");
        let real = format!("-DREAL={:?}", bench.module);
        let built = Command::new("cc")
            .args(["-shared", "-fPIC", &real, "-o"])
            .args([&file, &source])
            .status();
        assert!(built.unwrap().success());
        let path = CString::new(file.as_os_str().as_bytes()).unwrap();
        // SAFETY: its only code that runs is what is called below.
        let library = unsafe { libc::dlopen(path.as_ptr(), libc::RTLD_NOW) };
        assert!(!library.is_null());
        Faulty {
            bench: Bench { module: file, ..bench },
            library,
            _directory: directory,
        }
    }

    fn symbol(&self, name: &CStr) -> *mut c_void {
        // SAFETY: the library is open.
        let symbol = unsafe { libc::dlsym(self.library, name.as_ptr()) };
        assert!(!symbol.is_null(), "{name:?}");
        symbol
    }

    fn word(&self, array: &CStr, at: usize) -> *mut c_ulong {
        // SAFETY: the arrays have room for every function's number.
        unsafe { self.symbol(array).cast::<c_ulong>().add(at) }
    }

    /// Has a function give an error so many times.
    fn fail(&self, function: usize, code: c_ulong, times: c_ulong) {
        // SAFETY: no other thread uses the module now.
        unsafe {
            *self.word(c"faulty_codes", function) = code;
            *self.word(c"faulty_times", function) = times;
        }
    }

    /// Tells how often a function was called.
    fn calls(&self, function: usize) -> c_ulong {
        // SAFETY: as above.
        unsafe { *self.word(c"faulty_calls", function) }
    }

    /// Says what the token does about IVs.
    fn set_iv(&self, how: c_ulong) {
        // SAFETY: as above.
        unsafe { *self.word(c"faulty_iv", 0) = how }
    }

    /// Does something to the process's state in the module.
    fn disturb(&self, how: &CStr, slot: Slot) {
        // SAFETY: the function has this type.
        let act: extern "C" fn(c_ulong) -> c_ulong = unsafe { std::mem::transmute(self.symbol(how)) };
        assert_eq!(act(slot.id() as c_ulong), 0, "{how:?}");
    }
}

#[test]
fn lost_sessions_and_logins_are_replaced() {
    for bench in both() {
        let faulty = Faulty::over(bench);
        let pkcs11 = faulty.bench.open();
        let key = pkcs11.create(&fresh_name()).unwrap();
        let blob = pkcs11.wrap(&key, b"context", &SECRET).unwrap();
        let slot = || {
            let slot_of = |session: &Session| Ok(session.get_session_info()?.slot_id());
            pkcs11
                .module
                .call(Access::Read, &key.token, &pkcs11.pin, slot_of)
                .unwrap()
        };
        for how in [c"faulty_close_all_sessions", c"faulty_log_out", c"faulty_finalize"] {
            let logins = faulty.calls(LOGIN);
            faulty.disturb(how, slot());
            assert_eq!(opens(&pkcs11, &key, &blob).unwrap(), SECRET, "{how:?}");
            assert!(pkcs11.wrap(&key, b"context", &SECRET).is_ok());
            assert_eq!(faulty.calls(LOGIN), logins + 1, "{how:?}");
            faulty.disturb(how, slot());
            assert!(pkcs11.create(&fresh_name()).is_ok(), "{how:?}");
        }
    }
}

#[test]
fn one_login_and_few_sessions_serve_many_calls() {
    for bench in both() {
        let faulty = Faulty::over(bench);
        let pkcs11 = faulty.bench.open();
        let key = pkcs11.create(&fresh_name()).unwrap();
        let before = (faulty.calls(LOGIN), faulty.calls(OPEN_SESSION));
        assert_eq!(before, (1, 2));
        for _ in 0..10 {
            let blob = pkcs11.wrap(&key, b"context", &SECRET).unwrap();
            assert_eq!(opens(&pkcs11, &key, &blob).unwrap(), SECRET);
        }
        assert_eq!((faulty.calls(LOGIN), faulty.calls(OPEN_SESSION)), (1, 3));
    }
}

#[test]
fn what_fails_once_is_done_again_and_what_fails_twice_is_told() {
    let Some(bench) = Bench::softhsm() else { return };
    let faulty = Faulty::over(bench);
    let pkcs11 = faulty.bench.open();
    let key = pkcs11.create(&fresh_name()).unwrap();
    let blob = pkcs11.wrap(&key, b"context", &SECRET).unwrap();
    for (code, name) in [
        (0x05, "GeneralError"),
        (0x06, "FunctionFailed"),
        (0x30, "DeviceError"),
        (0x32, "DeviceRemoved"),
        (0xB3, "SessionHandleInvalid"),
        (0xE0, "TokenNotPresent"),
        (0x101, "UserNotLoggedIn"),
        (0x190, "CryptokiNotInitialized"),
    ] {
        for (function, of_function) in [(FIND_OBJECTS_INIT, "FindObjectsInit"), (ENCRYPT, "Encrypt")] {
            faulty.fail(function, code, 1);
            assert!(pkcs11.wrap(&key, b"context", &SECRET).is_ok(), "{name}");
            faulty.fail(function, code, 2);
            let error = pkcs11.wrap(&key, b"context", &SECRET).unwrap_err();
            assert_eq!(error.to_string(), format!("C_{of_function} gave {name}"));
        }
        faulty.fail(DECRYPT, code, 1);
        assert_eq!(opens(&pkcs11, &key, &blob).unwrap(), SECRET, "{name}");
        // Out of order altogether is not tampered with.
        faulty.fail(DECRYPT, code, 100);
        let error = opens(&pkcs11, &key, &blob).unwrap_err();
        assert_eq!(error.to_string(), format!("C_Decrypt gave {name}"));
        faulty.fail(DECRYPT, 0, 0);
        assert_eq!(opens(&pkcs11, &key, &blob).unwrap(), SECRET);
    }
    // What says no for good is asked once.
    let calls = faulty.calls(ENCRYPT);
    faulty.fail(ENCRYPT, 0x68, 1);
    let error = pkcs11.wrap(&key, b"context", &SECRET).unwrap_err();
    assert_eq!(error.to_string(), "C_Encrypt gave KeyFunctionNotPermitted");
    assert_eq!(faulty.calls(ENCRYPT), calls + 1);
}

#[test]
fn what_the_token_says_of_the_pin_is_passed_on() {
    let Some(bench) = Bench::softhsm() else { return };
    let faulty = Faulty::over(bench);
    for (code, said) in [
        (0xA0, "wrong PIN for token \"hushfs\""),
        (0xA3, "the PIN of token \"hushfs\" has expired"),
        (0xA4, "the PIN of token \"hushfs\" is locked"),
        (0x102, "token \"hushfs\" has no user PIN yet"),
    ] {
        let pkcs11 = faulty.bench.open();
        let calls = faulty.calls(LOGIN);
        faulty.fail(LOGIN, code, 1);
        for _ in 0..2 {
            let error = pkcs11.describe(&fresh_name()).unwrap_err();
            assert!(error.to_string().starts_with(said), "{error}");
            assert_eq!(error.reason(), ProviderError::Unauthorized);
        }
        assert_eq!(faulty.calls(LOGIN), calls + 1);
    }
}

#[test]
fn a_token_that_makes_its_own_iv_is_let() {
    let Some(bench) = Bench::softhsm() else { return };
    let faulty = Faulty::over(bench);
    let pkcs11 = faulty.bench.open();
    let key = pkcs11.create(&fresh_name()).unwrap();
    faulty.set_iv(1);
    let blob = pkcs11.wrap(&key, b"context", &SECRET).unwrap();
    assert_eq!(&blob[..IV_SIZE], b"made by HSM!");
    assert_eq!(opens(&pkcs11, &key, &blob).unwrap(), SECRET);
    // An IV of zeros would be the same for every wrap.
    faulty.set_iv(2);
    let error = pkcs11.wrap(&key, b"context", &SECRET).unwrap_err();
    assert!(matches!(error, Pkcs11Error::NoIv { .. }), "{error}");
    faulty.set_iv(0);
    assert!(pkcs11.wrap(&key, b"context", &SECRET).is_ok());
}

#[test]
fn a_token_that_was_taken_away_is_used_again_when_it_is_back() {
    let Some(bench) = Bench::softhsm() else { return };
    let pkcs11 = bench.open();
    assert!(pkcs11.describe(&named("hushfs", "nothing")).is_err());
    // Made while the module runs: as a reader that is plugged in.
    let token = bench.new_token();
    let key = pkcs11.create(&named(&token, "key")).unwrap();
    let blob = pkcs11.wrap(&key, b"context", &SECRET).unwrap();

    let tokens = PathBuf::from(std::env::var_os("SOFTHSM2_CONF").unwrap()).with_file_name("tokens");
    let of_token = directory_of(&tokens, &token);
    let away = tokens.with_file_name("away");
    fs::rename(&of_token, &away).unwrap();
    for _ in 0..2 {
        let error = opens(&pkcs11, &key, &blob).unwrap_err();
        assert!(!matches!(error, Pkcs11Error::Rejected { .. }), "{error}");
        assert!(pkcs11.wrap(&key, b"context", &SECRET).is_err());
    }
    let error = opens(&pkcs11, &key, &blob).unwrap_err();
    assert!(matches!(error, Pkcs11Error::NoSuchToken { .. }), "{error}");
    fs::rename(&away, &of_token).unwrap();
    assert_eq!(opens(&pkcs11, &key, &blob).unwrap(), SECRET);
    assert!(pkcs11.wrap(&key, b"context", &SECRET).is_ok());
}

/// Finds where SoftHSM keeps a token: its label stands in one of the files.
fn directory_of(tokens: &Path, label: &str) -> PathBuf {
    let has_label = |path: &PathBuf| {
        let object = fs::read(path.join("token.object")).unwrap_or_default();
        object.windows(label.len()).any(|window| window == label.as_bytes())
    };
    let mut entries = fs::read_dir(tokens).unwrap().map(|entry| entry.unwrap().path());
    entries.find(has_label).unwrap()
}

#[test]
fn threads_share_a_token_while_its_sessions_are_lost() {
    for bench in both() {
        let faulty = Faulty::over(bench);
        let pkcs11 = faulty.bench.open();
        let key = pkcs11.create(&fresh_name()).unwrap();
        thread::scope(|scope| {
            for _ in 0..6 {
                scope.spawn(|| {
                    for round in 0..20 {
                        if round % 5 == 4 {
                            // As if another thread had noticed a loss.
                            pkcs11.module.lose();
                        }
                        let blob = pkcs11.wrap(&key, b"context", &SECRET).unwrap();
                        assert_eq!(opens(&pkcs11, &key, &blob).unwrap(), SECRET);
                    }
                });
            }
        });
    }
}

#[test]
fn a_module_is_loaded_once_and_let_go_with_its_last_user() {
    let Some(bench) = Bench::softhsm() else { return };
    let (one, two) = (bench.open(), bench.open());
    assert!(Arc::ptr_eq(&one.module, &two.module));
    let key = one.create(&fresh_name()).unwrap();
    let blob = two.wrap(&key, b"context", &SECRET).unwrap();
    drop(one);
    assert_eq!(opens(&two, &key, &blob).unwrap(), SECRET);
    drop(two);
    let three = bench.open();
    assert_eq!(opens(&three, &key, &blob).unwrap(), SECRET);
}

/// The test below runs this one in a process of its own, which has one thread.
#[test]
#[ignore = "run by a_process_that_was_forked_logs_in_itself"]
fn in_a_process_of_its_own() {
    for bench in both() {
        let faulty = Faulty::over(bench);
        let pkcs11 = faulty.bench.open();
        let key = pkcs11.create(&fresh_name()).unwrap();
        let blob = pkcs11.wrap(&key, b"context", &SECRET).unwrap();
        // SAFETY: this process has one thread.
        match unsafe { libc::fork() } {
            -1 => panic!("{}", io::Error::last_os_error()),
            0 => {
                let logins = faulty.calls(LOGIN);
                let opened = opens(&pkcs11, &key, &blob).is_ok_and(|opened| opened == SECRET);
                let good = opened && pkcs11.wrap(&key, b"context", &SECRET).is_ok();
                let good = good && faulty.calls(LOGIN) == logins + 1;
                drop(pkcs11);
                // SAFETY: nothing of this process is to run any more.
                unsafe { libc::_exit(if good { 0 } else { 1 }) }
            }
            child => {
                let status = waitpid(Pid::from_raw(child), WaitOptions::empty());
                let status = status.unwrap().map(|(_, status)| status.exit_status());
                assert_eq!(status, Some(Some(0)), "{}", faulty.bench.module.display());
            }
        }
        // What the child did to its sessions did nothing to those here.
        let logins = faulty.calls(LOGIN);
        assert_eq!(opens(&pkcs11, &key, &blob).unwrap(), SECRET);
        assert_eq!(faulty.calls(LOGIN), logins);
    }
}

#[test]
fn a_process_that_was_forked_logs_in_itself() {
    // Whichever tokens there are: the test in the other process says what it skips.
    let Some(_bench) = both().next() else { return };
    let ran = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "keystore::pkcs11::tests::in_a_process_of_its_own"])
        .args(["--ignored", "--test-threads=1", "--nocapture"])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&ran.stderr) + String::from_utf8_lossy(&ran.stdout);
    assert!(ran.status.success(), "{said}");
    assert!(said.contains("1 passed"), "{said}");
}
