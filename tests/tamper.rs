//! Changes of a vault behind hushfs's back: what is read is what was written, or an error, never other bytes.

mod support;
#[path = "support/unmounted.rs"]
mod unmounted;

#[path = "tamper/bytes.rs"]
mod bytes;
#[path = "tamper/cases.rs"]
mod cases;
#[path = "tamper/conflicts.rs"]
mod conflicts;
#[path = "tamper/sample.rs"]
mod sample;
#[path = "tamper/survey.rs"]
mod survey;
#[path = "tamper/vault.rs"]
mod vault;
#[path = "tamper/whole.rs"]
mod whole;
