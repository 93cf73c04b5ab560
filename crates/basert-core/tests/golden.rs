//! The reference codecs against values computed by another implementation (`tools/golden-blocks.py`).

use basert_core::{FORMATS, Format, codec};

/// Little-endian records, read one after the other.
struct Records<'a>(&'a [u8]);

impl<'a> Records<'a> {
    fn bytes(&mut self, len: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(len);
        self.0 = rest;
        taken
    }

    fn number(&mut self) -> u32 {
        u32::from_le_bytes(self.bytes(4).try_into().unwrap())
    }

    fn floats(&mut self, count: usize) -> Vec<f32> {
        self.bytes(4 * count).chunks_exact(4).map(|x| f32::from_le_bytes(x.try_into().unwrap())).collect()
    }

    fn format(&mut self) -> Format {
        Format::from_gguf_type(self.number()).unwrap()
    }
}

/// Exactly: both compute in f32, in the same order. (As numbers, for a zero may come with either sign.)
#[test]
fn blocks_decode_to_the_values_of_gguf_py() {
    let mut records = Records(include_bytes!("data/dequantised.bin"));
    let mut seen = Vec::new();
    while !records.0.is_empty() {
        let (format, count) = (records.format(), records.number() as usize);
        let block = format.block();
        let bytes = records.bytes(count * block.bytes);
        let expected = records.floats(count * block.elements);
        let mut decoded = vec![f32::NAN; expected.len()];
        codec::decode(format, bytes, &mut decoded).unwrap();
        for (i, (a, b)) in decoded.iter().zip(&expected).enumerate() {
            assert!(a == b, "{format} block {} value {}: {a}, not {b}", i / block.elements, i % block.elements);
        }
        seen.push(format);
    }
    let quantised = FORMATS.iter().map(|row| row.format).filter(|format| !format.is_float());
    assert_eq!(seen, quantised.collect::<Vec<_>>(), "every quantised format has golden blocks");
}

/// Not to the same bytes: gguf-py rounds some ties the other way, and multiplies by a rounded reciprocal.
#[test]
fn values_encode_as_well_as_with_gguf_py() {
    let mut records = Records(include_bytes!("data/quantised.bin"));
    let count = records.number() as usize;
    let values = records.floats(count);
    let error = |format, bytes: &[u8]| -> f64 {
        let mut decoded = vec![0.0; count];
        codec::decode(format, bytes, &mut decoded).unwrap();
        let squares = values.iter().zip(&decoded).map(|(a, b)| f64::from(a - b).powi(2));
        (squares.sum::<f64>() / count as f64).sqrt()
    };
    let mut formats = 0;
    while !records.0.is_empty() {
        let format = records.format();
        let theirs = records.bytes(format.row_bytes(count).unwrap());
        let mut ours = vec![0; theirs.len()];
        codec::encode(format, &values, &mut ours).unwrap();
        let (ours_error, their_error) = (error(format, &ours), error(format, theirs));
        println!("{format}: error {ours_error:.6}, gguf-py {their_error:.6}, same bytes {}", ours == theirs);
        assert!(their_error > 0.0 && ours_error <= their_error * 1.001, "{format}: {ours_error} > {their_error}");
        formats += 1;
    }
    assert_eq!(formats, 5);
}
