//! How long this thread is kept from running: it reads the clock without a pause and counts the steps that are too long. What it finds on a
//! busy machine bounds every latency there, whatever the server.
//!
//! `gaps SECONDS` prints JSON: the share of the time lost in steps of over 0.5 ms, and the longest step.

use std::time::{Duration, Instant};

const LONG: Duration = Duration::from_micros(500);

fn main() {
    let seconds: f64 = std::env::args().nth(1).and_then(|arg| arg.parse().ok()).unwrap_or(5.0);
    let start = Instant::now();
    let (mut last, mut lost, mut longest) = (start, Duration::ZERO, Duration::ZERO);
    while last - start < Duration::from_secs_f64(seconds) {
        let now = Instant::now();
        let gap = now - last;
        last = now;
        longest = longest.max(gap);
        if gap > LONG {
            lost += gap;
        }
    }
    let percent = 100.0 * lost.as_secs_f64() / (last - start).as_secs_f64();
    println!("{{\"lost_percent\": {percent:.3}, \"longest_us\": {}}}", longest.as_micros());
}
