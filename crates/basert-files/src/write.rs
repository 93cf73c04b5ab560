//! Writing the values of tensors, in order, in pieces of any size.

use std::io::{self, Write};

/// Takes the tensors' bytes after a header has been written.
///
/// The tensors come in the order in which they were declared; [`append`](Self::append) goes on with the current one,
/// and the next begins when it is full.
#[derive(Debug)]
#[must_use = "a file is complete only after `finish`"]
pub struct TensorWriter<W> {
    out: W,
    /// Bytes of each tensor, and of the padding after it.
    tensors: std::vec::IntoIter<(usize, usize)>,
    /// Bytes of the current tensor still to be written, and of the padding after it.
    current: (usize, usize),
}

impl<W: Write> TensorWriter<W> {
    /// Begins with tensors of these byte lengths, each padded to a multiple of `alignment`.
    pub(crate) fn new(out: W, lengths: Vec<usize>, alignment: usize) -> Self {
        let padded = |len: usize| (len, len.next_multiple_of(alignment) - len);
        let tensors: Vec<_> = lengths.into_iter().map(padded).collect();
        TensorWriter { out, tensors: tensors.into_iter(), current: (0, 0) }
    }

    /// Writes the next bytes.
    ///
    /// # Errors
    /// When the output fails, or these bytes exceed the declared tensors.
    pub fn append(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            if self.current.0 == 0 {
                let next = self.tensors.next();
                self.current = next.ok_or_else(|| error("there are more bytes than the declared tensors take"))?;
            }
            let (now, later) = bytes.split_at(bytes.len().min(self.current.0));
            self.out.write_all(now)?;
            self.current.0 -= now.len();
            if self.current.0 == 0 {
                io::copy(&mut io::Read::take(io::repeat(0), self.current.1 as u64), &mut self.out)?;
            }
            bytes = later;
        }
        Ok(())
    }

    /// Flushes and gives the output back.
    ///
    /// # Errors
    /// When the output fails, or a declared tensor has not been written in full.
    pub fn finish(mut self) -> io::Result<W> {
        if self.current.0 != 0 || self.tensors.next().is_some() {
            return Err(error("a declared tensor has not been written in full"));
        }
        self.out.flush()?;
        Ok(self.out)
    }
}

fn error(text: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, text)
}
