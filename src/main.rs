//! The `chaski` command: parses the command line, runs it, and turns the outcome into an exit code.

use std::process::ExitCode;

use clap::Parser as _;

/// Each event is a handful of small allocations made in one thread and freed in another; this allocator is
/// good at those.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    chaski::command::main(chaski::cli::Cli::parse())
}
