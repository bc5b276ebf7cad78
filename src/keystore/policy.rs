//! Key policies: who may do what with a key, in the JSON of AWS's key policies, as far as it makes sense here.
//!
//! A policy is evaluated in the process that has the keystore open, so it is a seat belt: it keeps programs and people from mistakes, not
//! someone who can open a slot and read the materials. Where an agent or a server holds the keystore it is a wall.
//! An explicit deny goes before any allow, and what no statement allows is denied. docs/CLI.md has the grammar.

use std::fmt;

use serde::{
    Deserialize, Deserializer, Serialize,
    de::{self, MapAccess, SeqAccess},
};
use serde_json::{Map, Value};

use super::{
    custodian::Context,
    word::{self, Word},
};
use crate::format::keystore::POLICY_LEN_MAX;

/// What the policy of a key says that has none of its own: whoever opens the keystore may do everything.
pub const DEFAULT_POLICY: &str = r#"{
  "Version": "2012-10-17",
  "Statement": [
    {
      "Sid": "Whoever opens the keystore",
      "Effect": "Allow",
      "Principal": "*",
      "Action": "kms:*",
      "Resource": "*"
    }
  ]
}
"#;

/// The only version of the language there is; AWS has an older one too.
const LANGUAGE_VERSION: &str = "2012-10-17";

/// What the name of a condition starts with; the name of a pair of the encryption context follows.
const CONTEXT_PREFIX: &str = "kms:EncryptionContext:";

/// The names that policies have for what can be done with a key.
pub mod action {
    pub const CANCEL_KEY_DELETION: &str = "kms:CancelKeyDeletion";
    pub const CREATE_ALIAS: &str = "kms:CreateAlias";
    pub const DECRYPT: &str = "kms:Decrypt";
    pub const DELETE_ALIAS: &str = "kms:DeleteAlias";
    pub const DESCRIBE_KEY: &str = "kms:DescribeKey";
    pub const DISABLE_KEY: &str = "kms:DisableKey";
    pub const DISABLE_KEY_ROTATION: &str = "kms:DisableKeyRotation";
    pub const ENABLE_KEY: &str = "kms:EnableKey";
    pub const ENABLE_KEY_ROTATION: &str = "kms:EnableKeyRotation";
    pub const ENCRYPT: &str = "kms:Encrypt";
    pub const GENERATE_DATA_KEY: &str = "kms:GenerateDataKey";
    pub const GET_KEY_LAST_USAGE: &str = "kms:GetKeyLastUsage";
    pub const GET_KEY_POLICY: &str = "kms:GetKeyPolicy";
    pub const GET_KEY_ROTATION_STATUS: &str = "kms:GetKeyRotationStatus";
    pub const LIST_KEY_ROTATIONS: &str = "kms:ListKeyRotations";
    pub const PUT_KEY_POLICY: &str = "kms:PutKeyPolicy";
    pub const RE_ENCRYPT_FROM: &str = "kms:ReEncryptFrom";
    pub const RE_ENCRYPT_TO: &str = "kms:ReEncryptTo";
    pub const ROTATE_KEY_ON_DEMAND: &str = "kms:RotateKeyOnDemand";
    pub const SCHEDULE_KEY_DELETION: &str = "kms:ScheduleKeyDeletion";
    pub const TAG_RESOURCE: &str = "kms:TagResource";
    pub const UNTAG_RESOURCE: &str = "kms:UntagResource";
    pub const UPDATE_ALIAS: &str = "kms:UpdateAlias";
    pub const UPDATE_KEY_DESCRIPTION: &str = "kms:UpdateKeyDescription";

    /// Of AWS KMS, for what keys here cannot do: policies from there name them.
    pub const ELSEWHERE: [&str; 28] = [
        "kms:CreateGrant",
        "kms:CreateKey",
        "kms:DeleteImportedKeyMaterial",
        "kms:DeriveSharedSecret",
        "kms:GenerateDataKeyPair",
        "kms:GenerateDataKeyPairWithoutPlaintext",
        "kms:GenerateDataKeyWithoutPlaintext",
        "kms:GenerateMac",
        "kms:GenerateRandom",
        "kms:GetParametersForImport",
        "kms:GetPublicKey",
        "kms:ImportKeyMaterial",
        "kms:ListAliases",
        "kms:ListGrants",
        "kms:ListKeyPolicies",
        "kms:ListKeys",
        "kms:ListResourceTags",
        "kms:ListRetirableGrants",
        "kms:ReplicateKey",
        "kms:RetireGrant",
        "kms:RevokeGrant",
        "kms:Sign",
        "kms:SynchronizeMultiRegionKey",
        "kms:UpdatePrimaryRegion",
        "kms:Verify",
        "kms:VerifyMac",
        "kms:ConnectCustomKeyStore",
        "kms:DescribeCustomKeyStores",
    ];

    /// All of them.
    pub const ALL: [&str; 24] = [
        CANCEL_KEY_DELETION,
        CREATE_ALIAS,
        DECRYPT,
        DELETE_ALIAS,
        DESCRIBE_KEY,
        DISABLE_KEY,
        DISABLE_KEY_ROTATION,
        ENABLE_KEY,
        ENABLE_KEY_ROTATION,
        ENCRYPT,
        GENERATE_DATA_KEY,
        GET_KEY_LAST_USAGE,
        GET_KEY_POLICY,
        GET_KEY_ROTATION_STATUS,
        LIST_KEY_ROTATIONS,
        PUT_KEY_POLICY,
        RE_ENCRYPT_FROM,
        RE_ENCRYPT_TO,
        ROTATE_KEY_ON_DEMAND,
        SCHEDULE_KEY_DELETION,
        TAG_RESOURCE,
        UNTAG_RESOURCE,
        UPDATE_ALIAS,
        UPDATE_KEY_DESCRIPTION,
    ];
}

/// Who asks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Principal {
    /// The user.
    pub uid: u32,
    /// The groups.
    pub gids: Vec<u32>,
    /// The process, for the audit log: another may have that number by now. 0 where it is not known.
    pub pid: u32,
    /// The label of the slot that opened the keystore; empty for who opened none, as a client of an agent.
    pub role: String,
}

impl Principal {
    /// Returns who runs this process.
    pub fn of_process(role: &str) -> Self {
        let mut gids = vec![rustix::process::getegid().as_raw()];
        // A process whose groups cannot be told has its own group only: that denies, it does not allow.
        gids.extend(rustix::process::getgroups().iter().flatten().map(|gid| gid.as_raw()));
        Principal {
            uid: rustix::process::geteuid().as_raw(),
            gids,
            pid: std::process::id(),
            role: role.to_owned(),
        }
    }
}

/// What a policy says of a wish.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// A statement allows it, and none denies it.
    Allowed,
    /// A statement denies it.
    Denied,
    /// No statement speaks of it, and so it is denied too.
    NotAllowed,
}

/// A policy that was parsed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy(Vec<Statement>);

#[derive(Clone, Debug, PartialEq, Eq)]
struct Statement {
    denies: bool,
    principals: Principals,
    /// Patterns, in small letters. A statement without any, or without a resource, says nothing; AWS takes it so.
    actions: Vec<String>,
    conditions: Vec<Condition>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Principals {
    anyone: bool,
    uids: Vec<u32>,
    gids: Vec<u32>,
    any_role: bool,
    roles: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Condition {
    /// Whether the values are patterns.
    like: bool,
    /// The name of a pair in the encryption context.
    name: String,
    /// The pair's value must be one of these.
    values: Vec<String>,
}

/// Why a text is no policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum PolicyError {
    /// It has this many bytes, above [`POLICY_LEN_MAX`].
    TooLong(usize),
    /// It is no JSON, or names something twice.
    Syntax { line: usize, column: usize },
    /// An element of the document is missing, unknown or has a value it cannot have.
    Document {
        #[serde(deserialize_with = "word::deserialize")]
        element: Word,
    },
    /// An element of a statement, counted from 1, is.
    Statement {
        number: usize,
        #[serde(deserialize_with = "word::deserialize")]
        element: Word,
    },
}

impl fmt::Display for PolicyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PolicyError::TooLong(len) => write!(f, "a policy has at most {POLICY_LEN_MAX} bytes; this has {len}"),
            PolicyError::Syntax { line, column } => write!(f, "the policy is no JSON at line {line}, column {column}"),
            PolicyError::Document { element } => write!(f, "the policy: {element} is missing, wrong or not supported"),
            PolicyError::Statement { number, element } => {
                write!(
                    f,
                    "statement {number} of the policy: {element} is missing, wrong or not supported"
                )
            }
        }
    }
}

impl std::error::Error for PolicyError {}

impl Policy {
    /// Parses a policy; an empty text is the default one.
    ///
    /// # Errors
    ///
    /// The [`PolicyError`] that names the first thing wrong. What is not supported is an error, never passed over.
    pub fn parse(text: &str) -> Result<Self, PolicyError> {
        if text.len() > POLICY_LEN_MAX {
            return Err(PolicyError::TooLong(text.len()));
        }
        let text = if text.is_empty() { DEFAULT_POLICY } else { text };
        let document: Strict = serde_json::from_str(text).map_err(|error| PolicyError::Syntax {
            line: error.line(),
            column: error.column(),
        })?;
        let wrong = |element| PolicyError::Document { element };
        let document = document.0.as_object().ok_or(wrong("the whole"))?;
        let mut statements = None;
        for (name, value) in document {
            match name.as_str() {
                "Version" if value == LANGUAGE_VERSION => {}
                "Version" => return Err(wrong("Version")),
                "Id" if value.is_string() => {}
                "Statement" => statements = Some(one_or_many(value)),
                _ => return Err(wrong("an element of another name")),
            }
        }
        let statements = statements.filter(|list| !list.is_empty()).ok_or(wrong("Statement"))?;
        let parsed = (1..).zip(statements).map(|(number, statement)| {
            Statement::parse(statement).map_err(|element| PolicyError::Statement { number, element })
        });
        parsed.collect::<Result<_, _>>().map(Policy)
    }

    /// Tells whether the principal may do this with the key.
    pub fn allows(&self, principal: &Principal, action: &str, context: Option<&Context>) -> bool {
        self.decide(principal, action, context) == Decision::Allowed
    }

    /// Tells whether the principal may do this with the key, and if not why.
    pub fn decide(&self, principal: &Principal, action: &str, context: Option<&Context>) -> Decision {
        let matching = self
            .0
            .iter()
            .filter(|statement| statement.matches(principal, action, context));
        matching.fold(Decision::NotAllowed, |decision, statement| match decision {
            _ if statement.denies => Decision::Denied,
            Decision::Denied => Decision::Denied,
            Decision::Allowed | Decision::NotAllowed => Decision::Allowed,
        })
    }
}

/// Tells whether a pattern in small letters is for any action at all: one with a slip in it would allow, or deny, nothing.
fn names_an_action(pattern: &str) -> bool {
    let mut known = action::ALL.iter().chain(&action::ELSEWHERE);
    known.any(|action| is_like(&action.to_ascii_lowercase(), pattern))
}

impl Statement {
    /// Parses a statement; the error is the element that is wrong.
    fn parse(value: &Value) -> Result<Self, &'static str> {
        let fields = value.as_object().ok_or("the whole")?;
        let mut denies = None;
        let mut principals = None;
        let mut actions = None;
        let mut has_resource = false;
        let mut conditions = Vec::new();
        for (name, value) in fields {
            match name.as_str() {
                "Sid" if value.is_string() => {}
                "Effect" if value == "Allow" => denies = Some(false),
                "Effect" if value == "Deny" => denies = Some(true),
                "Effect" => return Err("Effect"),
                "Principal" => principals = Some(Principals::parse(value).ok_or("Principal")?),
                "Action" => actions = Some(strings(value).ok_or("Action")?),
                "Resource" if one_or_many(value).iter().all(|resource| **resource == "*") => has_resource = true,
                "Resource" => return Err("Resource"),
                "Condition" => conditions = Condition::parse(value).ok_or("Condition")?,
                _ => return Err("an element of another name"),
            }
        }
        let actions = actions.filter(|_| has_resource).unwrap_or_default();
        let actions: Vec<_> = actions.iter().map(|pattern| pattern.to_ascii_lowercase()).collect();
        if !actions.iter().all(|pattern| names_an_action(pattern)) {
            return Err("Action");
        }
        Ok(Statement {
            denies: denies.ok_or("Effect")?,
            principals: principals.ok_or("Principal")?,
            actions,
            conditions,
        })
    }

    fn matches(&self, principal: &Principal, action: &str, context: Option<&Context>) -> bool {
        let action = action.to_ascii_lowercase();
        let names_action = |pattern: &String| is_like(&action, pattern);
        self.principals.matches(principal)
            && self.actions.iter().any(names_action)
            && self.conditions.iter().all(|condition| condition.holds(context))
    }
}

impl Principals {
    fn parse(value: &Value) -> Option<Self> {
        let mut parsed = Principals::default();
        if value == "*" {
            parsed.anyone = true;
            return Some(parsed);
        }
        for (name, value) in value.as_object()? {
            for value in one_or_many(value) {
                match name.as_str() {
                    "uid" | "gid" if value == "*" => parsed.anyone = true,
                    "role" if value == "*" => parsed.any_role = true,
                    "uid" => parsed.uids.push(u32::try_from(value.as_u64()?).ok()?),
                    "gid" => parsed.gids.push(u32::try_from(value.as_u64()?).ok()?),
                    "role" => parsed.roles.push(value.as_str()?.to_owned()),
                    _ => return None,
                }
            }
        }
        let names_someone = parsed != Principals::default();
        names_someone.then_some(parsed)
    }

    fn matches(&self, principal: &Principal) -> bool {
        self.anyone
            || self.uids.contains(&principal.uid)
            || principal.gids.iter().any(|gid| self.gids.contains(gid))
            || !principal.role.is_empty() && (self.any_role || self.roles.contains(&principal.role))
    }
}

impl Condition {
    /// Parses all conditions of a statement.
    fn parse(value: &Value) -> Option<Vec<Self>> {
        let mut parsed = Vec::new();
        for (operator, pairs) in value.as_object()? {
            let like = match operator.as_str() {
                "StringEquals" => false,
                "StringLike" => true,
                _ => return None,
            };
            for (name, values) in pairs.as_object()? {
                parsed.push(Condition {
                    like,
                    name: name.strip_prefix(CONTEXT_PREFIX)?.to_owned(),
                    values: strings(values)?,
                });
            }
        }
        Some(parsed)
    }

    fn holds(&self, context: Option<&Context>) -> bool {
        let pairs = context.map_or(&[][..], Context::pairs);
        let Some((_, value)) = pairs.iter().find(|(name, _)| *name == self.name) else {
            return false;
        };
        self.values.iter().any(|wanted| {
            if self.like {
                is_like(value, wanted)
            } else {
                value == wanted
            }
        })
    }
}

/// Returns the elements of a list, or the one value that stands in its place.
fn one_or_many(value: &Value) -> Vec<&Value> {
    match value {
        Value::Array(values) => values.iter().collect(),
        value => vec![value],
    }
}

fn strings(value: &Value) -> Option<Vec<String>> {
    let values = one_or_many(value);
    values
        .into_iter()
        .map(|value| value.as_str().map(str::to_owned))
        .collect()
}

/// Tells whether a text fits a pattern, in which `*` is any characters and `?` any one.
fn is_like(text: &str, pattern: &str) -> bool {
    let (text, pattern): (Vec<char>, Vec<char>) = (text.chars().collect(), pattern.chars().collect());
    let (mut at, mut in_pattern) = (0, 0);
    // The last star, and how much of the text it has taken so far.
    let mut star = None;
    while at < text.len() {
        match pattern.get(in_pattern) {
            Some('*') => {
                star = Some((in_pattern, at));
                in_pattern += 1;
            }
            Some(&c) if c == '?' || c == text[at] => {
                at += 1;
                in_pattern += 1;
            }
            _ => match star {
                Some((star_at, taken)) => {
                    star = Some((star_at, taken + 1));
                    at = taken + 1;
                    in_pattern = star_at + 1;
                }
                None => return false,
            },
        }
    }
    pattern[in_pattern..].iter().all(|&c| c == '*')
}

/// JSON in which no object names something twice: which of the two counts would be a guess.
struct Strict(Value);

impl<'de> Deserialize<'de> for Strict {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> de::Visitor<'de> for Visitor {
            type Value = Strict;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("JSON without fractions")
            }

            fn visit_unit<E>(self) -> Result<Strict, E> {
                Ok(Strict(Value::Null))
            }

            fn visit_bool<E>(self, value: bool) -> Result<Strict, E> {
                Ok(Strict(value.into()))
            }

            fn visit_u64<E>(self, value: u64) -> Result<Strict, E> {
                Ok(Strict(value.into()))
            }

            fn visit_i64<E>(self, value: i64) -> Result<Strict, E> {
                Ok(Strict(value.into()))
            }

            fn visit_str<E>(self, value: &str) -> Result<Strict, E> {
                Ok(Strict(value.into()))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Strict, A::Error> {
                let mut values = Vec::new();
                while let Some(Strict(value)) = seq.next_element()? {
                    values.push(value);
                }
                Ok(Strict(Value::Array(values)))
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Strict, A::Error> {
                let mut values = Map::new();
                while let Some((name, Strict(value))) = map.next_entry::<String, Strict>()? {
                    if values.insert(name, value).is_some() {
                        return Err(de::Error::custom("named twice"));
                    }
                }
                Ok(Strict(Value::Object(values)))
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::ids::{Epoch, VaultId};

    fn user(uid: u32) -> Principal {
        Principal {
            uid,
            gids: vec![uid, 100],
            pid: 1,
            role: "laptop".into(),
        }
    }

    fn policy(statements: &str) -> Policy {
        Policy::parse(&format!(r#"{{"Version": "2012-10-17", "Statement": {statements}}}"#)).unwrap()
    }

    fn context() -> Context {
        Context::for_epoch(VaultId([0xAB; 16]), Epoch(1))
            .with("team", "blue")
            .unwrap()
    }

    #[test]
    fn the_default_allows_whoever_opened_the_keystore() {
        let default = Policy::parse("").unwrap();
        assert!(default.allows(&user(1), action::DECRYPT, Some(&context())));
        assert!(default.allows(&user(2), action::PUT_KEY_POLICY, None));
        assert_eq!(default, Policy::parse(DEFAULT_POLICY).unwrap());
    }

    #[test]
    fn what_no_statement_allows_is_denied_and_a_deny_goes_before_an_allow() {
        let one = policy(
            r#"[{"Sid": "use", "Effect": "Allow", "Principal": {"uid": [1, 2]}, "Action": ["kms:Decrypt", "kms:Generate*"], "Resource": "*"},
                {"Effect": "Deny", "Principal": {"uid": 2}, "Action": "*", "Resource": ["*"]}]"#,
        );
        assert!(one.allows(&user(1), action::DECRYPT, None));
        assert!(one.allows(&user(1), action::GENERATE_DATA_KEY, None));
        assert!(!one.allows(&user(1), action::ENCRYPT, None));
        assert!(!one.allows(&user(2), action::DECRYPT, None));
        assert!(!one.allows(&user(3), action::DECRYPT, None));
    }

    #[test]
    fn who_opened_no_slot_has_no_role_not_even_any() {
        let client = Principal {
            role: String::new(),
            ..user(1)
        };
        for principal in [r#"{"role": "*"}"#, r#"{"role": ""}"#, r#"{"role": ["laptop", "*"]}"#] {
            let policy = policy(&format!(
                r#"{{"Effect": "Allow", "Principal": {principal}, "Action": "kms:*", "Resource": "*"}}"#
            ));
            assert!(!policy.allows(&client, action::DECRYPT, None), "{principal}");
            assert_eq!(policy.allows(&user(1), action::DECRYPT, None), principal.contains('*'));
        }
    }

    #[test]
    fn a_denial_says_whether_it_is_explicit() {
        let one = policy(
            r#"[{"Effect": "Allow", "Principal": {"uid": [1, 2]}, "Action": "kms:Decrypt", "Resource": "*"},
                {"Effect": "Deny", "Principal": {"uid": 2}, "Action": "*", "Resource": "*"}]"#,
        );
        let decide = |uid| one.decide(&user(uid), action::DECRYPT, None);
        assert_eq!(
            (decide(1), decide(2), decide(3)),
            (Decision::Allowed, Decision::Denied, Decision::NotAllowed)
        );
    }

    #[test]
    fn a_principal_is_a_user_a_group_or_a_role() {
        let allowed = |principal: &str| {
            policy(&format!(
                r#"{{"Effect": "Allow", "Principal": {principal}, "Action": "kms:*", "Resource": "*"}}"#
            ))
            .allows(&user(1), action::DECRYPT, None)
        };
        for yes in [
            r#""*""#,
            r#"{"uid": 1}"#,
            r#"{"uid": "*"}"#,
            r#"{"gid": 100}"#,
            r#"{"role": "laptop"}"#,
            r#"{"uid": 7, "role": ["x", "laptop"]}"#,
        ] {
            assert!(allowed(yes), "{yes}");
        }
        for no in [r#"{"uid": 100}"#, r#"{"gid": [2, 3]}"#, r#"{"role": "Laptop"}"#] {
            assert!(!allowed(no), "{no}");
        }
    }

    #[test]
    fn actions_are_compared_without_case() {
        let one = policy(r#"{"Effect": "Allow", "Principal": "*", "Action": "kms:dec?ypt", "Resource": "*"}"#);
        assert!(one.allows(&user(1), action::DECRYPT, None));
    }

    #[test]
    fn a_statement_without_action_or_resource_says_nothing() {
        let one = policy(r#"{"Effect": "Allow", "Principal": "*", "Action": "kms:*"}"#);
        assert!(!one.allows(&user(1), action::DECRYPT, None));
        let one = policy(
            r#"[{"Effect": "Deny", "Principal": "*", "Resource": "*"},
                {"Effect": "Allow", "Principal": "*", "Action": "kms:*", "Resource": "*"}]"#,
        );
        assert!(one.allows(&user(1), action::DECRYPT, None));
    }

    #[test]
    fn conditions_are_on_the_encryption_context() {
        let allowed = |condition: &str, context: Option<&Context>| {
            policy(&format!(
                r#"{{"Effect": "Allow", "Principal": "*", "Action": "kms:*", "Resource": "*", "Condition": {condition}}}"#
            ))
            .allows(&user(1), action::DECRYPT, context)
        };
        let context = context();
        let equals = r#"{"StringEquals": {"kms:EncryptionContext:team": ["red", "blue"]}}"#;
        assert!(allowed(equals, Some(&context)));
        assert!(!allowed(equals, Some(&Context::default())));
        assert!(!allowed(equals, None), "an administration has no context");
        let like =
            r#"{"StringLike": {"kms:EncryptionContext:hushfs:vault": "abab*", "kms:EncryptionContext:team": "b??e"}}"#;
        assert!(allowed(like, Some(&context)));
        assert!(!allowed(
            r#"{"StringEquals": {"kms:EncryptionContext:team": "b*"}}"#,
            Some(&context)
        ));
        assert!(!allowed(
            r#"{"StringLike": {"kms:EncryptionContext:Team": "*"}}"#,
            Some(&context)
        ));
        let both = r#"{"StringLike": {"kms:EncryptionContext:team": "*"}, "StringEquals": {"kms:EncryptionContext:team": "red"}}"#;
        assert!(!allowed(both, Some(&context)));
    }

    #[test]
    fn each_fault_is_named() {
        let long = " ".repeat(POLICY_LEN_MAX + 1);
        assert_eq!(Policy::parse(&long), Err(PolicyError::TooLong(POLICY_LEN_MAX + 1)));
        let syntax = |text: &str| Policy::parse(text).unwrap_err();
        assert_eq!(syntax("{\n \"a\" 1}"), PolicyError::Syntax { line: 2, column: 6 });
        assert!(matches!(
            syntax(r#"{"Id": "a", "Id": "b"}"#),
            PolicyError::Syntax { .. }
        ));
        assert!(matches!(syntax("1.5"), PolicyError::Syntax { .. }));
        for (text, element) in [
            ("[]", "the whole"),
            (r#"{"Version": "2008-10-17", "Statement": []}"#, "Version"),
            (r#"{"Statement": []}"#, "Statement"),
            (r#"{"Version": "2012-10-17"}"#, "Statement"),
            (r#"{"Statements": []}"#, "an element of another name"),
        ] {
            assert_eq!(syntax(text), PolicyError::Document { element }, "{text}");
        }
        let good = r#""Principal": "*", "Action": "kms:*", "Resource": "*""#;
        let allow = r#""Effect": "Allow""#;
        for (fields, element) in [
            (good.to_owned(), "Effect"),
            (format!(r#""Effect": "allow", {good}"#), "Effect"),
            (format!(r#"{allow}, "Action": "kms:*", "Resource": "*""#), "Principal"),
            (
                format!(r#"{allow}, {good}, "NotAction": "kms:*""#),
                "an element of another name",
            ),
            (
                format!(r#"{allow}, "Principal": {{"AWS": "*"}}, "Action": "*""#),
                "Principal",
            ),
            (format!(r#"{allow}, "Principal": {{}}, "Action": "*""#), "Principal"),
            (
                format!(r#"{allow}, "Principal": {{"uid": -1}}, "Action": "*""#),
                "Principal",
            ),
            (format!(r#"{allow}, "Principal": "*", "Action": 1"#), "Action"),
            (
                format!(r#"{allow}, "Principal": "*", "Action": "s3:Get*", "Resource": "*""#),
                "Action",
            ),
            (
                format!(r#"{allow}, "Principal": "*", "Action": ["kms:Decrypt", "kms:Decrpyt"], "Resource": "*""#),
                "Action",
            ),
            (format!(r#"{allow}, "Principal": "*", "Resource": "arn:x""#), "Resource"),
            (
                format!(r#"{allow}, {good}, "Condition": {{"Bool": {{}}}}"#),
                "Condition",
            ),
            (
                format!(r#"{allow}, {good}, "Condition": {{"StringLike": {{"aws:SourceIp": "*"}}}}"#),
                "Condition",
            ),
        ] {
            let text = format!(r#"{{"Statement": [{{{allow}, {good}}}, {{{fields}}}]}}"#);
            assert_eq!(
                Policy::parse(&text),
                Err(PolicyError::Statement { number: 2, element }),
                "{text}"
            );
        }
    }

    proptest! {
        #[test]
        fn any_text_is_a_policy_or_an_error(text in "[\\[\\]{}\":,a-zA-Z0-9* ]{0,80}") {
            let _ = Policy::parse(&text);
            let statement = format!(r#"{{"Statement": [{{"Effect": "Allow", "Principal": {text}}}]}}"#);
            let _ = Policy::parse(&statement);
        }

        #[test]
        fn a_text_is_like_itself_and_like_its_ends(text in "[ab*?]{0,12}", cut in 0..12usize) {
            let cut = cut.min(text.len());
            prop_assert!(is_like(&text, &text));
            let pattern = format!("{}*{}", &text[..cut], &text[cut..]);
            prop_assert!(is_like(&text, &pattern));
        }
    }

    #[test]
    fn patterns_have_stars_and_question_marks() {
        for (text, pattern, fits) in [
            ("", "", true),
            ("", "*", true),
            ("", "?", false),
            ("abc", "a*c", true),
            ("abc", "a*b", false),
            ("aXbXc", "a*b*c", true),
            ("abcabd", "*abd", true),
            ("ä", "?", true),
            ("ab", "abc", false),
            ("abc", "ab", false),
        ] {
            assert_eq!(is_like(text, pattern), fits, "{text} {pattern}");
        }
    }
}
