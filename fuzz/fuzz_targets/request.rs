//! Questions and changes that an agent is asked for, one after another: a change that fails changes nothing, one that succeeds is stored
//! and opens again.

#![no_main]

use std::sync::LazyLock;

use hushfs::keystore::{
    KeyFile, LocalKeystore, NewSecret, SlotChoice, Unlock,
    agent::{Request, frame},
};
use libfuzzer_sys::fuzz_target;
use zeroize::Zeroizing;

/// More in one input are slower, not better.
const REQUESTS_MAX: usize = 20;

static KEY_FILE: LazyLock<KeyFile> = LazyLock::new(key_file);

static KEYSTORE: LazyLock<LocalKeystore> = LazyLock::new(|| {
    LocalKeystore::create("fuzz", &NewSecret::KeyFile(&KEY_FILE), 100).expect("a key file makes a slot")
});

fn key_file() -> KeyFile {
    KeyFile::new(Zeroizing::new(vec![7; 64])).expect("64 bytes are enough")
}

fuzz_target!(|bytes: &[u8]| {
    let mut keystore = KEYSTORE.asked_by(KEYSTORE.principal().clone());
    let (mut rest, mut now) = (bytes, 100u64);
    let mut is_changed = false;
    for _ in 0..REQUESTS_MAX {
        // Seconds that pass, and the length of the frame.
        let Some((front, after)) = rest.split_first_chunk::<6>() else {
            break;
        };
        let [a, b, c, d, size @ ..] = *front;
        now += u64::from(u32::from_le_bytes([a, b, c, d]));
        let size = usize::from(u16::from_le_bytes(size)).min(after.len());
        let (frame, after) = after.split_at(size);
        rest = after;
        match frame::decode::<Request>(frame) {
            Ok(Request::Question(question)) => {
                let _ = keystore.answer(&question);
            }
            Ok(Request::Change { change, .. }) => {
                let before = (keystore.keys().to_vec(), keystore.aliases().to_vec());
                match keystore.carry_out(&change, now) {
                    Ok(_) => is_changed = true,
                    Err(_) => assert!(
                        before == (keystore.keys().to_vec(), keystore.aliases().to_vec()),
                        "{change:?}"
                    ),
                }
            }
            _ => {}
        }
    }
    if is_changed {
        let stored = keystore.encode(now).expect("a few changes fit");
        let unlock = Unlock::KeyFile(key_file());
        let (again, _) = LocalKeystore::unlock(&stored, &unlock, &SlotChoice::Any).expect("what is stored opens");
        assert!(again.keys() == keystore.keys() && again.aliases() == keystore.aliases());
    }
});
