//! Places in the filesystem, TCP, and signals to others: Landlock (landlock(7)).

use std::{fmt, path::Path, sync::OnceLock};

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, PathBeneath, PathFd, PathFdError, Ruleset,
    RulesetAttr, RulesetCreated, RulesetCreatedAttr, RulesetError, RulesetStatus, Scope, make_bitflags,
};

use super::{Needs, Outside};

/// What the rules were written for: what later versions can restrict besides was not thought of here. Kernels before it enforce what they know.
const VERSION: ABI = ABI::V6;

/// What a filesystem needs besides its own directories: its device, of which each thread opens another one, where unwanted output goes, and the groups
/// of who asks (`backing::process`).
const OF_FILESYSTEM: [(&str, BitFlags<AccessFs>); 3] = [
    ("/dev/fuse", make_bitflags!(AccessFs::{ReadFile | WriteFile | IoctlDev})),
    ("/dev/null", make_bitflags!(AccessFs::{ReadFile | WriteFile})),
    ("/proc", make_bitflags!(AccessFs::{ReadFile})),
];

const READ: BitFlags<AccessFs> = make_bitflags!(AccessFs::{ReadFile | ReadDir});

/// A set of rules, ready to be entered by threads.
#[derive(Debug)]
pub struct Places {
    rules: RulesetCreated,
    status: OnceLock<&'static str>,
}

impl Places {
    /// Makes the rules; none where nobody knows which files will be needed.
    pub fn prepare(needs: &Needs) -> Option<Self> {
        if needs.outside >= Outside::ForeignCode {
            return None;
        }
        let warn = |error: &dyn fmt::Display| log::warn!("places in the filesystem are not restricted: {error}");
        let places = exceptions(needs).inspect_err(|error| warn(error)).ok()?;
        let rules = make_rules(needs, places).inspect_err(|error| warn(error)).ok()?;
        Some(Places {
            rules,
            status: OnceLock::new(),
        })
    }

    /// Restricts this thread, and those it starts from now on.
    pub fn enter(&self) {
        let rules = self.rules.try_clone().map_err(|error| error.to_string());
        let entered = rules.and_then(|rules| rules.restrict_self().map_err(|error| error.to_string()));
        match entered {
            Ok(entered) => {
                self.status.get_or_init(|| match entered.ruleset {
                    RulesetStatus::FullyEnforced => "in full",
                    RulesetStatus::PartiallyEnforced => "as far as this kernel has it",
                    RulesetStatus::NotEnforced => "not in this kernel",
                });
            }
            Err(error) => log::warn!("places in the filesystem are not restricted: {error}"),
        }
    }

    /// Says what is in force.
    pub fn describe(&self) -> &'static str {
        self.status.get().copied().unwrap_or("off")
    }
}

/// Returns where something may be done, and what.
fn exceptions(needs: &Needs) -> Result<Vec<PathBeneath<PathFd>>, PathFdError> {
    let mut of_directories = AccessFs::from_all(VERSION) & !(AccessFs::Execute | AccessFs::IoctlDev);
    if !needs.filesystem {
        of_directories &= !(AccessFs::MakeBlock | AccessFs::MakeChar);
    }
    let mut places: Vec<(&Path, _)> = needs.directories.iter().map(|path| (&**path, of_directories)).collect();
    let removes = needs.removes_in.iter();
    places.extend(removes.map(|path| (&**path, AccessFs::RemoveFile.into())));
    if needs.filesystem {
        // Without /proc, no caller is known to be in more than one group; without the device there is no mount.
        let there = OF_FILESYSTEM.iter().filter(|(path, _)| Path::new(path).exists());
        places.extend(there.map(|(path, access)| (Path::new(path), *access)));
    }
    if needs.outside >= Outside::Network {
        places.push((Path::new("/"), READ));
    }
    let rules = places
        .into_iter()
        .map(|(path, access)| Ok(PathBeneath::new(PathFd::new(path)?, access)));
    rules.collect()
}

fn make_rules(needs: &Needs, places: Vec<PathBeneath<PathFd>>) -> Result<RulesetCreated, RulesetError> {
    let mut wanted = Ruleset::default()
        // Where this one is not known, files could not be renamed from one directory into another under any rules.
        .set_compatibility(CompatLevel::SoftRequirement)
        .handle_access(AccessFs::Refer)?
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(VERSION))?
        .handle_access(AccessNet::BindTcp)?;
    if needs.outside < Outside::Network {
        wanted = wanted.handle_access(AccessNet::ConnectTcp)?;
    }
    let rules = wanted.scope(Scope::from_all(VERSION))?.create()?;
    rules.add_rules(places.into_iter().map(Ok::<_, RulesetError>))
}
