//! The meaning of failures of command buffers.

use crate::GpuError;

/// A command buffer that failed.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Failure {
    /// The error to report.
    pub error: GpuError,
    /// Whether the device cannot be used any more.
    pub lost: bool,
}

/// The failure for a code of Metal's `MTLCommandBufferErrorDomain`, with the system's message.
pub(super) fn failure(code: isize, said: &str) -> Failure {
    let (what, lost) = match code {
        2 => (
            "a step took longer than the system allows, and was ended; other programs that use the GPU slow it down",
            false,
        ),
        3 => ("a kernel reached outside of its memory, which is a bug of this program", false),
        4 => ("the system no longer lets this process use the GPU, after too many failures; start it again", true),
        7 => ("the system does not let this process use the GPU, because it runs in the background", false),
        8 => ("its memory ran out; end other programs, or use a shorter --max-context or fewer --kv-bits", false),
        9 => ("a step used freed memory, which is a bug of this program", false),
        11 => ("the device was removed", true),
        12 => ("a kernel's stack overflowed, which is a bug of this program", false),
        _ => ("a step was not completed", false),
    };
    Failure { error: GpuError::Failed(format!("metal: {what} ({said}, code {code})")), lost }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_say_what_happened_and_whether_to_go_on() {
        for (code, part, lost) in [
            (1, "not completed", false),
            (2, "longer than the system allows", false),
            (3, "outside of its memory", false),
            (4, "start it again", true),
            (8, "--max-context", false),
            (11, "removed", true),
            (99, "code 99", false),
        ] {
            let Failure { error: GpuError::Failed(said), lost: found } = failure(code, "Said So") else { panic!() };
            assert!(said.contains(part) && said.contains("Said So"), "{said}");
            assert_eq!(found, lost, "{code}");
        }
    }
}
