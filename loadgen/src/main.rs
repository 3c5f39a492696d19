//! `loadgen`: the command line around the library. `--help` says it all.

use clap::Parser;
use loadgen::html;
use loadgen::options::Options;
use loadgen::poll::{catch_interrupts, raise_open_files};
use loadgen::report::Report;
use loadgen::run::{Failure, exit_code, run};
use std::process::ExitCode;

fn main() -> ExitCode {
    let options = Options::parse();
    raise_open_files();
    catch_interrupts();
    let asked = options.clone();
    match run(options, &mut |report| print!("{}", report.table())) {
        Ok(report) => {
            print!("{}", report.table());
            if let Err(text) = write_files(&asked, &report) {
                eprintln!("loadgen: {text}");
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

fn write_files(options: &Options, report: &Report) -> Result<(), String> {
    if let Some(path) = &options.json {
        std::fs::write(path, report.json()).map_err(|error| format!("--json {}: {error}", path.display()))?;
    }
    if let Some(path) = &options.html {
        let page = html::page(report, &html::settings(options, report), &html::machine());
        std::fs::write(path, page).map_err(|error| format!("--html {}: {error}", path.display()))?;
    }
    Ok(())
}
