//! `yadokari`, and by another name kaniko's `executor`.

use std::process::ExitCode;

fn main() -> ExitCode {
    // A RUN step re-executes this binary as the init of its sandbox.
    yadokari::sandbox::child_main_if_asked();
    yadokari::cli::main(std::env::args_os().collect())
}
