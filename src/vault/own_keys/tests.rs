use std::cell::Cell;

use super::*;
use crate::{
    crypto::{
        block::Suite,
        keys::{FileSecret, KeyBytes, WrappingKey},
        locked::LockedKey,
        wrap::{self, Wrapped},
    },
    format::{layout::Layout, vault::EpochRecord},
};

const VAULT: VaultId = VaultId([1; 16]);
const KEY: KeyId = KeyId([2; 16]);
const EPOCH: Epoch = Epoch(1);
const DISABLED: KeyError = KeyError::Disabled { key: KEY };
const AWAY_ERROR: KeyError = KeyError::Unavailable {
    key: KEY,
    provider: "test",
};

thread_local! {
    static NOW: Cell<u64> = const { Cell::new(1000) };
}

fn clock() -> Duration {
    Duration::from_secs(NOW.get())
}

/// Who has a key: counts what it is asked, and refuses when it is told to.
#[derive(Debug)]
struct Holder {
    key: WrappingKey,
    calls: Mutex<Vec<(&'static str, Context)>>,
    refusal: Mutex<Option<KeyError>>,
}

impl Holder {
    fn call(&self, name: &'static str, context: &Context) -> Result<(), KeyError> {
        self.calls.lock().push((name, context.clone()));
        self.refusal.lock().map_or(Ok(()), Err)
    }

    fn count(&self) -> usize {
        self.calls.lock().len()
    }

    fn says(&self, refusal: Option<KeyError>) {
        *self.refusal.lock() = refusal;
    }
}

impl FileCustodian for Holder {
    fn generate(&self, _: KeyHandle, context: &Context) -> Result<(EpochKey, WrappedKey), KeyError> {
        self.call("GenerateDataKey", context)?;
        let secret = EpochKey::new(random::locked_key());
        let wrapped = self.key.wrap(&context.encode(), secret.as_bytes());
        Ok((secret, WrappedKey::new(wrapped.0.to_vec()).unwrap()))
    }

    fn unwrap(&self, key: KeyHandle, context: &Context, wrapped: &WrappedKey) -> Result<EpochKey, KeyError> {
        self.call("Decrypt", context)?;
        let rejected = KeyError::Rejected { key: key.0 };
        let wrapped = Wrapped(wrapped.as_bytes().try_into().map_err(|_| rejected)?);
        let take = |bytes: &[u8; 32]| EpochKey::new(LockedKey::copy_of(bytes));
        self.key.unwrap(&context.encode(), &wrapped, take).map_err(|_| rejected)
    }

    fn unanswered(&self, _: KeyHandle) -> Option<KeyError> {
        Some(AWAY_ERROR)
    }
}

/// Who has a key, and never answers.
#[derive(Debug)]
struct Silent;

impl FileCustodian for Silent {
    fn generate(&self, _: KeyHandle, _: &Context) -> Result<(EpochKey, WrappedKey), KeyError> {
        loop {
            std::thread::park();
        }
    }

    fn unwrap(&self, _: KeyHandle, _: &Context, _: &WrappedKey) -> Result<EpochKey, KeyError> {
        loop {
            std::thread::park();
        }
    }

    fn unanswered(&self, _: KeyHandle) -> Option<KeyError> {
        Some(AWAY_ERROR)
    }
}

/// The secrets of a vault with one epoch, under a key with a pair of its own in the context.
fn own_keys() -> (OwnKeys, Arc<Holder>) {
    NOW.set(1000);
    let holder = Arc::new(Holder {
        key: WrappingKey::new(KeyBytes::copy_of(&[3; 32])),
        calls: Mutex::default(),
        refusal: Mutex::new(None),
    });
    let layout = Layout::new(Suite::Aes256GcmSiv, 4096).unwrap();
    let epoch = EpochRecord {
        number: EPOCH,
        created: 1,
        names_root: wrap::wrap(&[1; 32], b"", &[2; 32]),
        wraps: vec![EpochWrap {
            custodian: CustodianKind::Local,
            key: KEY,
            context: vec![("team".into(), "blue".into())],
            blob: vec![7; 100],
        }],
    };
    let mut keys = OwnKeys::new(VAULT);
    keys.clock = clock;
    keys.set_custodian(holder.clone());
    keys.set_epochs(&VaultHeader::new(VAULT, 1, layout, epoch));
    (keys, holder)
}

fn deferred() -> (OwnKeys, Arc<Holder>) {
    let (mut keys, holder) = own_keys();
    keys.defer(Limits::default());
    (keys, holder)
}

fn needed<T: fmt::Debug>(result: Result<T, VaultError>) -> Arc<Ask> {
    match result {
        Err(VaultError::KeyNeeded(ask)) => ask,
        other => panic!("{other:?}"),
    }
}

fn refusal<T: fmt::Debug>(result: Result<T, VaultError>) -> KeyError {
    match result {
        Err(VaultError::EpochKey(EPOCH, error)) => error,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_file_costs_a_call_to_make_and_one_to_open() {
    let (keys, holder) = own_keys();
    let new = keys.for_new_file(EPOCH).unwrap();
    let pairs = [
        ("hushfs:file".to_owned(), new.file.to_hex()),
        ("hushfs:vault".to_owned(), VAULT.to_hex()),
        ("team".to_owned(), "blue".to_owned()),
    ];
    for _ in 0..3 {
        let known = keys.known(new.file, EPOCH, &new.own().wrap).unwrap();
        assert_eq!(known.own().secret.as_bytes(), new.own().secret.as_bytes());
    }
    let calls = holder.calls.lock();
    let calls: Vec<_> = calls.iter().map(|(name, context)| (*name, context.pairs())).collect();
    assert_eq!(calls, [("GenerateDataKey", &pairs[..]), ("Decrypt", &pairs[..])]);
}

#[test]
fn a_secret_opens_for_its_file_in_its_vault_under_a_key_of_its_epoch_alone() {
    let (keys, holder) = own_keys();
    let new = keys.for_new_file(EPOCH).unwrap();
    let wrap = &new.own().wrap;
    let is_damaged = |result| matches!(result, Err(VaultError::HeaderDamaged(..)));
    assert!(is_damaged(keys.known(FileId([9; 16]), EPOCH, wrap)));
    let (mut other, _) = own_keys();
    other.vault = VaultId([8; 16]);
    assert!(is_damaged(other.known(new.file, EPOCH, wrap)));
    let before = holder.count();
    let strangers = OwnWrap::new(KeyId([5; 16]), wrap.blob().to_vec()).unwrap();
    assert!(is_damaged(keys.known(new.file, EPOCH, &strangers)));
    assert!(matches!(
        keys.known(new.file, Epoch(2), wrap),
        Err(VaultError::EpochMissing(Epoch(2)))
    ));
    assert_eq!(holder.count(), before, "a header chooses nobody to be asked");
}

#[test]
fn without_a_holder_nothing_opens() {
    let (mut keys, _) = own_keys();
    let new = keys.for_new_file(EPOCH).unwrap();
    keys.custodian = None;
    let opened = keys.known(new.file, EPOCH, &new.own().wrap);
    assert!(matches!(opened, Err(VaultError::HeaderDamaged(..))));
}

#[test]
fn in_a_mount_nobody_waits_and_what_was_asked_is_there_the_next_time() {
    let (keys, holder) = deferred();
    let ask = needed(keys.for_new_file(EPOCH));
    assert_eq!((ask.key(), holder.count()), (KEY, 0));
    keys.ask(&ask).unwrap();
    let new = keys.for_new_file(EPOCH).unwrap();
    needed(keys.for_new_file(EPOCH));
    let ask = needed(keys.known(new.file, EPOCH, &new.own().wrap));
    assert_eq!(ask.file(), new.file);
    keys.ask(&ask).unwrap();
    keys.known(new.file, EPOCH, &new.own().wrap).unwrap();
    assert_eq!(holder.count(), 2);
}

#[test]
fn a_secret_for_a_new_file_that_nobody_came_for_is_not_used_later() {
    let (keys, _) = deferred();
    keys.ask(&needed(keys.for_new_file(EPOCH))).unwrap();
    NOW.set(1301);
    needed(keys.for_new_file(EPOCH));
}

#[test]
fn an_open_file_is_asked_for_again_when_it_is_opened_after_the_time() {
    let (keys, holder) = deferred();
    keys.ask(&needed(keys.for_new_file(EPOCH))).unwrap();
    let new = keys.for_new_file(EPOCH).unwrap();
    let access = keys.access(new.file, EPOCH, new.own());
    NOW.set(1299);
    keys.confirm(new.file, &access).unwrap();
    NOW.set(1300);
    let ask = needed(keys.confirm(new.file, &access));
    access.check().unwrap();
    keys.ask(&ask).unwrap();
    keys.ask(&ask).unwrap();
    assert_eq!(
        holder.count(),
        2,
        "who waited for the same answer does not ask once more"
    );
    keys.confirm(new.file, &access).unwrap();

    NOW.set(1600);
    holder.says(Some(DISABLED));
    let ask = needed(keys.confirm(new.file, &access));
    assert_eq!(refusal(keys.ask(&ask)), DISABLED);
    assert_eq!(refusal(access.check()), DISABLED, "who has it open loses it too");
    assert_eq!(refusal(keys.confirm(new.file, &access)), DISABLED);
    // Unlike a key of many files, it is asked for whenever someone wants it.
    NOW.set(1601);
    holder.says(None);
    keys.ask(&needed(keys.confirm(new.file, &access))).unwrap();
    access.check().unwrap();
}

#[test]
fn who_does_not_answer_is_not_missed_for_a_while_and_not_asked_all_the_time() {
    let (keys, holder) = deferred();
    keys.ask(&needed(keys.for_new_file(EPOCH))).unwrap();
    let new = keys.for_new_file(EPOCH).unwrap();
    let access = keys.access(new.file, EPOCH, new.own());
    holder.says(Some(AWAY_ERROR));
    NOW.set(1300);
    keys.ask(&needed(keys.confirm(new.file, &access))).unwrap();
    access.check().unwrap();
    assert_eq!(holder.count(), 2);
    // Another file, of which nothing is known.
    let ask = needed(keys.for_new_file(EPOCH));
    assert_eq!(refusal(keys.ask(&ask)), AWAY_ERROR);
    assert_eq!(holder.count(), 2, "it has just not answered");
    NOW.set(1302);
    assert_eq!(refusal(keys.ask(&ask)), AWAY_ERROR);
    assert_eq!(holder.count(), 3);
    // Until so long after it was last had.
    NOW.set(4600);
    let ask = needed(keys.confirm(new.file, &access));
    assert_eq!(refusal(keys.ask(&ask)), AWAY_ERROR);
    assert!(access.check().is_err());
    NOW.set(4700);
    holder.says(None);
    keys.ask(&needed(keys.confirm(new.file, &access))).unwrap();
    access.check().unwrap();
}

#[test]
fn who_never_answers_is_as_one_who_is_away() {
    let (mut keys, _) = deferred();
    keys.set_custodian(Arc::new(Silent));
    keys.questions.wait = Duration::from_millis(1);
    let ask = needed(keys.for_new_file(EPOCH));
    assert_eq!(refusal(keys.ask(&ask)), AWAY_ERROR);
    assert!(keys.away.lock().contains_key(&KEY), "the next one does not wait");
    assert_eq!(refusal(keys.ask(&ask)), AWAY_ERROR);
}

#[test]
fn a_holder_that_opens_to_another_secret_is_not_believed() {
    let (keys, holder) = deferred();
    keys.ask(&needed(keys.for_new_file(EPOCH))).unwrap();
    let new = keys.for_new_file(EPOCH).unwrap();
    // The header has one secret, and what is known for the file is another.
    let own = Arc::new(OwnKey {
        secret: FileSecret::new(KeyBytes::copy_of(&[9; 32])),
        wrap: new.own().wrap.clone(),
    });
    let access = keys.access(new.file, EPOCH, &own);
    NOW.set(1300);
    let ask = needed(keys.confirm(new.file, &access));
    assert_eq!(refusal(keys.ask(&ask)), KeyError::Rejected { key: KEY });
    assert_eq!(holder.count(), 2);
}
