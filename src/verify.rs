//! `ringkv verify DIR`: reads every byte of a data folder that no node holds, and says what is damaged where.

use crate::config::exit;
use crate::engine;
use crate::io::driver::{Backend, Driver};
use crate::io::executor::Executor;
use crate::io::host;
use crate::io::wakers::Wakers;
use std::path::Path;

/// Verifies a folder; the exit code.
pub fn run(dir: &Path, say: &dyn Fn(&str)) -> i32 {
    let _lock = match host::lock_dir(dir) {
        Ok(lock) => lock,
        Err(error) => {
            say(&format!("{}: {error}", dir.display()));
            return if error.kind() == std::io::ErrorKind::WouldBlock { exit::DATA_IN_USE } else { exit::FAILED };
        }
    };
    let wakers = Wakers::new(1);
    // Without a wish there is always one.
    let backend = Backend::choose(None).map_or(Backend::Epoll, |(backend, _)| backend);
    let driver = match Driver::open(backend, 0, &wakers) {
        Ok((driver, _)) => driver,
        Err(error) => {
            say(&error.to_string());
            return exit::FAILED;
        }
    };
    let mut executor = Executor::new(driver, 0, wakers);
    let io = executor.handle();
    let path = dir.to_owned();
    let report = executor.run(async move { engine::verify_folder::verify_folder(&io, &path).await });
    match report {
        Err(error) => {
            say(&format!("{}: {error}", dir.display()));
            exit::FAILED
        }
        Ok(report) => {
            report.lines.iter().for_each(|line| say(line));
            report.damage.iter().for_each(|line| say(&format!("damaged: {line}")));
            report.unread.iter().for_each(|line| say(&format!("not read: {line}")));
            match (report.damage.is_empty(), report.unread.is_empty()) {
                (true, true) => exit::CLEAN,
                (true, false) => exit::FAILED,
                (false, _) => exit::DATA_DAMAGED,
            }
        }
    }
}
