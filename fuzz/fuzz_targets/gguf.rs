//! The header of a GGUF file: whatever parses can be read to the end.
#![no_main]

use basert_core::codec::decode;
use basert_files::gguf;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let header = match gguf::parse(bytes) {
        Ok(header) => header,
        Err(problem) => {
            let _ = problem.to_string();
            return;
        }
    };
    for key in header.keys() {
        let value = header.get(bytes, key).expect("a key that was listed has a value");
        let _ = value.to_string();
        if let Some(array) = value.as_array() {
            assert_eq!(array.iter().count(), array.len());
        }
    }
    for info in header.tensors.values() {
        let rows = &bytes[info.range.clone()];
        let row = info.shape.last().copied().unwrap_or(1);
        let row_bytes = info.format.row_bytes(row).expect("rows are whole blocks");
        assert_eq!(rows.len() % row_bytes, 0);
        let mut values = vec![0.0; row];
        decode(info.format, &rows[..row_bytes], &mut values).expect("the sizes fit");
    }
});
