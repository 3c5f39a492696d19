//! What the disk itself takes for one durable block: 4 KiB written with O_DIRECT and O_DSYNC, one after another, over a file that is
//! allocated and zero-filled (as the log's segments are). The ground that a durable put is measured against.
//!
//!   dsync FOLDER [SECONDS]    one line of JSON: writes, p50, p90, p99 and max in microseconds

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

const BLOCK_BYTES: usize = 4096;
/// As large as one segment of the log.
const FILE_BLOCKS: u64 = 8192;

/// A buffer where direct I/O wants it.
#[repr(align(4096))]
struct Block([u8; BLOCK_BYTES]);

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let seconds = words.get(1).map_or(Ok(3.0), |word| word.parse::<f64>());
    let (Some(folder), Ok(seconds)) = (words.first(), seconds) else {
        eprintln!("usage: dsync FOLDER [SECONDS]");
        return ExitCode::from(2);
    };
    let path = Path::new(folder).join(format!("dsync-{}", std::process::id()));
    let outcome = measure(&path, Duration::from_secs_f64(seconds.clamp(0.01, 600.0)));
    let _ = std::fs::remove_file(&path);
    match outcome {
        Ok(took) => {
            println!("{}", json(&took));
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("dsync: {}: {error}", path.display());
            ExitCode::FAILURE
        }
    }
}

/// Nanoseconds of each write, ascending.
fn measure(path: &Path, time: Duration) -> std::io::Result<Vec<u64>> {
    let mut filled = File::create(path)?;
    let zeros = vec![0; 1 << 20];
    for _ in 0..(FILE_BLOCKS * BLOCK_BYTES as u64) >> 20 {
        filled.write_all(&zeros)?;
    }
    filled.sync_all()?;
    drop(filled);
    let file = OpenOptions::new().write(true).custom_flags(libc::O_DIRECT | libc::O_DSYNC).open(path)?;
    let mut block = Box::new(Block([0x5A; BLOCK_BYTES]));
    let mut took = Vec::new();
    let begun = Instant::now();
    for number in 0.. {
        block.0[..8].copy_from_slice(&u64::to_le_bytes(number));
        let start = Instant::now();
        file.write_all_at(&block.0, number % FILE_BLOCKS * BLOCK_BYTES as u64)?;
        took.push(u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX));
        if begun.elapsed() >= time {
            break;
        }
    }
    took.sort_unstable();
    Ok(took)
}

fn json(took: &[u64]) -> String {
    let at = |share: f64| took[((took.len() - 1) as f64 * share) as usize] as f64 / 1e3;
    let (p50, p90, p99, max) = (at(0.5), at(0.9), at(0.99), at(1.0));
    format!("{{\"writes\": {}, \"p50_us\": {p50:.1}, \"p90_us\": {p90:.1}, \"p99_us\": {p99:.1}, \"max_us\": {max:.1}}}", took.len())
}
