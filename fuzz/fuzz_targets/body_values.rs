//! The number of values that memory is counted for before a body is parsed: never less than there are.
#![no_main]

use basert_server::fuzzing;
use libfuzzer_sys::fuzz_target;
use serde_json::Value;

/// The values of JSON, those inside others and the keys of objects included.
fn count(value: &Value) -> usize {
    1 + match value {
        Value::Array(items) => items.iter().map(count).sum(),
        Value::Object(fields) => fields.values().map(|value| 1 + count(value)).sum(),
        _ => 0,
    }
}

fuzz_target!(|bytes: &[u8]| {
    let most = fuzzing::values(bytes);
    assert!(most <= bytes.len() + 1);
    if let Ok(value) = serde_json::from_slice::<Value>(bytes) {
        assert!(count(&value) <= most, "{value}");
    }
});
