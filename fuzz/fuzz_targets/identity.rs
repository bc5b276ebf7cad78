//! What users paste: identities, recipients, recovery keys, share codes. What is read is written the same again, but for what may be
//! typed differently.

#![no_main]

use hushfs::keystore::{
    RecoveryKey,
    identity::{IdentityFile, ShareCode, parse_recipient, recipient_to_text},
};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    match IdentityFile::parse(text.as_bytes()) {
        Ok(IdentityFile::Plain(identity)) => assert!(text.contains(identity.to_text().as_str())),
        Ok(IdentityFile::Locked(identity)) => assert!(text.contains(&identity.to_text())),
        Err(_) => {}
    }
    if let Ok(recipient) = parse_recipient(text.as_bytes()) {
        assert!(text.contains(&recipient_to_text(&recipient)));
    }
    if let Ok(key) = RecoveryKey::from_text(text) {
        assert!(RecoveryKey::from_text(&key.to_text()).is_ok());
    }
    if let Some(code) = ShareCode::from_text(text) {
        assert_eq!(ShareCode::from_text(&code.to_string()), Some(code));
    }
});
