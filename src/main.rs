//! The `chaski` command: parses the command line, runs it, and turns the outcome into an exit code.

use std::process::ExitCode;

use clap::Parser as _;

fn main() -> ExitCode {
    chaski::command::main(chaski::cli::Cli::parse())
}
