//! The `chaski` command: parses the command line, runs it, and turns the outcome into an exit code.

use std::process::ExitCode;

// Each event is a handful of small allocations made in one thread and freed in another; this allocator is good at
// those. Linked in, it is the system's, for Rust and C alike. As Rust's global allocator it would be told an alignment
// with each request, and then looks for a place the long way.
use mimalloc as _;

fn main() -> ExitCode {
    match chaski::cli::Cli::read(std::env::args_os()) {
        Ok(cli) => chaski::command::main(cli),
        Err(said) => chaski::command::say_instead(&said),
    }
}
