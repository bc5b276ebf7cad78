//! Credentials for a role, from AWS's security token service.

use std::path::Path;

use aws_credential_types::Credentials;
use zeroize::Zeroizing;

use super::{
    client::{Call, Client, Reply, Signer},
    credentials::{checked, expiry},
    endpoint::Endpoint,
    error::{AnyNamespace, AwsError},
    settings::read,
};

const VERSION: &str = "2011-06-15";

const SOURCE: &str = "a role";

/// A role, and what is said when it is taken.
#[derive(Clone, Debug)]
pub struct Role {
    pub arn: String,
    /// The name of the session, which CloudTrail shows.
    pub session: Option<String>,
    pub external_id: Option<String>,
    /// How long the credentials shall be good for.
    pub seconds: Option<String>,
}

impl Role {
    /// Returns a role of which nothing but the name is said.
    pub fn new(arn: String) -> Self {
        Role {
            arn,
            session: None,
            external_id: None,
            seconds: None,
        }
    }

    fn parameters<'a>(&'a self, action: &'static str) -> Vec<(&'static str, &'a str)> {
        let mut parameters = vec![
            ("Action", action),
            ("Version", VERSION),
            ("RoleArn", self.arn.as_str()),
            ("RoleSessionName", self.session.as_deref().unwrap_or("hushfs")),
        ];
        let more = [("ExternalId", &self.external_id), ("DurationSeconds", &self.seconds)];
        parameters.extend(
            more.into_iter()
                .filter_map(|(name, value)| Some((name, value.as_deref()?))),
        );
        parameters
    }
}

/// Takes a role with other credentials.
///
/// # Errors
///
/// The [`AwsError`] that says why it cannot be taken.
pub fn assume(client: &Client, sts: &Endpoint, role: &Role, with: Credentials) -> Result<Credentials, AwsError> {
    call(client, sts, "AssumeRole", &role.parameters("AssumeRole"), &Some(with))
}

/// Takes a role with a token, such as Kubernetes puts into a file and renews there.
///
/// # Errors
///
/// The [`AwsError`] that says why it cannot be taken.
pub fn assume_with_token(client: &Client, sts: &Endpoint, role: &Role, file: &Path) -> Result<Credentials, AwsError> {
    let operation = "AssumeRoleWithWebIdentity";
    let token = read(file)?;
    let mut parameters = role.parameters(operation);
    parameters.retain(|(name, _)| *name != "ExternalId");
    parameters.push(("WebIdentityToken", token.trim()));
    call(client, sts, operation, &parameters, &None::<Credentials>)
}

fn call(
    client: &Client,
    sts: &Endpoint,
    operation: &'static str,
    parameters: &[(&str, &str)],
    signer: &dyn Signer,
) -> Result<Credentials, AwsError> {
    let size: usize = parameters
        .iter()
        .map(|(name, value)| name.len() + 3 * value.len() + 2)
        .sum();
    // At its full size from the start: growing would leave copies of a token.
    let mut body = form_urlencoded::Serializer::new(String::with_capacity(size));
    body.extend_pairs(parameters);
    let body = Zeroizing::new(body.finish());
    let reply = client.call(
        &Call {
            operation,
            endpoint: sts,
            headers: &[("content-type", "application/x-www-form-urlencoded; charset=utf-8")],
            body: body.as_bytes(),
        },
        signer,
    )?;
    decode(operation, &reply)
}

/// Reads the answer, which is XML.
fn decode(operation: &'static str, reply: &Reply) -> Result<Credentials, AwsError> {
    let wrong = |problem| AwsError::Answer { operation, problem };
    let text = std::str::from_utf8(&reply.body).map_err(|_| wrong("is not text"))?;
    let document = roxmltree::Document::parse(text).map_err(|_| wrong("is not XML"))?;
    let credentials = document.descendants().find(|node| node.is_element_named("Credentials"));
    let credentials = credentials.ok_or_else(|| wrong("has no credentials"))?;
    let value = |name| {
        let child = credentials.children().find(|node| node.is_element_named(name));
        child
            .and_then(|child| child.text())
            .ok_or_else(|| wrong("has incomplete credentials"))
    };
    let credentials = Credentials::new(
        value("AccessKeyId")?,
        value("SecretAccessKey")?,
        Some(value("SessionToken")?.to_owned()),
        Some(expiry(value("Expiration")?, SOURCE)?),
        SOURCE,
    );
    checked(credentials, SOURCE)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reply(body: &str) -> Reply {
        Reply {
            status: 200,
            date: String::new(),
            request: String::new(),
            body: Zeroizing::new(body.into()),
        }
    }

    #[test]
    fn the_answer_is_read_whatever_its_namespace() {
        let body = r#"<?xml version="1.0"?><AssumeRoleResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><AssumeRoleResult>
            <Credentials><AccessKeyId>ASIA</AccessKeyId><SecretAccessKey>a/b+c</SecretAccessKey><SessionToken>t=</SessionToken>
            <Expiration>2099-11-21T10:00:00.123Z</Expiration></Credentials></AssumeRoleResult></AssumeRoleResponse>"#;
        let found = decode("AssumeRole", &reply(body)).unwrap();
        assert_eq!((found.access_key_id(), found.session_token()), ("ASIA", Some("t=")));
        assert_eq!(found.secret_access_key(), "a/b+c");
        assert!(found.expiry().is_some());
    }

    #[test]
    fn an_answer_that_is_none_is_an_error() {
        for body in [
            "",
            "{}",
            "<a/>",
            "<a><Credentials><AccessKeyId>x</AccessKeyId></Credentials></a>",
            "<!DOCTYPE a [<!ENTITY b \"c\">]><a/>",
        ] {
            let error = decode("AssumeRole", &reply(body)).unwrap_err();
            assert!(matches!(error, AwsError::Answer { .. }), "{body}: {error}");
        }
    }

    #[test]
    fn only_what_is_known_is_said() {
        let names = |role: &Role| -> Vec<_> { role.parameters("AssumeRole").iter().map(|(name, _)| *name).collect() };
        let role = Role::new("arn:aws:iam::1:role/a".to_owned());
        assert_eq!(names(&role), ["Action", "Version", "RoleArn", "RoleSessionName"]);
        let role = Role {
            external_id: Some("x".to_owned()),
            ..role
        };
        assert!(names(&role).contains(&"ExternalId"));
    }
}
