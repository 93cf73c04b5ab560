//! Models of random weights.
//!
//! Measuring a kernel needs weights of the right sizes and formats, not trained ones. But values must keep their scale
//! through the layers: a matrix of k columns has values of variance 1/k, and norms are near 1, so that the results of
//! each op are near 1 and logits have variance 1.
//!
//! To be as fast as the disk, a matrix is not encoded value by value. For each format and scale a pool of random blocks
//! is encoded once, and matrices are assembled from the pool in random order.

use std::collections::{BTreeMap, HashMap};
use std::io::{self, Write};

use basert_core::{Format, FormatError, codec};
use basert_files::{Kind, Problem, TensorSpec, Value, gguf};
use basert_graph::{Architecture, GraphError, TensorRole, TensorShape};

use crate::sizes::{self, Family, Parameter, Size};
use crate::vocabulary::Vocabulary;
use crate::{Place, RECIPES, Random, Recipe};

/// Why a model cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum SynthError {
    /// An unknown family, size, quantisation or other name.
    #[error("there is no {what} '{found}'; there is {known}")]
    Unknown {
        /// The kind of name.
        what: String,
        /// The requested name.
        found: String,
        /// The known names, joined.
        known: String,
    },
    /// The table of sizes is wrong.
    #[error("sizes.toml: {0}")]
    Sizes(String),
    /// The architecture does not fit the size.
    #[error(transparent)]
    Graph(#[from] GraphError),
    /// The file cannot hold the model.
    #[error(transparent)]
    File(#[from] Problem),
    /// The file cannot be written.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// A format cannot hold a row.
    #[error(transparent)]
    Format(#[from] FormatError),
}

impl SynthError {
    fn unknown<'a>(what: impl Into<String>, found: &str, known: impl Iterator<Item = &'a str>) -> SynthError {
        let known = known.collect::<Vec<_>>().join(", ");
        SynthError::Unknown { what: what.into(), found: found.to_owned(), known }
    }
}

/// A model to be written.
///
/// ```
/// use basert_convert::Synth;
///
/// let model = Synth::new("qwen3", "tiny", "q4_k_m", false, 1)?;
/// let mut file = Vec::new();
/// model.write(&mut file, &mut |_written, _total| {})?;
/// assert!(basert_files::gguf::parse(&file).is_ok());
/// # Ok::<(), basert_convert::SynthError>(())
/// ```
#[derive(Debug)]
pub struct Synth {
    arch: String,
    parameters: BTreeMap<String, Parameter>,
    metadata: Metadata,
    size: Size,
    recipe: Recipe,
    seed: u64,
    tensors: Vec<(TensorShape, Format)>,
}

/// The values of a file, by their keys.
type Metadata = BTreeMap<String, Parameter>;

/// A file of metadata alone, which an architecture reads as it will read that with the tensors.
struct Head<'a> {
    name: &'a str,
    bytes: Vec<u8>,
    header: gguf::Header,
    /// What stands before and after the number of the layer in the names of optional tensors that there will be; of
    /// those that some layers have, the whole name.
    tensors: Vec<(String, String)>,
}

impl<'a> Head<'a> {
    fn new(name: &'a str, metadata: &Metadata, tensors: Vec<(String, String)>) -> Result<Head<'a>, SynthError> {
        let mut writer = gguf::Writer::new();
        set_all(&mut writer, metadata)?;
        let mut bytes = Vec::new();
        drop(writer.begin(&mut bytes)?);
        let header = gguf::parse(&bytes)?;
        Ok(Head { name, bytes, header, tensors })
    }
}

impl basert_graph::Metadata for Head<'_> {
    fn kind(&self) -> Kind {
        Kind::Gguf
    }

    fn name(&self) -> String {
        self.name.to_owned()
    }

    fn get(&self, key: &str) -> Option<Value<'_>> {
        self.header.get(&self.bytes, key)
    }

    fn number_of(&self, tensor: &str) -> Option<f64> {
        // Some architectures ask whether there is a tensor. Its values are near 1 and not known yet.
        self.tensors.iter().any(|(start, end)| tensor.starts_with(start) && tensor.ends_with(end)).then_some(1.0)
    }
}

fn set_all(writer: &mut gguf::Writer, metadata: &Metadata) -> Result<(), Problem> {
    for (key, value) in metadata {
        match value {
            Parameter::Flag(x) => writer.set(key, x)?,
            Parameter::Count(x) => writer.set(key, x)?,
            Parameter::Number(x) => writer.set(key, x)?,
            Parameter::Text(text) => writer.set(key, text)?,
            Parameter::Flags(list) => writer.set(key, list)?,
            Parameter::Counts(list) => writer.set(key, list)?,
        }
    }
    Ok(())
}

impl Synth {
    /// A model of a family and size of `sizes.toml`, quantised by a recipe, or, if `pure`, by the recipe's main format
    /// alone. The same `seed` gives the same bytes.
    ///
    /// # Errors
    /// When there is no such family, size or recipe; the error lists the known ones.
    pub fn new(arch: &str, size: &str, quant: &str, pure: bool, seed: u64) -> Result<Synth, SynthError> {
        let families = sizes::built_in().map_err(|error| SynthError::Sizes(error.to_string()))?;
        let unknown = || SynthError::unknown("architecture", arch, families.keys().map(String::as_str));
        let family = families.get(arch).ok_or_else(unknown)?;
        let size_names = family.sizes.keys().map(String::as_str);
        let unknown = || SynthError::unknown(format!("size of {arch}"), size, size_names);
        let size = family.sizes.get(&size.to_lowercase()).ok_or_else(unknown)?;
        let unknown = || SynthError::unknown("quantisation", quant, RECIPES.iter().map(|recipe| recipe.name));
        let recipe = Recipe::named(quant).ok_or_else(unknown)?;
        let recipe = if pure { recipe.pure() } else { recipe };
        Synth::of(arch, family, size, recipe, seed)
    }

    fn of(arch: &str, family: &Family, size: &Size, recipe: Recipe, seed: u64) -> Result<Synth, SynthError> {
        let wrong = |what: String| SynthError::Sizes(format!("{}: {what}", size.model));
        let architecture = Architecture::built_in_for(Kind::Gguf, arch)?
            .ok_or_else(|| wrong(format!("there is no architecture file for '{arch}'")))?;

        let mut parameters = family.parameters.clone();
        parameters.extend(size.parameters.clone());
        let mut metadata = Metadata::new();
        for (name, value) in &parameters {
            let key = match architecture.parameters.get(name) {
                Some(basert_graph::Parameter::Stored(stored)) => stored.gguf.as_slice().first(),
                _ => None,
            };
            let key = key.ok_or_else(|| wrong(format!("'{name}' is not a parameter that GGUF files keep")))?;
            metadata.insert(key.replace("{arch}", arch), value.clone());
        }
        for (key, value) in family.keys.iter().chain(&size.keys) {
            metadata.insert(format!("{arch}.{key}"), value.clone());
        }

        let mut with: Vec<&str> = family.tensors.iter().chain(&size.tensors).map(String::as_str).collect();
        with.extend(size.rope_factors.map(|_| "rope_factors"));
        with.extend(size.layers_with.keys().map(String::as_str));
        let mut names = Vec::new();
        for name in &with {
            let entry = architecture.tensors.get(*name).ok_or_else(|| wrong(format!("there is no tensor '{name}'")))?;
            for pattern in entry.names(Kind::Gguf) {
                match size.layers_with.get(*name) {
                    Some(layers) => names.extend(
                        layers.iter().map(|layer| (pattern.replace("{layer}", &layer.to_string()), String::new())),
                    ),
                    None => names
                        .extend(pattern.split_once("{layer}").map(|(start, end)| (start.to_owned(), end.to_owned()))),
                }
            }
        }
        let head = Head::new(&size.model, &metadata, names)?;
        let shapes = architecture.tensors(&head, arch, &|name| with.contains(&name))?;

        // llama.cpp goes by the first layer, also where that has no heads.
        let first = |key: &str| match metadata.get(&format!("{arch}.{key}")) {
            Some(Parameter::Count(x)) => *x as usize,
            Some(Parameter::Counts(list)) => list.first().map_or(0, |&x| x as usize),
            _ => 0,
        };
        let queries_per_kv = first("attention.head_count").checked_div(first("attention.head_count_kv")).unwrap_or(0);
        let layers = shapes.iter().filter_map(|tensor| tensor.layer).max().map_or(0, |last| last + 1);
        let tied = !with.contains(&"output");
        let format = |tensor: &TensorShape| match (tensor.role, &tensor.shape[..]) {
            // Those of experts lie one after the other.
            (TensorRole::Matrix, &[.., columns]) if tensor.shape.len() > 1 => recipe.format(&Place {
                // Its own name is that of the part that comes first.
                tensor: if tensor.name.ends_with(".attn_qkv.weight") { "qkv" } else { &tensor.key },
                layer: tensor.layer.unwrap_or(0),
                layers,
                columns,
                queries_per_kv,
                tied,
            }),
            _ => Format::F32,
        };
        let with_format = |tensor: TensorShape| {
            let format = format(&tensor);
            (tensor, format)
        };
        let tensors = shapes.into_iter().map(with_format).collect();
        Ok(Synth { arch: arch.to_owned(), parameters, metadata, size: size.clone(), recipe, seed, tensors })
    }

    /// Its name.
    pub fn name(&self) -> String {
        format!("{} {}, random weights", self.size.model, self.recipe.name)
    }

    /// Name and format of each tensor, in the order of the file.
    pub fn tensors(&self) -> impl ExactSizeIterator<Item = (&str, Format)> {
        self.tensors.iter().map(|(tensor, format)| (tensor.name.as_str(), *format))
    }

    /// Writes a GGUF file. `progress` is called with the bytes of tensors written, and their total.
    ///
    /// # Errors
    /// When the output fails.
    pub fn write(&self, out: impl Write, progress: &mut dyn FnMut(u64, u64)) -> Result<(), SynthError> {
        let specs: Vec<_> =
            self.tensors.iter().map(|(tensor, format)| TensorSpec::new(&tensor.name, *format, &tensor.shape)).collect();
        let lengths = specs.iter().map(TensorSpec::byte_len).collect::<Result<Vec<_>, _>>()?;
        let mut writer = self.header()?;
        specs.into_iter().try_for_each(|spec| writer.declare(spec))?;

        let total: u64 = lengths.iter().map(|&len| len as u64).sum();
        let mut written = 0;
        let mut pools = Pools { seed: self.seed, most: self.most_tiles(), pools: HashMap::new() };
        let mut out = writer.begin(out)?;
        let mut chunk = Vec::with_capacity(CHUNK);
        for ((tensor, format), &len) in self.tensors.iter().zip(&lengths) {
            // A tensor's values depend on its name and not on what else there is. Streams of pools are numbered by format
            // and columns; no format has this number.
            let stream =
                tensor.name.bytes().fold(0u64, |hash, byte| hash.wrapping_mul(0x100_0000_01b3) ^ u64::from(byte));
            let mut random = Random::new(self.seed, 1 << 63 | stream);
            let mut left = len;
            let mut shuffle = Shuffle::default();
            while left > 0 {
                chunk.clear();
                match tensor.role {
                    TensorRole::Matrix => {
                        let pool = pools.of(*format, tensor.shape.last().copied().unwrap_or(1))?;
                        while chunk.len() < CHUNK.min(left) {
                            chunk.extend_from_slice(pool.tile(shuffle.next(pool.tiles(), &mut random)));
                        }
                    }
                    role => self.vector(role, len / size_of::<f32>(), &mut random, &mut chunk),
                }
                chunk.truncate(left);
                out.append(&chunk)?;
                left -= chunk.len();
                written += chunk.len() as u64;
                progress(written, total);
            }
        }
        out.finish()?;
        Ok(())
    }

    /// The beginning of the file up to the weights, and the length of the whole file: for a sparse file without
    /// weights, which has everything that a plan needs.
    ///
    /// # Errors
    /// When the file cannot hold the model.
    pub fn outline(&self) -> Result<(Vec<u8>, u64), SynthError> {
        let mut writer = self.header()?;
        let mut length = 0;
        for (tensor, format) in &self.tensors {
            let spec = TensorSpec::new(&tensor.name, *format, &tensor.shape);
            length += spec.byte_len()?.next_multiple_of(gguf::DEFAULT_ALIGNMENT) as u64;
            writer.declare(spec)?;
        }
        let mut head = Vec::new();
        // Tensors are not written.
        drop(writer.begin(&mut head)?);
        let length = length + head.len() as u64;
        Ok((head, length))
    }

    /// Everything except the tensors.
    fn header(&self) -> Result<gguf::Writer, SynthError> {
        let mut writer = gguf::Writer::new();
        writer.set("general.architecture", self.arch.as_str())?;
        writer.set("general.type", "model")?;
        writer.set("general.name", &self.name())?;
        writer.set("general.file_type", &self.recipe.file_type)?;
        writer.set("general.quantization_version", &2u32)?;
        set_all(&mut writer, &self.metadata)?;
        let count = match self.parameters.get("vocabulary") {
            Some(Parameter::Count(count)) => *count as usize,
            _ => Vocabulary::LEAST,
        };
        let vocabulary = Vocabulary::new(count);
        writer.set("tokenizer.ggml.model", "gpt2")?;
        writer.set("tokenizer.ggml.pre", "gpt-2")?;
        writer.set("tokenizer.ggml.tokens", &vocabulary.tokens)?;
        writer.set("tokenizer.ggml.token_type", &vocabulary.types)?;
        writer.set("tokenizer.ggml.merges", &vocabulary.merges)?;
        writer.set("tokenizer.ggml.bos_token_id", &vocabulary.bos)?;
        writer.set("tokenizer.ggml.eos_token_id", &vocabulary.eos)?;
        writer.set("tokenizer.ggml.add_bos_token", &false)?;
        Ok(writer)
    }

    /// Appends a vector of f32.
    fn vector(&self, role: TensorRole, len: usize, random: &mut Random, out: &mut Vec<u8>) {
        let mut normal = |mean: f32| (0..len).map(|_| mean + 0.1 * random.normal()).collect::<Vec<_>>();
        let values = match (role, self.size.rope_factors) {
            (TensorRole::RopeFactors, Some(scaling)) => {
                let base = match self.parameters.get("rope_base") {
                    Some(Parameter::Number(base)) => f64::from(*base),
                    _ => 10_000.0,
                };
                let sizes::Llama3Scaling { factor, low, high, context } = scaling;
                basert_graph::llama3_factors(2 * len, base, factor, (low, high), context)
            }
            (TensorRole::Bias, _) => normal(0.0),
            (TensorRole::Decay, _) => normal(-1.0),
            _ => normal(1.0),
        };
        out.extend(values.into_iter().flat_map(f32::to_le_bytes));
    }

    /// The tiles of the largest matrix, at most as many as a pool has.
    fn most_tiles(&self) -> usize {
        let values = self.tensors.iter().map(|(tensor, _)| tensor.shape.iter().product::<usize>()).max().unwrap_or(0);
        values.div_ceil(TILE).min(TILES)
    }
}

/// Bytes per write.
const CHUNK: usize = 1 << 20;
/// Values of a tile, of which matrices are assembled: a multiple of every block.
const TILE: usize = 256;
/// The most different tiles of one format and scale.
const TILES: usize = 4096;

/// Encoded tiles of one format and scale.
struct Pool {
    bytes: Vec<u8>,
    tile: usize,
}

impl Pool {
    /// A pool of tiles of normal values of variance 1 / `columns`.
    fn new(format: Format, columns: usize, tiles: usize, seed: u64) -> Result<Pool, FormatError> {
        let tile = format.row_bytes(TILE)?;
        let mut random = Random::new(seed, (format as u64) << 48 | columns as u64);
        let deviation = 1.0 / (columns as f32).sqrt();
        let mut bytes = vec![0; tiles * tile];
        let mut values = [0.0; TILE];
        for bytes in bytes.chunks_exact_mut(tile) {
            values.fill_with(|| deviation * random.normal());
            codec::encode(format, &values, bytes)?;
        }
        Ok(Pool { bytes, tile })
    }

    fn tiles(&self) -> usize {
        self.bytes.len() / self.tile
    }

    fn tile(&self, i: usize) -> &[u8] {
        &self.bytes[self.tile * i..self.tile * (i + 1)]
    }
}

/// Indices in a random order, reshuffled when all are used up. So no two rows of a small matrix are equal.
#[derive(Default)]
struct Shuffle {
    order: Vec<usize>,
    used: usize,
}

impl Shuffle {
    /// The next index below `count`, which must be the same in every call.
    fn next(&mut self, count: usize, random: &mut Random) -> usize {
        if self.used == self.order.len() {
            self.used = 0;
            self.order.extend(self.order.len()..count);
        }
        let (i, j) = (self.used, self.used + random.below(count - self.used));
        self.order.swap(i, j);
        self.used += 1;
        self.order[i]
    }
}

/// Pools by format and columns, made on first use.
struct Pools {
    seed: u64,
    most: usize,
    pools: HashMap<(Format, usize), Pool>,
}

impl Pools {
    fn of(&mut self, format: Format, columns: usize) -> Result<&Pool, FormatError> {
        use std::collections::hash_map::Entry;
        match self.pools.entry((format, columns)) {
            Entry::Occupied(entry) => Ok(entry.into_mut()),
            Entry::Vacant(entry) => Ok(entry.insert(Pool::new(format, columns, self.most, self.seed)?)),
        }
    }
}

#[cfg(test)]
mod tests {
    use basert_files::ModelFile;
    use basert_graph::Graph;

    use super::*;

    fn bytes(arch: &str, size: &str, quant: &str, seed: u64) -> Vec<u8> {
        let mut out = Vec::new();
        Synth::new(arch, size, quant, false, seed).unwrap().write(&mut out, &mut |_, _| {}).unwrap();
        out
    }

    #[test]
    fn a_seed_fixes_every_byte() {
        let one = bytes("llama", "tiny", "q5_k_m", 1);
        assert!(one == bytes("llama", "tiny", "q5_k_m", 1));
        let other = bytes("llama", "tiny", "q5_k_m", 2);
        assert!(one != other && one.len() == other.len());
    }

    #[test]
    fn a_shuffle_has_every_number_before_any_comes_again() {
        let (mut shuffle, mut random) = (Shuffle::default(), Random::new(1, 1));
        let mut pass = || (0..100).map(|_| shuffle.next(100, &mut random)).collect::<Vec<_>>();
        let (first, second) = (pass(), pass());
        assert_ne!(first, second);
        for mut pass in [first, second] {
            assert!(pass.windows(2).any(|pair| pair[0] > pair[1]));
            pass.sort();
            assert_eq!(pass, (0..100).collect::<Vec<_>>());
        }
    }

    #[test]
    fn matrices_have_the_scale_of_their_columns() {
        for recipe in &RECIPES {
            let file = bytes("gemma3", "tiny", recipe.name, 1);
            let parsed = gguf::parse(&file).unwrap();
            for (name, tensor) in &parsed.tensors {
                let mut values = vec![0.0; tensor.shape.iter().product()];
                codec::decode(tensor.format, &file[tensor.range.clone()], &mut values).unwrap();
                let n = values.len() as f64;
                let mean = values.iter().map(|&x| f64::from(x)).sum::<f64>() / n;
                let variance = values.iter().map(|&x| (f64::from(x) - mean).powi(2)).sum::<f64>() / n;
                let (is_norm, columns) = (tensor.shape.len() == 1, tensor.shape[tensor.shape.len() - 1] as f64);
                let (centre, expected) = if is_norm { (1.0, 0.01) } else { (0.0, 1.0 / columns) };
                let what = format!("{} {name}: {mean} {variance}", recipe.name);
                assert!((mean - centre).abs() < 0.3 * expected.sqrt(), "{what}");
                assert!((0.5..1.5).contains(&(variance / expected)), "{what}");
            }
        }
    }

    #[test]
    fn every_family_that_generates_has_a_tiny_size_and_a_published_one() {
        let families = sizes::built_in().unwrap();
        let generates =
            |family: &Architecture| family.graph.finish.iter().any(|op| op["out"].as_str() == Some("logits"));
        for architecture in Architecture::built_in().unwrap().into_iter().filter(generates) {
            let Some(name) = architecture.gguf.first() else { continue };
            let sizes = &families.get(name).unwrap_or_else(|| panic!("{name} has no sizes")).sizes;
            assert!(sizes.contains_key("tiny") && sizes.len() > 1, "{name}");
        }
    }

    #[test]
    fn tiny_models_open_as_models_of_their_family() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tiny.gguf");
        for (arch, family) in sizes::built_in().unwrap() {
            let model = Synth::of(&arch, &family, &family.sizes["tiny"], RECIPES[0], 0).unwrap();
            let (head, length) = model.outline().unwrap();
            std::fs::write(&path, &head).unwrap();
            std::fs::OpenOptions::new().append(true).open(&path).unwrap().set_len(length).unwrap();
            let file = ModelFile::open(&path).unwrap();
            let graph = Graph::open(&file, &[]).unwrap_or_else(|error| panic!("{arch}: {error}"));
            let expected = Architecture::built_in_for(Kind::Gguf, &arch).unwrap().unwrap().name;
            assert_eq!((graph.family, graph.vocabulary), (expected, 384), "{arch}");
            let has_head = model.tensors().any(|(name, _)| name.contains(".nextn."));
            assert_eq!(Graph::open_for(&file, &[], usize::MAX, true).unwrap().head.is_some(), has_head, "{arch}");
        }
    }

    #[test]
    fn an_architecture_that_asks_for_a_tensor_gets_it() {
        let has_norms = |size| {
            let model = Synth::new("glm4moe", size, "q4_0", false, 0).unwrap();
            model.tensors().any(|(name, _)| name == "blk.1.attn_q_norm.weight")
        };
        assert!(has_norms("355b-a32b") && !has_norms("106b-a12b"));
    }

    #[test]
    fn tensors_that_some_layers_have() {
        let model = Synth::new("jamba", "tiny", "q4_0", false, 0).unwrap();
        let layers_with = |part: &str| {
            let tensors = model.tensors.iter().filter(|(tensor, _)| tensor.name.contains(part));
            tensors.filter_map(|(tensor, _)| tensor.layer).collect::<Vec<_>>()
        };
        assert_eq!((layers_with("ffn_gate_inp"), layers_with("ffn_gate.")), (vec![1, 3], vec![0, 2]));
        assert_eq!((layers_with("attn_q"), layers_with("ssm_a")), (vec![2], vec![0, 1, 3]));
    }

    #[test]
    fn pasts_decay() {
        for arch in ["mamba", "mamba2", "qwen35"] {
            let file = bytes(arch, "tiny", "f32", 1);
            let parsed = gguf::parse(&file).unwrap();
            let mut decays = parsed.tensors.iter().filter(|(name, _)| name.ends_with("ssm_a")).peekable();
            assert!(decays.peek().is_some(), "{arch}");
            for (_, tensor) in decays {
                let values = file[tensor.range.clone()].chunks_exact(4);
                assert!(values.map(|x| f32::from_le_bytes(x.try_into().unwrap())).all(|x| x < 0.0), "{arch}");
            }
        }
    }

    #[test]
    fn published_sizes_have_the_parameters_that_publishers_count() {
        let mut wrong = Vec::new();
        for (arch, family) in sizes::built_in().unwrap() {
            for (name, size) in family.sizes.iter().filter(|(name, _)| *name != "tiny") {
                let model = match Synth::of(&arch, &family, size, RECIPES[0], 0) {
                    Ok(model) => model,
                    Err(error) => {
                        wrong.push(format!("{arch} {name}: {error}"));
                        continue;
                    }
                };
                let values = |tensor: &TensorShape| tensor.shape.iter().product::<usize>();
                let all = || model.tensors.iter().map(|(tensor, _)| tensor);
                let of_head = all().find(|tensor| tensor.name.contains(".nextn.")).and_then(|tensor| tensor.layer);
                let of_model = all().filter(|tensor| of_head.is_none() || tensor.layer != of_head);
                let ours = of_model.map(values).sum::<usize>() as f64 / 1e9;
                let theirs = size.billions.unwrap_or_default();
                // Publishers round, and some count what we leave out.
                if (ours - theirs).abs() > 0.01 * ours {
                    wrong.push(format!("{arch} {name}: {ours}, not {theirs}"));
                }
            }
        }
        assert!(wrong.is_empty(), "{wrong:#?}");
    }

    #[test]
    fn what_there_is_not_is_answered_with_what_there_is() {
        let error = |arch, size, quant| Synth::new(arch, size, quant, false, 0).unwrap_err().to_string();
        let unknown = error("qwen9", "8b", "q4_0");
        assert!(unknown.starts_with("there is no architecture 'qwen9'; there is ") && unknown.contains("llama, "));
        assert_eq!(
            error("qwen3", "70b", "q4_0"),
            "there is no size of qwen3 '70b'; there is 0.6b, 1.7b, 14b, 32b, 4b, 8b, tiny"
        );
        let unknown = error("qwen3", "8b", "q4_9");
        assert!(unknown.starts_with("there is no quantisation 'q4_9'; there is f32, ") && unknown.contains("q4_k_m"));
    }
}
