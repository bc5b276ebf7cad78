//! Credentials: found where AWS's own tools look for them and in their order, kept until shortly before they expire.

use std::{
    path::PathBuf,
    time::{Duration, SystemTime},
};

use aws_credential_types::Credentials;
use aws_smithy_types::date_time::{DateTime, Format};
use parking_lot::Mutex;
use serde::Deserialize;
use zeroize::Zeroizing;

use super::{
    client::{Client, Signer},
    endpoint::{Endpoint, Endpoints, Region, Service},
    error::AwsError,
    metadata, process,
    settings::{Environment, Profiles, Section},
    sts::{self, Role},
};

/// Credentials are asked for anew when they are good for less than this.
const REFRESH_BEFORE: Duration = Duration::from_secs(5 * 60);

/// How many profiles may refer to each other.
const PROFILE_DEPTH_MAX: usize = 8;

/// Where credentials come from, and those that were found last.
#[derive(Debug)]
pub struct CredentialCache {
    environment: Environment,
    /// Held while credentials are looked for: who else wants some then waits for the same.
    found: Mutex<Option<Credentials>>,
}

impl CredentialCache {
    /// Makes an empty cache.
    pub fn new(environment: Environment) -> Self {
        CredentialCache {
            environment,
            found: Mutex::new(None),
        }
    }

    /// Returns where credentials are looked for.
    pub fn environment(&self) -> &Environment {
        &self.environment
    }

    /// Returns credentials that are not about to expire; other ones than `refused`, if there are.
    ///
    /// # Errors
    ///
    /// The [`AwsError`] of the first source that has something to give and cannot; [`AwsError::NoCredentials`] when none has.
    pub fn credentials(&self, at: &Whereabouts<'_>, refused: Option<&Credentials>) -> Result<Credentials, AwsError> {
        let mut found = self.found.lock();
        let now = SystemTime::now();
        let good_for = |credentials: &Credentials, time| credentials.expiry().is_none_or(|expiry| expiry > now + time);
        let kept = found.as_ref().filter(|kept| Some(*kept) != refused);
        if let Some(kept) = kept.filter(|kept| good_for(kept, REFRESH_BEFORE)) {
            return Ok(kept.clone());
        }
        match self.look(at) {
            Ok(fresh) => Ok(found.insert(fresh).clone()),
            // They are good still: whoever gives them has as long to come back.
            Err(error) => match kept.filter(|kept| good_for(kept, Duration::ZERO)) {
                Some(kept) => {
                    log::warn!("AWS credentials expire soon and there are no new ones: {error}");
                    Ok(kept.clone())
                }
                None => Err(error),
            },
        }
    }

    /// Looks for credentials in every source.
    fn look(&self, at: &Whereabouts<'_>) -> Result<Credentials, AwsError> {
        let environment = &self.environment;
        if let Some(found) = of_environment(environment)? {
            return Ok(found);
        }
        // Read anew each time: other programs write new credentials there.
        let profiles = Profiles::load(environment)?;
        let (name, profile, named) = profiles.chosen();
        let chain = Chain {
            environment,
            profiles: &profiles,
            at,
        };
        if let Some(profile) = profile
            && let Some(found) = chain.of_profile(name, profile, PROFILE_DEPTH_MAX)?
        {
            return Ok(found);
        }
        if named {
            return Err(AwsError::BadCredentials {
                source: "the AWS profile that AWS_PROFILE names",
                problem: "are missing",
            });
        }
        if let (Some(token_file), Some(role)) = (
            environment.text("AWS_WEB_IDENTITY_TOKEN_FILE")?,
            environment.text("AWS_ROLE_ARN")?,
        ) {
            let role = Role {
                session: environment.text("AWS_ROLE_SESSION_NAME")?,
                ..Role::new(role)
            };
            return sts::assume_with_token(at.client, &at.sts(), &role, &PathBuf::from(token_file));
        }
        if let Some(found) = metadata::of_container(at.client, environment)? {
            return Ok(found);
        }
        metadata::of_instance(at.client, environment).map_err(|error| AwsError::NoCredentials {
            last: error.map(Box::new),
        })
    }
}

/// What sources of credentials that ask a server need to know.
#[derive(Clone, Copy, Debug)]
pub struct Whereabouts<'a> {
    pub client: &'a Client,
    pub endpoints: &'a Endpoints,
    /// The region of the key that the credentials are for.
    pub region: &'a Region,
}

impl Whereabouts<'_> {
    fn sts(&self) -> Endpoint {
        self.endpoints.of(Service::Sts, &self.endpoints.region_or(self.region))
    }
}

/// A cache that signs for a region.
#[derive(Clone, Copy, Debug)]
pub struct CachedSigner<'a> {
    pub cache: &'a CredentialCache,
    pub at: Whereabouts<'a>,
}

impl Signer for CachedSigner<'_> {
    fn credentials(&self, refused: Option<&Credentials>) -> Result<Option<Credentials>, AwsError> {
        self.cache.credentials(&self.at, refused).map(Some)
    }
}

/// The profiles, followed from one to the next.
struct Chain<'a> {
    environment: &'a Environment,
    profiles: &'a Profiles,
    at: &'a Whereabouts<'a>,
}

impl Chain<'_> {
    /// Returns the credentials of a profile; none when it says nothing about credentials.
    fn of_profile(&self, name: &str, profile: &Section, depth: usize) -> Result<Option<Credentials>, AwsError> {
        let unsupported = |what| AwsError::Unsupported {
            profile: name.to_owned(),
            what,
        };
        if let Some(role) = profile.get("role_arn") {
            let role = Role {
                session: profile.get("role_session_name").map(|name| name.to_string()),
                external_id: profile.get("external_id").map(|id| id.to_string()),
                seconds: profile.get("duration_seconds").map(|seconds| seconds.to_string()),
                ..Role::new(role.to_string())
            };
            if let Some(file) = profile.get("web_identity_token_file") {
                let file = PathBuf::from(file.as_str());
                return sts::assume_with_token(self.at.client, &self.at.sts(), &role, &file).map(Some);
            }
            if profile.contains_key("mfa_serial") {
                return Err(unsupported("multi-factor authentication"));
            }
            let source = self.source_of(name, profile, depth)?;
            return sts::assume(self.at.client, &self.at.sts(), &role, source).map(Some);
        }
        if profile.contains_key("sso_session") || profile.contains_key("sso_start_url") {
            return Err(unsupported("IAM Identity Center (SSO)"));
        }
        if profile.contains_key("login_session") {
            return Err(unsupported("a console login"));
        }
        if let Some(found) = of_section(profile)? {
            return Ok(Some(found));
        }
        match profile.get("credential_process") {
            Some(command) => process::run(name, command, process::TIME_MAX).map(Some),
            None => Ok(None),
        }
    }

    /// Returns the credentials with which a profile's role is taken.
    fn source_of(&self, name: &str, profile: &Section, depth: usize) -> Result<Credentials, AwsError> {
        let wrong = |problem| AwsError::Setting {
            name: format!("AWS profile {name:?}"),
            problem,
        };
        let missing = || wrong("takes a role with credentials that are not there");
        match (profile.get("source_profile"), profile.get("credential_source")) {
            // A profile may be its own source: then its own static credentials are meant.
            (Some(source), None) if source.as_str() == name => of_section(profile)?.ok_or_else(missing),
            (Some(source), None) => {
                let section = self.profiles.profile(source).ok_or_else(|| AwsError::NoProfile {
                    name: source.to_string(),
                })?;
                if depth == 0 {
                    return Err(wrong("is at the end of profiles that refer to each other without end"));
                }
                self.of_profile(source, section, depth - 1)?.ok_or_else(missing)
            }
            (None, Some(source)) => match source.as_str() {
                "Environment" => of_environment(self.environment)?.ok_or_else(missing),
                "EcsContainer" => metadata::of_container(self.at.client, self.environment)?.ok_or_else(missing),
                "Ec2InstanceMetadata" => metadata::of_instance(self.at.client, self.environment)
                    .map_err(|error| error.unwrap_or_else(missing)),
                _ => Err(wrong("has a credential_source that is none")),
            },
            _ => Err(wrong(
                "takes a role and needs one of source_profile and credential_source",
            )),
        }
    }
}

/// Returns the credentials in the environment.
fn of_environment(environment: &Environment) -> Result<Option<Credentials>, AwsError> {
    let source = "the environment";
    match (
        environment.text("AWS_ACCESS_KEY_ID")?,
        environment.text("AWS_SECRET_ACCESS_KEY")?,
    ) {
        (Some(id), Some(secret)) => {
            let token = environment.text("AWS_SESSION_TOKEN")?;
            checked(Credentials::new(id, secret, token, None, source), source).map(Some)
        }
        (None, None) => Ok(None),
        _ => Err(AwsError::BadCredentials {
            source,
            problem: "are one half: AWS_ACCESS_KEY_ID goes with AWS_SECRET_ACCESS_KEY",
        }),
    }
}

/// Returns the credentials that stand in a profile.
fn of_section(profile: &Section) -> Result<Option<Credentials>, AwsError> {
    let source = "a profile";
    let text = |name: &str| {
        profile
            .get(name)
            .filter(|value| !value.is_empty())
            .map(|value| value.to_string())
    };
    match (text("aws_access_key_id"), text("aws_secret_access_key")) {
        (Some(id), Some(secret)) => {
            let token = text("aws_session_token");
            checked(Credentials::new(id, secret, token, None, source), source).map(Some)
        }
        (None, None) => Ok(None),
        _ => Err(AwsError::BadCredentials {
            source,
            problem: "are one half: aws_access_key_id goes with aws_secret_access_key",
        }),
    }
}

/// Refuses what cannot stand in a header: there a line end would begin another one.
pub fn checked(credentials: Credentials, source: &'static str) -> Result<Credentials, AwsError> {
    let fits = |text: &str| text.bytes().all(|byte| byte.is_ascii_graphic());
    let token = credentials.session_token().unwrap_or_default();
    if fits(credentials.access_key_id()) && fits(credentials.secret_access_key()) && fits(token) {
        Ok(credentials)
    } else {
        Err(AwsError::BadCredentials {
            source,
            problem: "have characters that none may have",
        })
    }
}

/// Credentials as programs and metadata servers write them: JSON.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Document {
    /// Of programs: 1.
    pub version: Option<u32>,
    /// Of EC2: `Success`.
    pub code: Option<String>,
    access_key_id: Option<Zeroizing<String>>,
    secret_access_key: Option<Zeroizing<String>>,
    #[serde(alias = "Token")]
    session_token: Option<Zeroizing<String>>,
    expiration: Option<String>,
}

impl Document {
    /// Decodes a document.
    ///
    /// # Errors
    ///
    /// [`AwsError::BadCredentials`].
    pub fn decode(bytes: &[u8], source: &'static str) -> Result<Self, AwsError> {
        serde_json::from_slice(bytes).map_err(|_| AwsError::BadCredentials {
            source,
            problem: "are not the JSON document that they should be",
        })
    }

    /// Returns the credentials in it.
    ///
    /// # Errors
    ///
    /// [`AwsError::BadCredentials`] when something is missing or wrong.
    pub fn into_credentials(self, source: &'static str) -> Result<Credentials, AwsError> {
        let (Some(id), Some(secret)) = (self.access_key_id, self.secret_access_key) else {
            return Err(AwsError::BadCredentials {
                source,
                problem: "are incomplete",
            });
        };
        let expiry = self.expiration.map(|text| expiry(&text, source)).transpose()?;
        let token = self.session_token.map(|token| token.to_string());
        checked(
            Credentials::new(id.as_str(), secret.as_str(), token, expiry, source),
            source,
        )
    }
}

/// Reads a time as it stands in credentials.
pub fn expiry(text: &str, source: &'static str) -> Result<SystemTime, AwsError> {
    DateTime::from_str(text, Format::DateTimeWithOffset)
        .ok()
        .and_then(|time| SystemTime::try_from(time).ok())
        .ok_or(AwsError::BadCredentials {
            source,
            problem: "expire at something that is not a time",
        })
}
