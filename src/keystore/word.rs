//! Words in errors, which are part of the program here and text where an agent sends them.
//!
//! Errors are small values that are copied, so their words are static. What comes from another process is looked up in a list of those
//! that this program has; a word that is not in it, of a newer agent, is replaced and says so.

use serde::{Deserialize, Deserializer};

use super::policy::action;

/// A word of an error.
pub type Word = &'static str;

/// What stands for a word that is not known.
const UNKNOWN: Word = "something of a newer hushfs";

/// Who holds keys, and the elements of policies: what errors speak of beside actions.
const WORDS: &[Word] = &[
    "AWS KMS",
    "the PKCS#11 token",
    "a PKCS#11 token",
    "the agent",
    "the whole",
    "Version",
    "Statement",
    "Effect",
    "Principal",
    "Action",
    "Resource",
    "Condition",
    "an element of another name",
];

/// Takes a word that was sent.
pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Word, D::Error> {
    let text = String::deserialize(deserializer)?;
    let mut words = WORDS.iter().copied().chain(action::ALL);
    Ok(words.find(|word| *word == text).unwrap_or(UNKNOWN))
}

#[cfg(test)]
mod tests {
    use serde::de::{
        IntoDeserializer,
        value::{Error, StrDeserializer},
    };

    use super::*;

    #[test]
    fn a_word_comes_back_and_one_that_is_not_known_says_so() {
        let received = |text: &str| deserialize::<StrDeserializer<'_, Error>>(text.into_deserializer()).unwrap();
        for word in WORDS.iter().copied().chain(action::ALL) {
            assert_eq!(received(word), word);
        }
        assert_eq!(received("kms:Whatever"), UNKNOWN);
    }
}
