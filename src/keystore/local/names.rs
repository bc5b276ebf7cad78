//! The names of keys: ids, aliases, and ARNs as cloud key services have them.

use super::{KeystoreError, LocalKeystore, keys::Allowed};
use crate::{
    format::keystore::{ALIASES_MAX, Alias},
    ids::KeyId,
    keystore::{custodian::KeyHandle, policy::action},
};

/// What every alias starts with.
const ALIAS_PREFIX: &str = "alias/";

/// What aliases start with that users do not make.
const ALIAS_RESERVED_PREFIX: &str = "alias/hushfs/";

/// What aliases start with that AWS keeps for its own: nobody is to take one here for the key of a service there.
const ALIAS_OF_AWS_PREFIX: &str = "alias/aws/";

/// The most bytes an alias has.
const ALIAS_LEN_MAX: usize = 256;

impl LocalKeystore {
    /// Finds a key by its id, an alias, or the ARN of either.
    ///
    /// # Errors
    ///
    /// [`KeystoreError::NoSuchKey`], [`KeystoreError::NoSuchAlias`], [`KeystoreError::NotAnArn`].
    pub fn find_key(&self, name: &str) -> Result<KeyHandle, KeystoreError> {
        let not_an_arn = || KeystoreError::NotAnArn { text: name.to_owned() };
        let resource = match name.strip_prefix("arn:") {
            // An ARN names its keystore, so that one of another is never taken for one of this.
            Some(_) => name.strip_prefix(&self.arn_prefix()).ok_or_else(not_an_arn)?,
            None => name,
        };
        if resource.starts_with(ALIAS_PREFIX) {
            return self.key_of_alias(resource).ok_or_else(|| KeystoreError::NoSuchAlias {
                name: resource.to_owned(),
            });
        }
        let id = match (resource.strip_prefix("key/"), resource == name) {
            (Some(id), false) => id,
            (None, true) => resource,
            _ => return Err(not_an_arn()),
        };
        let found = self.body.keys.iter().find(|key| key.id.to_hex() == id);
        found
            .map(|key| KeyHandle(key.id))
            .ok_or_else(|| KeystoreError::NoSuchKey { name: name.to_owned() })
    }

    /// Returns the ARN of a key.
    pub fn arn(&self, key: KeyId) -> String {
        format!("{}key/{key}", self.arn_prefix())
    }

    /// Returns what the ARNs of this keystore's keys start with.
    pub fn arn_prefix(&self) -> String {
        format!("arn:hushfs:kms:local:{}:", self.body.id)
    }

    /// Returns the aliases, by rising name.
    pub fn aliases(&self) -> &[Alias] {
        &self.body.aliases
    }

    /// Returns the aliases of a key, by rising name.
    pub fn aliases_of(&self, key: KeyId) -> impl Iterator<Item = &str> {
        let of_key = self.body.aliases.iter().filter(move |alias| alias.key == key);
        of_key.map(|alias| alias.name.as_str())
    }

    /// Returns the key that an alias stands for.
    pub fn key_of_alias(&self, name: &str) -> Option<KeyHandle> {
        let at = self.alias_index(name).ok()?;
        Some(KeyHandle(self.body.aliases[at].key))
    }

    /// Makes an alias, or moves it from the key it stands for to another. What is wrapped already names its key and stays as it is.
    ///
    /// # Errors
    ///
    /// [`KeystoreError::InvalidAlias`], [`KeystoreError::ReservedAlias`], [`KeystoreError::TooManyAliases`];
    /// [`KeyError::PendingDeletion`](super::KeyError::PendingDeletion) of the key it shall stand for; what the policy of either key gives.
    pub fn set_alias(&mut self, name: &str, key: &KeyHandle) -> Result<(), KeystoreError> {
        check_alias_to_make(name)?;
        let existing = self.alias_index(name);
        let action = if existing.is_ok() {
            action::UPDATE_ALIAS
        } else {
            action::CREATE_ALIAS
        };
        let id = self.administer(key, action, Allowed::NotPending)?.id;
        match existing {
            Ok(at) => {
                let before = KeyHandle(self.body.aliases[at].key);
                self.consult(&before, action)?;
                self.body.aliases[at].key = id;
            }
            Err(_) if self.body.aliases.len() >= ALIASES_MAX => return Err(KeystoreError::TooManyAliases),
            Err(_) => self.insert_alias(name, id),
        }
        Ok(())
    }

    /// Removes an alias. The key stays as it is.
    ///
    /// # Errors
    ///
    /// [`KeystoreError::NoSuchAlias`], [`KeystoreError::ReservedAlias`], what the key's policy gives.
    pub fn remove_alias(&mut self, name: &str) -> Result<(), KeystoreError> {
        check_alias(name)?;
        let at = self
            .alias_index(name)
            .map_err(|_| KeystoreError::NoSuchAlias { name: name.to_owned() })?;
        self.consult(&KeyHandle(self.body.aliases[at].key), action::DELETE_ALIAS)?;
        self.body.aliases.remove(at);
        Ok(())
    }

    /// Makes sure that an alias can be made.
    pub(super) fn check_new_alias(&self, name: &str) -> Result<(), KeystoreError> {
        check_alias_to_make(name)?;
        if let Some(KeyHandle(key)) = self.key_of_alias(name) {
            let name = name.to_owned();
            return Err(KeystoreError::AliasTaken { name, key });
        }
        if self.body.aliases.len() >= ALIASES_MAX {
            return Err(KeystoreError::TooManyAliases);
        }
        Ok(())
    }

    /// Puts an alias that there is not among the others.
    pub(super) fn insert_alias(&mut self, name: &str, key: KeyId) {
        let at = self.body.aliases.partition_point(|alias| alias.name.as_str() < name);
        let name = name.to_owned();
        self.body.aliases.insert(at, Alias { name, key });
    }

    fn alias_index(&self, name: &str) -> Result<usize, usize> {
        self.body
            .aliases
            .binary_search_by(|alias| alias.name.as_str().cmp(name))
    }
}

/// Makes sure that a name is one that users may give a key.
fn check_alias(name: &str) -> Result<(), KeystoreError> {
    let is_allowed = |c: u8| c.is_ascii_alphanumeric() || b":/_-".contains(&c);
    let rest = name.strip_prefix(ALIAS_PREFIX).filter(|rest| !rest.is_empty());
    if name.len() > ALIAS_LEN_MAX || !rest.is_some_and(|rest| rest.bytes().all(is_allowed)) {
        return Err(KeystoreError::InvalidAlias { name: name.to_owned() });
    }
    if name.starts_with(ALIAS_RESERVED_PREFIX) {
        return Err(KeystoreError::ReservedAlias { name: name.to_owned() });
    }
    Ok(())
}

/// Makes sure that a name is one that users may give a key from now on.
fn check_alias_to_make(name: &str) -> Result<(), KeystoreError> {
    check_alias(name)?;
    if name.starts_with(ALIAS_OF_AWS_PREFIX) {
        return Err(KeystoreError::ReservedAlias { name: name.to_owned() });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{
        super::{
            DEFAULT_ALIAS, KeyError, NewKey,
            tests::{default_key, keystore},
        },
        *,
    };

    fn name<T: std::fmt::Debug>(result: Result<T, KeystoreError>) -> &'static str {
        result.unwrap_err().aws_name().unwrap()
    }

    #[test]
    fn a_key_is_found_by_id_alias_and_arn() {
        let mut keystore = keystore();
        let key = keystore.create_key(&NewKey::default(), 1).unwrap();
        keystore.set_alias("alias/mail", &key).unwrap();
        let arn = keystore.arn(key.0);
        assert_eq!(arn, format!("arn:hushfs:kms:local:{}:key/{key}", keystore.id()));
        let alias_arn = arn.replace(&format!("key/{key}"), "alias/mail");
        for good in [&key.to_string(), "alias/mail", &arn, &alias_arn] {
            assert_eq!(keystore.find_key(good), Ok(key), "{good}");
        }
        assert_eq!(keystore.find_key(DEFAULT_ALIAS), Ok(default_key(&keystore)));
        let other_keystore = arn.replace(&keystore.id().to_hex(), &"00".repeat(16));
        for (wrong, aws_name) in [
            ("", "NotFoundException"),
            ("alias/none", "NotFoundException"),
            (&"00".repeat(16), "NotFoundException"),
            (&key.to_string()[..31], "NotFoundException"),
            (&arn[..arn.len() - 1], "NotFoundException"),
            (&other_keystore, "InvalidArnException"),
            ("arn:aws:kms:eu-central-1:111122223333:key/1", "InvalidArnException"),
            (&arn.replace("key/", "grant/"), "InvalidArnException"),
            (&arn.replace("key/", ""), "InvalidArnException"),
        ] {
            assert_eq!(name(keystore.find_key(wrong)), aws_name, "{wrong}");
        }
    }

    #[test]
    fn an_alias_has_a_form() {
        let mut keystore = keystore();
        let key = keystore.create_key(&NewKey::default(), 1).unwrap();
        let longest = format!("alias/{}", "x".repeat(250));
        for good in ["alias/a", "alias/A:b/c_d-9", &longest] {
            assert_eq!(keystore.set_alias(good, &key), Ok(()), "{good}");
        }
        let too_long = format!("{longest}x");
        for wrong in [
            "",
            "alias",
            "alias/",
            "mail",
            "alias/a b",
            "alias/ä",
            "Alias/a",
            &too_long,
            "alias/hushfs/mine",
        ] {
            assert_eq!(
                name(keystore.set_alias(wrong, &key)),
                "InvalidAliasNameException",
                "{wrong}"
            );
            assert_eq!(
                name(keystore.remove_alias(wrong)),
                "InvalidAliasNameException",
                "{wrong}"
            );
        }
        assert_eq!(name(keystore.remove_alias(DEFAULT_ALIAS)), "InvalidAliasNameException");
        // One that is there from before can go.
        assert_eq!(
            name(keystore.set_alias("alias/aws/s3", &key)),
            "InvalidAliasNameException"
        );
        assert_eq!(name(keystore.remove_alias("alias/aws/s3")), "NotFoundException");
        assert!(keystore.encode(1).is_ok());
    }

    #[test]
    fn an_alias_moves_and_goes_and_the_keys_stay() {
        let mut keystore = keystore();
        let one = keystore.create_key(&NewKey::default(), 1).unwrap();
        let two = keystore.create_key(&NewKey::default(), 1).unwrap();
        keystore.set_alias("alias/b", &one).unwrap();
        keystore.set_alias("alias/a", &one).unwrap();
        keystore.set_alias("alias/b", &two).unwrap();
        assert_eq!(keystore.aliases_of(one.0).collect::<Vec<_>>(), ["alias/a"]);
        assert_eq!(keystore.aliases_of(two.0).collect::<Vec<_>>(), ["alias/b"]);
        keystore.remove_alias("alias/a").unwrap();
        assert_eq!(name(keystore.remove_alias("alias/a")), "NotFoundException");
        assert_eq!(keystore.keys().len(), 3);
        let taken = NewKey {
            alias: Some("alias/b"),
            ..NewKey::default()
        };
        assert_eq!(name(keystore.create_key(&taken, 1)), "AlreadyExistsException");
        assert_eq!(keystore.keys().len(), 3, "nothing was made");
    }

    #[test]
    fn an_alias_moves_away_from_a_key_that_is_pending_deletion_but_not_to_one() {
        let mut keystore = keystore();
        let (going, staying) = (
            keystore.create_key(&NewKey::default(), 1).unwrap(),
            keystore.create_key(&NewKey::default(), 1).unwrap(),
        );
        keystore.set_alias("alias/a", &going).unwrap();
        keystore.set_alias("alias/b", &going).unwrap();
        keystore.schedule_deletion(&going, 7, 1).unwrap();
        let pending = Err(KeystoreError::Key(KeyError::PendingDeletion { key: going.0 }));
        assert_eq!(keystore.set_alias("alias/new", &going), pending);
        assert_eq!(keystore.set_alias("alias/a", &going), pending);
        assert_eq!(keystore.set_alias("alias/a", &staying), Ok(()));
        assert_eq!(keystore.remove_alias("alias/b"), Ok(()));
    }

    #[test]
    fn aliases_have_a_limit() {
        let mut keystore = keystore();
        let key = keystore.create_key(&NewKey::default(), 1).unwrap();
        for i in 1..ALIASES_MAX {
            keystore.set_alias(&format!("alias/{i:04}"), &key).unwrap();
        }
        assert_eq!(name(keystore.set_alias("alias/more", &key)), "LimitExceededException");
        assert_eq!(keystore.set_alias("alias/0001", &key), Ok(()));
        assert!(keystore.encode(1).is_ok());
    }
}
