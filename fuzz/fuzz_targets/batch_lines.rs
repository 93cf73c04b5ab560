//! The file of a batch: whatever its lines are, each of those that are accepted is found again.
#![no_main]

use std::fs::File;
use std::sync::LazyLock;

use basert_server::fuzzing;
use libfuzzer_sys::fuzz_target;

static FILE: LazyLock<File> = LazyLock::new(|| tempfile::tempfile().expect("a temporary file"));

fuzz_target!(|bytes: &[u8]| {
    use std::io::{Seek, SeekFrom};
    let mut file = FILE.try_clone().expect("a second handle");
    file.seek(SeekFrom::Start(0)).expect("it is a file");
    if let Some(requests) = fuzzing::requests(file, bytes) {
        assert!(requests <= bytes.split(|&byte| byte == b'\n').count());
    }
});
