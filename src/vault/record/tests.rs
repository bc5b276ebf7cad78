use std::{fs, path::PathBuf};

use tempfile::TempDir;

use super::*;
use crate::{
    crypto::{
        block::Suite,
        keys::{KeyBytes, NamesRoot, WrappingKey},
        locked::LockedKey,
    },
    format::layout::Layout,
    ids::{Epoch, KeystoreId, VaultId},
    vault::EpochKeys,
};

struct Bench {
    dir: TempDir,
    vault: Vault,
}

fn vault(root: u8) -> Vault {
    let epochs = EpochKeys::new(Epoch(1), WrappingKey::new(KeyBytes::copy_of(&[1; 32])));
    let layout = Layout::new(Suite::Aes256GcmSiv, 4096).unwrap();
    Vault::new(
        VaultId([9; 16]),
        layout,
        epochs,
        NamesRoot::new(LockedKey::copy_of(&[root; 32])),
    )
}

impl Bench {
    fn new() -> Self {
        Bench {
            dir: TempDir::new().unwrap(),
            vault: vault(2),
        }
    }

    fn open(&self) -> (Record, Start) {
        Record::open(&self.vault, self.dir.path(), true).unwrap()
    }

    fn record(&self) -> Record {
        let (record, start) = self.open();
        assert_eq!(start, Start::Whole);
        record
    }

    fn file(&self) -> PathBuf {
        self.dir.path().join(format!("{}.record", VaultId([9; 16]).to_hex()))
    }
}

fn write(record: &Record) {
    record.write(|| Ok(())).unwrap();
}

fn accept(record: &Record, seen: SeenFile) {
    assert!(record.state.lock().accept(seen));
    assert!(!record.state.lock().accept(seen), "it is news once");
}

fn seen(file: u8, count: u64, place: u64) -> SeenFile {
    SeenFile::new(FileId([file; 16]), count, place, Some(&[count as u8; 16]))
}

fn home(epoch: u32, header: u8, generation: u64) -> SeenHome {
    SeenHome {
        epoch: Epoch(epoch),
        header: [header; 16],
        keystore: KeystoreId([7; 16]),
        generation,
    }
}

#[test]
fn only_going_backwards_is_news() {
    let bench = Bench::new();
    let (record, start) = bench.open();
    assert_eq!(start, Start::New);
    assert_eq!(record.compare(&seen(1, 3, 5)), None, "never seen before");
    assert_eq!(record.compare(&seen(1, 3, 5)), None, "as it was");
    assert_eq!(record.compare(&seen(1, 4, 5)), None, "newer");
    assert_eq!(record.compare(&seen(1, 4, 6)), None, "renamed");
    let older = Some(Backwards::Older { seen: 4, found: 3 });
    assert_eq!(record.compare(&seen(1, 3, 6)), older);
    write(&record);
    let record = bench.record();
    assert_eq!(record.compare(&seen(1, 3, 6)), older, "told until it is accepted");
    accept(&record, seen(1, 3, 6));
    assert_eq!(record.compare(&seen(1, 3, 6)), None);
    write(&record);
    assert_eq!(bench.record().compare(&seen(1, 3, 6)), None);
}

#[test]
fn the_same_count_with_other_content_is_told() {
    let bench = Bench::new();
    let (record, _) = bench.open();
    record.note(&seen(1, 3, 5));
    let other = SeenFile::new(FileId([1; 16]), 3, 5, Some(&[9; 16]));
    assert_eq!(record.compare(&other), Some(Backwards::Other { count: 3 }));
    let being_written = SeenFile::new(FileId([2; 16]), 3, 6, None);
    record.note(&seen(2, 3, 6));
    assert_eq!(record.compare(&being_written), None, "its content is not compared");
    let other = SeenFile::new(FileId([2; 16]), 3, 6, Some(&[9; 16]));
    assert_eq!(
        record.compare(&other),
        Some(Backwards::Other { count: 3 }),
        "the mark is kept while a file is written"
    );
}

#[test]
fn what_overtakes_an_older_version_that_nobody_accepted_is_told_too() {
    let bench = Bench::new();
    let (record, _) = bench.open();
    record.note(&seen(1, 5, 5));
    assert!(record.compare(&seen(1, 3, 5)).is_some());
    for count in [4, 5, 6, 7] {
        record.note(&seen(1, count, 5));
    }
    write(&record);
    assert_eq!(bench.record().compare(&seen(1, 7, 5)), Some(Backwards::NotAccepted));
}

#[test]
fn a_file_that_was_removed_or_replaced_is_told_when_it_is_back() {
    let bench = Bench::new();
    let (record, _) = bench.open();
    record.note(&seen(1, 3, 5));
    record.note_removed(FileId([1; 16]));
    write(&record);
    let record = bench.record();
    assert_eq!(record.compare(&seen(1, 3, 5)), Some(Backwards::Returned));
    assert_eq!(record.count_missing(&HashSet::new()), 0);

    record.note(&seen(2, 3, 6));
    assert_eq!(
        record.compare(&seen(3, 1, 6)),
        None,
        "another file in its place, as programs save"
    );
    assert_eq!(record.at_place(6), Some(FileId([3; 16])));
    assert_eq!(record.compare(&seen(2, 3, 6)), Some(Backwards::Returned));
}

#[test]
fn a_file_that_made_room_is_not_taken_for_one_that_is_back() {
    let bench = Bench::new();
    let (record, _) = bench.open();
    // mv a b; a new a; mv a c; mv b a: by another machine, of which the end is seen only, and here.
    record.note(&seen(1, 3, 5));
    record.note(&seen(2, 1, 5));
    assert_eq!(record.compare(&seen(1, 3, 6)), None, "it was renamed");
    record.note(&seen(2, 1, 7));
    record.note(&seen(1, 3, 5));
    assert_eq!(record.compare(&seen(1, 3, 5)), None);
}

#[test]
fn an_older_vault_header_or_keystore_is_told() {
    let bench = Bench::new();
    let (record, _) = bench.open();
    assert_eq!(record.compare_home(&home(1, 1, 5)), None);
    record.note_home(home(1, 1, 5));
    assert_eq!(record.compare_home(&home(1, 2, 6)), None, "wrapped anew");
    record.note_home(home(1, 2, 6));
    write(&record);
    let record = bench.record();
    assert_eq!(record.compare_home(&home(1, 2, 6)), None);
    assert_eq!(record.compare_home(&home(1, 1, 6)), Some(Backwards::Header));
    assert_eq!(record.compare_home(&home(1, 1, 5)), Some(Backwards::Header));
    assert_eq!(
        record.compare_home(&home(1, 2, 5)),
        Some(Backwards::Keystore { seen: 6, found: 5 })
    );
    record.note_home(home(2, 3, 7));
    assert_eq!(
        record.compare_home(&home(1, 9, 8)),
        Some(Backwards::Header),
        "an older epoch"
    );
    record.note_home(home(1, 1, 5));
    assert_eq!(record.compare_home(&home(1, 1, 5)), None, "accepted");
}

#[test]
fn nothing_is_recorded_that_is_not_durable_in_the_vault() {
    let bench = Bench::new();
    let (record, _) = bench.open();
    record.note(&seen(1, 3, 5));
    let failed = record.write(|| Err(io::ErrorKind::StorageFull.into()));
    assert!(matches!(failed, Err(RecordError::Vault(_))));
    assert_eq!(bench.record().size().files, 0);
    write(&record);
    assert_eq!(bench.record().size().files, 1, "it waited");
}

#[test]
fn a_record_cut_at_any_byte_is_read_as_far_as_it_goes() {
    let bench = Bench::new();
    let (record, _) = bench.open();
    let mut ends = vec![(fs::metadata(bench.file()).unwrap().len() as usize, 0)];
    for file in 1..4 {
        record.note(&seen(file, 3, file.into()));
        write(&record);
        ends.push((fs::metadata(bench.file()).unwrap().len() as usize, u64::from(file)));
    }
    let whole = fs::read(bench.file()).unwrap();
    for len in ends[0].0..=whole.len() {
        fs::write(bench.file(), &whole[..len]).unwrap();
        let (record, start) = bench.open();
        let (end, files) = ends.iter().rev().find(|(end, _)| *end <= len).unwrap();
        assert_eq!(record.size().files, *files, "{len} bytes");
        assert_eq!(start == Start::Whole, *end == len, "{len} bytes");
        if let Start::Damaged { kept, .. } = start {
            assert_eq!(fs::read(kept).unwrap(), whole[..len]);
        }
        record.note(&seen(9, 1, 9));
        write(&record);
        assert_eq!(bench.record().size().files, files + 1, "it goes on behind {len} bytes");
    }
}

/// Begins a record, and notes three files in as many batches.
fn with_three_files(bench: &Bench) -> Record {
    let (record, _) = bench.open();
    for file in 1..4 {
        record.note(&seen(file, 3, file.into()));
        write(&record);
    }
    record
}

#[test]
fn a_changed_record_is_said_and_put_aside() {
    let bench = Bench::new();
    with_three_files(&bench);
    let whole = fs::read(bench.file()).unwrap();
    let places = (0..whole.len()).filter(|i| !(8..10).contains(i));
    // A count with its highest bit changed makes of the first batch one that goes on behind the end, as if it had never been finished.
    for (i, bit) in places.flat_map(|i| [(i, 1), (i, 0x80)]) {
        let mut bytes = whole.clone();
        bytes[i] ^= bit;
        fs::write(bench.file(), &bytes).unwrap();
        let (record, start) = bench.open();
        let Start::Damaged { kept, .. } = start else {
            panic!("byte {i}: {start:?}");
        };
        assert!(record.size().files < 3, "byte {i}");
        assert_eq!(fs::read(kept).unwrap(), bytes, "byte {i}");
    }
}

#[test]
fn who_only_looks_begins_no_record_and_changes_none() {
    let bench = Bench::new();
    let look = || Record::open_read_only(&bench.vault, bench.dir.path(), true).unwrap();
    assert!(look().is_none() && !bench.file().exists());
    let (record, _) = bench.open();
    let (begun, problem) = look().unwrap();
    assert!(begun.is_empty() && problem.is_none());
    for file in 1..3 {
        record.note(&seen(file, 3, file.into()));
        write(&record);
    }
    let whole = fs::read(bench.file()).unwrap();
    for (len, files) in [(whole.len(), 2), (whole.len() - 1, 1), (10, 0)] {
        fs::write(bench.file(), &whole[..len]).unwrap();
        let (found, problem) = look().unwrap();
        assert_eq!(
            (found.size().files, found.is_empty()),
            (files, files == 0),
            "{len} bytes"
        );
        assert_eq!(problem.is_some(), len < whole.len(), "{len} bytes");
        assert_eq!(fs::read(bench.file()).unwrap(), whole[..len], "{len} bytes");
    }
    let nowhere = bench.dir.path().join("nowhere");
    assert!(Record::open_read_only(&bench.vault, &nowhere, true).unwrap().is_none());
    assert!(!nowhere.exists());
}

#[test]
fn a_record_that_was_cut_meanwhile_is_kept_and_written_anew_with_all_that_is_known() {
    let bench = Bench::new();
    let record = with_three_files(&bench);
    let whole = fs::read(bench.file()).unwrap();
    let mut changed = whole.clone();
    changed[80 + 5] ^= 0x80;
    fs::remove_file(bench.file()).unwrap();
    fs::write(bench.file(), &changed).unwrap();
    record.note(&seen(4, 3, 4));
    write(&record);
    assert_eq!(bench.record().size().files, 4);
    assert_eq!(
        fs::read(bench.file().with_extension("record.damaged")).unwrap(),
        changed
    );
}

#[test]
fn a_damaged_record_is_not_forgotten_where_no_other_can_be_written() {
    let bench = Bench::new();
    drop(with_three_files(&bench));
    let whole = fs::read(bench.file()).unwrap();
    let cut = &whole[..whole.len() - 1];
    fs::write(bench.file(), cut).unwrap();
    let known = Record::open_read_only(&bench.vault, bench.dir.path(), true).unwrap();
    let files = known.unwrap().0.size().files;
    // As a full disk has it: the new record cannot be written.
    let in_the_way = bench.file().with_extension("record.tmp");
    fs::create_dir(&in_the_way).unwrap();
    for _ in 0..2 {
        assert!(Record::open(&bench.vault, bench.dir.path(), true).is_err());
        assert_eq!(fs::read(bench.file()).unwrap(), cut);
    }
    fs::remove_dir(in_the_way).unwrap();
    let (record, start) = bench.open();
    assert!(matches!(start, Start::Damaged { .. }));
    assert_eq!(record.size().files, files);
    let kept = bench.file().with_extension("record.damaged");
    assert_eq!(fs::read(&kept).unwrap(), cut);
    assert_ne!(fs::read(bench.file()).unwrap(), cut);
}

#[test]
fn of_a_record_that_is_gone_what_was_put_aside_is_used_until_it_is_forgotten() {
    let bench = Bench::new();
    let files = with_three_files(&bench).size().files;
    let kept = bench.file().with_extension("record.damaged");
    fs::rename(bench.file(), &kept).unwrap();
    let known = Record::open_read_only(&bench.vault, bench.dir.path(), true).unwrap();
    let (known, problem) = known.unwrap();
    assert_eq!((known.size().files, problem), (files, Some(FormatError::TooShort)));
    let (record, start) = bench.open();
    let problem = FormatError::TooShort;
    assert_eq!(
        start,
        Start::Damaged {
            problem,
            kept: kept.clone()
        }
    );
    assert_eq!(record.size().files, files);
    assert_eq!(bench.record().size().files, files);
    drop(record);
    assert!(Record::forget(&bench.vault, bench.dir.path()).unwrap());
    assert!(!kept.exists());
    assert_eq!(bench.open().1, Start::New);
}

#[test]
fn a_record_of_a_newer_version_is_left_alone() {
    let bench = Bench::new();
    drop(bench.open());
    let mut bytes = fs::read(bench.file()).unwrap();
    bytes[8] = 2;
    fs::write(bench.file(), &bytes).unwrap();
    let opened = Record::open(&bench.vault, bench.dir.path(), true);
    assert!(matches!(opened, Err(RecordError::Newer { .. })));
    assert_eq!(fs::read(bench.file()).unwrap(), bytes);
}

#[test]
fn who_has_not_the_keys_cannot_write_a_record() {
    let bench = Bench::new();
    let (record, _) = bench.open();
    record.note(&seen(1, 3, 5));
    write(&record);
    let (forged, start) = Record::open(&vault(3), bench.dir.path(), true).unwrap();
    assert!(matches!(start, Start::Damaged { .. }));
    forged.note(&seen(1, 1, 5));
    write(&forged);
    assert!(matches!(bench.open().1, Start::Damaged { .. }));
}

#[test]
fn two_processes_take_in_what_the_other_has_written() {
    let bench = Bench::new();
    let (one, _) = bench.open();
    let other = bench.record();
    one.note(&seen(1, 5, 5));
    other.note(&seen(2, 5, 6));
    other.note(&seen(1, 4, 5));
    write(&one);
    write(&other);
    assert_eq!(bench.record().size().files, 2);
    let older = Some(Backwards::Older { seen: 5, found: 4 });
    assert_eq!(bench.record().compare(&seen(1, 4, 5)), older);
    assert_eq!(one.compare(&seen(1, 4, 5)), older);
    accept(&other, seen(1, 4, 5));
    write(&other);
    assert_eq!(
        one.compare(&seen(1, 4, 5)),
        None,
        "accepted while the other was at work"
    );
}

#[test]
fn a_record_that_was_removed_meanwhile_is_written_anew() {
    let bench = Bench::new();
    let (record, _) = bench.open();
    record.note(&seen(1, 5, 5));
    write(&record);
    fs::remove_file(bench.file()).unwrap();
    record.note(&seen(2, 5, 6));
    write(&record);
    assert_eq!(bench.record().size().files, 2);
}

#[test]
fn a_record_in_use_is_not_forgotten() {
    let bench = Bench::new();
    let forget = || Record::forget(&bench.vault, bench.dir.path());
    let (record, _) = bench.open();
    assert!(matches!(forget(), Err(RecordError::InUse { .. })));
    fs::remove_file(bench.file()).unwrap();
    record.note(&seen(2, 5, 6));
    write(&record);
    assert!(
        matches!(forget(), Err(RecordError::InUse { .. })),
        "it was written anew"
    );
    drop(record);
    let looked_at = Record::open_read_only(&bench.vault, bench.dir.path(), true).unwrap();
    assert!(matches!(forget(), Err(RecordError::InUse { .. })));
    drop(looked_at);
    assert!(forget().unwrap());
    assert!(!forget().unwrap());
}

#[test]
fn a_record_does_not_grow_for_ever() {
    let bench = Bench::new();
    let (record, _) = bench.open();
    for count in 1..60 {
        for file in 0..=255 {
            for place in 1..4 {
                record.note(&seen(file, count * 4 + place, u64::from(file) + 1));
            }
        }
        record.note_home(home(1, count as u8, count));
        write(&record);
    }
    let size = fs::metadata(bench.file()).unwrap().len();
    assert!(size < 256 * 40 * 3 * 2 + (1 << 20), "{size} bytes");
    let record = bench.record();
    assert_eq!(record.size().files, 256);
    assert!(record.compare(&seen(1, 2, 2)).is_some());
    assert_eq!(record.home(), Some(home(1, 59, 59)));
}

#[test]
fn files_that_are_gone_are_forgotten_at_last() {
    let mut table = Table::default();
    for i in 0..200_000_u32 {
        let mut id = [0; 16];
        id[..4].copy_from_slice(&i.to_le_bytes());
        let mut seen = SeenFile::new(FileId(id), 1, u64::from(i) + 1, None);
        if i % 4 != 0 {
            seen.set_gone();
        }
        table.put(seen);
    }
    table.compact();
    let gone = table.files().iter().filter(|seen| seen.is_gone()).count();
    assert_eq!((table.files().len(), gone), (50_000 + 65_536, 65_536));
    assert!(table.at_place(1).is_some() && table.at_place(2).is_none());
}

#[test]
fn a_file_costs_as_much_as_the_documents_say() {
    let bench = Bench::new();
    let (record, _) = bench.open();
    let before = fs::metadata(bench.file()).unwrap().len();
    (0..100).for_each(|file| record.note(&seen(file, 3, u64::from(file) + 1)));
    write(&record);
    assert_eq!(fs::metadata(bench.file()).unwrap().len() - before, 100 * 40 + 48);
}

#[test]
fn only_its_owner_can_read_a_record() {
    use std::os::unix::fs::PermissionsExt;
    let bench = Bench::new();
    let path = bench.dir.path().join("new/records");
    drop(Record::open(&bench.vault, &path, true).unwrap());
    let mode = |path: &std::path::Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&path), 0o700);
    let file = fs::read_dir(&path).unwrap().next().unwrap().unwrap().path();
    assert_eq!(mode(&file), 0o600);
}
