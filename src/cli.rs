//! The command line: arguments, prompts, output and exit codes. The only module that prints; docs/CLI.md is its promise.

mod agent;
mod args;
mod audit;
mod check;
mod daemon;
mod devices;
mod encryption;
mod epochs;
mod error;
mod export;
mod info;
mod init;
mod keys;
mod mount;
mod open;
mod options;
mod outside;
mod process;
mod progress;
mod prompt;
mod record;
mod rekey;
mod sealed;
mod secret;
mod share;
mod slots;
mod snapshot;
mod speed;
mod text;
mod view;

use std::{
    ffi::OsString,
    fmt,
    io::{self, Write},
    path::Path,
    process::ExitCode,
};

use clap::{CommandFactory, Parser};

use self::{
    args::{
        AliasCommand, AuditCommand, AuditSwitch, Cli, Command, CustomerKeyCommand, EncryptionCommand, FileCommand,
        KeyCommand, KeystoreCommand, PolicyCommand, RecipientCommand, RecordCommand, RotationCommand, ShareCommand,
        SlotCommand, VaultCommand,
    },
    error::CliError,
};

/// What a command gives: nothing, or why it failed.
type CliResult<T = ()> = Result<T, CliError>;

/// Runs the command that the arguments ask for.
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    process::harden();
    let arguments = match options::as_command(arguments.into_iter().collect()) {
        Some(arguments) => arguments,
        // mount(8) asked to pretend.
        None => return ExitCode::SUCCESS,
    };
    let is_check = names_check(&arguments);
    let cli = match Cli::try_parse_from(arguments) {
        Ok(cli) => cli,
        Err(error) => {
            let code = match (error.use_stderr(), is_check) {
                (false, _) => 0,
                (true, true) => error::CHECK_USAGE,
                (true, false) => error::USAGE,
            };
            // There is nowhere left to complain to when printing this fails.
            let _ = error.print();
            return ExitCode::from(code);
        }
    };
    process::start_log(cli.verbose, &cli.command);
    match dispatch(cli.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            if let Some(message) = error.message() {
                say(format_args!("{message}"));
            }
            ExitCode::from(if is_check {
                error.check_code()
            } else {
                error.exit_code()
            })
        }
    }
}

/// Tells whether the arguments are those of `fsck` or `verify`, which have exit codes of their own.
fn names_check(arguments: &[OsString]) -> bool {
    let command = arguments
        .iter()
        .skip(1)
        .find(|word| !word.as_encoded_bytes().starts_with(b"-"));
    command.is_some_and(|word| word == "fsck" || word == "verify")
}

fn dispatch(command: Command) -> CliResult {
    match command {
        Command::Init(args) => init::init(&args),
        Command::Mount(args) => mount::mount(args),
        Command::Unmount(args) => mount::unmount(&args),
        Command::Info(args) => info::info(&args),
        Command::Slot(command) => dispatch_slot(command),
        Command::Share(ShareCommand::Add(args)) => share::add(&args),
        Command::Share(ShareCommand::Remove(args)) => share::remove(&args),
        Command::Share(ShareCommand::List(args)) => share::list(&args),
        Command::Recipient(RecipientCommand::Generate(args)) => share::generate(&args),
        Command::Recipient(RecipientCommand::Show(args)) => share::show(&args),
        Command::Key(command) => dispatch_key(command),
        Command::Keystore(KeystoreCommand::Init(args)) => init::init_keystore(&args),
        Command::Keystore(KeystoreCommand::Audit(switch)) => match *switch {
            AuditSwitch::On(args) => audit::on(&args),
            AuditSwitch::Off(args) => audit::off(&args),
            AuditSwitch::Status(args) => audit::status(&args),
        },
        Command::Audit(AuditCommand::Show(args)) => audit::show(&args),
        Command::Audit(AuditCommand::Verify(args)) => audit::verify(&args),
        Command::Audit(AuditCommand::Export(args)) => audit::export(&args),
        Command::Vault(VaultCommand::Rotate(args)) => epochs::rotate(&args),
        Command::Vault(VaultCommand::Encryption(EncryptionCommand::Show(args))) => encryption::show(&args),
        Command::Vault(VaultCommand::Encryption(EncryptionCommand::Set(args))) => encryption::set(&args),
        Command::Vault(VaultCommand::Encryption(EncryptionCommand::Unset(args))) => encryption::unset(&args),
        Command::Vault(VaultCommand::BucketKey(args)) => encryption::set_bucket_key(&args),
        Command::Vault(VaultCommand::CustomerKey(CustomerKeyCommand::Add(args))) => encryption::add_customer_key(&args),
        Command::Vault(VaultCommand::CustomerKey(CustomerKeyCommand::Remove(args))) => {
            encryption::remove_customer_key(&args)
        }
        Command::File(FileCommand::Info(args)) => encryption::file_info(&args),
        Command::Agent(args) => agent::agent(&args),
        Command::Lock(args) => agent::lock(&args),
        Command::Passwd(args) => slots::passwd(&args),
        Command::Rewrap(args) => epochs::rewrap(&args),
        Command::Rekey(args) => rekey::rekey(&args),
        Command::Verify(args) => check::verify(&args),
        Command::Fsck(args) => check::fsck(&args),
        Command::Snapshot(args) => snapshot::take(&args),
        Command::Record(RecordCommand::Show(args)) => record::show(&args),
        Command::Record(RecordCommand::Accept(args)) => record::accept(&args),
        Command::Record(RecordCommand::Forget(args)) => record::forget(&args),
        Command::Ls(args) => view::ls(&args),
        Command::Cat(args) => view::cat(&args),
        Command::Export(args) => export::export(&args),
        Command::Seal(args) => sealed::seal(&args),
        Command::Open(args) => sealed::open(&args),
        Command::Reseal(args) => sealed::reseal(&args),
        Command::Speed(args) => speed::speed(&args),
        Command::Completions { shell } => {
            // Into memory first: the generator panics where it cannot write.
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "hushfs", &mut script);
            print(&script)
        }
        Command::Man { directory } => write_manual(&directory),
    }
}

fn dispatch_slot(command: SlotCommand) -> CliResult {
    match command {
        SlotCommand::Add(args) => slots::add(&args),
        SlotCommand::Remove(args) => slots::remove(&args),
        SlotCommand::List(args) => slots::list(&args),
        SlotCommand::Test(args) => slots::test(&args),
    }
}

fn dispatch_key(command: KeyCommand) -> CliResult {
    match command {
        KeyCommand::Create(args) => keys::create(&args),
        KeyCommand::Describe(args) => keys::describe(&args),
        KeyCommand::List(args) => keys::list(&args),
        KeyCommand::Enable(args) => keys::enable(&args),
        KeyCommand::Disable(args) => keys::disable(&args),
        KeyCommand::Rotate(args) => keys::rotate(&args),
        KeyCommand::Rotation(RotationCommand::On(args)) => keys::rotation_on(&args),
        KeyCommand::Rotation(RotationCommand::Off(args)) => keys::rotation_off(&args),
        KeyCommand::Rotation(RotationCommand::Status(args)) => keys::rotation_status(&args),
        KeyCommand::Rotations(args) => keys::rotations(&args),
        KeyCommand::Tag(args) => keys::tag(&args),
        KeyCommand::Untag(args) => keys::untag(&args),
        KeyCommand::DescribeUpdate(args) => keys::describe_update(&args),
        KeyCommand::Delete(args) => keys::delete(&args),
        KeyCommand::Undelete(args) => keys::undelete(&args),
        KeyCommand::Reap(args) => keys::reap(&args),
        KeyCommand::Usage(args) => keys::usage(&args),
        KeyCommand::Alias(AliasCommand::Set(args)) => keys::set_alias(&args),
        KeyCommand::Alias(AliasCommand::Remove(args)) => keys::remove_alias(&args),
        KeyCommand::Alias(AliasCommand::List(args)) => keys::list_aliases(&args),
        KeyCommand::Policy(PolicyCommand::Show(args)) => keys::show_policy(&args),
        KeyCommand::Policy(PolicyCommand::Set(args)) => keys::set_policy(&args),
        KeyCommand::Add(args) => slots::add(&args),
        KeyCommand::Remove(args) => slots::remove(&args),
    }
}

fn write_manual(directory: &Path) -> CliResult {
    clap_mangen::generate_to(Cli::command(), directory).map_err(|source| CliError::File {
        path: directory.to_owned(),
        source,
    })
}

/// Writes to standard output what was asked for.
fn print(bytes: &[u8]) -> CliResult {
    let mut out = io::stdout().lock();
    out.write_all(bytes)
        .and_then(|()| out.flush())
        .map_err(CliError::Output)
}

/// Writes a line to standard error. Nothing comes of it where that cannot be written, as on a full disk: what was done is done, and the exit code tells.
fn say(line: fmt::Arguments<'_>) {
    let _ = writeln!(io::stderr().lock(), "hushfs: {line}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_arguments_are_consistent() {
        Cli::command().debug_assert();
    }
}
