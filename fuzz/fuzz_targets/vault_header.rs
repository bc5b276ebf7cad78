//! Vault headers (docs/FORMAT.md section 3): none is accepted but the one that was written.

#![no_main]

use hushfs::format::vault::UnverifiedVaultHeader;
use hushfs_fuzz::VAULT;
use libfuzzer_sys::fuzz_target;

const GOOD: [&[u8]; 2] = [
    include_bytes!("../corpus/vault_header/good"),
    include_bytes!("../corpus/vault_header/good-2"),
];

fuzz_target!(|bytes: &[u8]| {
    let key = hushfs_fuzz::epoch_key().vault_header_mac_key(VAULT);
    let is_good = UnverifiedVaultHeader::decode(bytes).is_ok_and(|header| {
        let _ = header.claims().layout().expect("checked when decoded");
        header.verify(&key).is_ok()
    });
    assert_eq!(is_good, GOOD.contains(&bytes));
});
