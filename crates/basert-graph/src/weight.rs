//! Weights: which rows of which tensors of a model file they are, and how to read them.

use std::borrow::Cow;
use std::ops::Range;

use basert_core::{Format, codec};
use basert_files::ModelFile;

/// A matrix, the stacked matrices of experts, or, with one row, a vector: rows of one tensor of the model file, or of
/// several of the same shape and format, one below the other.
#[derive(Debug, Clone, PartialEq)]
pub struct Weight {
    /// The tensors' names in the file.
    pub tensors: Vec<String>,
    /// Rows of each tensor, counted over all its dimensions but the last.
    pub rows_each: usize,
    /// Which of them are its own.
    pub taken: Taken,
    /// Where tensors have a row for each input, the outputs of each matrix in them: what is called a row here is a column
    /// there.
    pub transposed: Option<usize>,
    /// Where only some columns are its own, the first of them, and how many a tensor has.
    pub cut: Option<Cut>,
    /// Rows in all: output features.
    pub rows: usize,
    /// Input features.
    pub columns: usize,
    /// Its number format.
    pub format: Format,
}

/// Of each `of` consecutive rows of all tensors together, the `count` rows from `first` on. None of the last two is 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Taken {
    /// The first of them.
    pub first: usize,
    /// The number of rows taken.
    pub count: usize,
    /// The number of rows from which they are taken.
    pub of: usize,
}

/// Of each row of a tensor of `of` columns, those from `first` on, in whole blocks of the format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cut {
    /// The first of them.
    pub first: usize,
    /// The number of columns from which they are taken.
    pub of: usize,
}

/// Why a weight could not be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("tensor '{tensor}': {what}")]
pub struct WeightError {
    /// The tensor's name in the file.
    pub tensor: String,
    /// What is wrong.
    pub what: String,
}

impl Weight {
    /// All rows of the tensor `name`.
    pub fn whole(name: impl Into<String>, (rows, columns): (usize, usize), format: Format) -> Weight {
        let taken = Taken { first: 0, count: rows.max(1), of: rows.max(1) };
        Weight {
            tensors: vec![name.into()],
            rows_each: rows,
            taken,
            transposed: None,
            cut: None,
            rows,
            columns,
            format,
        }
    }

    /// Its size in the file, in bytes.
    pub fn bytes(&self) -> usize {
        self.format.row_bytes(self.columns).unwrap_or(0) * self.rows
    }

    /// The number of its values.
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> usize {
        self.rows.saturating_mul(self.columns)
    }

    /// A name for people: the first tensor's.
    pub fn name(&self) -> &str {
        self.tensors.first().map_or("", String::as_str)
    }

    /// The tensor that has a row, and the row there.
    pub fn locate(&self, row: usize) -> (&str, usize) {
        let Taken { first, count, of } = self.taken;
        let of_all = row / count * of + first + row % count;
        let each = self.rows_each.max(1);
        (self.tensors.get(of_all / each).map_or("", String::as_str), of_all % each)
    }

    /// All its bytes where the file is mapped, if they follow each other there.
    ///
    /// # Errors
    /// When a tensor is missing or too short.
    pub fn mapped<'f>(&self, file: &'f ModelFile) -> Result<Option<&'f [u8]>, WeightError> {
        let in_one_run = self.tensors.len() == 1 && self.taken.count >= self.rows && self.cut.is_none();
        match in_one_run.then(|| self.read(file, 0..self.rows)).transpose()? {
            Some(Cow::Borrowed(bytes)) => Ok(Some(bytes)),
            _ => Ok(None),
        }
    }

    /// The bytes of some rows: those of the mapped file, if they follow each other there.
    ///
    /// # Errors
    /// When a tensor is missing or too short.
    pub fn read<'f>(&self, file: &'f ModelFile, rows: Range<usize>) -> Result<Cow<'f, [u8]>, WeightError> {
        let fail = |tensor: &str, what: String| WeightError { tensor: tensor.to_owned(), what };
        let bytes_of = |columns| self.format.row_bytes(columns).map_err(|error| fail(self.name(), error.to_string()));
        let cut = self.cut.map(|cut| Ok((bytes_of(cut.first)?, bytes_of(self.columns)?))).transpose()?;
        let len = bytes_of(self.cut.map_or(self.columns, |cut| cut.of))?;
        let mut read: Option<Cow<'f, [u8]>> = None;
        let mut row = rows.start;
        while row < rows.end {
            let (name, first) = self.locate(row);
            let left = self.taken.count - row % self.taken.count;
            let count = left.min(self.rows_each - first).min(rows.end - row);
            let tensor = file.tensor(name).ok_or_else(|| fail(name, "it is missing".to_owned()))?;
            let short = || fail(name, format!("it ends before row {}", first + count));
            let bytes = match self.transposed {
                Some(wide) => Cow::Owned(self.columns_of(tensor.bytes, wide, first..first + count).ok_or_else(short)?),
                None => Cow::Borrowed(tensor.bytes.get(first * len..(first + count) * len).ok_or_else(short)?),
            };
            let bytes = match cut {
                Some((from, own)) => {
                    let rows = bytes.chunks_exact(len).map(|row| row.get(from..from + own).ok_or_else(short));
                    Cow::Owned(rows.collect::<Result<Vec<_>, _>>()?.concat())
                }
                None => bytes,
            };
            match &mut read {
                None => read = Some(bytes),
                Some(before) => before.to_mut().extend_from_slice(&bytes),
            }
            row += count;
        }
        Ok(read.unwrap_or_default())
    }

    /// Columns of row-major matrices of floats that are `wide`, one after the other.
    fn columns_of(&self, bytes: &[u8], wide: usize, columns: Range<usize>) -> Option<Vec<u8>> {
        let one = self.format.row_bytes(1).ok()?;
        let mut out = Vec::with_capacity(columns.len() * self.columns * one);
        for column in columns {
            let (matrix, column) = (column / wide, column % wide);
            for row in 0..self.columns {
                let at = ((matrix * self.columns + row) * wide + column) * one;
                out.extend_from_slice(bytes.get(at..at + one)?);
            }
        }
        Some(out)
    }

    /// All its values, row by row.
    ///
    /// # Errors
    /// When it cannot be read, or a value is not a finite number.
    pub fn values(&self, file: &ModelFile) -> Result<Vec<f32>, WeightError> {
        let fail = |what: String| WeightError { tensor: self.name().to_owned(), what };
        let mut values = vec![0.0; self.len()];
        codec::decode(self.format, &self.read(file, 0..self.rows)?, &mut values)
            .map_err(|error| fail(error.to_string()))?;
        match values.iter().position(|x| !x.is_finite()) {
            Some(i) => Err(fail(format!("value {i} is {}, not a finite number", values[i]))),
            None => Ok(values),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rows of blocks of stacked tensors: the lower halves of three tensors of four rows.
    #[test]
    fn rows_are_found_in_their_tensors() {
        let tensors = ["a", "b", "c"].map(str::to_owned).to_vec();
        let columns = 8;
        let taken = Taken { first: 2, count: 2, of: 4 };
        let (transposed, cut) = (None, None);
        let weight = Weight { tensors, rows_each: 4, taken, transposed, cut, rows: 6, columns, format: Format::F32 };
        let found: Vec<_> = (0..6).map(|row| weight.locate(row)).collect();
        assert_eq!(found, [("a", 2), ("a", 3), ("b", 2), ("b", 3), ("c", 2), ("c", 3)]);
        assert_eq!(weight.bytes(), 6 * 8 * 4);
    }
}
