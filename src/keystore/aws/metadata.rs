//! Credentials from the host: those of a container, and those of an EC2 instance (IMDSv2).

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::PathBuf,
    time::Duration,
};

use aws_credential_types::Credentials;
use ureq::http::{Method, Request, Uri};
use zeroize::Zeroizing;

use super::{
    client::{Client, Reply},
    credentials::Document,
    endpoint::{address_of, is_this_machine},
    error::{AwsError, Refusal, Remedy},
    settings::{Environment, read},
};

/// How long one answer may take. Where there is no such server, this is how long it takes to find out.
const ATTEMPT: Duration = Duration::from_secs(1);

/// How often a server that says to try again is asked.
const ATTEMPTS_MAX: u32 = 3;

/// Where ECS gives containers their credentials.
const ECS: IpAddr = IpAddr::V4(Ipv4Addr::new(169, 254, 170, 2));

/// Where EKS gives pods their credentials.
const EKS: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(169, 254, 170, 23)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x23)),
];

/// Where EC2 instances ask for what concerns them.
const IMDS: [&str; 2] = ["http://169.254.169.254", "http://[fd00:ec2::254]"];

/// How long a token of that is good for, in seconds. One look needs three requests.
const IMDS_TOKEN_SECONDS: &str = "60";

const CONTAINER: &str = "the container";
const INSTANCE: &str = "the EC2 instance";

/// Returns the credentials of this container; none when it is not said where they are.
///
/// # Errors
///
/// [`AwsError::Setting`] when that is somewhere else than on the host; what else keeps them from being had.
pub fn of_container(client: &Client, environment: &Environment) -> Result<Option<Credentials>, AwsError> {
    let uri = match (
        environment.text("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI")?,
        environment.text("AWS_CONTAINER_CREDENTIALS_FULL_URI")?,
    ) {
        (Some(path), _) => parse(&format!("http://{ECS}{path}"), "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI")?,
        (None, Some(uri)) => parse(&uri, "AWS_CONTAINER_CREDENTIALS_FULL_URI")?,
        (None, None) => return Ok(None),
    };
    let host = uri.host().unwrap_or_default();
    let is_on_host = is_this_machine(host) || address_of(host).is_some_and(|host| host == ECS || EKS.contains(&host));
    if uri.scheme_str() != Some("https") && !is_on_host {
        return Err(AwsError::Setting {
            name: "AWS_CONTAINER_CREDENTIALS_FULL_URI".to_owned(),
            problem: "is neither https nor a server of the host",
        });
    }
    let token = match environment.text("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE")? {
        Some(path) => Some(read(&PathBuf::from(path))?),
        None => environment
            .text("AWS_CONTAINER_AUTHORIZATION_TOKEN")?
            .map(Zeroizing::new),
    };
    let token = token.as_deref().map(|token| token.trim_end_matches(['\r', '\n']));
    let headers: Vec<_> = token.iter().map(|token| ("authorization", *token)).collect();
    let reply = fetch(client, CONTAINER, Method::GET, &uri, &headers)?;
    Document::decode(&reply.body, CONTAINER)?
        .into_credentials(CONTAINER)
        .map(Some)
}

/// Returns the credentials of this EC2 instance.
///
/// # Errors
///
/// Nothing when it is not to be asked; otherwise what keeps them from being had, mostly that this is no EC2 instance.
pub fn of_instance(client: &Client, environment: &Environment) -> Result<Credentials, Option<AwsError>> {
    if environment.is_true("AWS_EC2_METADATA_DISABLED") {
        return Err(None);
    }
    imds(client, environment).map_err(Some)
}

fn imds(client: &Client, environment: &Environment) -> Result<Credentials, AwsError> {
    let name = "AWS_EC2_METADATA_SERVICE_ENDPOINT";
    let mode = environment.text("AWS_EC2_METADATA_SERVICE_ENDPOINT_MODE")?;
    let is_ipv6 = mode.is_some_and(|mode| mode.eq_ignore_ascii_case("ipv6"));
    let base = environment
        .text(name)?
        .unwrap_or_else(|| IMDS[usize::from(is_ipv6)].to_owned());
    let base = base.trim_end_matches('/');
    let at = |path: &str| parse(&format!("{base}{path}"), name);

    let lifetime = [("x-aws-ec2-metadata-token-ttl-seconds", IMDS_TOKEN_SECONDS)];
    let token = fetch(client, INSTANCE, Method::PUT, &at("/latest/api/token")?, &lifetime)?;
    let token = [("x-aws-ec2-metadata-token", text(&token)?)];
    let list = "/latest/meta-data/iam/security-credentials/";
    let roles = fetch(client, INSTANCE, Method::GET, &at(list)?, &token)?;
    let role = text(&roles)?.lines().next().unwrap_or_default().trim();
    let is_role = !role.is_empty()
        && role
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"+=,.@_-".contains(&b));
    if !is_role {
        return Err(AwsError::BadCredentials {
            source: INSTANCE,
            problem: "are missing: it has no role",
        });
    }
    let reply = fetch(client, INSTANCE, Method::GET, &at(&format!("{list}{role}"))?, &token)?;
    let document = Document::decode(&reply.body, INSTANCE)?;
    match document.code.as_deref() {
        None | Some("Success") => document.into_credentials(INSTANCE),
        Some(_) => Err(AwsError::BadCredentials {
            source: INSTANCE,
            problem: "cannot be had now",
        }),
    }
}

fn parse(uri: &str, name: &str) -> Result<Uri, AwsError> {
    let parsed = uri
        .parse::<Uri>()
        .ok()
        .filter(|uri| uri.host().is_some() && uri.scheme().is_some());
    parsed.ok_or_else(|| AwsError::Setting {
        name: name.to_owned(),
        problem: "is not the address of a server",
    })
}

fn text(reply: &Reply) -> Result<&str, AwsError> {
    std::str::from_utf8(&reply.body).map_err(|_| AwsError::BadCredentials {
        source: INSTANCE,
        problem: "are not text",
    })
}

/// Asks a server of the host.
fn fetch(
    client: &Client,
    source: &'static str,
    method: Method,
    uri: &Uri,
    headers: &[(&str, &str)],
) -> Result<Reply, AwsError> {
    for attempt in 1.. {
        let mut request = Request::builder().method(&method).uri(uri).header("accept", "*/*");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        // A token with a line end is no token.
        let request = request.body([].as_slice()).map_err(|_| AwsError::BadCredentials {
            source,
            problem: "need a token, and what there is is none",
        })?;
        let reply = client.send(request, ATTEMPT)?;
        if reply.status == 200 {
            return Ok(reply);
        }
        let error = AwsError::Service(Box::new(Refusal::decode(source, &reply)));
        if error.remedy() != Remedy::Wait || attempt == ATTEMPTS_MAX {
            return Err(error);
        }
        std::thread::sleep(super::client::backoff(attempt));
    }
    unreachable!("the loop ends with an attempt")
}
