//! Where AWS's own tools look for settings: the environment, and the profile in two files. Nothing comes from a vault.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    fmt,
    fs::File,
    io,
    path::{Path, PathBuf},
};

use zeroize::Zeroizing;

use super::{error::AwsError, input::read_all};

/// The most bytes of a file that is read; someone may have named a disk.
const FILE_SIZE_MAX: usize = 256 * 1024;

/// The profile that is used when none is named.
const DEFAULT_PROFILE: &str = "default";

/// Environment variables.
pub enum Environment {
    /// Those of this process.
    Process,
    /// Those of a test.
    #[cfg(test)]
    Of(BTreeMap<String, OsString>),
}

impl fmt::Debug for Environment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Some of them are secrets.
        f.write_str("Environment")
    }
}

impl Environment {
    /// Returns an environment of these variables.
    #[cfg(test)]
    pub fn of(variables: &[(&str, &str)]) -> Self {
        let variables = variables.iter();
        Environment::Of(
            variables
                .map(|(name, value)| ((*name).to_owned(), value.into()))
                .collect(),
        )
    }

    fn variable(&self, name: &str) -> Option<OsString> {
        match self {
            Environment::Process => std::env::var_os(name),
            #[cfg(test)]
            Environment::Of(variables) => variables.get(name).cloned(),
        }
    }

    /// Returns the value of a variable; an empty one counts as absent.
    ///
    /// # Errors
    ///
    /// [`AwsError::Setting`] when it is not UTF-8.
    pub fn text(&self, name: &str) -> Result<Option<String>, AwsError> {
        match self.variable(name).map(OsString::into_string) {
            None => Ok(None),
            Some(Ok(value)) => Ok(Some(value).filter(|value| !value.is_empty())),
            Some(Err(_)) => Err(AwsError::Setting {
                name: name.to_owned(),
                problem: "is not UTF-8",
            }),
        }
    }

    /// Returns the user's home: mount(8) tells its helpers nothing, so the password file may have to say.
    fn home(&self) -> Option<PathBuf> {
        match self {
            Environment::Process => std::env::home_dir(),
            #[cfg(test)]
            Environment::Of(_) => self.variable("HOME").map(PathBuf::from),
        }
    }

    /// Returns the file that a variable names, or else one in the user's home, if there is a home.
    fn file(&self, name: &str, in_home: &str) -> Option<PathBuf> {
        match self.variable(name).filter(|value| !value.is_empty()).map(PathBuf::from) {
            Some(path) => match path.strip_prefix("~") {
                Ok(rest) => self.home().map(|home| home.join(rest)),
                Err(_) => Some(path),
            },
            None => self.home().map(|home| home.join(in_home)),
        }
    }

    /// Tells whether a variable says `true`.
    pub fn is_true(&self, name: &str) -> bool {
        self.variable(name)
            .is_some_and(|value| value.eq_ignore_ascii_case("true"))
    }
}

/// The settings of one profile or section, by name in lower case. Settings within a setting are `outer.inner`.
pub type Section = BTreeMap<String, Zeroizing<String>>;

/// All that stands in the two files.
#[derive(Default)]
pub struct Profiles {
    profiles: BTreeMap<String, Section>,
    services: BTreeMap<String, Section>,
    /// The profile that is used, and whether the user named it.
    chosen: (String, bool),
}

impl Profiles {
    /// Reads the two files; one that is not there is as an empty one.
    ///
    /// # Errors
    ///
    /// [`AwsError::File`] or [`AwsError::Syntax`]; [`AwsError::NoProfile`] when the profile that the user named is in neither.
    pub fn load(environment: &Environment) -> Result<Self, AwsError> {
        let named = match environment.text("AWS_PROFILE")? {
            Some(name) => Some(name),
            None => environment.text("AWS_DEFAULT_PROFILE")?,
        };
        let mut profiles = Profiles {
            chosen: match named {
                Some(name) => (name, true),
                None => (DEFAULT_PROFILE.to_owned(), false),
            },
            ..Profiles::default()
        };
        // What stands in both counts as in the second.
        for (name, in_home, kind) in [
            ("AWS_CONFIG_FILE", ".aws/config", FileKind::Config),
            ("AWS_SHARED_CREDENTIALS_FILE", ".aws/credentials", FileKind::Credentials),
        ] {
            if let Some(path) = environment.file(name, in_home)
                && let Some(text) = read_if_there(&path)?
            {
                profiles.merge(&path, kind, &text)?;
            }
        }
        match profiles.chosen() {
            (name, None, true) => Err(AwsError::NoProfile { name: name.to_owned() }),
            _ => Ok(profiles),
        }
    }

    /// Returns the name of the profile that is used, the profile if it exists, and whether the user named it.
    pub fn chosen(&self) -> (&str, Option<&Section>, bool) {
        let (name, named) = &self.chosen;
        (name, self.profiles.get(name), *named)
    }

    /// Tells whether credentials of the profile that is used may come from a program: its own, or that of one it refers to.
    pub fn name_a_program(&self) -> bool {
        let (_, mut profile, _) = self.chosen();
        // Those that refer to each other without end give no credentials either.
        for _ in 0..=self.profiles.len() {
            let Some(section) = profile else { return false };
            if section.contains_key("credential_process") {
                return true;
            }
            profile = section.get("source_profile").and_then(|name| self.profile(name));
        }
        false
    }

    /// Returns a profile by name.
    pub fn profile(&self, name: &str) -> Option<&Section> {
        self.profiles.get(name)
    }

    /// Returns a setting of the profile that is used.
    pub fn setting(&self, name: &str) -> Option<&str> {
        let (_, profile, _) = self.chosen();
        profile?.get(name).map(|value| value.as_str())
    }

    /// Returns the endpoint that the profile gives for a service, or for all.
    pub fn endpoint(&self, service: &str) -> Option<&str> {
        let of_service = || {
            let section = self.services.get(self.setting("services")?)?;
            section
                .get(&format!("{service}.endpoint_url"))
                .map(|value| value.as_str())
        };
        of_service().or_else(|| self.setting("endpoint_url"))
    }

    fn merge(&mut self, path: &Path, kind: FileKind, text: &str) -> Result<(), AwsError> {
        let mut section: Option<&mut Section> = None;
        let mut outside = Section::new();
        let mut last = String::new();
        for (number, line) in text.lines().enumerate() {
            let syntax = || AwsError::Syntax {
                path: path.to_owned(),
                line: number + 1,
            };
            let indented = line.starts_with([' ', '\t']);
            let line = line.trim();
            if line.is_empty() || line.starts_with(['#', ';']) {
                continue;
            }
            if let (Some(rest), false) = (line.strip_prefix('['), indented) {
                let (header, _) = rest.split_once(']').ok_or_else(syntax)?;
                section = Some(match kind.section(header) {
                    SectionName::Profile(name) => self.profiles.entry(name).or_default(),
                    SectionName::Services(name) => self.services.entry(name).or_default(),
                    SectionName::Other => &mut outside,
                });
                last.clear();
                continue;
            }
            let section = section.as_deref_mut().ok_or_else(syntax)?;
            let pair = line
                .split_once('=')
                .map(|(name, value)| (name.trim(), without_comment(value)));
            match pair {
                Some((name, value)) if !name.is_empty() => {
                    let name = name.to_ascii_lowercase();
                    let name = if indented && !last.is_empty() {
                        format!("{last}.{name}")
                    } else {
                        last = name.clone();
                        name
                    };
                    section.insert(name, Zeroizing::new(value.to_owned()));
                }
                // The next line of a value that goes over several; none that hushfs reads does.
                _ if indented && !last.is_empty() => {}
                _ => return Err(syntax()),
            }
        }
        Ok(())
    }
}

impl fmt::Debug for Profiles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Some settings are secrets.
        f.debug_set().entries(self.profiles.keys()).finish()
    }
}

/// One of the two files: they name profiles differently.
#[derive(Clone, Copy)]
enum FileKind {
    Config,
    Credentials,
}

enum SectionName {
    Profile(String),
    Services(String),
    Other,
}

impl FileKind {
    fn section(self, header: &str) -> SectionName {
        let mut words = header.trim().splitn(2, char::is_whitespace);
        let first = words.next().unwrap_or_default();
        let second = words
            .next()
            .map(|word| word.trim().trim_matches(['"', '\'']).to_owned());
        match (self, first, second) {
            (FileKind::Config, "profile", Some(name)) => SectionName::Profile(name),
            (FileKind::Config, "services", Some(name)) => SectionName::Services(name),
            (FileKind::Config, DEFAULT_PROFILE, None) => SectionName::Profile(first.to_owned()),
            (FileKind::Credentials, name, None) => SectionName::Profile(name.to_owned()),
            _ => SectionName::Other,
        }
    }
}

/// Takes away a comment, which starts behind a space.
fn without_comment(value: &str) -> &str {
    let comment = value
        .char_indices()
        .zip(value.chars().skip(1))
        .find(|((_, before), c)| before.is_whitespace() && matches!(c, '#' | ';'));
    comment.map_or(value, |((at, _), _)| &value[..at]).trim()
}

fn read_if_there(path: &Path) -> Result<Option<Zeroizing<String>>, AwsError> {
    match read(path) {
        Err(AwsError::File { source, .. })
            if matches!(source.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) =>
        {
            Ok(None)
        }
        other => other.map(Some),
    }
}

/// Reads a small file of text that may hold a secret.
///
/// # Errors
///
/// [`AwsError::File`], also for one that is large or not UTF-8.
pub fn read(path: &Path) -> Result<Zeroizing<String>, AwsError> {
    let failed = |source| AwsError::File {
        path: path.to_owned(),
        source,
    };
    let bytes = File::open(path)
        .and_then(|file| read_all(file, FILE_SIZE_MAX))
        .map_err(failed)?;
    let text =
        std::str::from_utf8(&bytes).map_err(|error| failed(io::Error::new(io::ErrorKind::InvalidData, error)))?;
    Ok(Zeroizing::new(text.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn profiles(config: &str, credentials: &str, more: &[(&str, &str)]) -> Result<Profiles, AwsError> {
        let dir = tempfile::tempdir().unwrap();
        let (one, two) = (dir.path().join("config"), dir.path().join("credentials"));
        std::fs::write(&one, config).unwrap();
        std::fs::write(&two, credentials).unwrap();
        let files = [
            ("AWS_CONFIG_FILE", one.to_str().unwrap()),
            ("AWS_SHARED_CREDENTIALS_FILE", two.to_str().unwrap()),
        ];
        Profiles::load(&Environment::of(&[&files, more].concat()))
    }

    #[test]
    fn a_profile_is_what_both_files_say_of_it() {
        let config = "# a comment\n[default]\nregion = eu-west-1 ; here\n\n[profile work]\nRegion=eu-north-1\n\
                      endpoint_url = https://a#b\naws_access_key_id = old\n[profile \"two words\"]\nregion = x\n[other thing]\nregion = y\n";
        let credentials = "[work]\naws_access_key_id = new\n[default]\n aws_access_key_id=AKID\n";
        let found = profiles(config, credentials, &[]).unwrap();
        assert_eq!(found.setting("region"), Some("eu-west-1"));
        assert_eq!(found.setting("aws_access_key_id"), Some("AKID"));
        let found = profiles(config, credentials, &[("AWS_PROFILE", "work")]).unwrap();
        assert_eq!(found.setting("region"), Some("eu-north-1"));
        assert_eq!(found.setting("aws_access_key_id"), Some("new"));
        assert_eq!(found.endpoint("kms"), Some("https://a#b"));
        let found = profiles(config, credentials, &[("AWS_DEFAULT_PROFILE", "two words")]).unwrap();
        assert_eq!(found.setting("region"), Some("x"));
    }

    #[test]
    fn an_endpoint_is_of_a_service_or_of_all() {
        let config = "[default]\nservices = local\nendpoint_url = https://all\n[services local]\nkms =\n  endpoint_url = https://kms\ns3 =\n  x = y\n";
        let found = profiles(config, "", &[]).unwrap();
        assert_eq!(found.endpoint("kms"), Some("https://kms"));
        assert_eq!(found.endpoint("sts"), Some("https://all"));
    }

    #[test]
    fn a_profile_that_was_named_must_exist() {
        let error = profiles("[default]\n", "", &[("AWS_PROFILE", "gone")]).unwrap_err();
        assert!(matches!(error, AwsError::NoProfile { name } if name == "gone"));
        assert_eq!(profiles("", "", &[]).unwrap().chosen(), ("default", None, false));
    }

    #[test]
    fn files_that_are_not_there_are_as_empty_ones() {
        let nowhere = Environment::of(&[("HOME", "/nonexistent")]);
        assert!(Profiles::load(&nowhere).is_ok());
        assert!(Profiles::load(&Environment::of(&[])).is_ok());
    }

    #[test]
    fn the_files_are_in_the_home_directory() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join(".aws")).unwrap();
        std::fs::write(dir.path().join(".aws/config"), "[default]\nregion = a\n").unwrap();
        std::fs::write(dir.path().join("mine"), "[default]\nregion = b\n").unwrap();
        let home = ("HOME", dir.path().to_str().unwrap());
        let region = |variables: &[(&str, &str)]| {
            let found = Profiles::load(&Environment::of(variables)).unwrap();
            found.setting("region").map(str::to_owned)
        };
        assert_eq!(region(&[home]).as_deref(), Some("a"));
        assert_eq!(region(&[home, ("AWS_CONFIG_FILE", "~/mine")]).as_deref(), Some("b"));
    }

    #[test]
    fn what_is_no_setting_is_named_with_its_line() {
        for (text, line) in [
            ("x = 1\n", 1),
            ("[default]\n\nnonsense\n", 3),
            ("[default\n", 1),
            ("[default]\n= 1\n", 2),
        ] {
            let error = profiles(text, "", &[]).unwrap_err();
            assert!(
                matches!(error, AwsError::Syntax { line: at, .. } if at == line),
                "{text:?}: {error}"
            );
        }
    }

    #[test]
    fn a_file_that_cannot_be_a_profile_file_is_an_error() {
        let error = Profiles::load(&Environment::of(&[("AWS_CONFIG_FILE", "/dev/zero")])).unwrap_err();
        assert!(matches!(error, AwsError::File { .. }), "{error}");
        let error = Profiles::load(&Environment::of(&[("AWS_CONFIG_FILE", "/")])).unwrap_err();
        assert!(matches!(error, AwsError::File { .. }), "{error}");
    }

    #[test]
    fn an_empty_variable_is_none() {
        let environment = Environment::of(&[("A", ""), ("B", "TRUE"), ("C", "1")]);
        assert_eq!(environment.text("A").unwrap(), None);
        assert!(environment.is_true("B") && !environment.is_true("C") && !environment.is_true("D"));
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in "[\\[\\]=#; a-z\\n\\t\"é]{0,80}") {
            let mut found = Profiles::default();
            let _ = found.merge(Path::new("x"), FileKind::Config, &text);
            let _ = found.merge(Path::new("x"), FileKind::Credentials, &text);
        }
    }
}
