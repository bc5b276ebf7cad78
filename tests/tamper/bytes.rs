//! One byte changed at a time, read in this process: much faster than a mount for each.

use std::{fs, path::Path};

use crate::{
    sample::{BLOCK, PREAMBLE, Plain, STRIDE, Sample, difference, find, header_of, read},
    support::can_mount,
};

/// Changes each of some bytes of a file in turn, has `check` look, and puts the byte back.
fn each_byte(file: &Path, at: impl Iterator<Item = usize>, mut check: impl FnMut(usize)) -> usize {
    let original = fs::read(file).unwrap();
    let mut count = 0;
    for i in at.take_while(|&i| i < original.len()) {
        let mut changed = original.clone();
        changed[i] ^= 1 << (i % 8);
        fs::write(file, &changed).unwrap();
        check(i);
        count += 1;
    }
    fs::write(file, &original).unwrap();
    count
}

/// Asserts that a file does not open, for a reason that is damage.
fn assert_refused(sample: &Sample, path: &str, allowed: &[i32], what: &str) {
    match read(&sample.view(), path) {
        Ok(found) => panic!("{what}: {path:?} reads {} bytes", found.len()),
        Err(error) => assert!(allowed.contains(&error.errno()), "{what}: {path:?}: {error}"),
    }
}

fn assert_original(sample: &Sample, path: &str, what: &str) {
    let Plain::File(content) = &sample.tree[path] else {
        unreachable!()
    };
    let found = read(&sample.view(), path).unwrap_or_else(|error| panic!("{what}: {path:?}: {error}"));
    assert!(found == *content, "{what}: {path:?}: {}", difference(&found, content));
}

#[test]
fn no_byte_of_a_preamble_can_be_changed() {
    if !can_mount() {
        return;
    }
    let sample = Sample::new();
    for path in ["one", "odd", "sparse", "linked", "dir/inner"] {
        let count = each_byte(&sample.disk(path), 0..PREAMBLE as usize, |i| {
            let what = format!("byte {i} of the preamble");
            assert_refused(&sample, path, &[libc::EIO], &what);
            assert_original(&sample, "blocks", &what);
        });
        assert_eq!(count, 256);
    }
}

#[test]
fn no_byte_of_a_header_can_be_changed() {
    if !can_mount() {
        return;
    }
    let sample = Sample::new();
    for path in ["one", "dir/inner"] {
        let count = each_byte(&sample.header(path), 0.., |i| {
            let what = format!("byte {i} of the header");
            // Of an epoch that the vault does not have, the key is missing.
            let epoch = (18..22).contains(&i);
            let allowed = if epoch { [libc::ENOKEY] } else { [libc::EIO] };
            assert_refused(&sample, path, &allowed, &what);
            assert_original(&sample, "odd", &what);
        });
        assert_eq!(count, 182);
    }
}

#[test]
fn no_byte_of_a_directory_header_can_be_changed() {
    if !can_mount() {
        return;
    }
    let sample = Sample::new();
    let count = each_byte(&sample.disk("renamed").join("dir.hush"), 0.., |i| {
        let what = format!("byte {i} of dir.hush");
        assert_refused(&sample, "renamed/inner", &[libc::EIO], &what);
        assert_original(&sample, "also-renamed/inner", &what);
    });
    assert_eq!(count, 128);
}

#[test]
fn a_long_name_is_not_shown_as_another() {
    if !can_mount() {
        return;
    }
    let sample = Sample::new();
    let entry = sample.disk(crate::sample::LONG_NAME);
    let file = entry.with_file_name(format!("{}.long.hush", entry.file_name().unwrap().to_str().unwrap()));
    let count = each_byte(&file, 0.., |i| {
        let what = format!("byte {i} of the long name's file");
        let view = sample.view();
        let mut others = 0;
        view.list(hushfs::fs::ROOT, 0, |listed| {
            let name = String::from_utf8_lossy(&listed.name);
            assert_ne!(name, crate::sample::LONG_NAME, "{what}");
            assert!(
                name == "." || name == ".." || sample.tree.contains_key(&*name),
                "{what}: {name:?}"
            );
            others += 1;
            true
        })
        .unwrap();
        assert!(others > 10, "{what}: {others}");
        // Who knows the name does not need that file.
        assert_original(&sample, crate::sample::LONG_NAME, &what);
    });
    assert!(count > 200, "{count}");
}

#[test]
fn no_byte_of_a_block_can_be_changed() {
    if !can_mount() {
        return;
    }
    let sample = Sample::new();
    for path in ["one", "odd", "blocks", "sparse", crate::sample::LONG_NAME] {
        let Plain::File(content) = &sample.tree[path] else {
            unreachable!()
        };
        each_byte(&sample.disk(path), (PREAMBLE as usize..).step_by(97), |i| {
            let what = format!("byte {i} of the data");
            let damaged = (i as u64 - PREAMBLE) / STRIDE;
            let view = sample.view();
            let id = find(&view, path).unwrap();
            view.open(id, false).unwrap();
            for (block, expected) in content.chunks(BLOCK).enumerate() {
                let mut buffer = Vec::new();
                match view.read(id, (block * BLOCK) as u64, BLOCK, &mut buffer) {
                    Ok(range) if block as u64 != damaged => assert!(buffer[range] == *expected, "{what}"),
                    Err(error) if block as u64 == damaged => assert_eq!(error.errno(), libc::EIO, "{what}"),
                    other => panic!("{what}: {path}: block {block}: {other:?}"),
                }
            }
            assert!(view.verify(id, |_| {}).is_err(), "{what}: {path}");
        });
    }
}

#[test]
fn headers_of_two_vaults_do_not_mix() {
    if !can_mount() {
        return;
    }
    let (one, other) = (Sample::new(), Sample::new());
    fs::copy(other.header("odd"), one.header("odd")).unwrap();
    assert_refused(&one, "odd", &[libc::EIO], "another vault's header");
    // Data and header of another vault, under the name of this.
    let data = other.disk("one");
    let ours = one.disk("one");
    fs::copy(
        header_of(&data),
        ours.with_file_name(header_of(&data).file_name().unwrap()),
    )
    .unwrap();
    fs::copy(&data, &ours).unwrap();
    assert_refused(&one, "one", &[libc::EIO], "another vault's file");
    assert_original(&one, "blocks", "another vault's header");
}
