use crate::Format;

/// What can be wrong with bytes that claim to be in a format.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FormatError {
    /// A row does not consist of whole blocks.
    #[error("{format} stores {block} values a block, and {len} is not a multiple of that")]
    PartialBlock {
        /// The format that was asked for.
        format: Format,
        /// Values in one of its blocks.
        block: usize,
        /// Values in the row.
        len: usize,
    },
    /// The number of bytes does not fit the number of values.
    #[error("{len} values of {format} take {expected} bytes, not {found}")]
    WrongSize {
        /// The format that was asked for.
        format: Format,
        /// Values in the row.
        len: usize,
        /// Bytes that they would take.
        expected: usize,
        /// Bytes that there are.
        found: usize,
    },
}
