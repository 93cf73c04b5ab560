//! Large stacks for libraries that recurse.

use std::thread;

/// In bytes. Parsers and compilers of templates take up to 1 KB for each of the source's bytes where they are not
/// optimised. Only what is touched takes memory.
const STACK: usize = 256 << 20;

/// Runs `work`, a call of the library `name`, on a thread of its own with a large stack. A panic there is an error.
pub(crate) fn on_own_stack<T: Send>(name: &str, work: impl FnOnce() -> T + Send) -> Result<T, String> {
    thread::scope(|scope| {
        let thread = thread::Builder::new().name(name.into()).stack_size(STACK).spawn_scoped(scope, work);
        thread.map_err(|error| format!("no thread for it: {error}"))?.join().map_err(|_| format!("{name} panicked"))
    })
}
