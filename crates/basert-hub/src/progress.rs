//! Progress callbacks of a pull.

/// Receives the progress of a pull; the caller draws bars, or does nothing (`&()`).
///
/// A pull handles one file after another, but calls come from several threads. [`begin`](Progress::begin) is called
/// again for the same file when a transfer must start over, and then counts from zero.
pub trait Progress: Sync {
    /// A piece of work begins, such as downloading or verifying one file. `total` is its size in bytes.
    fn begin(&self, name: &str, total: u64);
    /// Some more bytes of it are done. What an earlier pull left on disk is reported here too.
    fn advance(&self, bytes: u64);
    /// The piece of work is complete.
    fn finish(&self);
    /// Something a waiting user would like to know: a retry and its reason, another process's lock.
    fn note(&self, message: &str) {
        let _ = message;
    }
}

impl Progress for () {
    fn begin(&self, _: &str, _: u64) {}
    fn advance(&self, _: u64) {}
    fn finish(&self) {}
}
