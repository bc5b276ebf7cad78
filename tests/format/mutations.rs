//! Good files with a few bytes changed, cut or added: a decoder gives an error or a value, never a panic, and no changed file that is
//! authenticated is ever accepted. `fuzz` has the same decoders for a fuzzer.

use hushfs::{
    format::{
        link, name,
        record::{BATCH_OVERHEAD, RECORD_FRONT_SIZE, SEEN_FILE_SIZE},
        xattr::XattrHash,
    },
    keystore::RecoveryKey,
};
use proptest::prelude::*;

use super::{
    faults::open,
    fixed::{hex, name_key, vectors},
};

/// One change of a file.
#[derive(Clone, Debug)]
enum Mutation {
    Replace(usize, u8),
    Cut(usize),
    Insert(usize, u8),
    /// A count, a length or a number that is as large as it gets.
    Fill(usize, u8),
}

fn mutation() -> impl Strategy<Value = Mutation> {
    prop_oneof![
        (any::<usize>(), any::<u8>()).prop_map(|(at, byte)| Mutation::Replace(at, byte)),
        any::<usize>().prop_map(Mutation::Cut),
        (any::<usize>(), any::<u8>()).prop_map(|(at, byte)| Mutation::Insert(at, byte)),
        (any::<usize>(), prop_oneof![Just(0), Just(0xff), any::<u8>()]).prop_map(|(at, byte)| Mutation::Fill(at, byte)),
    ]
}

fn mutate(bytes: &mut Vec<u8>, mutation: &Mutation) {
    let len = bytes.len();
    match *mutation {
        Mutation::Replace(at, byte) if len > 0 => bytes[at % len] = byte,
        Mutation::Cut(at) => bytes.truncate(at % (len + 1)),
        Mutation::Insert(at, byte) => bytes.insert(at % (len + 1), byte),
        Mutation::Fill(at, byte) if len > 0 => bytes[at % len..].iter_mut().take(8).for_each(|b| *b = byte),
        Mutation::Replace(..) | Mutation::Fill(..) => {}
    }
}

/// The files that are authenticated as a whole, by kind.
fn good() -> Vec<(&'static str, Vec<u8>)> {
    let vectors = vectors();
    let long = hex(&vectors["names"][4]["sealed"]);
    vec![
        ("header", hex(&vectors["header"])),
        ("preamble", hex(&vectors["preamble"])),
        ("dirhush", hex(&vectors["directory header"])),
        ("longname", name::encode_long_name(&long)),
        ("link", hex(&vectors["link file"])),
        ("xattr", hex(&vectors["xattr"])),
        ("vault", hex(&vectors["vault header"])),
        ("keystore", hex(&vectors["keystore"])),
        ("keystore", hex(&vectors["keystore of every kind"])),
        ("keystore", hex(&vectors["keystore 1"])),
        ("sealed", hex(&vectors["sealed header"])),
        ("record", hex(&vectors["record"])),
        ("snapshot", hex(&vectors["snapshot"])),
    ]
}

#[test]
fn the_good_files_are_good() {
    for (kind, bytes) in good() {
        assert_eq!(open(kind, &bytes), Ok(()), "{kind}");
    }
}

#[test]
fn no_changed_file_is_accepted() {
    let good = good();
    let strategy = (0..good.len(), proptest::collection::vec(mutation(), 1..4));
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig::with_cases(8000));
    runner
        .run(&strategy, |(which, mutations)| {
            let (kind, original) = &good[which];
            let mut bytes = original.clone();
            for mutation in &mutations {
                mutate(&mut bytes, mutation);
            }
            // A preamble is the front of a file: what follows it is not its concern.
            // A record that ends with a batch is one, only shorter.
            let same = bytes == *original
                || (*kind == "preamble" && bytes.starts_with(original))
                || (*kind == "record"
                    && [
                        RECORD_FRONT_SIZE,
                        RECORD_FRONT_SIZE + BATCH_OVERHEAD + 2 * SEEN_FILE_SIZE,
                    ]
                    .map(|len| &original[..len])
                    .contains(&&bytes[..]));
            prop_assert_eq!(open(kind, &bytes).is_ok(), same, "{}", kind);
            Ok(())
        })
        .unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]

    #[test]
    fn what_looks_like_a_name_decodes_or_gives_an_error(text in "[A-Za-z0-9_.+-]{0,60}(\\.long|\\.link|\\.tmp)?(\\.hush)?") {
        let _ = name::shape(text.as_bytes());
        let _ = link::decode(text.as_bytes());
        let _ = XattrHash::from_disk_name(format!("user.hush.{text}").as_bytes());
        let _ = RecoveryKey::from_text(&format!("HUSH1-{text}"));
    }

    #[test]
    fn any_bytes_decode_or_give_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        for kind in ["header", "preamble", "dirhush", "longname", "link", "xattr", "vault", "keystore", "record", "snapshot"] {
            prop_assert!(open(kind, &bytes).is_err());
        }
        let _ = name::shape(&bytes);
        let _ = name::open(&name_key(), &bytes);
        let _ = link::decode(&bytes);
    }
}
