//! What must hold with real servers, which `scripts/keyservers start moto moto-auth localstack` starts: AWS's states, errors and
//! signatures as others understand them. moto checks signatures and policies, localstack has the states of keys.

use std::{io, net::Shutdown};

use serde_json::{Value, json};

use super::*;
use crate::keystore::{LocalKeystore, Providers, custodian::check_custodian};

/// Returns what `scripts/keyservers env` says.
fn told(variable: &str) -> Option<String> {
    if let Ok(value) = std::env::var(variable) {
        return Some(value);
    }
    let missing = format!("no {variable}: see scripts/keyservers");
    assert!(std::env::var_os("HUSHFS_TESTS_MUST_NOT_SKIP").is_none(), "{missing}");
    // Past the test harness, which shows only what failed.
    let _ = writeln!(io::stderr(), "SKIPPED: {missing}");
    None
}

/// A server that takes any credentials.
fn open_server(variable: &str) -> Option<AwsKms> {
    let url = told(variable)?;
    Some(kms_patiently(
        &[
            STATIC.as_slice(),
            &[("AWS_ENDPOINT_URL", &url), ("AWS_REGION", "eu-west-1")],
        ]
        .concat(),
    ))
}

fn both() -> impl Iterator<Item = AwsKms> {
    ["HUSHFS_TEST_MOTO_URL", "HUSHFS_TEST_LOCALSTACK_URL"]
        .into_iter()
        .filter_map(open_server)
}

/// moto with policies and signatures, asked by one of its users.
fn guarded_server(user: &str, more: &[(&str, &str)]) -> Option<AwsKms> {
    let of_server = |name: &str| told(&format!("HUSHFS_TEST_MOTO_AUTH_{name}"));
    let (url, authority) = (of_server("URL")?, of_server("CA")?);
    let (id, secret) = (of_server(&format!("{user}_ID"))?, of_server(&format!("{user}_SECRET"))?);
    let variables = [
        ("AWS_ENDPOINT_URL", url.as_str()),
        ("AWS_CA_BUNDLE", &authority),
        ("AWS_REGION", "eu-west-1"),
        ("AWS_ACCESS_KEY_ID", &id),
        ("AWS_SECRET_ACCESS_KEY", &secret),
    ];
    Some(kms_patiently(&[variables.as_slice(), more].concat()))
}

/// With more patience than users have: these servers share a few processors with other tests.
fn kms_patiently(variables: &[(&str, &str)]) -> AwsKms {
    let limits = Limits {
        connect: Duration::from_secs(20),
        attempt: Duration::from_secs(30),
        call: Duration::from_secs(60),
    };
    AwsKms::new(environment(variables), limits)
}

/// Asks for something that hushfs does not ask for itself.
fn ask(kms: &AwsKms, operation: &'static str, question: Value) -> Value {
    let anywhere = KeyName::parse("alias/any").unwrap();
    let reply = kms.call(operation, &anywhere, &question).unwrap();
    serde_json::from_slice(&reply.body).unwrap_or_default()
}

fn new_key(kms: &AwsKms) -> RemoteKeyName {
    let made = ask(kms, "CreateKey", json!({}));
    key(made["KeyMetadata"]["Arn"].as_str().unwrap())
}

fn about(key: &RemoteKeyName) -> Value {
    json!({ "KeyId": key.to_string() })
}

fn check(kms: AwsKms) {
    let name = new_key(&kms);
    let providers = Providers {
        aws_kms: Some(Arc::new(kms)),
        ..Providers::default()
    };
    let (keystore, key) = LocalKeystore::for_remote_key(name, providers);
    check_custodian(&keystore, &key);
}

#[test]
fn a_key_of_kms_does_what_every_custodians_key_must() {
    both().for_each(check);
}

#[test]
fn so_it_does_for_a_user_who_may_use_it_and_signs() {
    if let Some(kms) = guarded_server("USER", &[]) {
        check(kms);
    }
}

#[test]
fn who_may_not_use_a_key_is_denied() {
    let (Some(user), Some(stranger)) = (guarded_server("USER", &[]), guarded_server("STRANGER", &[])) else {
        return;
    };
    let key = new_key(&user);
    let (_, blob) = user.generate(&key, &context()).unwrap();
    let denied = Err(ProviderError::AccessDenied);
    assert_eq!(stranger.generate(&key, &context()).map(drop), denied);
    assert_eq!(stranger.unwrap(&key, &context(), &blob).map(drop), denied);
    assert_eq!(stranger.describe(&key), Err(ProviderError::AccessDenied));
}

#[test]
fn a_signature_with_another_secret_is_refused() {
    for (name, value) in [
        ("AWS_SECRET_ACCESS_KEY", "anothersecret"),
        ("AWS_ACCESS_KEY_ID", "AKIAUNKNOWN"),
    ] {
        let (Some(user), Some(forger)) = (guarded_server("USER", &[]), guarded_server("USER", &[(name, value)])) else {
            return;
        };
        let key = new_key(&user);
        assert_eq!(
            forger.generate(&key, &context()).map(drop),
            Err(ProviderError::Unauthorized),
            "{name}"
        );
    }
}

#[test]
fn a_stranger_who_takes_a_role_may_what_the_role_may() {
    let of_server = |name: &str| told(&format!("HUSHFS_TEST_MOTO_AUTH_{name}"));
    let (Some(url), Some(role)) = (of_server("URL"), of_server("ROLE")) else {
        return;
    };
    let (authority, id, secret) = (of_server("CA"), of_server("STRANGER_ID"), of_server("STRANGER_SECRET"));
    let (authority, id, secret) = (authority.unwrap(), id.unwrap(), secret.unwrap());
    let dir = TempDir::new().unwrap();
    let config = dir.path().join("config");
    let profiles = format!(
        "[profile role]\nrole_arn = {role}\nsource_profile = base\n\
         [profile base]\naws_access_key_id = {id}\naws_secret_access_key = {secret}\n"
    );
    std::fs::write(&config, profiles).unwrap();
    let as_profile = |name| {
        kms_patiently(&[
            ("AWS_ENDPOINT_URL", &url),
            ("AWS_CA_BUNDLE", &authority),
            ("AWS_REGION", "eu-west-1"),
            ("AWS_CONFIG_FILE", config.to_str().unwrap()),
            ("AWS_PROFILE", name),
        ])
    };
    let role = as_profile("role");
    let key = new_key(&role);
    let (made, blob) = role.generate(&key, &context()).unwrap();
    assert_eq!(
        role.unwrap(&key, &context(), &blob).unwrap().as_bytes(),
        made.as_bytes()
    );
    let base = as_profile("base").generate(&key, &context()).map(drop);
    assert_eq!(base, Err(ProviderError::AccessDenied));
}

#[test]
fn a_token_in_a_file_gives_a_role_too() {
    let Some(url) = told("HUSHFS_TEST_MOTO_URL") else {
        return;
    };
    let dir = TempDir::new().unwrap();
    let token = dir.path().join("token");
    std::fs::write(&token, "header.payload.signature\n").unwrap();
    let kms = kms_patiently(&[
        ("AWS_ENDPOINT_URL", &url),
        ("AWS_REGION", "eu-west-1"),
        ("AWS_WEB_IDENTITY_TOKEN_FILE", token.to_str().unwrap()),
        ("AWS_ROLE_ARN", "arn:aws:iam::123456789012:role/pod"),
    ]);
    let key = new_key(&kms);
    assert!(kms.generate(&key, &context()).is_ok());
}

#[test]
fn the_authority_of_a_server_must_be_known() {
    let Some(url) = told("HUSHFS_TEST_MOTO_AUTH_URL") else {
        return;
    };
    let kms = kms_patiently(&[STATIC.as_slice(), &[("AWS_ENDPOINT_URL", &url)]].concat());
    let error = kms.look_up(ARN).unwrap_err();
    // Where this machine has no authorities at all, that is said instead.
    assert!(
        matches!(error, AwsError::Transport { .. } | AwsError::Setting { .. }),
        "{error}"
    );
}

#[test]
fn a_key_that_is_disabled_or_going_is_refused_as_such() {
    let Some(kms) = open_server("HUSHFS_TEST_LOCALSTACK_URL") else {
        return;
    };
    let key = new_key(&kms);
    let (made, blob) = kms.generate(&key, &context()).unwrap();
    let refused = |error| {
        assert_eq!(kms.generate(&key, &context()).map(drop), Err(error));
        assert_eq!(kms.unwrap(&key, &context(), &blob).map(drop), Err(error));
    };
    ask(&kms, "DisableKey", about(&key));
    refused(ProviderError::Disabled);
    assert_eq!(kms.describe(&key), Ok(RemoteKeyState::Disabled));

    ask(&kms, "EnableKey", about(&key));
    assert_eq!(kms.describe(&key), Ok(RemoteKeyState::Enabled));
    assert_eq!(kms.unwrap(&key, &context(), &blob).unwrap().as_bytes(), made.as_bytes());

    ask(
        &kms,
        "ScheduleKeyDeletion",
        json!({ "KeyId": key.to_string(), "PendingWindowInDays": 7 }),
    );
    refused(ProviderError::PendingDeletion);
    let Ok(RemoteKeyState::PendingDeletion { date: Some(date) }) = kms.describe(&key) else {
        panic!("{:?}", kms.describe(&key));
    };
    let days = (date - SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs()) / 86400;
    assert!((6..=7).contains(&days), "{days}");

    ask(&kms, "CancelKeyDeletion", about(&key));
    refused(ProviderError::Disabled);
}

#[test]
fn a_blob_of_another_key_is_refused() {
    for kms in both() {
        let (one, two) = (new_key(&kms), new_key(&kms));
        let (_, blob) = kms.generate(&one, &context()).unwrap();
        let error = kms.unwrap(&two, &context(), &blob).map(drop).unwrap_err();
        // moto calls it the second.
        assert!(
            matches!(error, ProviderError::IncorrectKey | ProviderError::AccessDenied),
            "{error}"
        );
        let unknown = key("arn:aws:kms:eu-west-1:000000000000:key/00000000-0000-0000-0000-000000000000");
        assert_eq!(
            kms.generate(&unknown, &context()).map(drop),
            Err(ProviderError::NotFound)
        );
        assert_eq!(kms.describe(&unknown), Err(ProviderError::NotFound));
    }
}

#[test]
fn a_key_is_found_by_its_alias_and_used_by_its_arn() {
    for kms in both() {
        let key = new_key(&kms);
        let alias = format!("alias/hushfs/{}", key.to_string().rsplit('/').next().unwrap());
        ask(
            &kms,
            "CreateAlias",
            json!({ "AliasName": alias, "TargetKeyId": key.to_string() }),
        );
        let found = kms.look_up(&alias).unwrap();
        assert_eq!((found.arn, found.state), (key.to_string(), RemoteKeyState::Enabled));
    }
}

#[test]
fn a_key_that_signs_is_not_taken() {
    for kms in both() {
        let made = ask(
            &kms,
            "CreateKey",
            json!({ "KeyUsage": "SIGN_VERIFY", "KeySpec": "ECC_NIST_P256" }),
        );
        let error = kms.look_up(made["KeyMetadata"]["Arn"].as_str().unwrap()).unwrap_err();
        assert!(matches!(error, AwsError::KeyKind { .. }), "{error}");
    }
}

/// Passes connections on to a server, until it is told to cut the answers.
struct Cable {
    address: SocketAddr,
    is_cut: Arc<Mutex<bool>>,
}

impl Cable {
    fn to(server: String) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let is_cut = Arc::new(Mutex::new(false));
        let cut = is_cut.clone();
        thread::spawn(move || {
            for near in listener.incoming() {
                let (near, far) = (near.unwrap(), TcpStream::connect(&server).unwrap());
                let (mut asks, mut asked) = (near.try_clone().unwrap(), far.try_clone().unwrap());
                thread::spawn(move || io::copy(&mut asks, &mut asked));
                let cut = cut.clone();
                let (mut near, mut far) = (near, far);
                thread::spawn(move || {
                    let mut bytes = [0; 100];
                    while let Ok(len @ 1..) = far.read(&mut bytes) {
                        if *cut.lock() {
                            // In the middle of the first lines of the answer.
                            let _ = near.write_all(&bytes[..len / 2]);
                            break;
                        }
                        let _ = near.write_all(&bytes[..len]);
                    }
                    let _ = near.shutdown(Shutdown::Both);
                });
            }
        });
        Cable { address, is_cut }
    }
}

#[test]
fn a_server_that_is_cut_off_in_the_middle_is_unavailable_until_it_is_back() {
    for variable in ["HUSHFS_TEST_MOTO_URL", "HUSHFS_TEST_LOCALSTACK_URL"] {
        let Some(url) = told(variable) else { return };
        let cable = Cable::to(url.strip_prefix("http://").unwrap().to_owned());
        let url = format!("http://{}", cable.address);
        let variables = [
            STATIC.as_slice(),
            &[("AWS_ENDPOINT_URL", &url), ("AWS_REGION", "eu-west-1")],
        ];
        let kms = AwsKms::new(environment(&variables.concat()), Limits::default());
        let key = new_key(&kms);
        let (made, blob) = kms.generate(&key, &context()).unwrap();
        *cable.is_cut.lock() = true;
        let start = Instant::now();
        assert_eq!(
            kms.unwrap(&key, &context(), &blob).map(drop),
            Err(ProviderError::Unavailable)
        );
        assert!(start.elapsed() < Limits::default().call + Duration::from_secs(1));
        *cable.is_cut.lock() = false;
        assert_eq!(kms.unwrap(&key, &context(), &blob).unwrap().as_bytes(), made.as_bytes());
    }
}
