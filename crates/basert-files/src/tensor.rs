use std::ops::Range;
use std::path::Path;

use basert_core::Format;

use crate::Problem;

/// A tensor of a model file: a view of the mapping.
#[derive(Debug, Clone, Copy)]
pub struct Tensor<'a> {
    /// Its name in the file.
    pub name: &'a str,
    /// The format of its values.
    pub format: Format,
    /// Row-major, outermost dimension first: the weight of a linear layer is `[out_features, in_features]` in every
    /// kind of file. Every dimension is at least 1; a scalar of a Hugging Face folder has none.
    pub shape: &'a [usize],
    /// Its rows, contiguous. GGUF aligns them to at least 8 bytes; safetensors guarantees no alignment.
    pub bytes: &'a [u8],
    /// The file that it lies in.
    pub file: &'a Path,
    /// Where in that file.
    pub offset: usize,
}

impl Tensor<'_> {
    /// How many values it has.
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// Values in a row: the innermost dimension.
    pub fn row_len(&self) -> usize {
        self.shape.last().copied().unwrap_or(1)
    }
}

/// Where a tensor lies in a file, checked: the range is inside the file, and its length is that of format and shape.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorInfo {
    /// The format of its values.
    pub format: Format,
    /// Row-major, outermost dimension first.
    pub shape: Vec<usize>,
    /// Its bytes in the file.
    pub range: Range<usize>,
}

/// A tensor to be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorSpec {
    /// Its name.
    pub name: String,
    /// The format of its values.
    pub format: Format,
    /// Row-major, outermost dimension first.
    pub shape: Vec<usize>,
}

impl TensorSpec {
    /// A tensor of this name, format and row-major shape.
    pub fn new(name: impl Into<String>, format: Format, shape: &[usize]) -> TensorSpec {
        TensorSpec { name: name.into(), format, shape: shape.to_vec() }
    }

    /// Bytes of its values.
    ///
    /// # Errors
    /// When a dimension is 0, a row is not whole blocks, or the size overflows.
    pub fn byte_len(&self) -> Result<usize, Problem> {
        byte_len(&self.name, self.format, &self.shape)
    }
}

/// Bytes that the values of tensor `name` take.
pub(crate) fn byte_len(name: &str, format: Format, shape: &[usize]) -> Result<usize, Problem> {
    let wrong = |expected: &str| {
        Problem::invalid(format!("the shape of tensor '{name}'"), format!("{shape:?} of {format}"), expected)
    };
    if shape.contains(&0) {
        return Err(wrong("dimensions of at least 1"));
    }
    let (row, outer) = shape.split_last().map_or((1, shape), |(row, outer)| (*row, outer));
    if row % format.block().elements != 0 {
        return Err(wrong(&format!("rows of whole blocks of {} values", format.block().elements)));
    }
    let bytes = format.row_bytes(row).ok();
    // The number of values must fit too, since some formats take less than a byte for one.
    let values = shape.iter().try_fold(1usize, |n, &dim| n.checked_mul(dim));
    let bytes = bytes.and_then(|bytes| outer.iter().try_fold(bytes, |n, &dim| n.checked_mul(dim)));
    bytes.filter(|_| values.is_some()).ok_or_else(|| wrong("a size that fits in memory"))
}
