//! What can be asked of a keystore about its keys, as data: so the command line asks a keystore that is open in its process, and one
//! that an agent holds, in the same words.
//!
//! No answer has a secret in it, wrapped or not.

use serde::{Deserialize, Serialize};

use super::{
    custodian::KeyHandle,
    local::{KeystoreError, LocalKeystore, NewKey, Reaped, RotationStatus},
    policy::action,
};
use crate::{
    format::keystore::{
        Alias, KeyRecord, KeyState, LastUse, Manager, Material, MaterialCause, MaterialVersion, RemoteKeyName, Tag,
        VaultKey, VaultRecord,
    },
    ids::KeyId,
};

/// A question, which changes nothing. A key is named by its id, an alias or an ARN.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Question {
    /// Which key is it?
    Find { key: String },
    /// Which keys are there?
    Keys,
    /// Which aliases?
    Aliases,
    /// What is known of a key?
    Describe { key: String },
    /// When does it rotate by itself?
    Rotation { key: String },
    /// Which versions has it?
    Versions { key: String },
    /// Which vaults need it?
    Usage { key: String },
    /// What is its policy?
    Policy { key: String },
}

/// The answer to a [`Question`], of the same name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Answer {
    Find(KeyId),
    Keys(Vec<KeyView>),
    Aliases(Vec<Alias>),
    Describe(Box<Description>),
    Rotation(KeyId, RotationStatus),
    Versions(KeyId, Vec<VersionView>),
    Usage(Box<Usage>),
    /// Empty where nothing but the default of all holds.
    Policy(String),
}

/// A change of keys.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Change {
    Create {
        description: String,
        tags: Vec<(String, String)>,
        alias: Option<String>,
        remote: Option<RemoteKeyName>,
    },
    Enable {
        key: String,
    },
    Disable {
        key: String,
    },
    Rotate {
        key: String,
    },
    RotationOn {
        key: String,
        days: u64,
    },
    RotationOff {
        key: String,
    },
    Tag {
        key: String,
        tags: Vec<(String, String)>,
    },
    Untag {
        key: String,
        names: Vec<String>,
    },
    SetDescription {
        key: String,
        description: String,
    },
    Delete {
        key: String,
        days: u64,
    },
    Undelete {
        key: String,
    },
    SetAlias {
        alias: String,
        key: String,
    },
    RemoveAlias {
        alias: String,
    },
    SetPolicy {
        key: String,
        /// Empty for the default.
        policy: String,
        /// Also if who sets it could not change it again.
        lockout: bool,
    },
    /// Destroys the keys whose time has come.
    Reap,
}

/// What a [`Change`] has made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Changed {
    /// Nothing that has to be told.
    Done,
    /// This key.
    Key(KeyId),
    /// This version of a key.
    Version(KeyId, MaterialVersion),
    /// This key can be destroyed from this time on; the vaults need it as far as is known.
    Deletion(KeyId, u64, Vec<NeedView>),
    /// These keys are no more.
    Reaped(Vec<Reaped>),
}

/// A key, as it is listed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyView {
    pub id: KeyId,
    pub manager: Manager,
    pub remote: Option<RemoteKeyName>,
    pub state: KeyState,
    pub created: u64,
    pub description: String,
    pub tags: Vec<Tag>,
    pub aliases: Vec<String>,
    /// Whether it has a policy of its own.
    pub has_policy: bool,
    pub last_use: Option<LastUse>,
    /// How many versions it has.
    pub versions: u64,
    pub newest: Option<VersionView>,
}

/// A version of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VersionView {
    pub version: MaterialVersion,
    pub id: [u8; 32],
    pub created: u64,
    pub cause: MaterialCause,
}

/// All that is known of a key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Description {
    pub key: KeyView,
    pub arn: String,
    pub rotation: Result<RotationStatus, KeystoreError>,
    /// What who holds a remote key says of it.
    pub holder: Result<(), KeystoreError>,
}

/// Who needs a key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    pub key: KeyId,
    pub last_use: Option<LastUse>,
    pub vaults: Vec<NeedView>,
}

/// A vault that needs a key, and what for. Of the other keys of the vault nothing is told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NeedView {
    pub vault: VaultRecord,
    pub need: VaultKey,
}

impl From<&Material> for VersionView {
    fn from(material: &Material) -> Self {
        VersionView {
            version: material.version,
            id: material.id,
            created: material.created,
            cause: material.cause,
        }
    }
}

impl Change {
    /// Tells whether no policy of a key speaks of it: then it is for who owns the keystore.
    pub fn is_owners(&self) -> bool {
        matches!(self, Change::Create { .. } | Change::Reap)
    }

    /// Returns the name that cloud key services have for it.
    pub fn name(&self) -> &'static str {
        match self {
            Change::Create { .. } => "CreateKey",
            Change::Enable { .. } => "EnableKey",
            Change::Disable { .. } => "DisableKey",
            Change::Rotate { .. } => "RotateKeyOnDemand",
            Change::RotationOn { .. } => "EnableKeyRotation",
            Change::RotationOff { .. } => "DisableKeyRotation",
            Change::Tag { .. } => "TagResource",
            Change::Untag { .. } => "UntagResource",
            Change::SetDescription { .. } => "UpdateKeyDescription",
            Change::Delete { .. } => "ScheduleKeyDeletion",
            Change::Undelete { .. } => "CancelKeyDeletion",
            Change::SetAlias { .. } => "UpdateAlias",
            Change::RemoveAlias { .. } => "DeleteAlias",
            Change::SetPolicy { .. } => "PutKeyPolicy",
            Change::Reap => "DeleteKey",
        }
    }
}

impl Question {
    /// Returns the name that cloud key services have for it.
    pub fn name(&self) -> &'static str {
        match self {
            Question::Find { .. } | Question::Describe { .. } => "DescribeKey",
            Question::Keys => "ListKeys",
            Question::Aliases => "ListAliases",
            Question::Rotation { .. } => "GetKeyRotationStatus",
            Question::Versions { .. } => "ListKeyRotations",
            Question::Usage { .. } => "GetKeyLastUsage",
            Question::Policy { .. } => "GetKeyPolicy",
        }
    }
}

impl LocalKeystore {
    /// Answers a question.
    ///
    /// # Errors
    ///
    /// The [`KeystoreError`] of a key that is not there, or that who asks may not look at.
    pub fn answer(&self, question: &Question) -> Result<Answer, KeystoreError> {
        Ok(match question {
            Question::Find { key } => {
                let key = self.find_key(key)?;
                Answer::Find(self.describe(&key)?.id)
            }
            Question::Keys => Answer::Keys(self.keys().iter().map(|key| self.view(key)).collect()),
            Question::Aliases => Answer::Aliases(self.aliases().to_vec()),
            Question::Describe { key } => {
                let key = self.find_key(key)?;
                Answer::Describe(Box::new(Description {
                    key: self.view(self.describe(&key)?),
                    arn: self.arn(key.0),
                    rotation: self.rotation_status(&key),
                    holder: self.ask_holder(&key),
                }))
            }
            Question::Rotation { key } => {
                let key = self.find_key(key)?;
                Answer::Rotation(key.0, self.rotation_status(&key)?)
            }
            Question::Versions { key } => {
                let key = self.find_key(key)?;
                let materials = self.rotations(&key)?.iter();
                Answer::Versions(key.0, materials.map(VersionView::from).collect())
            }
            Question::Usage { key } => {
                let key = self.find_key(key)?;
                let vaults = self.needs(&key)?;
                let record = self.keys().iter().find(|record| record.id == key.0);
                Answer::Usage(Box::new(Usage {
                    key: key.0,
                    last_use: record.and_then(|record| record.last_use),
                    vaults,
                }))
            }
            Question::Policy { key } => Answer::Policy(self.policy(&self.find_key(key)?)?.to_owned()),
        })
    }

    /// Carries out a change.
    ///
    /// # Errors
    ///
    /// The [`KeystoreError`] that says why not; nothing is changed then.
    pub fn carry_out(&mut self, change: &Change, now: u64) -> Result<Changed, KeystoreError> {
        match change {
            Change::Create {
                description,
                tags,
                alias,
                remote,
            } => {
                let new = NewKey {
                    description,
                    tags,
                    alias: alias.as_deref(),
                    remote: remote.clone(),
                };
                return Ok(Changed::Key(self.create_key(&new, now)?.0));
            }
            Change::Enable { key } => self.enable(&self.find_key(key)?)?,
            Change::Disable { key } => self.disable(&self.find_key(key)?)?,
            Change::Rotate { key } => {
                let key = self.find_key(key)?;
                return Ok(Changed::Version(key.0, self.rotate_on_demand(&key, now)?));
            }
            Change::RotationOn { key, days } => self.enable_rotation(&self.find_key(key)?, *days, now)?,
            Change::RotationOff { key } => self.disable_rotation(&self.find_key(key)?)?,
            Change::Tag { key, tags } => self.tag(&self.find_key(key)?, tags)?,
            Change::Untag { key, names } => self.untag(&self.find_key(key)?, names)?,
            Change::SetDescription { key, description } => self.set_description(&self.find_key(key)?, description)?,
            Change::Delete { key, days } => {
                let key = self.find_key(key)?;
                let date = self.schedule_deletion(&key, *days, now)?;
                // Who may delete a key need not be one who may look at its uses.
                let needs = self.needs(&key).unwrap_or_default();
                return Ok(Changed::Deletion(key.0, date, needs));
            }
            Change::Undelete { key } => {
                let key = self.find_key(key)?;
                self.cancel_deletion(&key)?;
                return Ok(Changed::Key(key.0));
            }
            Change::SetAlias { alias, key } => self.set_alias(alias, &self.find_key(key)?)?,
            Change::RemoveAlias { alias } => self.remove_alias(alias)?,
            Change::SetPolicy { key, policy, lockout } => self.put_policy(&self.find_key(key)?, policy, *lockout)?,
            Change::Reap => return Ok(Changed::Reaped(self.reap(now)?)),
        }
        Ok(Changed::Done)
    }

    /// Tells whether who asks may know of a key.
    pub fn shows(&self, key: KeyId) -> bool {
        self.check_allowed(&KeyHandle(key), action::DESCRIBE_KEY).is_ok()
    }

    fn view(&self, key: &KeyRecord) -> KeyView {
        KeyView {
            id: key.id,
            manager: key.manager,
            remote: key.remote.clone(),
            state: key.state,
            created: key.created,
            description: key.description.clone(),
            tags: key.tags.clone(),
            aliases: self.aliases_of(key.id).map(str::to_owned).collect(),
            has_policy: !key.policy.is_empty(),
            last_use: key.last_use,
            versions: key.materials.len() as u64,
            newest: key.materials.last().map(VersionView::from),
        }
    }

    fn needs(&self, key: &KeyHandle) -> Result<Vec<NeedView>, KeystoreError> {
        let needs = self.usage(key)?.into_iter().map(|(vault, need)| NeedView {
            vault: VaultRecord {
                keys: vec![need],
                ..vault.clone()
            },
            need,
        });
        Ok(needs.collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keystore::{NewSecret, Principal, slot::tests::key_file};

    fn keystore() -> LocalKeystore {
        let file = key_file(1);
        LocalKeystore::create("stick", &NewSecret::KeyFile(&file), 1).unwrap()
    }

    fn create(keystore: &mut LocalKeystore) -> String {
        let create = Change::Create {
            description: "mail".into(),
            tags: vec![("team".into(), "blue".into())],
            alias: Some("alias/mail".into()),
            remote: None,
        };
        match keystore.carry_out(&create, 5).unwrap() {
            Changed::Key(key) => key.to_hex(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_change_is_carried_out_and_a_question_answered() {
        let mut keystore = keystore();
        let id = create(&mut keystore);
        let key = || "alias/mail".to_owned();
        for change in [
            Change::Disable { key: key() },
            Change::Enable { key: key() },
            Change::RotationOn { key: key(), days: 90 },
            Change::Untag {
                key: key(),
                names: vec!["team".into()],
            },
        ] {
            assert_eq!(keystore.carry_out(&change, 6), Ok(Changed::Done), "{change:?}");
        }
        let version = keystore.carry_out(&Change::Rotate { key: key() }, 6).unwrap();
        assert!(matches!(version, Changed::Version(_, MaterialVersion(2))));
        let Answer::Describe(described) = keystore.answer(&Question::Describe { key: id.clone() }).unwrap() else {
            panic!()
        };
        assert_eq!((described.key.versions, described.key.tags.len()), (2, 0));
        assert_eq!(described.rotation.unwrap().period_days, Some(90));
        assert_eq!(described.key.aliases, ["alias/mail"]);
    }

    #[test]
    fn who_asks_decides_what_a_keystore_answers() {
        let mut keystore = keystore();
        let id = create(&mut keystore);
        keystore.set_default_policy(
            r#"{"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Principal": {"uid": 7}, "Action": "kms:*", "Resource": "*"}]}"#,
        );
        let user = |uid| Principal {
            uid,
            ..Principal::default()
        };
        let question = Question::Describe { key: id };
        assert!(keystore.asked_by(user(7)).answer(&question).is_ok());
        let refused = keystore.asked_by(user(8)).answer(&question).unwrap_err();
        assert_eq!(refused.aws_name(), Some("AccessDeniedException"));
        let key = keystore.find_key("alias/mail").unwrap();
        assert!(keystore.asked_by(user(7)).shows(key.0) && !keystore.asked_by(user(8)).shows(key.0));
    }

    #[test]
    fn what_is_asked_of_a_copy_does_not_change_the_keystore() {
        let mut keystore = keystore();
        create(&mut keystore);
        let mut copy = keystore.asked_by(Principal::default());
        let disable = Change::Disable {
            key: "alias/mail".into(),
        };
        copy.carry_out(&disable, 9).unwrap();
        let key = keystore.find_key("alias/mail").unwrap();
        assert_eq!(keystore.describe(&key).unwrap().state, KeyState::Enabled);
    }
}
