use super::*;
use crate::{
    crypto::{
        block::Suite,
        keys::{KeyBytes, NamesRoot, WrappingKey},
        locked::LockedKey,
    },
    format::{
        layout::Layout,
        record::SeenHome,
        snapshot::{CHUNK_SIZE, FileState, SEALED_CHUNK_SIZE, SNAPSHOT_FRONT_SIZE},
    },
    ids::{DirectoryId, Epoch, KeystoreId, VaultId},
    vault::EpochKeys,
};

fn vault_of(id: u8) -> Vault {
    let epochs = EpochKeys::new(Epoch(1), WrappingKey::new(KeyBytes::copy_of(&[1; 32])));
    let layout = Layout::new(Suite::Aes256GcmSiv, 4096).unwrap();
    let root = NamesRoot::new(LockedKey::copy_of(&[id; 32]));
    Vault::new(VaultId([id; 16]), layout, epochs, root)
}

fn head() -> SnapshotHead {
    SnapshotHead {
        time: 7,
        in_use: false,
        base: None,
        home: SeenHome {
            epoch: Epoch(1),
            header: [2; 16],
            keystore: KeystoreId([3; 16]),
            generation: 4,
        },
    }
}

fn entry(depth: u16, name: String, what: What) -> Entry {
    Entry {
        depth,
        name: name.into_bytes(),
        mode: 0o644,
        what,
    }
}

/// Directories with files in them.
fn entries(directories: usize) -> Vec<Entry> {
    let mut entries = Vec::new();
    for i in 0..directories {
        entries.push(entry(
            0,
            format!("directory {i:06}"),
            What::Directory(DirectoryId([1; 16])),
        ));
        for j in 0..i % 5 {
            let state = FileState::Blank;
            entries.push(entry(1, format!("{j}"), What::File { stamp: 1, state }));
        }
    }
    entries
}

fn written(entries: &[Entry]) -> Vec<u8> {
    let mut writer = SnapshotWriter::new(&vault_of(1), &head(), Vec::new()).unwrap();
    entries.iter().for_each(|entry| writer.add(entry.clone()).unwrap());
    writer.finish().unwrap()
}

/// Reads to the end, or to what is wrong.
fn read(bytes: &[u8]) -> Result<Vec<Entry>, SnapshotError> {
    let mut reader = SnapshotReader::new(&vault_of(1), bytes)?;
    assert_eq!(reader.head(), &head());
    let mut entries = Vec::new();
    while let Some((path, entry)) = reader.next_entry()? {
        assert!(path.ends_with(&entry.name));
        entries.push(entry);
    }
    Ok(entries)
}

#[test]
fn what_is_written_is_read() {
    for directories in [0, 1, 5, 5000] {
        let entries = entries(directories);
        assert_eq!(read(&written(&entries)).unwrap(), entries);
    }
    assert!(
        written(&entries(5000)).len() > 3 * SEALED_CHUNK_SIZE,
        "it goes over several chunks"
    );
}

#[test]
fn a_file_is_taken_over_where_its_next_change_would_have_had_another_time() {
    let temp = tempfile::tempdir().unwrap();
    let vault = vault_of(1);
    let root = Dir::open(temp.path()).unwrap();
    let disk = vault.root_keys().seal_name(b"file");
    root.create_file(&disk.entry, 0o600).unwrap();
    let changed = root.stat(&disk.entry).unwrap().st_ctime as u64;
    let take = |time, base: Option<&[u8]>| {
        let base = base.map(|bytes| SnapshotReader::new(&vault, bytes).unwrap());
        let head = SnapshotHead { time, ..head() };
        take(&vault, &root, (head, Vec::new()), base, &mut |_| {}).unwrap()
    };
    for (time, taken_over) in [(changed, 0), (changed + 1, 0), (changed + 2, 1)] {
        let (_, base) = take(time, None);
        let (taken, _) = take(time + 10, Some(&base));
        assert_eq!((taken.entries, taken.taken_over, taken.unreadable), (1, taken_over, 0));
    }
}

#[test]
fn a_list_that_ends_with_a_chunk_is_read() {
    // The end takes 9 bytes, a directory 24 and its name.
    let mut one = vec![entry(0, "a".into(), What::Directory(DirectoryId([1; 16])))];
    let filled = loop {
        let len = written(&one).len() - SNAPSHOT_FRONT_SIZE - 16;
        if len + 300 > CHUNK_SIZE {
            break len;
        }
        one.push(entry(
            0,
            format!("b{:06}", one.len()),
            What::Directory(DirectoryId([1; 16])),
        ));
    };
    for name_len in (CHUNK_SIZE - filled - 24 - 2)..=(CHUNK_SIZE - filled - 24 + 2).min(255) {
        let mut entries = one.clone();
        entries.push(entry(0, "c".repeat(name_len), What::Directory(DirectoryId([1; 16]))));
        assert_eq!(read(&written(&entries)).unwrap(), entries, "{name_len}");
    }
}

#[test]
fn a_snapshot_that_was_cut_is_refused_at_the_end_at_the_latest() {
    let good = written(&entries(5000));
    for chunks in 0..3 {
        for extra in [0, 1, 16, 100] {
            let len = SNAPSHOT_FRONT_SIZE + chunks * SEALED_CHUNK_SIZE + extra;
            assert!(read(&good[..len]).is_err(), "{len} bytes");
        }
    }
    assert!(read(&good[..10]).is_err());
    assert!(read(&good[..good.len() - 1]).is_err());
    assert!(read(&[&good[..], b"x"].concat()).is_err());
}

#[test]
fn no_byte_can_be_changed() {
    let good = written(&entries(20));
    for i in 0..good.len() {
        let mut bytes = good.clone();
        bytes[i] ^= 1;
        assert!(read(&bytes).is_err(), "byte {i}");
    }
}

#[test]
fn chunks_cannot_be_exchanged_and_entries_not_disordered() {
    let good = written(&entries(5000));
    let (front, chunks) = good.split_at(SNAPSHOT_FRONT_SIZE);
    let chunks: Vec<&[u8]> = chunks.chunks(SEALED_CHUNK_SIZE).collect();
    let mut order = chunks.clone();
    order.swap(0, 1);
    assert!(read(&[front, &order.concat()].concat()).is_err());
    let mut missing = chunks;
    missing.remove(1);
    assert!(read(&[front, &missing.concat()].concat()).is_err());

    let link = || What::Link { mark: [1; 16] };
    for wrong in [
        [entry(0, "b".into(), link()), entry(0, "a".into(), link())],
        [entry(0, "a".into(), link()), entry(0, "a".into(), link())],
        [entry(0, "a".into(), link()), entry(2, "b".into(), link())],
        [entry(1, "a".into(), link()), entry(1, "b".into(), link())],
    ] {
        assert!(read(&written(&wrong)).is_err(), "{wrong:?}");
    }
}

#[test]
fn a_snapshot_of_another_vault_is_told() {
    let good = written(&[]);
    let opened = SnapshotReader::new(&vault_of(2), &good[..]);
    assert!(matches!(opened, Err(SnapshotError::OtherVault)));
}
