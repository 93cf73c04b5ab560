//! A log written by its own thread: requests neither wait for the log's reader nor fail if it does.

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;
use std::time::Duration;

/// Capacity of the queue of lines; further lines are dropped.
const WAITING: usize = 4096;
/// How long the process waits for the last lines when it ends.
const PATIENCE: Duration = Duration::from_secs(1);

enum Order {
    Write(Vec<u8>),
    /// Signals that everything before it was written.
    Tell(SyncSender<()>),
}

/// The queue of lines. Each call of `write` must have whole lines, and never fails.
#[derive(Clone)]
pub struct Lines {
    orders: SyncSender<Order>,
    /// Lines dropped, because the queue was full, since the last line was written.
    lost: Arc<AtomicU64>,
}

impl Lines {
    /// Starts the thread that writes the lines to `out`.
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub fn to(out: impl Write + Send + 'static) -> io::Result<Lines> {
        let (orders, receiver) = sync_channel(WAITING);
        let lost = Arc::new(AtomicU64::new(0));
        let lines = Lines { orders, lost: lost.clone() };
        thread::Builder::new().name("log".to_owned()).spawn(move || write(out, &receiver, &lost))?;
        Ok(lines)
    }

    /// Waits for a short time until all lines are written.
    pub fn finish(&self) {
        let (done, hear) = sync_channel(1);
        if self.orders.try_send(Order::Tell(done)).is_ok() {
            let _ = hear.recv_timeout(PATIENCE);
        }
    }
}

/// A line that cannot be written is dropped; the next one may succeed.
fn write(mut out: impl Write, orders: &Receiver<Order>, lost: &AtomicU64) {
    for order in orders {
        match order {
            Order::Write(bytes) => {
                let lost = lost.swap(0, Ordering::Relaxed);
                if lost > 0 {
                    let _ = writeln!(
                        out,
                        "{lost} lines of the log were dropped, because they could not be written fast enough"
                    );
                }
                let _ = out.write_all(&bytes);
            }
            Order::Tell(done) => drop(done.send(())),
        }
    }
}

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.orders.try_send(Order::Write(bytes.to_vec())).is_err() {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::Instant;

    use super::*;

    /// Writes a line for each message.
    struct Slow(mpsc::Receiver<()>, mpsc::Sender<String>);

    impl Write for Slow {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let _ = self.0.recv();
            let _ = self.1.send(String::from_utf8_lossy(bytes).into_owned());
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_reader_that_stalls_delays_nobody_and_dropped_lines_are_counted() {
        let (go, gone) = mpsc::channel();
        let (said, hear) = mpsc::channel();
        let mut lines = Lines::to(Slow(gone, said)).unwrap();
        let began = Instant::now();
        (0..WAITING + 100).for_each(|i| writeln!(lines, "{i}").unwrap());
        lines.finish();
        assert!(began.elapsed() < Duration::from_secs(10));
        drop(go);
        let all: Vec<String> = hear.iter().take_while(|line| !line.contains("dropped")).collect();
        assert!(all.len() <= 2, "the first line after some were dropped says so: {all:?}");
    }
}
