//! A vault used without a mount.

use std::{ops::Deref, path::Path};

use hushfs::{
    fs::{Caller, Fs, FsOptions},
    keystore::{Passphrase, SlotChoice, Unlock},
    vault::home::{Lock, OpenVault, VaultHome},
};

/// Calls `act` with the filesystem of a vault, and seals what it has written.
#[allow(dead_code, reason = "each test program uses a part of it")]
pub fn with_fs(open: OpenVault, act: impl FnOnce(&Fs, Caller)) {
    let (fs, _home, caller) = fs_of(open, true);
    act(&fs, caller);
    fs.seal_all();
}

/// A vault's directory, locked until it is dropped: a program that another test starts just then would keep the lock until it runs.
pub struct Home(VaultHome);

impl Drop for Home {
    fn drop(&mut self) {
        self.0.dir().unlock().unwrap();
    }
}

impl Deref for Home {
    type Target = VaultHome;

    fn deref(&self) -> &VaultHome {
        &self.0
    }
}

/// Opens a vault by the passphrase in a file.
#[allow(dead_code, reason = "each test program uses a part of it")]
pub fn open(vault: &Path, passfile: &Path) -> OpenVault {
    let passphrase = std::fs::read(passfile).unwrap().trim_ascii_end().to_vec();
    let passphrase = Passphrase::new(passphrase.into()).unwrap();
    let home = VaultHome::enter(vault, Lock::Exclusive).unwrap();
    home.open(&Unlock::Passphrase(passphrase), &SlotChoice::Any).unwrap()
}

/// Returns the filesystem of a vault, what holds its lock, and who uses it here.
#[allow(dead_code, reason = "each test program uses a part of it")]
pub fn fs_of(open: OpenVault, journal: bool) -> (Fs, Home, Caller) {
    fs_with(open, |options| options.journal = journal)
}

/// As [`fs_of`], as `set` has it behave.
pub fn fs_with(open: OpenVault, set: impl FnOnce(&mut FsOptions)) -> (Fs, Home, Caller) {
    let (vault, home) = open.into_vault();
    let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    let mut options = FsOptions {
        read_only: false,
        shared: false,
        acl: false,
        own_uid: uid,
        own_gid: gid,
        cached_descriptors: 64,
        journal: false,
    };
    set(&mut options);
    let fs = Fs::new(vault, home.open_dir().unwrap(), options).unwrap();
    let caller = Caller {
        uid,
        gid,
        pid: 0,
        umask: 0,
    };
    (fs, Home(home), caller)
}
