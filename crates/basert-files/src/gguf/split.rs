//! A GGUF model in one file or several.

use std::path::{Path, PathBuf};

use super::{Header, parse};
use crate::{FileError, Mapping, Problem, Value};

/// Maps and parses the file at `path`, and the further parts that it names.
pub(crate) fn open(path: &Path) -> Result<Vec<(Mapping, Header)>, FileError> {
    let first = open_part(path)?;
    let count = part_count(&first.1, &first.0).map_err(|problem| problem.of(path))?;
    let mut parts = vec![first];
    if count <= 1 {
        return Ok(parts);
    }
    let part_path = sibling(path, count).ok_or_else(|| {
        let expected = format!("the first part, named '…-00001-of-{count:05}.gguf'");
        Problem::invalid("the file's name", path.display().to_string(), expected).of(path)
    })?;
    for number in 2..=count {
        let part = part_path(number);
        if !part.exists() {
            let hint = format!("{} is the first of {count} parts, which must lie beside it", path.display());
            return Err(Problem::missing(format!("part {number}"), hint).of(&part));
        }
        parts.push(open_part(&part)?);
    }
    for (number, (map, header)) in parts.iter().enumerate() {
        let found = (header.get(map, "split.no").and_then(Value::as_u64), part_count(header, map).ok());
        if found != (Some(number as u64), Some(count)) {
            let found = format!("{:?} of {:?}", found.0, found.1);
            return Err(
                Problem::invalid("'split.no' of 'split.count'", found, format!("{number} of {count}")).of(map.path())
            );
        }
    }
    let (map, header) = &parts[0];
    if let Some(expected) = header.get(map, "split.tensors.count").and_then(Value::as_u64) {
        let found: usize = parts.iter().map(|part| part.1.tensors.len()).sum();
        if found as u64 != expected {
            let found = format!("{found} in {count} parts");
            return Err(Problem::invalid("the number of tensors", found, expected.to_string()).of(path));
        }
    }
    Ok(parts)
}

/// Whether the file's name is that of a part of a split model other than the first.
pub(crate) fn is_later_part(path: &Path) -> bool {
    split_name(path).is_some_and(|(_, number, _)| number != 1)
}

fn open_part(path: &Path) -> Result<(Mapping, Header), FileError> {
    let map = Mapping::open(path)?;
    let header = parse(&map).map_err(|problem| problem.of(path))?;
    Ok((map, header))
}

fn part_count(header: &Header, bytes: &[u8]) -> Result<u32, Problem> {
    let Some(value) = header.get(bytes, "split.count") else { return Ok(1) };
    let count = value.as_u64().and_then(|n| u32::try_from(n).ok()).filter(|n| *n <= 99_999);
    count.ok_or_else(|| Problem::invalid("metadata 'split.count'", value.to_string(), "a number of parts"))
}

/// The paths of the parts beside the first one at `path`; `None` when that is not the name of a first part.
fn sibling(path: &Path, count: u32) -> Option<impl Fn(u32) -> PathBuf> {
    let (stem, 1, of) = split_name(path)? else { return None };
    let (path, stem) = (path.to_owned(), stem.to_owned());
    (of == count).then_some(move |number| path.with_file_name(format!("{stem}-{number:05}-of-{count:05}.gguf")))
}

/// `stem`, number and count of a file called `stem-00001-of-00003.gguf`.
fn split_name(path: &Path) -> Option<(&str, u32, u32)> {
    let name = path.file_name()?.to_str()?.strip_suffix(".gguf")?;
    let (rest, count) = name.rsplit_once("-of-")?;
    let (stem, number) = rest.rsplit_once('-')?;
    let five = |digits: &str| (digits.len() == 5).then(|| digits.parse().ok()).flatten();
    Some((stem, five(number)?, five(count)?))
}
