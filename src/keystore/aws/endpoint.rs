//! Which server to ask for a key: its region, and the address of a service there.

use std::net::IpAddr;

use ureq::http::Uri;

use super::{
    error::AwsError,
    settings::{Environment, Profiles},
};

/// The most characters that the name of a region has; the longest has 16.
const REGION_LEN_MAX: usize = 32;

/// The domains of AWS's partitions, by how their regions begin. All others are in [`DOMAIN`].
const PARTITIONS: [(&str, &str); 6] = [
    ("cn-", "amazonaws.com.cn"),
    ("us-iso-", "c2s.ic.gov"),
    ("us-isob-", "sc2s.sgov.gov"),
    ("eu-isoe-", "cloud.adc-e.uk"),
    ("us-isof-", "csp.hci.ic.gov"),
    ("eusc-", "amazonaws.eu"),
];

const DOMAIN: &str = "amazonaws.com";

/// The name of a region: it becomes a part of a host name, so it is nothing else.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Region(String);

impl Region {
    /// Takes a name that can be one of a region.
    pub fn new(name: &str) -> Option<Self> {
        let fits = name.len() <= REGION_LEN_MAX
            && name.starts_with(|c: char| c.is_ascii_lowercase())
            && name
                .bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
        fits.then(|| Region(name.to_owned()))
    }

    /// Returns the name.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    fn domain(&self) -> &'static str {
        let partition = PARTITIONS.iter().find(|(start, _)| self.0.starts_with(start));
        partition.map_or(DOMAIN, |(_, domain)| domain)
    }
}

/// The name of a KMS key, as the user or a keystore gives it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyName<'a> {
    /// What AWS is told.
    pub text: &'a str,
    /// The region that the name is of, if it is an ARN.
    pub region: Option<Region>,
}

impl<'a> KeyName<'a> {
    /// Takes an ARN, an id or an alias.
    ///
    /// # Errors
    ///
    /// [`AwsError::KeyName`] for anything else. The name may come from a file; what is not a name of a key goes to no server.
    pub fn parse(text: &'a str) -> Result<Self, AwsError> {
        let wrong = || AwsError::KeyName { name: text.to_owned() };
        let Some(rest) = text.strip_prefix("arn:") else {
            return match is_resource(text) || is_id(text) {
                true => Ok(KeyName { text, region: None }),
                false => Err(wrong()),
            };
        };
        let mut parts = rest.splitn(5, ':');
        let mut next = || parts.next().ok_or_else(wrong);
        let (partition, service, region, account, resource) = (next()?, next()?, next()?, next()?, next()?);
        let region = Region::new(region).ok_or_else(wrong)?;
        let is_partition = Region::new(partition).is_some();
        let is_account = !account.is_empty() && account.bytes().all(|b| b.is_ascii_digit());
        if !is_partition || service != "kms" || !is_account || !is_resource(resource) {
            return Err(wrong());
        }
        Ok(KeyName {
            text,
            region: Some(region),
        })
    }
}

impl KeyName<'_> {
    /// Tells whether this is the ARN of a key, and not of an alias.
    pub fn is_key_arn(&self) -> bool {
        let resource = self.text.splitn(6, ':').nth(5);
        resource.is_some_and(|resource| resource.starts_with("key/"))
    }
}

fn is_id(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
}

/// Tells whether this is `key/ID` as in an ARN, or `alias/NAME`.
fn is_resource(text: &str) -> bool {
    match text.split_once('/') {
        Some(("key", id)) => is_id(id),
        Some(("alias", name)) => {
            !name.is_empty()
                && name
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'/' | b'_' | b'-' | b':'))
        }
        _ => false,
    }
}

/// A service of AWS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Service {
    /// The key management service.
    Kms,
    /// The security token service, which gives credentials for roles.
    Sts,
}

impl Service {
    /// Returns its name in host names and signatures.
    pub fn name(self) -> &'static str {
        match self {
            Service::Kms => "kms",
            Service::Sts => "sts",
        }
    }
}

/// Where a service is asked, and for which region requests are signed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    pub uri: Uri,
    pub service: Service,
    pub region: Region,
}

impl Endpoint {
    /// Returns the host, and the port if it is not the usual one: what the `Host` header says.
    pub fn host(&self) -> String {
        let host = self.uri.host().unwrap_or_default();
        match (self.uri.port_u16(), self.uri.scheme_str()) {
            (None | Some(443), Some("https")) | (None | Some(80), Some("http")) => host.to_owned(),
            (Some(port), _) => format!("{host}:{port}"),
            (None, _) => host.to_owned(),
        }
    }
}

/// What the environment and the profile say about where services are.
#[derive(Debug)]
pub struct Endpoints {
    region: Option<Region>,
    kms: Option<Uri>,
    sts: Option<Uri>,
    fips: bool,
}

impl Endpoints {
    /// Reads the settings.
    ///
    /// # Errors
    ///
    /// [`AwsError::Setting`] when one is not what it must be.
    pub fn new(environment: &Environment, profiles: &Profiles) -> Result<Self, AwsError> {
        let mut region = None;
        for name in ["AWS_REGION", "AWS_DEFAULT_REGION"] {
            if region.is_none() {
                region = environment.text(name)?.map(|value| (name, value));
            }
        }
        let region = region.or_else(|| profiles.setting("region").map(|value| ("region", value.to_owned())));
        let region = region.map(|(name, value)| {
            Region::new(&value).ok_or_else(|| AwsError::Setting {
                name: name.to_owned(),
                problem: "is not the name of a region",
            })
        });
        let fips = match environment.text("AWS_USE_FIPS_ENDPOINT")? {
            Some(value) => value.eq_ignore_ascii_case("true"),
            None => profiles
                .setting("use_fips_endpoint")
                .is_some_and(|value| value.eq_ignore_ascii_case("true")),
        };
        Ok(Endpoints {
            region: region.transpose()?,
            kms: configured(environment, profiles, Service::Kms)?,
            sts: configured(environment, profiles, Service::Sts)?,
            fips,
        })
    }

    /// Returns the region of a key: the one in its ARN before the one in the settings.
    ///
    /// # Errors
    ///
    /// [`AwsError::NoRegion`] when there is neither.
    pub fn region_of(&self, key: &KeyName<'_>) -> Result<Region, AwsError> {
        key.region
            .clone()
            .or_else(|| self.region.clone())
            .ok_or_else(|| AwsError::NoRegion {
                name: key.text.to_owned(),
            })
    }

    /// Returns where a service is asked about things in a region.
    pub fn of(&self, service: Service, region: &Region) -> Endpoint {
        let configured = match service {
            Service::Kms => &self.kms,
            Service::Sts => &self.sts,
        };
        let uri = configured.clone().unwrap_or_else(|| {
            let fips = if self.fips { "-fips" } else { "" };
            let host = format!("{}{fips}.{}.{}", service.name(), region.as_str(), region.domain());
            Uri::builder()
                .scheme("https")
                .authority(host)
                .path_and_query("/")
                .build()
                .expect("the characters of a region are those of a host name")
        });
        Endpoint {
            uri,
            service,
            region: region.clone(),
        }
    }

    /// Returns the region in the settings, or else this one: where credentials for a role are asked for.
    pub fn region_or(&self, other: &Region) -> Region {
        self.region.clone().unwrap_or_else(|| other.clone())
    }
}

/// Returns the address that the settings give for a service.
fn configured(environment: &Environment, profiles: &Profiles, service: Service) -> Result<Option<Uri>, AwsError> {
    let ignored = environment.is_true("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS");
    let own_name = format!("AWS_ENDPOINT_URL_{}", service.name().to_ascii_uppercase());
    for name in [own_name.as_str(), "AWS_ENDPOINT_URL"] {
        if let Some(value) = environment.text(name)?.filter(|_| !ignored) {
            return server(name, &value).map(Some);
        }
    }
    match profiles.endpoint(service.name()).filter(|_| !ignored) {
        Some(value) => server("endpoint_url", value).map(Some),
        None => Ok(None),
    }
}

/// Takes the address of a server that keys go to and come from: in clear only within this machine.
///
/// # Errors
///
/// [`AwsError::Setting`], with the name of the setting.
fn server(name: &str, value: &str) -> Result<Uri, AwsError> {
    let wrong = |problem| AwsError::Setting {
        name: name.to_owned(),
        problem,
    };
    let uri: Uri = value.parse().map_err(|_| wrong("is not the address of a server"))?;
    let authority = uri.authority().ok_or_else(|| wrong("is not the address of a server"))?;
    if authority.as_str().contains('@') || uri.query().is_some() {
        return Err(wrong("has a user or a query, which a server's address has not"));
    }
    match uri.scheme_str() {
        Some("https") => Ok(uri),
        Some("http") if is_this_machine(authority.host()) => Ok(uri),
        Some("http") => Err(wrong("is not https: keys would cross the network in clear")),
        _ => Err(wrong("is not the address of an https server")),
    }
}

/// Tells whether a host, as it stands in a URI, is this machine.
pub fn is_this_machine(host: &str) -> bool {
    host == "localhost" || address_of(host).is_some_and(|address| address.is_loopback())
}

/// Returns the address that a host is, if it is not a name.
pub fn address_of(host: &str) -> Option<IpAddr> {
    host.trim_start_matches('[').trim_end_matches(']').parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const ARN: &str = "arn:aws:kms:eu-west-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab";

    fn endpoints(variables: &[(&str, &str)]) -> Result<Endpoints, AwsError> {
        Endpoints::new(&Environment::of(variables), &Profiles::default())
    }

    fn uri(variables: &[(&str, &str)], region: &str) -> String {
        let endpoint = endpoints(variables)
            .unwrap()
            .of(Service::Kms, &Region::new(region).unwrap());
        endpoint.uri.to_string()
    }

    #[test]
    fn a_key_is_named_by_arn_id_or_alias() {
        assert_eq!(KeyName::parse(ARN).unwrap().region, Region::new("eu-west-1"));
        for name in [
            "1234abcd-12ab-34cd-56ef-1234567890ab",
            "mrk-1234abcd12ab34cd56ef1234567890ab",
            "alias/hushfs/main_1",
            "arn:aws-us-gov:kms:us-gov-west-1:111122223333:alias/a",
        ] {
            assert_eq!(KeyName::parse(name).unwrap().text, name);
        }
    }

    #[test]
    fn an_alias_is_not_taken_for_a_key() {
        let is_key_arn = |name| KeyName::parse(name).unwrap().is_key_arn();
        assert!(is_key_arn(ARN));
        for name in [
            "1234",
            "alias/a",
            "alias/a:key/b",
            "arn:aws:kms:x:1:alias/key/b",
            "arn:aws:kms:x:1:alias/a:key/b",
        ] {
            assert!(!is_key_arn(name), "{name}");
        }
    }

    #[test]
    fn what_names_no_key_goes_to_no_server() {
        for name in [
            "",
            "alias/",
            "alias/a b",
            "a/b",
            "arn:aws:kms:eu-west-1:111122223333",
            "arn:aws:s3:eu-west-1:111122223333:key/1",
            "arn:aws:kms::111122223333:key/1",
            "arn:aws:kms:eu-west-1::key/1",
            "arn:aws:kms:eu-west-1:1:secret/1",
            "arn:aws:kms:evil.example/:1:key/1",
            "arn:aws:kms:evil.example#:1:key/1",
            "arn:aws:kms:x@evil:1:key/1",
            "arn:aws:kms:EU-WEST-1:1:key/1",
            "arn:aws:kms:-a:1:key/1",
            "arn:aws:kms:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa:1:key/1",
            "../etc",
            "key\n",
        ] {
            assert!(
                matches!(KeyName::parse(name), Err(AwsError::KeyName { .. })),
                "{name:?}"
            );
        }
    }

    #[test]
    fn the_region_of_the_arn_comes_first() {
        let endpoints = endpoints(&[("AWS_REGION", "us-east-1"), ("AWS_DEFAULT_REGION", "us-east-2")]).unwrap();
        let region = |name| endpoints.region_of(&KeyName::parse(name).unwrap()).unwrap();
        assert_eq!(region(ARN).as_str(), "eu-west-1");
        assert_eq!(region("alias/a").as_str(), "us-east-1");
        let none = super::tests::endpoints(&[]).unwrap();
        let error = none.region_of(&KeyName::parse("alias/a").unwrap()).unwrap_err();
        assert!(matches!(error, AwsError::NoRegion { .. }));
        assert!(matches!(
            super::tests::endpoints(&[("AWS_REGION", "a/b")]),
            Err(AwsError::Setting { .. })
        ));
    }

    #[test]
    fn each_partition_has_its_domain() {
        for (region, host) in [
            ("eu-west-1", "https://kms.eu-west-1.amazonaws.com/"),
            ("us-gov-west-1", "https://kms.us-gov-west-1.amazonaws.com/"),
            ("cn-north-1", "https://kms.cn-north-1.amazonaws.com.cn/"),
            ("us-iso-east-1", "https://kms.us-iso-east-1.c2s.ic.gov/"),
            ("us-isob-east-1", "https://kms.us-isob-east-1.sc2s.sgov.gov/"),
            ("eusc-de-east-1", "https://kms.eusc-de-east-1.amazonaws.eu/"),
        ] {
            assert_eq!(uri(&[], region), host);
        }
        let fips = [("AWS_USE_FIPS_ENDPOINT", "true")];
        assert_eq!(uri(&fips, "us-east-1"), "https://kms-fips.us-east-1.amazonaws.com/");
    }

    #[test]
    fn the_endpoint_of_the_service_comes_before_that_of_all() {
        let (all, own) = (
            ("AWS_ENDPOINT_URL", "https://all:8443/x"),
            ("AWS_ENDPOINT_URL_KMS", "https://own"),
        );
        assert_eq!(uri(&[all, own], "a"), "https://own/");
        assert_eq!(uri(&[all], "a"), "https://all:8443/x");
        assert_eq!(
            uri(&[all, ("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS", "true")], "a"),
            "https://kms.a.amazonaws.com/"
        );
    }

    #[test]
    fn keys_do_not_cross_a_network_in_clear() {
        for allowed in [
            "https://kms.example",
            "http://127.0.0.1:5000",
            "http://localhost:1",
            "http://[::1]:1",
        ] {
            assert!(endpoints(&[("AWS_ENDPOINT_URL", allowed)]).is_ok(), "{allowed}");
        }
        for refused in [
            "http://kms.example",
            "http://10.0.0.1",
            "http://localhost.evil.example",
            "http://127.0.0.1@evil.example",
            "ftp://127.0.0.1",
            "kms.example",
            "/",
            "https://a?b",
            "https://u:p@a",
        ] {
            let error = endpoints(&[("AWS_ENDPOINT_URL", refused)]).unwrap_err();
            assert!(
                matches!(&error, AwsError::Setting { name, .. } if name == "AWS_ENDPOINT_URL"),
                "{refused}: {error}"
            );
        }
    }

    #[test]
    fn the_host_header_has_unusual_ports_only() {
        let host = |address| {
            let endpoints = endpoints(&[("AWS_ENDPOINT_URL", address)]).unwrap();
            endpoints.of(Service::Kms, &Region::new("a").unwrap()).host()
        };
        assert_eq!(host("https://a:443"), "a");
        assert_eq!(host("https://a:80"), "a:80");
        assert_eq!(host("https://a"), "a");
        assert_eq!(host("http://[::1]:80/"), "[::1]");
        assert_eq!(host("http://[::1]:81/"), "[::1]:81");
    }
}
