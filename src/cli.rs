//! The command line: arguments, prompts, output and exit codes. The only module that prints; docs/CLI.md is its promise.

mod args;
mod check;
mod daemon;
mod error;
mod export;
mod info;
mod keys;
mod mount;
mod options;
mod process;
mod progress;
mod secret;
mod text;
mod view;

use std::{
    ffi::OsString,
    io::{self, Write},
    path::Path,
    process::ExitCode,
};

use clap::{CommandFactory, Parser};

use self::{
    args::{Cli, Command, KeyCommand},
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
    let cli = match Cli::try_parse_from(arguments) {
        Ok(cli) => cli,
        Err(error) => {
            let code = if error.use_stderr() { error::USAGE } else { 0 };
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
                eprintln!("hushfs: {message}");
            }
            ExitCode::from(error.exit_code())
        }
    }
}

fn dispatch(command: Command) -> CliResult {
    match command {
        Command::Init(args) => keys::init(&args),
        Command::Mount(args) => mount::mount(args),
        Command::Unmount(args) => mount::unmount(&args),
        Command::Info(args) => info::info(&args),
        Command::Key(KeyCommand::List(args)) => info::list_keys(&args),
        Command::Key(KeyCommand::Add(args)) => keys::add(&args),
        Command::Key(KeyCommand::Remove(args)) => keys::remove(&args),
        Command::Key(KeyCommand::Rotate(args)) => keys::rotate(&args),
        Command::Passwd(args) => keys::passwd(&args),
        Command::Rewrap(args) => keys::rewrap(&args),
        Command::Verify(args) => check::verify(&args),
        Command::Fsck(args) => check::fsck(&args),
        Command::Ls(args) => view::ls(&args),
        Command::Cat(args) => view::cat(&args),
        Command::Export(args) => export::export(&args),
        Command::Completions { shell } => {
            // Into memory first: the generator panics where it cannot write.
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "hushfs", &mut script);
            print(&script)
        }
        Command::Man { directory } => write_manual(&directory),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_arguments_are_consistent() {
        Cli::command().debug_assert();
    }
}
