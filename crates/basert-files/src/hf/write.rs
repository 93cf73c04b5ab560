//! Writing a folder of safetensors files.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::Path;

use basert_core::Format;
use serde_json::{Map, Value as Json, json};

use crate::{FileError, Problem, TensorSpec, TensorWriter};

/// Writes a model folder: `config.json`, and the tensors in files of at most `shard_bytes` each (one tensor at least),
/// with an index when it takes several. `values` is called once for each tensor, in order, and appends its bytes.
///
/// # Errors
/// When a tensor's format is not F32, F16 or BF16, its size overflows, `values` appends a wrong number of bytes, or the
/// file system reports an error.
pub fn write_folder(
    folder: &Path,
    config: &Json,
    tensors: &[TensorSpec],
    shard_bytes: usize,
    mut values: impl FnMut(&TensorSpec, &mut TensorWriter<BufWriter<File>>) -> io::Result<()>,
) -> Result<(), FileError> {
    let io_at = |path: &Path| {
        let path = path.to_owned();
        move |e: io::Error| Problem::from(e).of(&path)
    };
    fs::create_dir_all(folder).map_err(io_at(folder))?;
    write_json(&folder.join("config.json"), config)?;

    let shards = cut(tensors, shard_bytes).map_err(|problem| problem.of(folder))?;
    let mut weight_map = Map::new();
    for (i, shard) in shards.iter().enumerate() {
        let name = match shards.len() {
            1 => "model.safetensors".to_owned(),
            count => format!("model-{:05}-of-{count:05}.safetensors", i + 1),
        };
        let path = folder.join(&name);
        let mut out = BufWriter::new(File::create(&path).map_err(io_at(&path))?);
        let lengths = write_header(&mut out, shard).map_err(|problem| problem.of(&path))?;
        let mut writer = TensorWriter::new(out, lengths, 1);
        for tensor in *shard {
            values(tensor, &mut writer).map_err(io_at(&path))?;
            weight_map.insert(tensor.name.clone(), name.clone().into());
        }
        writer.finish().map_err(io_at(&path))?;
    }
    if shards.len() > 1 {
        write_json(&folder.join("model.safetensors.index.json"), &json!({ "weight_map": weight_map }))?;
    }
    Ok(())
}

fn write_json(path: &Path, json: &Json) -> Result<(), FileError> {
    fs::write(path, format!("{json:#}\n")).map_err(|e| Problem::from(e).of(path))
}

/// Splits the tensors into runs of at most `limit` bytes, each of at least one tensor.
fn cut(tensors: &[TensorSpec], limit: usize) -> Result<Vec<&[TensorSpec]>, Problem> {
    let mut shards = Vec::new();
    let (mut start, mut bytes) = (0, 0usize);
    for (i, tensor) in tensors.iter().enumerate() {
        let len = tensor.byte_len()?;
        if i > start && bytes.saturating_add(len) > limit {
            shards.push(&tensors[start..i]);
            (start, bytes) = (i, 0);
        }
        bytes = bytes.saturating_add(len);
    }
    shards.push(&tensors[start..]);
    Ok(shards)
}

/// Writes length and header, and returns the byte length of each tensor.
fn write_header(out: &mut impl Write, tensors: &[TensorSpec]) -> Result<Vec<usize>, Problem> {
    let (mut header, mut lengths, mut offset) = (Map::new(), Vec::new(), 0usize);
    for tensor in tensors {
        if !matches!(tensor.format, Format::F32 | Format::F16 | Format::BF16) {
            let what = format!("format {} of tensor '{}' in safetensors", tensor.format, tensor.name);
            return Err(Problem::unsupported(what, "writable are F32, F16, BF16"));
        }
        let len = tensor.byte_len()?;
        let too_large = || Problem::invalid("the file", "larger than memory", "fewer tensors in a file");
        let end = offset.checked_add(len).ok_or_else(too_large)?;
        let entry = json!({ "dtype": tensor.format.name(), "shape": tensor.shape, "data_offsets": [offset, end] });
        if header.insert(tensor.name.clone(), entry).is_some() {
            return Err(Problem::Duplicate { field: format!("tensor '{}'", tensor.name) });
        }
        lengths.push(len);
        offset = end;
    }
    let mut text = Json::Object(header).to_string();
    // Trailing spaces align the data to 8 bytes.
    text.extend(std::iter::repeat_n(' ', text.len().next_multiple_of(8) - text.len()));
    out.write_all(&(text.len() as u64).to_le_bytes())?;
    out.write_all(text.as_bytes())?;
    Ok(lengths)
}
