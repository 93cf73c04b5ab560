//! One view of every kind of model file.

use std::path::{Component, Path, PathBuf};
use std::{fs, io};

use indexmap::IndexMap;
use serde_json::Value as Json;

use crate::{FileError, Mapping, Problem, Tensor, TensorInfo, Value, gguf, hf};

/// The kinds of model files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// A GGUF file, or several that are one model.
    Gguf,
    /// A Hugging Face folder.
    HuggingFace,
}

impl Kind {
    /// The key of this kind in architecture files: "gguf" or "hf".
    pub fn key(self) -> &'static str {
        match self {
            Kind::Gguf => "gguf",
            Kind::HuggingFace => "hf",
        }
    }
}

/// An open model: metadata and tensors, mapped into memory.
#[derive(Debug)]
pub struct ModelFile {
    path: PathBuf,
    metadata: Metadata,
    files: Vec<Mapping>,
    /// Index of the file, and the place in it.
    tensors: IndexMap<String, (usize, TensorInfo)>,
}

#[derive(Debug)]
enum Metadata {
    /// Of the first file.
    Gguf(gguf::Header),
    HuggingFace(Json),
}

impl ModelFile {
    /// Opens a GGUF file (the first, where a model has several parts), a Hugging Face folder, or a folder that holds
    /// one GGUF model and no safetensors.
    ///
    /// The files must not be written to while the model is open: see [`Mapping::open`].
    ///
    /// # Errors
    /// When there is no model at `path`, or anything in its files is wrong; everything but the values of tensors is
    /// checked.
    pub fn open(path: impl AsRef<Path>) -> Result<ModelFile, FileError> {
        let path = path.as_ref();
        let kind = fs::metadata(path).map_err(|e| Problem::from(e).of(path))?;
        if !kind.is_dir() {
            return Self::open_file(path);
        }
        let (ggufs, safetensors) = (gguf_models(path)?, files_with_extension(path, "safetensors")?);
        match ggufs.as_slice() {
            _ if !safetensors.is_empty() || path.join("model.safetensors.index.json").exists() => {
                Self::open_folder(path)
            }
            [one] => Self::open_file(&path.join(one)),
            [] => {
                let hint =
                    "a model is a .gguf file, or a folder with config.json and *.safetensors, or with a .gguf file";
                let found = files_with_extension(path, "bin")?;
                let hint =
                    if found.is_empty() { hint.into() } else { format!("{hint}; {} cannot be read", found.join(", ")) };
                Err(Problem::missing("a model", hint).of(path))
            }
            several => {
                let expected = "one model; open one of these files by its own path";
                Err(Problem::invalid("the folder", format!("full of {}", several.join(", ")), expected).of(path))
            }
        }
    }

    fn open_file(path: &Path) -> Result<ModelFile, FileError> {
        if path.extension().is_some_and(|extension| extension == "safetensors") {
            return Err(
                Problem::unsupported("a safetensors file by itself", "open the folder that it lies in").of(path)
            );
        }
        if gguf::is_later_part(path) {
            return Err(Problem::unsupported("opening a later part of a model", "open its first part").of(path));
        }
        let mut model = None;
        for (map, mut header) in gguf::open(path)? {
            let tensors = std::mem::take(&mut header.tensors);
            let metadata = Metadata::Gguf(header);
            let empty = || ModelFile { path: path.to_owned(), metadata, files: vec![], tensors: IndexMap::new() };
            model.get_or_insert_with(empty).add(map, tensors)?;
        }
        model.ok_or_else(|| Problem::missing("a GGUF file", "nothing was opened").of(path))
    }

    fn open_folder(path: &Path) -> Result<ModelFile, FileError> {
        let (config, shards) = hf::open(path)?;
        let metadata = Metadata::HuggingFace(config);
        let mut model = ModelFile { path: path.to_owned(), metadata, files: vec![], tensors: IndexMap::new() };
        shards.into_iter().try_for_each(|(map, tensors)| model.add(map, tensors))?;
        Ok(model)
    }

    fn add(&mut self, map: Mapping, tensors: IndexMap<String, TensorInfo>) -> Result<(), FileError> {
        for (name, info) in tensors {
            if self.tensors.contains_key(&name) {
                return Err(Problem::Duplicate { field: format!("tensor '{name}'") }.of(map.path()));
            }
            self.tensors.insert(name, (self.files.len(), info));
        }
        self.files.push(map);
        Ok(())
    }

    /// The path that was opened; for a folder with one GGUF model in it, the path of that model.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Which kind of model file this is.
    pub fn kind(&self) -> Kind {
        match self.metadata {
            Metadata::Gguf(_) => Kind::Gguf,
            Metadata::HuggingFace(_) => Kind::HuggingFace,
        }
    }

    /// Size of all files with tensors, in bytes.
    pub fn total_bytes(&self) -> u64 {
        self.files.iter().map(|map| map.len() as u64).sum()
    }

    /// The mapped files with tensors: each begins at a page.
    pub fn mappings(&self) -> &[Mapping] {
        &self.files
    }

    /// The metadata value of `key`.
    ///
    /// In a GGUF file, `key` is the file's key (`llama.block_count`). In a Hugging Face folder it is a path into
    /// `config.json` (`rope_scaling.factor`, `architectures.0`); under `generation_config` lie the values of
    /// `generation_config.json`.
    pub fn get(&self, key: &str) -> Option<Value<'_>> {
        match &self.metadata {
            Metadata::Gguf(header) => header.get(self.files.first()?, key),
            Metadata::HuggingFace(config) => hf::lookup(config, key),
        }
    }

    /// All metadata, in the order of the file, with the keys that [`get`](Self::get) takes.
    pub fn metadata(&self) -> Vec<(String, Value<'_>)> {
        match &self.metadata {
            Metadata::Gguf(header) => header.keys().filter_map(|key| Some((key.to_owned(), self.get(key)?))).collect(),
            Metadata::HuggingFace(config) => hf::all(config),
        }
    }

    /// The tensors, in the order of the files.
    pub fn tensors(&self) -> impl ExactSizeIterator<Item = Tensor<'_>> {
        self.tensors.iter().map(|(name, place)| self.view(name, place))
    }

    /// The tensor called `name`.
    pub fn tensor(&self, name: &str) -> Option<Tensor<'_>> {
        let (_, name, place) = self.tensors.get_full(name)?;
        Some(self.view(name, place))
    }

    fn view<'a>(&'a self, name: &'a str, (file, info): &'a (usize, TensorInfo)) -> Tensor<'a> {
        let map = &self.files[*file];
        Tensor {
            name,
            format: info.format,
            shape: &info.shape,
            bytes: &map[info.range.clone()],
            file: map.path(),
            offset: info.range.start,
        }
    }

    /// Fills `bytes` with a part of the tensor `name`, from `offset` on, as its file has it now: see [`Mapping::read_at`].
    ///
    /// # Errors
    /// When there is no such part, or it cannot be read.
    pub fn read(&self, name: &str, offset: usize, bytes: &mut [u8]) -> io::Result<()> {
        let (file, info) = self.tensors.get(name).ok_or(io::ErrorKind::NotFound)?;
        let end = offset.checked_add(bytes.len()).filter(|&end| end <= info.range.len());
        end.ok_or(io::ErrorKind::UnexpectedEof)?;
        self.files[*file].read_at(info.range.start + offset, bytes)
    }

    /// Tells the operating system that `bytes`, a part of a tensor, will be read soon.
    pub fn prefetch(&self, bytes: &[u8]) {
        self.files.iter().any(|map| map.prefetch(bytes));
    }

    /// Tells the operating system that `bytes`, a part of a tensor, is not needed any more: its pages no longer count
    /// as this process's memory. They can still be read, and are then fetched from the file again.
    pub fn release(&self, bytes: &[u8]) {
        self.files.iter().any(|map| map.release(bytes));
    }

    /// Another file of a Hugging Face folder (`tokenizer.json`, `chat_template.jinja`), mapped; `None` when the folder
    /// has no file of this name, and always for GGUF, which has everything in its metadata.
    ///
    /// # Errors
    /// When the file is there, but cannot be read.
    pub fn companion(&self, name: &str) -> Result<Option<Mapping>, FileError> {
        let path = self.path.join(name);
        let inside = Path::new(name).components().all(|part| matches!(part, Component::Normal(_)));
        if self.kind() == Kind::Gguf || !inside || !path.exists() {
            return Ok(None);
        }
        Mapping::open(&path).map(Some)
    }
}

/// The GGUF files of a folder, without the later parts of split models.
fn gguf_models(folder: &Path) -> Result<Vec<String>, FileError> {
    let mut names = files_with_extension(folder, "gguf")?;
    names.retain(|name| !gguf::is_later_part(Path::new(name)));
    Ok(names)
}

/// Names of the files in `folder` with this extension, sorted.
pub(crate) fn files_with_extension(folder: &Path, extension: &str) -> Result<Vec<String>, FileError> {
    let io = |e| Problem::from(e).of(folder);
    let mut names = Vec::new();
    for entry in fs::read_dir(folder).map_err(io)? {
        let path = entry.map_err(io)?.path();
        if path.extension().is_some_and(|found| found == extension) && path.is_file() {
            names.extend(path.file_name().and_then(|name| name.to_str()).map(str::to_owned));
        }
    }
    names.sort();
    Ok(names)
}
