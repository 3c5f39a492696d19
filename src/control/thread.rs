//! The control core's thread.

use std::thread::{Builder, JoinHandle};

pub(super) struct Thread(JoinHandle<()>);

impl Thread {
    /// Waits for its end; a panic there has been told on standard error already.
    pub(super) fn join(self) {
        let _ = self.0.join();
    }
}

pub(super) fn spawn(name: &str, run: impl FnOnce() + Send + 'static) -> std::io::Result<Thread> {
    Builder::new().name(name.to_owned()).spawn(run).map(Thread)
}
