//! The tools for data folders at rest: `ringkv verify DIR` reads every byte of a folder that no node holds, and says what is damaged where;
//! `ringkv verify DIR --salvage TO` copies what is sound of it; `ringkv inspect FILE` says what a file is and holds.

use crate::config::{Inspect, exit};
use crate::engine::verify_folder::{FolderReport, verify_folder};
use crate::engine::{self, EngineError};
use crate::io::driver::{Backend, Driver};
use crate::io::executor::Executor;
use crate::io::wakers::Wakers;
use crate::io::{Io, host};
use std::io::Write;
use std::path::Path;

/// Runs one task on an executor of its own.
fn on_disk<T: 'static, F: Future<Output = T> + 'static>(task: impl FnOnce(Io) -> F + 'static) -> std::io::Result<T> {
    let wakers = Wakers::new(1);
    // Without a wish there is always one.
    let backend = Backend::choose(None).map_or(Backend::Epoll, |(backend, _)| backend);
    let (driver, _) = Driver::open(backend, 0, &wakers).map_err(|error| std::io::Error::other(error.to_string()))?;
    let mut executor = Executor::new(driver, 0, wakers);
    let io = executor.handle();
    Ok(executor.run(async move { task(io).await }))
}

/// Holds the folder, so that no node starts on it meanwhile; the exit code where one runs on it.
fn locked(dir: &Path, say: &dyn Fn(&str)) -> Result<host::DirLock, i32> {
    host::lock_dir(dir).map_err(|error| {
        say(&format!("{}: {error}", dir.display()));
        if error.kind() == std::io::ErrorKind::WouldBlock { exit::DATA_IN_USE } else { exit::FAILED }
    })
}

fn failed(about: &Path, error: &dyn std::fmt::Display, say: &dyn Fn(&str)) -> i32 {
    say(&format!("{}: {error}", about.display()));
    exit::FAILED
}

/// Verifies a folder; the exit code.
pub fn run(dir: &Path, say: &dyn Fn(&str)) -> i32 {
    let _lock = match locked(dir, say) {
        Ok(lock) => lock,
        Err(code) => return code,
    };
    let path = dir.to_owned();
    match on_disk(|io| async move { verify_folder(&io, &path).await }) {
        Err(error) => failed(dir, &error, say),
        Ok(Err(error)) => failed(dir, &error, say),
        Ok(Ok(report)) => tell(&report, say),
    }
}

fn tell(report: &FolderReport, say: &dyn Fn(&str)) -> i32 {
    report.lines.iter().for_each(|line| say(line));
    report.damage.iter().for_each(|line| say(&format!("damaged: {line}")));
    report.unread.iter().for_each(|line| say(&format!("not read: {line}")));
    match (report.damage.is_empty(), report.unread.is_empty()) {
        (true, true) => exit::CLEAN,
        (true, false) => exit::FAILED,
        (false, _) => exit::DATA_DAMAGED,
    }
}

/// Copies what is sound of a folder into a new one and verifies that; the exit code: clean if nothing was lost.
pub fn salvage(from: &Path, to: &Path, say: &dyn Fn(&str)) -> i32 {
    let _lock = match locked(from, say) {
        Ok(lock) => lock,
        Err(code) => return code,
    };
    let (source, target) = (from.to_owned(), to.to_owned());
    let done = on_disk(|io| async move {
        let report = engine::salvage::salvage(&io, &source, &target).await?;
        let verified = verify_folder(&io, &target).await?;
        Ok::<_, EngineError>((report, verified))
    });
    let (report, verified) = match done {
        Err(error) => return failed(from, &error, say),
        Ok(Err(error @ EngineError::Corrupt { .. })) => {
            failed(from, &error, say);
            return exit::DATA_DAMAGED;
        }
        Ok(Err(error)) => return failed(from, &error, say),
        Ok(Ok(done)) => done,
    };
    report.lines.iter().for_each(|line| say(line));
    report.lost.iter().for_each(|lost| say(&format!("lost: {lost}")));
    if !verified.damage.is_empty() || !verified.unread.is_empty() {
        say(&format!("{} does not verify:", to.display()));
        tell(&verified, say);
        return exit::FAILED;
    }
    let suspects = report.lost.iter().filter(|lost| lost.is_suspect).count();
    say(&format!("{} verifies sound; {} places lost, {suspects} of them suspect", to.display(), report.lost.len()));
    if report.lost.is_empty() { exit::CLEAN } else { exit::DATA_DAMAGED }
}

/// Says what a file is and holds; the exit code.
pub fn inspect(what: &Inspect, out: &mut dyn Write, say: &dyn Fn(&str)) -> i32 {
    let (path, options) = (what.file.clone(), engine::inspect::Options { limit: what.limit, cells: what.cells });
    let inspection = match on_disk(move |io| async move { engine::inspect::inspect(&io, &path, options).await }) {
        Err(error) => return failed(&what.file, &error, say),
        Ok(Err(error)) => return failed(&what.file, &error, say),
        Ok(Ok(inspection)) => inspection,
    };
    for line in &inspection.lines {
        let text = if what.json { line.json() } else { line.words() };
        // Whoever reads has enough (`ringkv inspect FILE | head`).
        if writeln!(out, "{text}").is_err() {
            break;
        }
    }
    if inspection.is_sound { exit::CLEAN } else { exit::DATA_DAMAGED }
}
