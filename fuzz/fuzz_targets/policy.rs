//! Policies of keys: any text is one or is refused, and what one says does not hang on who asks first.

#![no_main]

use hushfs::{
    ids::{Epoch, VaultId},
    keystore::{
        Context,
        policy::{Decision, Policy, Principal, action},
    },
};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let Ok(policy) = Policy::parse(text) else { return };
    let context = Context::for_epoch(VaultId([1; 16]), Epoch(3));
    for uid in [0, 1000] {
        let principal = Principal {
            uid,
            gids: vec![uid, 27],
            pid: 1,
            role: "laptop".to_owned(),
        };
        for word in [action::DECRYPT, action::DESCRIBE_KEY] {
            let decision = policy.decide(&principal, word, Some(&context));
            assert_eq!(
                policy.allows(&principal, word, Some(&context)),
                decision == Decision::Allowed
            );
        }
    }
});
