//! Sealed files (docs/FORMAT.md section 9), changed in any way: none opens to its end but the one that was sealed, and what comes out
//! before the error is the front of what was sealed.

#![no_main]

use std::sync::LazyLock;

use hushfs::{
    keystore::{KeyFile, Unlock, way::Opener},
    vault::sealed::UnopenedFile,
};
use libfuzzer_sys::fuzz_target;
use zeroize::Zeroizing;

const GOOD: &[u8] = include_bytes!("../corpus/sealed_file/good");
const PLAIN: &[u8] = b"sealed for a key file of 64 sevens\n";

static UNLOCK: LazyLock<Unlock> = LazyLock::new(|| {
    let contents = Zeroizing::new(vec![7; 64]);
    Unlock::KeyFile(KeyFile::new(contents).expect("64 bytes are enough"))
});

fuzz_target!(|bytes: &[u8]| {
    let mut plain = Vec::new();
    let result = UnopenedFile::enter(bytes)
        .and_then(|file| file.open(&Opener::Secret(&UNLOCK)))
        .and_then(|file| file.copy_to(&mut plain, |_| ()));
    assert!(PLAIN.starts_with(&plain));
    assert_eq!(result.is_ok(), bytes == GOOD);
});
