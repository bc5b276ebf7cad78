//! Names a key in a token: the part of RFC 7512 that is needed for it, and nothing a vault could use against who opens it.
//!
//! Such a name stands in the keystore, which others may have written. So it can say which token and which key; where the module is, and
//! where its PIN comes from, the user says. A slot's number is no name either: it changes with the order in which readers are plugged in.

use std::{fmt, str::FromStr};

use crate::format::keystore::{RemoteKeyName, TOKEN_KEY_NAME_LEN_MAX, TOKEN_LABEL_LEN_MAX};

const SCHEME: &str = "pkcs11:";

/// The most bytes a name may have: every attribute at its longest with every byte escaped, and more.
const URI_LEN_MAX: usize = 2048;

/// Where a key is: the token by its label, the key in it by its label or its id or both.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyUri {
    /// The token's label (`token`).
    pub token: String,
    /// The key's label (`object`); empty where the id says it.
    pub label: String,
    /// The key's id, any bytes; empty where the label says it.
    pub id: Vec<u8>,
}

/// Why a text does not name a key in a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UriError {
    /// It does not start with `pkcs11:`.
    Scheme,
    /// It has more than 2048 bytes.
    TooLong,
    /// It has a `?`: a module or a PIN is not part of a name.
    Query,
    /// A part is not `name=value`, or its name is none that hushfs takes.
    Attribute,
    /// An attribute stands there twice.
    Twice(&'static str),
    /// The value of an attribute has a character that must be escaped, a wrong escape, or is too long, empty or not text.
    Value(&'static str),
    /// No label of a token.
    NoToken,
    /// Neither label nor id of a key.
    NoKey,
}

impl fmt::Display for UriError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            UriError::Scheme => write!(f, "the name of a key in a token starts with {SCHEME}"),
            UriError::TooLong => write!(f, "the name of a key in a token has at most {URI_LEN_MAX} bytes"),
            UriError::Query => f.write_str(
                "the name of a key in a token says nothing of module and PIN: use --pkcs11-module and --pin-file for these",
            ),
            UriError::Attribute => f.write_str(
                "the name of a key in a token is made of token=, object=, id= and type=secret-key, with ; between them",
            ),
            UriError::Twice(name) => write!(f, "the name of a key in a token has {name}= twice"),
            UriError::Value(name) => write!(
                f,
                "{name}= in the name of a key in a token is empty, too long or not escaped as in RFC 7512 (a space is %20)"
            ),
            UriError::NoToken => f.write_str("the name of a key in a token says which token: token=LABEL"),
            UriError::NoKey => f.write_str("the name of a key in a token says which key: object=LABEL or id=%01"),
        }
    }
}

impl std::error::Error for UriError {}

impl KeyUri {
    /// Takes the name of a remote key, if it is one in a token.
    pub fn of(name: &RemoteKeyName) -> Option<Self> {
        match name.clone() {
            RemoteKeyName::Pkcs11 { token, label, id } => Some(KeyUri { token, label, id }),
            RemoteKeyName::AwsKms { .. } => None,
        }
    }

    /// Returns the name as it is stored.
    pub fn into_name(self) -> RemoteKeyName {
        let KeyUri { token, label, id } = self;
        RemoteKeyName::Pkcs11 { token, label, id }
    }
}

impl FromStr for KeyUri {
    type Err = UriError;

    fn from_str(text: &str) -> Result<Self, UriError> {
        if text.len() > URI_LEN_MAX {
            return Err(UriError::TooLong);
        }
        let path = match text.split_at_checked(SCHEME.len()) {
            Some((scheme, path)) if scheme.eq_ignore_ascii_case(SCHEME) => path,
            _ => return Err(UriError::Scheme),
        };
        if path.contains('?') {
            return Err(UriError::Query);
        }
        let (mut token, mut label, mut id, mut class) = (None, None, None, None);
        for part in path.split(';') {
            let (name, value) = part.split_once('=').ok_or(UriError::Attribute)?;
            match name {
                "token" => set("token", &mut token, words("token", value, TOKEN_LABEL_LEN_MAX)?)?,
                "object" => set("object", &mut label, words("object", value, TOKEN_KEY_NAME_LEN_MAX)?)?,
                "id" => set("id", &mut id, unescape("id", value, TOKEN_KEY_NAME_LEN_MAX)?)?,
                "type" if value == "secret-key" => set("type", &mut class, ())?,
                _ => return Err(UriError::Attribute),
            }
        }
        if label.is_none() && id.is_none() {
            return Err(UriError::NoKey);
        }
        Ok(KeyUri {
            token: token.ok_or(UriError::NoToken)?,
            label: label.unwrap_or_default(),
            id: id.unwrap_or_default(),
        })
    }
}

impl fmt::Display for KeyUri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{SCHEME}token=")?;
        escape(f, self.token.as_bytes())?;
        if !self.label.is_empty() {
            f.write_str(";object=")?;
            escape(f, self.label.as_bytes())?;
        }
        if !self.id.is_empty() {
            f.write_str(";id=")?;
            // RFC 7512 section 2.3: an id is bytes, so all of it is escaped.
            self.id.iter().try_for_each(|byte| write!(f, "%{byte:02X}"))?;
        }
        Ok(())
    }
}

fn set<T>(name: &'static str, place: &mut Option<T>, value: T) -> Result<(), UriError> {
    match place.replace(value) {
        None => Ok(()),
        Some(_) => Err(UriError::Twice(name)),
    }
}

/// Tells whether a byte stands for itself in the path of such a URI (RFC 7512 section 2.3, `pk11-pchar`).
fn is_plain(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~:[]@!$'()*+,=&".contains(&byte)
}

fn escape(f: &mut fmt::Formatter<'_>, bytes: &[u8]) -> fmt::Result {
    for &byte in bytes {
        if is_plain(byte) {
            write!(f, "{}", char::from(byte))?;
        } else {
            write!(f, "%{byte:02X}")?;
        }
    }
    Ok(())
}

fn words(name: &'static str, value: &str, len_max: usize) -> Result<String, UriError> {
    let text = String::from_utf8(unescape(name, value, len_max)?).map_err(|_| UriError::Value(name))?;
    // A token fills its label up with spaces, so one with a space at its end would never be found.
    if text.ends_with(' ') || text.contains('\0') {
        return Err(UriError::Value(name));
    }
    Ok(text)
}

fn unescape(name: &'static str, value: &str, len_max: usize) -> Result<Vec<u8>, UriError> {
    let wrong = UriError::Value(name);
    let digit = |byte: Option<u8>| byte.and_then(|byte| char::from(byte).to_digit(16)).ok_or(wrong);
    let mut out = Vec::new();
    let mut bytes = value.bytes();
    while let Some(byte) = bytes.next() {
        out.push(match byte {
            // Two hexadecimal digits are below 256.
            b'%' => (digit(bytes.next())? << 4 | digit(bytes.next())?) as u8,
            byte if is_plain(byte) => byte,
            _ => return Err(wrong),
        });
    }
    if out.is_empty() || out.len() > len_max {
        return Err(wrong);
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(text: &str) -> Result<KeyUri, UriError> {
        text.parse()
    }

    #[test]
    fn a_name_says_which_token_and_which_key() {
        let uri = parse("pkcs11:token=The%20Vault;object=hushfs;id=%01%aB;type=secret-key").unwrap();
        assert_eq!(
            uri,
            KeyUri {
                token: "The Vault".into(),
                label: "hushfs".into(),
                id: vec![1, 0xAB],
            }
        );
        assert_eq!(uri.to_string(), "pkcs11:token=The%20Vault;object=hushfs;id=%01%AB");
        let uri = parse("PKCS11:id=k;token=Snake%20Oil,%20Inc.").unwrap();
        assert_eq!(uri.to_string(), "pkcs11:token=Snake%20Oil,%20Inc.;id=%6B");
    }

    #[test]
    fn each_reason_not_to_be_a_name_is_told() {
        for (text, error) in [
            ("", UriError::Scheme),
            ("pkcs11", UriError::Scheme),
            ("pkcs12:token=a;object=b", UriError::Scheme),
            ("pkcs1é:token=a;object=b", UriError::Scheme),
            ("pkcs11:", UriError::Attribute),
            ("pkcs11:token=a;object=b;", UriError::Attribute),
            ("pkcs11:token=a;object", UriError::Attribute),
            ("pkcs11:token=a;object=b;slot-id=1", UriError::Attribute),
            ("pkcs11:token=a;object=b;type=private", UriError::Attribute),
            ("pkcs11:Token=a;object=b", UriError::Attribute),
            ("pkcs11:token=a;object=b?pin-value=1234", UriError::Query),
            ("pkcs11:token=a;object=b?module-path=/tmp/evil.so", UriError::Query),
            ("pkcs11:token=a;token=a;object=b", UriError::Twice("token")),
            (
                "pkcs11:token=a;object=b;type=secret-key;type=secret-key",
                UriError::Twice("type"),
            ),
            ("pkcs11:token=;object=b", UriError::Value("token")),
            ("pkcs11:token=a b;object=b", UriError::Value("token")),
            ("pkcs11:token=a%20;object=b", UriError::Value("token")),
            ("pkcs11:token=a%00;object=b", UriError::Value("token")),
            ("pkcs11:token=a%2;object=b", UriError::Value("token")),
            ("pkcs11:token=a%+1;object=b", UriError::Value("token")),
            ("pkcs11:token=%FF;object=b", UriError::Value("token")),
            ("pkcs11:token=ä;object=b", UriError::Value("token")),
            ("pkcs11:object=b", UriError::NoToken),
            ("pkcs11:token=a", UriError::NoKey),
        ] {
            assert_eq!(parse(text), Err(error), "{text}");
        }
        let long = |len| format!("pkcs11:token={};object=b", "a".repeat(len));
        assert!(parse(&long(32)).is_ok());
        assert_eq!(parse(&long(33)), Err(UriError::Value("token")));
        assert_eq!(parse(&long(URI_LEN_MAX)), Err(UriError::TooLong));
    }

    fn text(len_max: usize) -> impl Strategy<Value = String> {
        ".{1,60}".prop_filter_map("as a token may say it", move |text| {
            let fits = text.len() <= len_max && !text.ends_with(' ') && !text.contains('\0');
            fits.then_some(text)
        })
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(
            token in text(TOKEN_LABEL_LEN_MAX),
            label in text(TOKEN_KEY_NAME_LEN_MAX),
            id in proptest::collection::vec(any::<u8>(), 0..=TOKEN_KEY_NAME_LEN_MAX),
        ) {
            let uri = KeyUri { token, label, id };
            let written = uri.to_string();
            prop_assert!(written.len() <= URI_LEN_MAX);
            prop_assert_eq!(parse(&written).unwrap(), uri);
        }

        #[test]
        fn what_is_read_has_one_form(text in "pkcs11:((token|object|id|type|model)=[a-z%20-9;?]{0,9};?){0,5}") {
            if let Ok(uri) = parse(&text) {
                let written = uri.to_string();
                prop_assert_eq!(parse(&written).unwrap(), uri);
            }
        }

        #[test]
        fn random_text_never_panics(text in "(pkcs11:)?.{0,200}") {
            let _ = parse(&text);
        }
    }
}
