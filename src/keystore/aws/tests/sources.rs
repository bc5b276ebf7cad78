//! Where credentials come from.

use super::*;

/// Files in a directory of their own.
struct Files(TempDir);

impl Files {
    fn new(files: &[(&str, &str)]) -> Self {
        let dir = TempDir::new().unwrap();
        for (name, content) in files {
            std::fs::write(dir.path().join(name), content).unwrap();
        }
        Files(dir)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }
}

/// Returns who signs a request of KMS in an environment; the server for KMS and for all else is the one given.
fn who(server: &Server, variables: &[(&str, &str)]) -> Result<String, AwsError> {
    let url = server.url();
    let kms = kms(&[variables, &[("AWS_ENDPOINT_URL", &url)]].concat());
    kms.decrypt(ARN, &context(), b"blob")?;
    Ok(signer(server.asked().last().unwrap()))
}

fn all_is_well() -> Server {
    Server::new(|_, _| ok(plaintext()))
}

#[test]
fn the_environment_comes_first() {
    let files = Files::new(&[(
        "credentials",
        "[default]\naws_access_key_id=FILE\naws_secret_access_key=s\n",
    )]);
    let file = files.text("credentials");
    let file = ("AWS_SHARED_CREDENTIALS_FILE", file.as_str());
    let server = all_is_well();
    assert_eq!(who(&server, &[file]).unwrap(), "FILE");
    assert_eq!(
        who(&server, &[STATIC.as_slice(), &[file]].concat()).unwrap(),
        "AKIDEXAMPLE"
    );
    let half = who(&server, &[file, STATIC[0]]).unwrap_err();
    assert!(matches!(half, AwsError::BadCredentials { .. }), "{half}");
}

#[test]
fn credentials_that_cannot_be_sent_are_refused() {
    for (name, value) in [
        ("AWS_SESSION_TOKEN", "a\r\nx-evil: 1"),
        ("AWS_ACCESS_KEY_ID", "a b"),
        ("AWS_SECRET_ACCESS_KEY", "é"),
    ] {
        let error = who(&all_is_well(), &[STATIC.as_slice(), &[(name, value)]].concat()).unwrap_err();
        assert!(matches!(error, AwsError::BadCredentials { .. }), "{error}");
    }
}

#[test]
fn a_profile_has_keys_or_a_program() {
    let config = "[profile keys]\naws_access_key_id = KEYS\naws_secret_access_key = s\n\
                  [profile half]\naws_access_key_id = HALF\n\
                  [profile program]\ncredential_process = echo '{\"Version\": 1, \"AccessKeyId\": \"PROGRAM\", \"SecretAccessKey\": \"s\"}'\n\
                  [profile empty]\nregion = eu-west-1\n[profile sso]\nsso_session = x\n[profile login]\nlogin_session = x\n";
    let files = Files::new(&[("config", config)]);
    let server = all_is_well();
    let path = files.text("config");
    let in_profile = |name| who(&server, &[("AWS_CONFIG_FILE", path.as_str()), ("AWS_PROFILE", name)]);
    assert_eq!(in_profile("keys").unwrap(), "KEYS");
    assert_eq!(in_profile("program").unwrap(), "PROGRAM");
    for name in ["half", "empty"] {
        let error = in_profile(name).unwrap_err();
        assert!(matches!(error, AwsError::BadCredentials { .. }), "{name}: {error}");
    }
    for name in ["sso", "login"] {
        let error = in_profile(name).unwrap_err();
        assert!(
            matches!(&error, AwsError::Unsupported { profile, .. } if profile == name),
            "{error}"
        );
        assert!(
            error.to_string().contains("aws configure export-credentials"),
            "{error}"
        );
    }
}

/// STS and KMS in one: who takes a role becomes `ROLE`, and is good for an hour.
fn sts() -> Server {
    Server::new(|_, asked| {
        let body = String::from_utf8_lossy(&asked.body).into_owned();
        if !body.contains("Action=AssumeRole") {
            return ok(plaintext());
        }
        ok(
            "<R><AssumeRoleResult><Credentials><AccessKeyId>ROLE</AccessKeyId><SecretAccessKey>s</SecretAccessKey>\
            <SessionToken>t</SessionToken><Expiration>2099-01-01T00:00:00Z</Expiration></Credentials></AssumeRoleResult></R>",
        )
    })
}

#[test]
fn a_role_is_taken_with_the_credentials_of_another_profile() {
    let config = "[profile base]\naws_access_key_id = BASE\naws_secret_access_key = s\n\
                  [profile role]\nrole_arn = arn:aws:iam::1:role/a\nsource_profile = base\nexternal_id = a&b=c\nregion = eu-north-1\n\
                  [profile again]\nrole_arn = arn:aws:iam::1:role/b\nsource_profile = role\n\
                  [profile itself]\nrole_arn = arn:aws:iam::1:role/c\nsource_profile = itself\naws_access_key_id = SELF\naws_secret_access_key = s\n\
                  [profile of-environment]\nrole_arn = arn:aws:iam::1:role/d\ncredential_source = Environment\n\
                  [profile a]\nrole_arn = x\nsource_profile = b\n[profile b]\nrole_arn = x\nsource_profile = a\n\
                  [profile none]\nrole_arn = x\n[profile gone]\nrole_arn = x\nsource_profile = nobody\n\
                  [profile mfa]\nrole_arn = x\nsource_profile = base\nmfa_serial = y\n";
    let files = Files::new(&[("config", config)]);
    let path = files.text("config");
    let in_profile = |server: &Server, name| who(server, &[("AWS_CONFIG_FILE", path.as_str()), ("AWS_PROFILE", name)]);

    let server = sts();
    assert_eq!(in_profile(&server, "role").unwrap(), "ROLE");
    let asked = &server.asked()[0];
    assert_eq!(signer(asked), "BASE");
    assert!(asked.header("authorization").contains("/eu-north-1/sts/aws4_request"));
    let body = String::from_utf8(asked.body.clone()).unwrap();
    assert_eq!(
        body,
        "Action=AssumeRole&Version=2011-06-15&RoleArn=arn%3Aaws%3Aiam%3A%3A1%3Arole%2Fa&RoleSessionName=hushfs&ExternalId=a%26b%3Dc"
    );
    let server = sts();
    assert_eq!(in_profile(&server, "again").unwrap(), "ROLE");
    assert_eq!(
        server.asked().iter().map(signer).collect::<Vec<_>>(),
        ["BASE", "ROLE", "ROLE"]
    );
    let server = sts();
    in_profile(&server, "itself").unwrap();
    assert_eq!(signer(&server.asked()[0]), "SELF");
    for name in ["a", "none", "gone", "of-environment"] {
        let error = in_profile(&sts(), name).unwrap_err();
        assert!(
            matches!(error, AwsError::Setting { .. } | AwsError::NoProfile { .. }),
            "{name}: {error}"
        );
    }
    let error = in_profile(&sts(), "mfa").unwrap_err();
    assert!(matches!(error, AwsError::Unsupported { .. }), "{error}");
}

#[test]
fn a_token_in_a_file_gives_a_role() {
    let files = Files::new(&[("token", "header.payload.signature\n")]);
    let token = files.text("token");
    let server = sts();
    let variables = [
        ("AWS_WEB_IDENTITY_TOKEN_FILE", token.as_str()),
        ("AWS_ROLE_ARN", "arn:aws:iam::1:role/pod"),
        ("AWS_ROLE_SESSION_NAME", "pod-1"),
    ];
    assert_eq!(who(&server, &variables).unwrap(), "ROLE");
    let asked = &server.asked()[0];
    assert_eq!(asked.header("authorization"), "", "the token is all there is");
    let body = String::from_utf8(asked.body.clone()).unwrap();
    assert!(
        body.ends_with("RoleSessionName=pod-1&WebIdentityToken=header.payload.signature"),
        "{body}"
    );
    let variables = [("AWS_WEB_IDENTITY_TOKEN_FILE", "/nonexistent"), variables[1]];
    assert!(matches!(who(&sts(), &variables).unwrap_err(), AwsError::File { .. }));
}

#[test]
fn a_role_that_is_refused_says_why() {
    let server = Server::new(|_, _| {
        let body = "<ErrorResponse><Error><Type>Sender</Type><Code>AccessDenied</Code><Message>no such role</Message></Error></ErrorResponse>";
        Say::This(403, Vec::new(), body.into())
    });
    let config =
        "[default]\nrole_arn = x\ncredential_source = Environment\naws_access_key_id = A\naws_secret_access_key = s\n";
    let config = config.replace("credential_source = Environment", "source_profile = default");
    let files = Files::new(&[("config", &config)]);
    let error = who(&server, &[("AWS_CONFIG_FILE", &files.text("config"))]).unwrap_err();
    assert_eq!(error.to_string(), "AssumeRole: AccessDenied: no such role");
    assert_eq!(error.reason(), ProviderError::AccessDenied);
}

#[test]
fn a_container_has_credentials_at_its_host() {
    let host = Server::new(|_, asked| match asked.header("authorization") {
        "secret token" => ok(document("CONTAINER", 3600)),
        _ => refuse(401, "Unauthorized", ""),
    });
    let files = Files::new(&[("token", "secret token\n")]);
    let uri = format!("{}/v1/credentials", host.url());
    let uri = ("AWS_CONTAINER_CREDENTIALS_FULL_URI", uri.as_str());
    let token = files.text("token");
    let in_file = ("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", token.as_str());
    let server = all_is_well();
    assert_eq!(who(&server, &[uri, in_file]).unwrap(), "CONTAINER");
    assert_eq!(host.asked()[0].line, "GET /v1/credentials HTTP/1.1");
    let given = ("AWS_CONTAINER_AUTHORIZATION_TOKEN", "secret token");
    assert_eq!(who(&server, &[uri, given]).unwrap(), "CONTAINER");
    let wrong = who(&server, &[uri, ("AWS_CONTAINER_AUTHORIZATION_TOKEN", "a\nb")]).unwrap_err();
    assert!(matches!(wrong, AwsError::BadCredentials { .. }), "{wrong}");
    let refused = who(&server, &[uri]).unwrap_err();
    assert_eq!(refused.reason(), ProviderError::Unauthorized);
}

#[test]
fn credentials_of_a_container_do_not_cross_a_network() {
    for uri in [
        "http://10.0.0.1/x",
        "http://evil.example/x",
        "http://169.254.169.254/x",
        "x",
    ] {
        let error = who(&all_is_well(), &[("AWS_CONTAINER_CREDENTIALS_FULL_URI", uri)]).unwrap_err();
        assert!(matches!(error, AwsError::Setting { .. }), "{uri}: {error}");
    }
}

/// An instance's server, version 2: without a token it says nothing.
fn imds(seconds: u64) -> Server {
    Server::new(move |number, asked| {
        let token = asked.header("x-aws-ec2-metadata-token");
        match asked.line.as_str() {
            "PUT /latest/api/token HTTP/1.1" if asked.header("x-aws-ec2-metadata-token-ttl-seconds") == "60" => {
                ok("TOKEN")
            }
            "GET /latest/meta-data/iam/security-credentials/ HTTP/1.1" if token == "TOKEN" => ok("my-role\n"),
            "GET /latest/meta-data/iam/security-credentials/my-role HTTP/1.1" if token == "TOKEN" => {
                ok(document(&format!("INSTANCE{number}"), seconds))
            }
            _ => Say::This(401, Vec::new(), Vec::new()),
        }
    })
}

fn at_instance(url: &str) -> [(&'static str, &str); 2] {
    [
        ("AWS_EC2_METADATA_SERVICE_ENDPOINT", url),
        ("AWS_EC2_METADATA_DISABLED", "false"),
    ]
}

#[test]
fn an_instance_has_credentials_for_who_has_a_token() {
    let host = imds(3600);
    let (url, server) = (host.url(), all_is_well());
    assert_eq!(who(&server, &at_instance(&url)).unwrap(), "INSTANCE2");
    assert_eq!(server.asked()[0].header("x-amz-security-token"), "t");
}

#[test]
fn an_instance_without_a_role_has_none() {
    for body in ["", "\n", "../../x", "a b"] {
        let host = Server::new(move |number, _| ok(if number == 0 { "TOKEN" } else { body }));
        let url = host.url();
        let error = who(&all_is_well(), &at_instance(&url)).unwrap_err();
        assert!(
            matches!(error, AwsError::NoCredentials { last: Some(_) }),
            "{body:?}: {error}"
        );
        assert_eq!(host.asked().len(), 2);
    }
}

#[test]
fn where_there_is_no_instance_it_takes_no_time_to_find_out() {
    // An address that nobody answers at.
    let url = "http://192.0.2.1";
    let start = Instant::now();
    let error = who(&all_is_well(), &at_instance(url)).unwrap_err();
    assert!(matches!(error, AwsError::NoCredentials { .. }), "{error}");
    assert!(start.elapsed() < Duration::from_secs(2));
}

#[test]
fn credentials_are_kept_until_shortly_before_they_expire() {
    for (seconds, looks) in [(3600, 1), (200, 3)] {
        let host = imds(seconds);
        let (url, server) = (host.url(), all_is_well());
        let endpoint = server.url();
        let kms = kms(&[at_instance(&url).as_slice(), &[("AWS_ENDPOINT_URL", &endpoint)]].concat());
        for _ in 0..3 {
            unwrap(&kms).unwrap();
        }
        assert_eq!(host.asked().len(), 3 * looks, "of {seconds} s");
    }
}

#[test]
fn credentials_that_are_good_still_outlive_who_gave_them() {
    let host = Server::new(|number, _| match number {
        0 => ok(document("FIRST", 200)),
        _ => Say::HangUp,
    });
    let server = all_is_well();
    let (uri, endpoint) = (host.url(), server.url());
    let kms = kms(&[
        ("AWS_CONTAINER_CREDENTIALS_FULL_URI", &uri),
        ("AWS_ENDPOINT_URL", &endpoint),
    ]);
    for _ in 0..2 {
        unwrap(&kms).unwrap();
    }
    assert_eq!(
        server.asked().iter().map(signer).collect::<Vec<_>>(),
        ["FIRST", "FIRST"]
    );
    assert_eq!(host.asked().len(), 2);
}

#[test]
fn credentials_that_have_expired_are_of_no_use() {
    let host = Server::new(|_, _| Say::HangUp);
    let url = host.url();
    let error = who(&all_is_well(), &[("AWS_CONTAINER_CREDENTIALS_FULL_URI", &url)]).unwrap_err();
    assert_eq!(error.reason(), ProviderError::Unavailable, "{error}");
}

#[test]
fn refused_credentials_are_looked_for_once_more() {
    let files = Files::new(&[(
        "credentials",
        "[default]\naws_access_key_id=OLD\naws_secret_access_key=s\n",
    )]);
    let path = files.path("credentials");
    let (told, wait) = mpsc::channel();
    let server = Server::new(move |_, asked| {
        if signer(asked) == "OLD" {
            // As a program that renews them would.
            std::fs::write(&path, "[default]\naws_access_key_id=NEW\naws_secret_access_key=s\n").unwrap();
            told.send(()).unwrap();
            return refuse(403, "ExpiredTokenException", "expired");
        }
        ok(plaintext())
    });
    let (file, endpoint) = (files.text("credentials"), server.url());
    let kms = kms(&[("AWS_SHARED_CREDENTIALS_FILE", &file), ("AWS_ENDPOINT_URL", &endpoint)]);
    assert_eq!(unwrap(&kms), Ok([7; 32]));
    wait.recv().unwrap();
    assert_eq!(server.asked().iter().map(signer).collect::<Vec<_>>(), ["OLD", "NEW"]);
}

#[test]
fn a_source_that_fails_is_not_passed_over() {
    let missing = who(
        &all_is_well(),
        &[("AWS_CONTAINER_CREDENTIALS_FULL_URI", "http://127.0.0.1:1/")],
    )
    .unwrap_err();
    assert!(matches!(missing, AwsError::Transport { .. }), "{missing}");
}
