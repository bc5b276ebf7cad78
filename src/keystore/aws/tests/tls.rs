//! Who is trusted.

use rustls::{
    ServerConfig, ServerConnection, StreamOwned,
    pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer},
};

use super::*;

/// A server with a certificate for a name, and the certificate of its authority in a file.
fn serve(name: &str) -> (Server, TempDir, String) {
    serve_and_see(name, |_| {})
}

/// The same; `see` is shown each connection that stands.
fn serve_and_see(name: &str, see: impl Fn(&ServerConnection) + Send + 'static) -> (Server, TempDir, String) {
    let mut authority = rcgen::CertificateParams::new(Vec::new()).unwrap();
    authority.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let authority_key = rcgen::KeyPair::generate().unwrap();
    let authority_pem = authority.self_signed(&authority_key).unwrap().pem();
    let issuer = rcgen::Issuer::new(authority, authority_key);
    let server_key = rcgen::KeyPair::generate().unwrap();
    let certificate = rcgen::CertificateParams::new(vec![name.to_owned()]).unwrap();
    let certificate = certificate.signed_by(&server_key, &issuer).unwrap();
    let config = ServerConfig::builder_with_provider(Arc::new(client::crypto_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(
            vec![certificate.der().clone()],
            PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(server_key.serialize_der())),
        )
        .unwrap();
    let config = Arc::new(config);
    let wrap = move |mut stream: TcpStream| {
        let mut connection = ServerConnection::new(config.clone()).unwrap();
        while connection.is_handshaking() {
            connection.complete_io(&mut stream).ok()?;
        }
        see(&connection);
        Some(StreamOwned::new(connection, stream))
    };
    let server = Server::over(wrap, |_, _| ok(plaintext()));
    let dir = TempDir::new().unwrap();
    let bundle = dir.path().join("ca.pem");
    std::fs::write(&bundle, authority_pem).unwrap();
    (server, dir, bundle.to_str().unwrap().to_owned())
}

fn ask(server: &Server, variables: &[(&str, &str)]) -> Result<LockedKey, AwsError> {
    let url = format!("https://{}", server.address);
    let kms = kms(&[STATIC.as_slice(), &[("AWS_ENDPOINT_URL", &url)], variables].concat());
    kms.decrypt(ARN, &context(), b"blob")
}

#[test]
fn a_private_authority_is_trusted_when_it_is_named() {
    let (server, dir, bundle) = serve("127.0.0.1");
    assert!(ask(&server, &[("AWS_CA_BUNDLE", &bundle)]).is_ok());
    let config = dir.path().join("config");
    std::fs::write(&config, format!("[default]\nca_bundle = {bundle}\n")).unwrap();
    assert!(ask(&server, &[("AWS_CONFIG_FILE", config.to_str().unwrap())]).is_ok());
}

#[test]
fn another_authority_is_not_trusted() {
    let (server, _dir, _) = serve("127.0.0.1");
    let (_other, _other_dir, other) = serve("127.0.0.1");
    let error = ask(&server, &[("AWS_CA_BUNDLE", &other)]).unwrap_err();
    assert!(matches!(error, AwsError::Transport { .. }), "{error}");
    assert!(server.asked().is_empty(), "nothing was sent");
}

#[test]
fn a_certificate_for_another_name_is_refused() {
    let (server, _dir, bundle) = serve("kms.example");
    let error = ask(&server, &[("AWS_CA_BUNDLE", &bundle)]).unwrap_err();
    assert!(matches!(error, AwsError::Transport { .. }), "{error}");
    assert!(server.asked().is_empty());
}

#[test]
fn a_bundle_without_certificates_is_an_error() {
    let (server, dir, _) = serve("127.0.0.1");
    let empty = dir.path().join("empty");
    std::fs::write(&empty, "no certificates\n").unwrap();
    let error = ask(&server, &[("AWS_CA_BUNDLE", empty.to_str().unwrap())]).unwrap_err();
    assert!(matches!(error, AwsError::Setting { .. }), "{error}");
    let error = ask(&server, &[("AWS_CA_BUNDLE", "/nonexistent")]).unwrap_err();
    assert!(matches!(error, AwsError::File { .. }), "{error}");
}

#[test]
fn a_server_that_speaks_no_tls_gets_nothing() {
    let server = Server::new(|_, _| ok(plaintext()));
    let (_other, _dir, bundle) = serve("127.0.0.1");
    let error = ask(&server, &[("AWS_CA_BUNDLE", &bundle)]).unwrap_err();
    assert!(matches!(error, AwsError::Transport { .. }), "{error}");
    assert!(server.asked().iter().all(|asked| !asked.line.starts_with("POST")));
}

#[test]
fn keys_are_agreed_on_so_that_a_quantum_computer_does_not_find_them() {
    let (told, group) = mpsc::channel();
    let (server, _dir, bundle) = serve_and_see("127.0.0.1", move |connection| {
        let group = connection.negotiated_key_exchange_group().unwrap().name();
        told.send((group, connection.protocol_version())).unwrap();
    });
    assert!(ask(&server, &[("AWS_CA_BUNDLE", &bundle)]).is_ok());
    let expected = (
        rustls::NamedGroup::X25519MLKEM768,
        Some(rustls::ProtocolVersion::TLSv1_3),
    );
    assert_eq!(group.recv().unwrap(), expected);
}
