//! The header of a safetensors file: tensors that were accepted lie in the file and are as long as their shape says.
#![no_main]

use basert_files::hf::parse_safetensors;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| match parse_safetensors(bytes) {
    Ok(tensors) => {
        for info in tensors.values() {
            let elements: usize = info.shape.iter().product();
            assert_eq!(bytes[info.range.clone()].len(), info.format.row_bytes(elements).expect("whole blocks"));
        }
    }
    Err(problem) => {
        let _ = problem.to_string();
    }
});
