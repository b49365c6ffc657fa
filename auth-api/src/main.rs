//! The program `auth-api`.

use std::process::ExitCode;

// Takes half the CPU time of the system allocator with many small JSON requests.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    auth_api::main()
}
