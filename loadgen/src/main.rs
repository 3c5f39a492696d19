//! `loadgen`: the command line around the library. `--help` says it all.

use clap::Parser;
use loadgen::options::Options;
use loadgen::poll::{catch_interrupts, raise_open_files};
use loadgen::run::{Failure, exit_code, run};
use std::process::ExitCode;

fn main() -> ExitCode {
    let options = Options::parse();
    raise_open_files();
    catch_interrupts();
    let json = options.json.clone();
    match run(options, &mut |report| print!("{}", report.table())) {
        Ok(report) => {
            print!("{}", report.table());
            if let Some(path) = json
                && let Err(error) = std::fs::write(&path, report.json())
            {
                eprintln!("loadgen: --json {}: {error}", path.display());
                return ExitCode::from(2);
            }
            if let Some(died) = &report.died {
                eprintln!("loadgen: {died}");
            }
            ExitCode::from(exit_code(&report))
        }
        Err(Failure::Usage(text)) => {
            eprintln!("loadgen: {text}");
            ExitCode::from(2)
        }
        Err(Failure::Unreachable(text)) => {
            eprintln!("loadgen: {text}");
            ExitCode::from(4)
        }
    }
}
