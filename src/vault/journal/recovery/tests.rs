//! Recovery in directories on disk: of which there are many, beside each other and inside each other, and some that cannot be read.

use std::{
    fs,
    os::unix::fs::{PermissionsExt, symlink},
    path::Path,
    thread,
};

use rustix::fs::{CWD, Mode};
use tempfile::TempDir;

use super::*;
use crate::{
    backing::descent::OPEN_MAX,
    crypto::keys::{DataKey, KeyBytes, SivKey},
    format::{journal::EntryFile, preamble::Preamble},
};

const OLD: [u8; 20] = [1; 20];
const NEW: [u8; 20] = [2; 20];

/// Returns the name on disk of something in a vault.
fn disk_name(name: &str) -> String {
    name::seal(&SivKey::new(KeyBytes::copy_of(&[3; 32])), name.as_bytes()).entry
}

/// Makes a data file with its header in a directory, without what the journal has of it, which is returned.
fn data_file(dir: &Dir, number: u8) -> Entry<'static> {
    let file = FileId([number; 16]);
    let seal_key = DataKey::new(KeyBytes::copy_of(&[number; 32])).seal_key(file, 1);
    let mut bytes = Preamble::new(file, [0; 32]).encode(&seal_key).to_vec();
    bytes.extend(OLD);
    let written = dir.write_small(&disk_name("file"), &bytes).unwrap();
    dir.write_small(&name::header_file(file), b"").unwrap();
    Entry {
        file: EntryFile {
            file,
            inode: written.inode().unwrap(),
            seal_count: 0,
            mtime: (0, 0),
        },
        change: Change::Write(PREAMBLE_SIZE, &NEW),
    }
}

fn content(dir: &Dir) -> Vec<u8> {
    let file = dir.read_small(&disk_name("file"), 1 << 10).unwrap().unwrap();
    file[PREAMBLE_SIZE as usize..].to_vec()
}

fn make_directory(dir: &Dir, name: &str) -> Dir {
    let name = disk_name(name);
    dir.mkdir(&name, 0o700).unwrap();
    dir.open_dir(&name).unwrap()
}

#[test]
fn a_file_that_cannot_be_written_keeps_the_journal_unless_it_was_sealed_since() {
    let temporary = TempDir::new().unwrap();
    let root = Dir::open(temporary.path()).unwrap();
    let mut entry = data_file(&root, 1);
    let read_only = root.open_file(&disk_name("file"), true).unwrap();
    assert!(is_due(&read_only, &vec![entry]).unwrap());
    let seal_key = DataKey::new(KeyBytes::copy_of(&[1; 32])).seal_key(entry.file.file, 1);
    let sealed = Preamble {
        seal_count: 3,
        ..Preamble::new(entry.file.file, [0; 32])
    };
    let file = root.open_file(&disk_name("file"), false).unwrap();
    file.write_at(&sealed.encode(&seal_key), 0).unwrap();
    for (seal_count, is_later) in [(2, false), (3, true)] {
        entry.file.seal_count = seal_count;
        assert_eq!(is_due(&read_only, &vec![entry]).unwrap(), is_later, "{seal_count}");
    }
}

#[test]
fn a_file_is_found_at_the_end_of_a_path_that_is_longer_than_the_kernel_takes() {
    const DEPTH: usize = 5 * OPEN_MAX;
    let temporary = TempDir::new().unwrap();
    let root = Dir::open(temporary.path()).unwrap();
    let mut entries = vec![data_file(&root, 1)];
    let mut dir = root.open_dir(".").unwrap();
    for level in 0..DEPTH {
        let sibling = make_directory(&dir, "sibling");
        if level % 50 == 0 {
            entries.push(data_file(&sibling, 2 + (level / 50) as u8));
        }
        dir = make_directory(&dir, "below");
    }
    entries.push(data_file(&dir, 255));
    let mut recovered = Recovered::default();
    apply(&root, &entries, false, &mut recovered).unwrap();
    assert_eq!((recovered.files, recovered.missing), (entries.len(), 0));
    assert_eq!((content(&root), content(&dir)), (NEW.to_vec(), NEW.to_vec()));
}

#[test]
fn in_a_vault_that_was_copied_no_version_of_a_file_gets_what_may_be_of_another() {
    let temporary = TempDir::new().unwrap();
    let root = Dir::open(temporary.path()).unwrap();
    let below = make_directory(&root, "below");
    let entries = [data_file(&root, 1)];
    let bytes = root.read_small(&disk_name("file"), 1 << 10).unwrap().unwrap();
    let version = format!("{}.sync-conflict-20261122-184500-ABCDEFG", disk_name("file"));
    root.write_small(&version, &bytes).unwrap();
    below.write_small(&name::header_file(FileId([1; 16])), b"").unwrap();
    let apply_copy = |entries: &[Entry<'_>]| {
        let mut recovered = Recovered::default();
        let result = apply(&root, entries, true, &mut recovered);
        result.map(|()| recovered).map_err(|error| error.to_string())
    };
    let error = apply_copy(&entries).unwrap_err();
    assert!(error.contains(&version) && error.contains("move the one"), "{error}");
    assert_eq!(content(&root), OLD);
    // Wherever the other is, and whatever inode number it has.
    root.unlink(&version).unwrap();
    below.write_small(&disk_name("other"), &bytes).unwrap();
    apply_copy(&entries).unwrap_err();
    below.unlink(&disk_name("other")).unwrap();
    let mut both = [entries[0]; 2];
    both[1].file.inode += 1;
    let error = apply_copy(&both).unwrap_err();
    assert!(error.contains("several versions"), "{error}");
    assert_eq!(content(&root), OLD);
    // A second name of the same file is no other version.
    let linked = temporary.path().join(disk_name("linked"));
    fs::hard_link(temporary.path().join(disk_name("file")), linked).unwrap();
    assert_eq!(apply_copy(&entries).unwrap().files, 1);
    assert_eq!(content(&root), NEW);
}

#[test]
fn where_it_was_made_the_journal_tells_versions_of_a_file_by_their_inode_numbers() {
    let temporary = TempDir::new().unwrap();
    let root = Dir::open(temporary.path()).unwrap();
    let entries = [data_file(&root, 1)];
    let bytes = root.read_small(&disk_name("file"), 1 << 10).unwrap().unwrap();
    for number in 0..8 {
        let version = format!("{}.sync-conflict-20261122-18450{number}-ABCDEFG", disk_name("file"));
        root.write_small(&version, &bytes).unwrap();
    }
    let mut recovered = Recovered::default();
    apply(&root, &entries, false, &mut recovered).unwrap();
    assert_eq!((recovered.files, content(&root)), (1, NEW.to_vec()));
}

/// Runs as a user whom modes keep out.
fn as_a_user(act: impl FnOnce() + Send) {
    const USER: u32 = 65534;
    thread::scope(|scope| {
        let thread = scope.spawn(|| {
            // SAFETY: changes whom the kernel takes this thread for where it opens files, and nothing else.
            unsafe { libc::syscall(libc::SYS_setfsuid, USER) };
            act();
        });
        thread.join().unwrap();
    });
}

#[test]
fn the_journal_is_not_done_with_while_a_file_may_be_where_nobody_could_look() {
    let temporary = TempDir::new().unwrap();
    let root = Dir::open(temporary.path()).unwrap();
    let kept_out = make_directory(&root, "kept out");
    let entries = [data_file(&root, 1), data_file(&kept_out, 2)];
    for dir in [&root, &kept_out] {
        for name in [".", &disk_name("file")] {
            let _ = dir.entry(name).unwrap().chown(Some(65534), None);
        }
    }
    let path = temporary.path().join(disk_name("kept out"));
    fs::set_permissions(&path, fs::Permissions::from_mode(0o000)).unwrap();
    as_a_user(|| {
        let mut recovered = Recovered::default();
        let error = apply(&root, &entries, false, &mut recovered).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
        let text = error.to_string();
        assert!(
            text.contains(&disk_name("kept out")) && text.contains("1 files"),
            "{text}"
        );
        assert_eq!(recovered.missing, 0);
        // What is elsewhere is found all the same, and then nobody needs to look there.
        assert_eq!(content(&root), NEW);
        apply(&root, &entries[..1], false, &mut recovered).unwrap();
    });
    fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).unwrap();
    let mut recovered = Recovered::default();
    apply(&root, &entries, false, &mut recovered).unwrap();
    assert_eq!((recovered.files, content(&kept_out)), (2, NEW.to_vec()));
    kept_out.unlink(&disk_name("file")).unwrap();
    let mut recovered = Recovered::default();
    apply(&root, &entries, false, &mut recovered).unwrap();
    assert_eq!((recovered.files, recovered.missing), (1, 1));
}

#[test]
fn what_is_no_file_and_has_the_name_of_a_journal_is_named() {
    const NAME: &str = "journal-1.hush";
    assert!(name::is_journal(NAME.as_bytes()));
    let make: [fn(&Path); 3] = [
        |path| fs::create_dir(path).unwrap(),
        |path| symlink("/etc/passwd", path).unwrap(),
        |path| rustix::fs::mknodat(CWD, path, FileType::Fifo, Mode::RWXU, 0).unwrap(),
    ];
    for make in make {
        let temporary = TempDir::new().unwrap();
        make(&temporary.path().join(NAME));
        let root = Dir::open(temporary.path()).unwrap();
        let error = open(&root, NAME).unwrap_err().to_string();
        assert!(error.contains(NAME) && error.contains("move it out"), "{error}");
    }
}
