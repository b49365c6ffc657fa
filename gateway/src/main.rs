//! See the library beside it, which exists so that benchmarks can reach its parts.

use std::process::ExitCode;

// Half the allocator's time of the system's own, under many small allocations.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    gateway::main()
}
