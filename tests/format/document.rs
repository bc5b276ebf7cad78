//! docs/FORMAT.md has the sizes and offsets that the code has.

use std::fs;

use hushfs::{
    crypto::{block::Suite, derive::context, wrap::WRAPPED_SIZE},
    format::{
        directory::DIRECTORY_HEADER_SIZE,
        header::HEADER_SIZE,
        layout::{Layout, PREAMBLE_SIZE},
        name,
    },
    units::PlainSize,
};

use super::fixed::{here, name_key};

fn document() -> String {
    fs::read_to_string(here().join("../../docs/FORMAT.md")).unwrap()
}

/// Returns a section, from its heading to the next of any level.
fn section(heading: &str) -> String {
    let document = document();
    let from = document.find(&format!("\n{heading}")).expect(heading) + 1;
    let rest = &document[from..];
    rest[..rest[1..].find("\n#").map_or(rest.len(), |at| at + 1)].to_owned()
}

/// Returns the cells of a section's table rows.
fn rows(section: &str) -> Vec<Vec<String>> {
    let rows = section.lines().filter(|line| line.starts_with("| "));
    rows.map(|row| {
        row.trim_matches('|')
            .split('|')
            .map(|cell| cell.trim().to_owned())
            .collect()
    })
    .collect()
}

/// Returns offsets and sizes of the first layout in a section: lines of two numbers, and the end, a line of one.
fn layout(section: &str) -> (Vec<(usize, usize)>, usize) {
    let block = section.split("```").nth(1).expect("a layout");
    let (mut fields, mut end) = (Vec::new(), 0);
    for line in block.lines() {
        let mut words = line.split_whitespace().map(str::parse::<usize>);
        match (words.next(), words.next()) {
            (Some(Ok(at)), Some(Ok(size))) => {
                fields.push((at, size));
                end = at + size;
            }
            (Some(Ok(at)), None) => end = at,
            _ => {}
        }
    }
    (fields, end)
}

fn assert_no_gaps(fields: &[(usize, usize)]) {
    let mut end = 0;
    for (at, size) in fields {
        assert_eq!(*at, end, "{fields:?}");
        end += size;
    }
}

#[test]
fn the_table_of_contexts_is_complete() {
    let mut listed: Vec<String> = rows(&section("### 1.1"))[1..]
        .iter()
        .map(|row| row[0].trim_matches('`').to_owned())
        .collect();
    let mut used: Vec<String> = context::ALL.iter().map(|&context| context.to_owned()).collect();
    listed.sort();
    used.sort();
    assert_eq!(listed, used);
}

#[test]
fn headers_have_the_documented_size_and_no_gaps() {
    for (heading, size) in [("### 5.1", HEADER_SIZE), ("### 6.2", DIRECTORY_HEADER_SIZE)] {
        let (fields, end) = layout(&section(heading));
        assert_no_gaps(&fields);
        assert_eq!(end, size, "{heading}");
        let (at, last) = fields[fields.len() - 1];
        assert_eq!(at + last, size, "{heading}");
    }
    assert!(section("### 1.2").contains(&format!("{WRAPPED_SIZE} bytes")));
    assert!(section("### 5.1").contains(&format!("length of the body, {}", HEADER_SIZE - 16)));
}

#[test]
fn the_preamble_has_the_documented_fields_and_no_gaps() {
    let rows = rows(&section("### 5.2"));
    let fields: Vec<(usize, usize)> = rows[1..]
        .iter()
        .filter_map(|row| Some((row[0].parse().ok()?, row[1].parse().ok()?)))
        .collect();
    assert_no_gaps(&fields);
    let (at, size) = fields[fields.len() - 1];
    assert_eq!((at + size) as u64, PREAMBLE_SIZE);
}

#[test]
fn suites_have_the_documented_numbers_and_strides() {
    let rows = rows(&section("### 5.3"));
    for (row, suite) in rows[1..].iter().zip(Suite::ALL) {
        let layout = Layout::new(suite, 4096).unwrap();
        let documented = [
            suite.number().to_string(),
            suite.nonce_size().to_string(),
            layout.stride().to_string(),
        ];
        assert_eq!([&row[0], &row[2], &row[3]], documented.each_ref());
    }
    assert_eq!(rows.len() - 1, Suite::ALL.len());
}

#[test]
fn worked_sizes_are_right() {
    let layout = Layout::new(Suite::Aes256GcmSiv, 4096).unwrap();
    let section = section("## 14.");
    for (plain, documented) in [
        (0, "| 256 |"),
        (1, "= 285 |"),
        (4096, "= 4380 |"),
        (4097, "= 4409 |"),
        (5000, "= 5312 |"),
        (1 << 20, "= 1,056,000 |"),
    ] {
        let size = layout.cipher_size(PlainSize(plain)).0.to_string();
        assert_eq!(documented.replace([',', '=', '|', ' '], ""), size);
        assert!(section.contains(documented), "{documented}");
    }
}

#[test]
fn names_have_the_documented_lengths() {
    let section = section("## 2.");
    for len in 1..=255 {
        let sealed = name::seal(&name_key(), &vec![b'x'; len]);
        assert_eq!(sealed.long.is_some(), len > 160, "{len}");
        assert!(section.contains(&sealed.entry.len().to_string()), "{len}");
    }
}
