//! Tiny random models with the logits that `transformers` computes for them.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use basert::core::{FORMATS, KvFormat};
use basert::files::ModelFile;
use basert::graph::{Graph, Op};
use basert::plan::{Device, FUSIONS, Fusion, Limits, LoadOptions, Plan};
use basert_engine::{Engine, Part, Sequence};
use basert_reference::Reference;
use basert_testkit::tiny;
use serde_json::Value;

/// A model file, a prompt, and the logits that follow each of its tokens.
pub struct Golden {
    pub name: String,
    pub file: Arc<ModelFile>,
    pub graph: Arc<Graph>,
    pub prompt: Vec<u32>,
    logits: Vec<f32>,
    /// Keeps a folder made for the test.
    _folder: Option<tempfile::TempDir>,
}

impl Golden {
    fn open(name: String, path: &Path, prompt: Vec<u32>, logits: &Path, folder: Option<tempfile::TempDir>) -> Golden {
        let file = Arc::new(ModelFile::open(path).unwrap_or_else(|error| panic!("{name}: {error}")));
        let graph = Arc::new(Graph::open(&file, &[]).unwrap_or_else(|error| panic!("{name}: {error}")));
        let logits = floats(logits);
        let width = graph.values[graph.logits.0].width;
        assert_eq!(logits.len(), prompt.len() * width, "{name}");
        Golden { name, file, graph, prompt, logits, _folder: folder }
    }

    /// A model whose expected logits are the oracle's.
    pub fn of_oracle(name: String, path: &Path, graph: Graph, prompt: Vec<u32>, folder: tempfile::TempDir) -> Golden {
        let file = Arc::new(ModelFile::open(path).unwrap());
        let (graph, logits) = (Arc::new(graph), Vec::new());
        let golden = Golden { name, file, graph, prompt, logits, _folder: Some(folder) };
        Golden { logits: golden.reference(), ..golden }
    }

    pub fn reference(&self) -> Vec<f32> {
        let reference = Reference::new(self.graph.clone(), &self.file).unwrap();
        let all: Vec<usize> = (0..self.prompt.len()).collect();
        reference.logits(&self.prompt, &all).data
    }

    /// Logits that follow each token of the prompt.
    pub fn on(&self, device: &dyn Device, kv: KvFormat, limits: Limits, fusions: &[Fusion]) -> Vec<f32> {
        if !self.graph.generates {
            // All at once, as tokens see those after them.
            let limits = Limits { tokens: self.prompt.len(), wanted: self.prompt.len() };
            return self.states_on_with(device, kv, limits, fusions);
        }
        let mut engine = self.engine(device, kv, limits, fusions);
        let mut all = Vec::new();
        engine.score(&self.prompt, 0, &mut |_, logits| all.extend_from_slice(logits)).unwrap();
        all
    }

    fn engine(&self, device: &dyn Device, kv: KvFormat, limits: Limits, fusions: &[Fusion]) -> Engine {
        let plan = Arc::new(Plan::build(self.graph.clone(), limits, fusions));
        let pages = vec![4; plan.page_groups.len()];
        let options = LoadOptions { pages: pages.clone(), slots: 4, kv, progress: &mut |_, _, _| {} };
        let baked = device.load(plan.clone(), self.file.clone(), options);
        let baked = baked.unwrap_or_else(|error| panic!("{}: {error}", self.name));
        let engine = Engine::new(baked, device.facts(), limits, &plan.reaches(&pages), 256, self.graph.vocabulary);
        engine.with_slots(4, self.graph.slot_bytes())
    }

    /// Hidden states of the prompt's tokens, of which `limits` fit into a step.
    pub fn states_on(&self, device: &dyn Device, limits: Limits) -> Vec<f32> {
        self.states_on_with(device, KvFormat::F16, limits, &FUSIONS)
    }

    fn states_on_with(&self, device: &dyn Device, kv: KvFormat, limits: Limits, fusions: &[Fusion]) -> Vec<f32> {
        let mut engine = self.engine(device, kv, limits, fusions);
        let (mut sequence, mut all) = (Sequence::default(), Vec::new());
        engine.set(&mut sequence, self.prompt.clone()).unwrap();
        while sequence.computed() < self.prompt.len() {
            let count = (self.prompt.len() - sequence.computed()).min(limits.wanted);
            engine.reserve(&mut sequence, count, false).unwrap();
            engine.run(&mut [Part { sequence: &mut sequence, count, wanted: count }], true).unwrap();
            (0..count).for_each(|row| all.extend_from_slice(engine.hidden(row)));
        }
        all
    }

    /// The largest difference from the expected logits, relative to the largest of these.
    pub fn error(&self, logits: &[f32]) -> f32 {
        difference(&self.name, &self.logits, logits)
    }

    /// Whether a small change can make a large one: where a router's choice is close, rounding turns it.
    pub fn chooses(&self) -> bool {
        self.graph.nodes.iter().any(|node| matches!(node.op, Op::Route(_)))
    }

    pub fn has_quantised_weights(&self) -> bool {
        self.graph.weights.iter().any(|weight| !weight.format.is_float())
    }
}

/// The largest difference from what is expected, relative to the largest of that.
pub fn difference(name: &str, expected: &[f32], found: &[f32]) -> f32 {
    assert_eq!(expected.len(), found.len(), "{name}");
    let largest = expected.iter().fold(0.0f32, |max, x| max.max(x.abs()));
    let difference = expected.iter().zip(found).fold(0.0f32, |max, (a, b)| max.max((a - b).abs()));
    assert!(found.iter().all(|x| x.is_finite()), "{name}: not all are finite");
    difference / largest
}

/// Floats without a header.
pub fn floats(path: &Path) -> Vec<f32> {
    let bytes = std::fs::read(path).unwrap();
    bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn tokens(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

/// The folder with another of its configurations as `config.json`.
fn with_config(folder: &Path, config: &str) -> tempfile::TempDir {
    let copy = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.file_name().unwrap().to_str().unwrap().starts_with("model") {
            std::fs::copy(&path, copy.path().join(path.file_name().unwrap())).unwrap();
        }
    }
    std::fs::copy(folder.join(config), copy.path().join("config.json")).unwrap();
    copy
}

/// The folders of models with expected logits, by name.
fn folders() -> Vec<PathBuf> {
    let mut folders: Vec<_> = std::fs::read_dir(tiny()).unwrap().map(|entry| entry.unwrap().path()).collect();
    folders.retain(|path| path.join("logits.f32").exists());
    folders.sort();
    folders
}

fn name_of(folder: &Path) -> String {
    folder.file_name().unwrap().to_string_lossy().into_owned()
}

/// Models with weights in Hugging Face folders, each with all its configurations.
pub fn hugging_face() -> Vec<Golden> {
    let mut goldens = Vec::new();
    let is_weights = |name: &std::ffi::OsStr| name.to_string_lossy().ends_with(".safetensors");
    let has_weights =
        |folder: &PathBuf| std::fs::read_dir(folder).unwrap().any(|entry| is_weights(&entry.unwrap().file_name()));
    for folder in folders().into_iter().filter(has_weights) {
        let expected = json(&folder.join("expected.json"));
        for case in expected["cases"].as_array().unwrap() {
            let config = case["config"].as_str().unwrap();
            let copy = with_config(&folder, config);
            let path: PathBuf = copy.path().to_owned();
            let logits = folder.join(case["logits"].as_str().unwrap());
            let name = format!("{}/{config}", name_of(&folder));
            goldens.push(Golden::open(name, &path, tokens(&expected["prompt"]), &logits, Some(copy)));
        }
    }
    assert!(goldens.len() >= 12);
    goldens
}

/// The same models as GGUF files.
pub fn gguf_twins() -> Vec<Golden> {
    let twin = |folder: PathBuf| {
        let (expected, name) = (json(&folder.join("expected.json")), name_of(&folder));
        let (path, logits) = (tiny().join(format!("{name}.gguf")), folder.join("logits.f32"));
        path.exists().then(|| Golden::open(format!("{name}.gguf"), &path, tokens(&expected["prompt"]), &logits, None))
    };
    let twins: Vec<_> = folders().into_iter().filter_map(twin).collect();
    assert!(twins.len() >= 9);
    twins
}

pub fn quantised() -> Vec<Golden> {
    let folder = tiny().join("quantised");
    let expected = json(&folder.join("expected.json"));
    let formats = FORMATS.iter().filter(|row| !row.format.is_float());
    let open = |name: String| {
        let (path, logits) = (folder.join(format!("{name}.gguf")), folder.join(format!("{name}.logits.f32")));
        Golden::open(name, &path, tokens(&expected["prompt"]), &logits, None)
    };
    formats.map(|row| open(row.name.to_lowercase())).collect()
}

pub fn all() -> Vec<Golden> {
    hugging_face().into_iter().chain(gguf_twins()).chain(quantised()).collect()
}
