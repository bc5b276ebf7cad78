//! What mount(8), mount.fuse(8) and fstab say, in their own ways.

use std::{
    ffi::OsString,
    os::unix::ffi::{OsStrExt, OsStringExt},
    path::Path,
};

use clap::{CommandFactory, Parser, ValueEnum};

use super::{
    CliResult,
    args::{AuditArg, Cli, JournalArg, MountArgs, RollbackArg, parse_key_max_stale, parse_key_ttl, parse_time},
    error::CliError,
};
use crate::fuse;

/// Mount options that mean something to mount(8), systemd or libfuse, and nothing here.
const IGNORED: [&str; 14] = [
    "defaults",
    "rw",
    "auto",
    "noauto",
    "user",
    "nouser",
    "users",
    "owner",
    "group",
    "nofail",
    "_netdev",
    "silent",
    "loud",
    "default_permissions",
];

const IGNORED_PREFIXES: [&str; 4] = ["x-", "X-", "comment=", "subtype="];

/// Turns the ways in which others call hushfs into `hushfs mount`; nothing when mount(8) only pretends.
///
/// mount.fuse(8) calls `hushfs VAULT MOUNTPOINT -o OPTIONS`. As `mount.fuse.hushfs`, a link to hushfs, mount(8) itself calls
/// `mount.fuse.hushfs VAULT MOUNTPOINT [-sfnv] [-N NAMESPACE] [-t TYPE] [-o OPTIONS]`.
pub fn as_command(arguments: Vec<OsString>) -> Option<Vec<OsString>> {
    let own_name = arguments.first().map(Path::new).and_then(Path::file_name);
    if own_name.is_some_and(|name| name.as_bytes().starts_with(b"mount.")) {
        return as_mount_helper(arguments);
    }
    let is_vault = |argument: &OsString| {
        let known = Cli::command()
            .get_subcommands()
            .any(|command| argument == command.get_name() || command.get_all_aliases().any(|alias| argument == alias));
        // A mistyped command is not taken for a vault.
        !known && !argument.as_bytes().starts_with(b"-") && argument.as_bytes().contains(&b'/')
    };
    let mut arguments = arguments;
    if arguments.get(1).is_some_and(is_vault) {
        arguments.insert(1, "mount".into());
        drop_privileges(&mut arguments);
    }
    Some(arguments)
}

/// Drops `suid` and `dev` from the options of mount.fuse(8), which adds them for root by itself, whatever stands in fstab.
fn drop_privileges(arguments: &mut [OsString]) {
    let mut follows = false;
    for argument in arguments {
        if follows {
            let options = argument.as_bytes().split(|&byte| byte == b',');
            let kept: Vec<_> = options
                .filter(|&option| option != b"suid" && option != b"dev")
                .collect();
            *argument = OsString::from_vec(kept.join(&b','));
        }
        follows = *argument == "-o";
    }
}

fn as_mount_helper(arguments: Vec<OsString>) -> Option<Vec<OsString>> {
    let mut command: Vec<OsString> = vec!["hushfs".into(), "mount".into()];
    let mut others = true;
    let mut rest = arguments.into_iter().skip(1);
    while let Some(argument) = rest.next() {
        match argument.as_bytes() {
            b"-f" => return None,
            b"-s" | b"-n" => {}
            b"-N" | b"-t" => drop(rest.next()),
            b"-o" => {
                let options = rest.next().unwrap_or_default();
                others &= !options
                    .as_bytes()
                    .split(|&byte| byte == b',')
                    .any(|o| o == b"noallow_other");
                command.extend(["-o".into(), options]);
            }
            _ => command.push(argument),
        }
    }
    // As every filesystem in fstab does.
    if others {
        command.push("--allow-other".into());
    }
    Some(command)
}

/// Works the options of `-o` into the other arguments, and returns those that are for the kernel.
pub fn apply(args: &mut MountArgs) -> CliResult<Vec<String>> {
    let mut for_kernel = Vec::new();
    let joined = std::mem::take(&mut args.options).join(",");
    for option in joined.split(',').filter(|option| !option.is_empty()) {
        let (name, value) = match option.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (option, None),
        };
        match (name, value) {
            ("ro", None) => args.ro = true,
            ("rw", None) => args.ro = false,
            ("allow_other", None) => args.allow_other = true,
            ("noallow_other", None) => args.allow_other = false,
            ("shared", None) => args.shared = true,
            ("acl", None) => args.acl = true,
            ("noacl", None) => args.acl = false,
            ("no-sandbox", None) => args.no_sandbox = true,
            ("audit", Some("per-file")) => set(option, &mut args.audit, AuditArg::PerFile)?,
            ("journal", value) => {
                let when = JournalArg::from_str(value.unwrap_or("always"), false);
                args.journal = parsed(option, when)?;
            }
            ("record", value) => set(option, &mut args.record, value.unwrap_or_default().into())?,
            ("rollback", Some("warn")) => args.rollback = RollbackArg::Warn,
            ("rollback", Some("refuse")) => args.rollback = RollbackArg::Refuse,
            ("recovery", None) => args.unlock.recovery = true,
            ("fsname", Some(value)) => set(option, &mut args.fsname, value.to_owned())?,
            ("log-file" | "log_file", Some(value)) => set(option, &mut args.log_file, value.into())?,
            ("passfile", Some(value)) => set(option, &mut args.unlock.secret.passphrase.passfile, value.into())?,
            ("extpass", Some(value)) => set(option, &mut args.unlock.secret.passphrase.extpass, value.to_owned())?,
            ("key-file" | "keyfile", Some(value)) => set(option, &mut args.unlock.secret.key_file, value.into())?,
            ("credential", Some(value)) => set(option, &mut args.unlock.secret.credential, value.to_owned())?,
            ("identity", Some(value)) => set(option, &mut args.unlock.devices.identity, value.into())?,
            ("share-code", Some(value)) => set(option, &mut args.unlock.devices.share_code, value.to_owned())?,
            ("slot-command", Some(value)) => set(option, &mut args.unlock.devices.slot_command, value.to_owned())?,
            ("tpm2", value) => set(
                option,
                &mut args.unlock.devices.tpm2,
                value.unwrap_or_default().to_owned(),
            )?,
            ("customer-key", Some(value)) => set(option, &mut args.customer.customer_key, value.into())?,
            ("kms-key", Some(value)) => set(option, &mut args.unlock.devices.kms_key, value.to_owned())?,
            ("pkcs11-key", Some(value)) => set(option, &mut args.unlock.devices.pkcs11_key, value.to_owned())?,
            ("pkcs11-module", Some(value)) => set(option, &mut args.unlock.devices.pkcs11_module, value.into())?,
            ("pin-file", Some(value)) => set(option, &mut args.unlock.devices.pin_file, value.into())?,
            ("keystore", Some(value)) => set(option, &mut args.unlock.keystore, value.into())?,
            ("agent", Some(value)) => set(option, &mut args.unlock.agent, value.into())?,
            ("slot", Some(value)) => set(option, &mut args.unlock.slot, value.to_owned())?,
            ("idle", Some(value)) => set(option, &mut args.idle, parsed(option, parse_time(value))?)?,
            ("key-ttl", Some(value)) => set(option, &mut args.key_ttl, parsed(option, parse_key_ttl(value))?)?,
            ("key-max-stale", Some(value)) => {
                set(
                    option,
                    &mut args.key_max_stale,
                    parsed(option, parse_key_max_stale(value))?,
                )?;
            }
            _ if is_ignored(option) => {}
            _ if fuse::is_kernel_option(option) => for_kernel.push(option.to_owned()),
            _ => return Err(CliError::UnknownOption(option.to_owned())),
        }
    }
    check_together(args)?;
    Ok(for_kernel)
}

/// Refuses what the command line refuses together, whichever way it was given.
fn check_together(args: &MountArgs) -> CliResult {
    let (unlock, devices) = (&args.unlock, &args.unlock.devices);
    let (secret, passphrase) = (&unlock.secret, &unlock.secret.passphrase);
    let given = [
        ("--passfile=x", passphrase.passfile.is_some()),
        ("--extpass=x", passphrase.extpass.is_some()),
        ("--passfd=0", passphrase.passfd.is_some()),
        ("--key-file=x", secret.key_file.is_some()),
        ("--credential=x", secret.credential.is_some()),
        ("--recovery", unlock.recovery),
        ("--slot=x", unlock.slot.is_some()),
        ("--keystore=x", unlock.keystore.is_some()),
        ("--agent=x", unlock.agent.is_some()),
        ("--slot-command=x", devices.slot_command.is_some()),
        ("--identity=x", devices.identity.is_some()),
        ("--share-code=x", devices.share_code.is_some()),
        ("--tpm2", devices.tpm2.is_some()),
        ("--kms-key=x", devices.kms_key.is_some()),
        ("--pkcs11-key=x", devices.pkcs11_key.is_some()),
        ("--pkcs11-module=x", devices.pkcs11_module.is_some()),
        ("--pin-file=x", devices.pin_file.is_some()),
    ];
    let words = given
        .into_iter()
        .filter_map(|(word, is_given)| is_given.then_some(word));
    let parsed = Cli::try_parse_from(["hushfs", "mount", "v", "m"].into_iter().chain(words));
    parsed.map(drop).map_err(|error| {
        let text = error.to_string();
        let first = text.lines().next().unwrap_or_default();
        CliError::Together(first.trim_start_matches("error: ").to_owned())
    })
}

fn parsed<T>(option: &str, value: Result<T, String>) -> CliResult<T> {
    value.map_err(|reason| CliError::OptionValue {
        option: option.to_owned(),
        reason,
    })
}

fn set<T>(option: &str, place: &mut Option<T>, value: T) -> CliResult {
    match place.replace(value) {
        None => Ok(()),
        Some(_) => Err(CliError::OptionTwice(option.to_owned())),
    }
}

fn is_ignored(option: &str) -> bool {
    IGNORED.contains(&option) || IGNORED_PREFIXES.iter().any(|prefix| option.starts_with(prefix))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::args::Command;

    fn command(words: &str) -> Option<String> {
        let words = words.split(' ').map(OsString::from).collect();
        as_command(words).map(|words| words.join(" ".as_ref()).into_string().unwrap())
    }

    fn mount_args(options: &str) -> MountArgs {
        let cli = Cli::try_parse_from(["hushfs", "mount", "/v", "/m", "-o", options]).unwrap();
        match cli.command {
            Command::Mount(args) => args,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn others_call_hushfs_in_their_own_ways() {
        assert_eq!(
            command("hushfs /v /m -o rw,dev,suid").unwrap(),
            "hushfs mount /v /m -o rw"
        );
        assert_eq!(command("hushfs ls /v").unwrap(), "hushfs ls /v");
        assert_eq!(command("hushfs umount /m").unwrap(), "hushfs umount /m");
        assert_eq!(command("hushfs inti /v").unwrap(), "hushfs inti /v");
        assert_eq!(
            command("/sbin/mount.fuse.hushfs /v /m -s -n -t fuse.hushfs -o noauto").unwrap(),
            "hushfs mount /v /m -o noauto --allow-other"
        );
        assert_eq!(
            command("mount.hushfs /v /m -o ro,noallow_other").unwrap(),
            "hushfs mount /v /m -o ro,noallow_other"
        );
        assert_eq!(command("mount.hushfs /v /m -f"), None);
    }

    #[test]
    fn options_become_arguments_or_go_to_the_kernel() {
        let mut args = mount_args(
            "rw,nosuid,noatime,passfile=/p,idle=10m,key-ttl=30s,key-max-stale=0s,shared,fsname=x=y,keystore=/k,nofail,x-systemd.automount,ro",
        );
        assert_eq!(apply(&mut args).unwrap(), ["nosuid", "noatime"]);
        assert!(args.ro && args.shared && !args.allow_other);
        assert_eq!(args.unlock.secret.passphrase.passfile.as_deref(), Some(Path::new("/p")));
        assert_eq!(args.unlock.keystore.as_deref(), Some(Path::new("/k")));
        assert_eq!(args.idle.unwrap().as_secs(), 600);
        assert_eq!(args.key_ttl.unwrap().as_secs(), 30);
        assert_eq!(args.key_max_stale.unwrap().as_secs(), 0);
        assert_eq!(args.fsname.as_deref(), Some("x=y"));
    }

    #[test]
    fn what_is_no_option_is_named() {
        let error = |options| apply(&mut mount_args(options)).unwrap_err();
        assert!(matches!(error("ro,fast"), CliError::UnknownOption(option) if option == "fast"));
        assert!(matches!(error("ro=1"), CliError::UnknownOption(_)));
        assert!(matches!(error("idle=soon"), CliError::OptionValue { .. }));
        assert!(matches!(error("idle=1m,idle=2m"), CliError::OptionTwice(_)));
        for options in [
            "key-file=/k,passfile=/p",
            "key-file=/k,recovery",
            "agent=/s,slot=1",
            "share-code=1",
        ] {
            assert!(matches!(error(options), CliError::Together(_)), "{options}");
        }
        for option in ["key-ttl=0s", "key-ttl=2d", "key-ttl=never", "key-max-stale=31d"] {
            assert!(matches!(error(option), CliError::OptionValue { .. }), "{option}");
        }
    }
}
