//! Sends requests to AWS: signs them, keeps to a time, asks again where that may help.
//!
//! A body comes back in memory that is wiped. The buffers of the TLS library are not ours to wipe.

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    thread,
    time::{Duration, Instant, SystemTime},
};

use aws_credential_types::Credentials;
use aws_sigv4::{
    http_request::{self, SignableBody, SignableRequest, SigningSettings},
    sign::v4,
};
use parking_lot::Mutex;
use rustls::pki_types::{CertificateDer, pem::PemObject};
use ureq::{
    Agent,
    http::{Request, header},
    tls::{Certificate, RootCerts, TlsConfig},
};
use zeroize::Zeroizing;

use super::{
    endpoint::Endpoint,
    error::{AwsError, Refusal, Remedy},
    input::read_all,
    settings::{Environment, Profiles},
};
use crate::crypto::random;

/// The most bytes of an answer that are read. The largest that is wanted, credentials with a session token, has a few thousand.
const BODY_SIZE_MAX: usize = 64 * 1024;

/// How often one call asks at most.
const ATTEMPTS_MAX: u32 = 5;

/// The wait before a second attempt is up to this; it doubles each time, to [`BACKOFF_MAX`].
const BACKOFF_FIRST: Duration = Duration::from_millis(50);

/// The longest wait.
const BACKOFF_MAX: Duration = Duration::from_secs(1);

/// AWS takes requests signed up to five minutes ago; a clock that is off by less than this is not what a refusal is about.
const CLOCK_SKEW_MIN: Duration = Duration::from_secs(4 * 60);

const USER_AGENT: &str = concat!("hushfs/", env!("CARGO_PKG_VERSION"));

/// How long things may take.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Until a connection stands, TLS included.
    pub connect: Duration,
    /// Until the answer to one request is there.
    pub attempt: Duration,
    /// Until a call has its answer, with all that is asked again. Getting credentials first has a time of its own.
    pub call: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            connect: Duration::from_secs(2),
            attempt: Duration::from_secs(3),
            call: Duration::from_secs(5),
        }
    }
}

/// One thing that is asked of a service.
#[derive(Clone, Copy, Debug)]
pub struct Call<'a> {
    /// Its name, for messages.
    pub operation: &'static str,
    pub endpoint: &'a Endpoint,
    pub headers: &'a [(&'static str, &'a str)],
    pub body: &'a [u8],
}

/// What a server said.
#[derive(Debug)]
pub struct Reply {
    pub status: u16,
    /// The `Date` header; empty where there is none.
    pub date: String,
    /// The `x-amzn-RequestId` header; empty where there is none.
    pub request: String,
    pub body: Zeroizing<Vec<u8>>,
}

/// Gives the credentials that a call is signed with; none for one that is not signed.
pub trait Signer {
    /// Returns the credentials; other ones than `refused` if there are.
    ///
    /// # Errors
    ///
    /// The [`AwsError`] that says why there are none.
    fn credentials(&self, refused: Option<&Credentials>) -> Result<Option<Credentials>, AwsError>;
}

/// These credentials and no others, or none.
impl Signer for Option<Credentials> {
    fn credentials(&self, _: Option<&Credentials>) -> Result<Option<Credentials>, AwsError> {
        Ok(self.clone())
    }
}

/// A client of AWS.
#[derive(Debug)]
pub struct Client {
    /// For servers in the network. Made when it is needed first: the certificates of this machine's authorities are read for it.
    secure: Mutex<Option<Agent>>,
    /// For this machine and its host, without TLS and never through a proxy.
    local: Agent,
    /// A file of certificates that takes the place of this machine's.
    authorities: Option<PathBuf>,
    pub limits: Limits,
    /// Seconds to be added to the clock of this machine, for one that is wrong.
    clock_offset: AtomicI64,
}

impl Client {
    /// Makes a client.
    ///
    /// # Errors
    ///
    /// [`AwsError::Setting`].
    pub fn new(environment: &Environment, profiles: &Profiles, limits: Limits) -> Result<Self, AwsError> {
        let authorities = match environment.text("AWS_CA_BUNDLE")? {
            Some(path) => Some(path),
            None => profiles.setting("ca_bundle").map(str::to_owned),
        };
        let local = config(limits).proxy(None).build().new_agent();
        Ok(Client {
            secure: Mutex::new(None),
            local,
            authorities: authorities.map(PathBuf::from),
            limits,
            clock_offset: AtomicI64::new(0),
        })
    }

    /// Makes a call, until there is an answer or the time is up.
    ///
    /// # Errors
    ///
    /// [`AwsError::Service`] when the service refuses, and what kept the request from being answered.
    pub fn call(&self, call: &Call<'_>, signer: &dyn Signer) -> Result<Reply, AwsError> {
        let mut credentials = signer.credentials(None)?;
        let deadline = Instant::now() + self.limits.call;
        let (mut clock_was_set, mut credentials_were_changed) = (false, false);
        let mut attempts = 1;
        loop {
            let error = match self.attempt(call, credentials.as_ref(), deadline) {
                Ok(reply) => return Ok(reply),
                Err(error) => error,
            };
            log::debug!("attempt {attempts}: {error}");
            match error.remedy() {
                Remedy::Wait if attempts < ATTEMPTS_MAX => {
                    let wait = backoff(attempts);
                    if Instant::now() + wait >= deadline {
                        return Err(error);
                    }
                    thread::sleep(wait);
                }
                Remedy::Clock if !clock_was_set && self.set_clock(&error) => clock_was_set = true,
                Remedy::Credentials if !credentials_were_changed => {
                    let newer = signer.credentials(credentials.as_ref())?;
                    if newer == credentials {
                        return Err(error);
                    }
                    credentials = newer;
                    credentials_were_changed = true;
                }
                _ => return Err(error),
            }
            attempts += 1;
        }
    }

    fn attempt(
        &self,
        call: &Call<'_>,
        credentials: Option<&Credentials>,
        deadline: Instant,
    ) -> Result<Reply, AwsError> {
        let request = self.request(call, credentials)?;
        let left = deadline.saturating_duration_since(Instant::now());
        let reply = self.send(request, left.min(self.limits.attempt))?;
        match reply.status {
            200 => Ok(reply),
            _ => Err(AwsError::Service(Box::new(Refusal::decode(call.operation, &reply)))),
        }
    }

    /// Builds a request, signed if there are credentials.
    fn request<'a>(&self, call: &Call<'a>, credentials: Option<&Credentials>) -> Result<Request<&'a [u8]>, AwsError> {
        let host = call.endpoint.host();
        let mut builder = Request::post(&call.endpoint.uri)
            .header(header::HOST, &host)
            .header(header::USER_AGENT, USER_AGENT);
        for (name, value) in call.headers {
            builder = builder.header(*name, *value);
        }
        let mut request = builder.body(call.body).expect("headers and address are well-formed");
        let Some(credentials) = credentials else {
            return Ok(request);
        };
        let unusable = |_| AwsError::BadCredentials {
            source: "this account",
            problem: "cannot be used to sign",
        };
        let headers = [("host", host.as_str())]
            .into_iter()
            .chain(call.headers.iter().copied());
        let address = call.endpoint.uri.to_string();
        let signable = SignableRequest::new("POST", address, headers, SignableBody::Bytes(call.body))
            .expect("headers and address are well-formed");
        let identity = credentials.clone().into();
        let params = v4::SigningParams::builder()
            .identity(&identity)
            .region(call.endpoint.region.as_str())
            .name(call.endpoint.service.name())
            .time(self.now())
            .settings(SigningSettings::default())
            .build()
            .expect("all that is needed is set")
            .into();
        let (signature, _) = http_request::sign(signable, &params)
            .map_err(|_| unusable(()))?
            .into_parts();
        for (name, value) in signature.headers() {
            let value = value.parse().map_err(|_| unusable(()))?;
            request.headers_mut().insert(name_of(name), value);
        }
        Ok(request)
    }

    /// Sends a request once, and reads the whole answer.
    ///
    /// # Errors
    ///
    /// [`AwsError::Transport`] when there is no answer in time; [`AwsError::File`] or [`AwsError::Setting`] when the certificates
    /// of the authorities to be trusted cannot be had.
    pub fn send(&self, request: Request<&[u8]>, limit: Duration) -> Result<Reply, AwsError> {
        let host = request.uri().host().unwrap_or_default().to_owned();
        let failed = |source| AwsError::Transport {
            host: host.clone(),
            source,
        };
        let agent = match request.uri().scheme_str() {
            Some("https") => self.secure()?,
            _ => self.local.clone(),
        };
        let request = agent.configure_request(request).timeout_global(Some(limit)).build();
        let mut response = agent.run(request).map_err(failed)?;
        let text = |name: &str| {
            let value = response.headers().get(name).and_then(|value| value.to_str().ok());
            value.unwrap_or_default().to_owned()
        };
        let (date, request) = (text("date"), text("x-amzn-requestid"));
        let body =
            read_all(response.body_mut().as_reader(), BODY_SIZE_MAX).map_err(|error| failed(ureq::Error::Io(error)))?;
        Ok(Reply {
            status: response.status().as_u16(),
            date,
            request,
            body,
        })
    }

    fn secure(&self) -> Result<Agent, AwsError> {
        let mut secure = self.secure.lock();
        if let Some(agent) = &*secure {
            return Ok(agent.clone());
        }
        let tls = TlsConfig::builder()
            .root_certs(RootCerts::Specific(Arc::new(self.trusted()?)))
            .unversioned_rustls_crypto_provider(Arc::new(crypto_provider()))
            .build();
        let agent = config(self.limits).https_only(true).tls_config(tls).build().new_agent();
        *secure = Some(agent.clone());
        Ok(agent)
    }

    /// Returns the certificates of the authorities that are trusted.
    fn trusted(&self) -> Result<Vec<Certificate<'static>>, AwsError> {
        let none = |name: &str| AwsError::Setting {
            name: name.to_owned(),
            problem: "has no certificates of authorities",
        };
        let (certificates, source) = match &self.authorities {
            Some(path) => {
                let text = super::settings::read(path)?;
                let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(text.as_bytes()).collect();
                let source = path.display().to_string();
                (found.map_err(|_| none(&source))?, source)
            }
            None => {
                let found = rustls_native_certs::load_native_certs();
                for error in found.errors {
                    log::debug!("certificates of this machine: {error}");
                }
                (found.certs, "this machine (package ca-certificates)".to_owned())
            }
        };
        if certificates.is_empty() {
            return Err(none(&source));
        }
        Ok(certificates
            .iter()
            .map(|der| Certificate::from_der(der).to_owned())
            .collect())
    }

    /// Returns the time on the servers' clocks, as far as they have corrected this machine's.
    fn now(&self) -> SystemTime {
        let offset = self.clock_offset.load(Ordering::Relaxed);
        let by = Duration::from_secs(offset.unsigned_abs());
        let now = SystemTime::now();
        let moved = if offset < 0 {
            now.checked_sub(by)
        } else {
            now.checked_add(by)
        };
        moved.unwrap_or(now)
    }

    /// Sets the clock by that of a server which has refused; tells whether that changed much.
    fn set_clock(&self, error: &AwsError) -> bool {
        let AwsError::Service(refusal) = error else {
            return false;
        };
        let Some(date) = refusal.date else { return false };
        let now = self.now();
        let skew = date.duration_since(now).or_else(|_| now.duration_since(date));
        if skew.is_ok_and(|skew| skew < CLOCK_SKEW_MIN) {
            return false;
        }
        let seconds = |time: SystemTime| {
            time.duration_since(SystemTime::UNIX_EPOCH)
                .map_or(0, |since| since.as_secs())
        };
        let offset = seconds(date) as i64 - seconds(SystemTime::now()) as i64;
        log::warn!("this machine's clock differs from that of AWS by {offset} s");
        self.clock_offset.store(offset, Ordering::Relaxed);
        true
    }
}

/// Returns what both agents have in common.
fn config(limits: Limits) -> ureq::config::ConfigBuilder<ureq::typestate::AgentScope> {
    Agent::config_builder()
        .http_status_as_error(false)
        // A redirect would take a signature and a session token elsewhere.
        .max_redirects(0)
        .max_redirects_will_error(false)
        .timeout_connect(Some(limits.connect))
}

/// Returns the cryptography of TLS: that of the bulk cipher, with key agreement that also holds against quantum computers first.
pub fn crypto_provider() -> rustls::crypto::CryptoProvider {
    use rustls::crypto::aws_lc_rs as implementation;
    implementation::default_provider()
}

fn name_of(header: &str) -> header::HeaderName {
    header.parse().expect("the names of signature headers are well-formed")
}

/// Returns how long to wait after so many attempts: anything up to a limit, so that many clients do not come back together.
pub fn backoff(attempts: u32) -> Duration {
    let limit = BACKOFF_FIRST
        .saturating_mul(1 << (attempts - 1).min(16))
        .min(BACKOFF_MAX);
    let fraction = f64::from(u32::from_le_bytes(random::bytes())) / f64::from(u32::MAX);
    limit.mul_f64(fraction)
}
