//! Architecture files: a model family as data.
//!
//! An [`Architecture`] is one TOML file. It says where hyperparameters are stored and what tensors are called in each
//! kind of model file, and lists the ops of a model in terms of both. [`crate::Graph::open`] evaluates it for one
//! model file. `docs/adding-a-model.md` explains the format; `arch/` holds the built-in families.

use std::collections::BTreeMap;
use std::path::Path;

use basert_files::Kind;
use serde::Deserialize;

use crate::GraphError;

/// A parsed architecture file, merged with the files that it uses.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Architecture {
    /// The family's name, for people.
    #[serde(default)]
    pub name: String,
    /// Values of `general.architecture` in GGUF files that mean this family.
    #[serde(default)]
    pub gguf: Vec<String>,
    /// Values of `model_type` in Hugging Face configurations that mean this family.
    #[serde(default)]
    pub hf: Vec<String>,
    #[serde(default, rename = "use")]
    uses: Vec<String>,
    /// What names of tensors in Hugging Face files begin with: those that begin with the first are also found with one of
    /// the others instead.
    #[serde(default)]
    pub prefixes: Vec<String>,
    /// Tensors that a file may hold and the model does not need; `*` stands for any text, `{NAME}` for a parameter.
    #[serde(default)]
    pub ignore: Vec<String>,
    /// Variants of the family that these ops cannot compute.
    #[serde(default)]
    pub refuse: Vec<Refusal>,
    /// Hyperparameters by name.
    #[serde(default)]
    pub parameters: BTreeMap<String, Parameter>,
    /// Per-layer values, with `layer` counting from 0.
    #[serde(default)]
    pub layer: BTreeMap<String, Expression>,
    /// Tensors by name.
    #[serde(default)]
    pub tensors: BTreeMap<String, TensorName>,
    /// Rotary embeddings by name.
    #[serde(default)]
    pub rope: BTreeMap<String, BTreeMap<String, Expression>>,
    /// The ops.
    #[serde(default)]
    pub graph: Ops,
    /// The head that predicts a further token, if models of the family may have one.
    pub head: Option<HeadOps>,
    /// What a text's pooled hidden state becomes: by the first of these of which a file has the tensor.
    #[serde(default)]
    pub pooled: Vec<PooledOps>,
}

/// Ops on the pooled hidden state of a text, of models that rank or classify texts, or embed them in another width.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PooledOps {
    /// The tensor, by its name in the architecture file, by which a file is known to have them.
    pub tensor: String,
    /// How hidden states are pooled, if nothing else says so: 'first', 'mean' or 'last'.
    pub pooling: Option<Expression>,
    /// The ops, from the value `pooled` to the value `scores` or `embedding`.
    pub ops: Vec<toml::Table>,
}

/// A head that predicts one more token than the model does, from the model's hidden states: one more layer, between ops of
/// its own.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HeadOps {
    /// The tensor, by its name in the architecture file, by which a file is known to have the head.
    pub tensor: String,
    /// What names of tensors of the layer begin with in Hugging Face files, and what they begin with in the head.
    #[serde(default)]
    pub renamed: Option<(String, String)>,
    /// Before the layer; `given` are the hidden states.
    pub start: Vec<toml::Table>,
    /// After the layer.
    pub finish: Vec<toml::Table>,
}

/// A case that an architecture file refuses.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Refusal {
    /// Condition over the parameters.
    pub when: Expression,
    /// The reason, for the error message.
    pub because: String,
}

/// A value written in an architecture file: a number, a truth value, or the text of an expression.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(untagged)]
pub enum Expression {
    /// `true` or `false`.
    Bool(bool),
    /// A number.
    Number(f64),
    /// See [`crate::expr`].
    Text(String),
}

/// Where a hyperparameter comes from.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
pub enum Parameter {
    /// Computed from other parameters.
    Derived(Expression),
    /// Stored in the model file.
    Stored(StoredParameter),
}

/// A hyperparameter of the model file: the value of the first key that exists, or else the default.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StoredParameter {
    /// Metadata keys in GGUF files; `{arch}` stands for `general.architecture`.
    #[serde(default)]
    pub gguf: Keys,
    /// Dotted paths in `config.json`.
    #[serde(default)]
    pub hf: Keys,
    /// A tensor, by its name in the architecture file, whose first value it is if no key exists.
    pub tensor: Option<String>,
    /// Its value if there is none; without a default the model is refused.
    pub default: Option<Expression>,
}

/// One key or several.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
pub enum Keys {
    /// Just one.
    One(String),
    /// The first one that exists.
    FirstOf(Vec<String>),
}

impl Default for Keys {
    fn default() -> Self {
        Keys::FirstOf(Vec::new())
    }
}

impl Keys {
    /// The keys in the order in which they are tried.
    pub fn as_slice(&self) -> &[String] {
        match self {
            Keys::One(key) => std::slice::from_ref(key),
            Keys::FirstOf(keys) => keys,
        }
    }
}

/// A tensor's name in each kind of model file, where `{layer}` stands for the number of the layer, and its shape. Where
/// the name has `{expert}`, `{head}` or `{kv_head}`, there are several, as many as the parameter `experts`, `heads` or
/// `kv_heads` says, which lie one below the other.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TensorName {
    /// Its name in GGUF files, or several, of which the first that exists counts.
    #[serde(default)]
    pub gguf: Keys,
    /// The same in Hugging Face files.
    #[serde(default)]
    pub hf: Keys,
    /// Whether the model is computed without it if it is missing.
    #[serde(default)]
    pub optional: bool,
    /// The tensor that replaces it if it is missing.
    pub otherwise: Option<String>,
    /// The kind of files in which it is a matrix [inputs, outputs] of floats, or one of each expert: `"hf"` or `"gguf"`.
    pub transposed: Option<String>,
    /// Whether each of its values counts as a row: for vectors of experts that are stacked.
    #[serde(default)]
    pub vector: bool,
    /// Only these rows: the first one, their number, and, if there is a third number, of how many rows each time.
    #[serde(default)]
    pub rows: Vec<Expression>,
    /// Only these columns of a matrix: the first one, and their number.
    #[serde(default)]
    pub columns: Vec<Expression>,
    /// Its dimensions, outermost first, used to make models; the shape of an existing tensor is read from its file.
    #[serde(default)]
    pub shape: Vec<Expression>,
}

impl TensorName {
    /// Its names in files of this kind.
    pub fn names(&self, kind: Kind) -> &[String] {
        match kind {
            Kind::Gguf => self.gguf.as_slice(),
            Kind::HuggingFace => self.hf.as_slice(),
        }
    }

    /// Whether files of this kind have it transposed.
    pub fn is_transposed(&self, kind: Kind) -> bool {
        let name = match kind {
            Kind::Gguf => "gguf",
            Kind::HuggingFace => "hf",
        };
        self.transposed.as_deref() == Some(name)
    }
}

/// The ops of a model: once at the start, once for every layer, once at the end.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ops {
    /// Before the first layer.
    #[serde(default)]
    pub start: Vec<toml::Table>,
    /// Each layer.
    #[serde(default)]
    pub block: Vec<toml::Table>,
    /// After the last layer.
    #[serde(default)]
    pub finish: Vec<toml::Table>,
}

/// The files of `arch/`, by name.
static BUILT_IN: &[(&str, &str)] = include!(concat!(env!("OUT_DIR"), "/arch.rs"));

impl Architecture {
    /// What files of this kind call the family.
    pub fn names(&self, kind: Kind) -> &[String] {
        match kind {
            Kind::Gguf => &self.gguf,
            Kind::HuggingFace => &self.hf,
        }
    }

    /// Whether files of this kind call the family `name`.
    pub fn is_called(&self, kind: Kind, name: &str) -> bool {
        self.names(kind).iter().any(|own| own == name)
    }

    /// What files of this kind may call a tensor, in the order in which it is looked for.
    pub fn tensor_names(&self, tensor: &TensorName, kind: Kind) -> Vec<String> {
        let mut names = Vec::new();
        for name in tensor.names(kind) {
            let rest = self.prefixes.first().and_then(|first| name.strip_prefix(first.as_str()));
            match rest.filter(|_| kind == Kind::HuggingFace) {
                Some(rest) => names.extend(self.prefixes.iter().map(|prefix| format!("{prefix}{rest}"))),
                None => names.push(name.clone()),
            }
        }
        names
    }

    /// The built-in families.
    ///
    /// # Errors
    /// Never in a build whose tests pass.
    pub fn built_in() -> Result<Vec<Architecture>, GraphError> {
        Architecture::built_in_with("").collect()
    }

    /// The built-in family that files of this kind call `name`.
    ///
    /// # Errors
    /// Never in a build whose tests pass.
    pub fn built_in_for(kind: Kind, name: &str) -> Result<Option<Architecture>, GraphError> {
        // All are not read: it would take longer than the rest of opening a small model.
        for family in Architecture::built_in_with(&format!("\"{name}\"")) {
            let family = family?;
            if family.is_called(kind, name) {
                return Ok(Some(family));
            }
        }
        Ok(None)
    }

    /// The built-in families whose files contain `part`.
    fn built_in_with(part: &str) -> impl Iterator<Item = Result<Architecture, GraphError>> {
        // Files without a name are only used by families.
        let families = BUILT_IN.iter().filter(move |(_, text)| text.contains("\nname") && text.contains(part));
        families.map(|(name, text)| Architecture::parse(text, &format!("built-in {name}")))
    }

    /// Reads an architecture file from disk.
    ///
    /// # Errors
    /// When it cannot be read, is not TOML, or has an unknown field.
    pub fn open(path: &Path) -> Result<Architecture, GraphError> {
        let name = path.display().to_string();
        let text = std::fs::read_to_string(path)
            .map_err(|error| GraphError::Architecture { file: name.clone(), what: error.to_string() })?;
        Architecture::parse(&text, &name)
    }

    /// Parses the text of the architecture file called `file`.
    ///
    /// # Errors
    /// As for [`Architecture::open`].
    pub fn parse(text: &str, file: &str) -> Result<Architecture, GraphError> {
        let fail = |what: String| GraphError::Architecture { file: file.to_owned(), what };
        let own: Architecture = toml::from_str(text).map_err(|error| fail(error.to_string()))?;
        if own.name.is_empty() {
            return Err(fail("it has no `name`".to_owned()));
        }
        let mut merged = own.clone();
        for used in own.uses.iter().rev() {
            let text = BUILT_IN.iter().find(|(name, _)| name == used).map(|(_, text)| *text);
            let text = text.ok_or_else(|| {
                let known: Vec<_> = BUILT_IN.iter().map(|(name, _)| *name).collect();
                fail(format!("it uses '{used}', and there are only {}", known.join(", ")))
            })?;
            let base: Architecture = toml::from_str(text).map_err(|error| fail(error.to_string()))?;
            merged.fill_from(base);
        }
        Ok(merged)
    }

    /// Inherits from `base` everything that is not stated here.
    fn fill_from(&mut self, base: Architecture) {
        fn fill<T>(own: &mut BTreeMap<String, T>, base: BTreeMap<String, T>) {
            for (name, value) in base {
                own.entry(name).or_insert(value);
            }
        }
        self.ignore.extend(base.ignore);
        self.refuse.extend(base.refuse);
        if self.prefixes.is_empty() {
            self.prefixes = base.prefixes;
        }
        self.head = self.head.take().or(base.head);
        self.pooled.extend(base.pooled);
        fill(&mut self.parameters, base.parameters);
        fill(&mut self.layer, base.layer);
        fill(&mut self.tensors, base.tensors);
        fill(&mut self.rope, base.rope);
        for (own, base) in [
            (&mut self.graph.start, base.graph.start),
            (&mut self.graph.block, base.graph.block),
            (&mut self.graph.finish, base.graph.finish),
        ] {
            if own.is_empty() {
                *own = base;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_built_in_family_parses() {
        for family in Architecture::built_in().unwrap() {
            assert!(!family.gguf.is_empty() || !family.hf.is_empty(), "{}", family.name);
            assert!(!family.graph.block.is_empty(), "{}", family.name);
        }
    }

    #[test]
    fn a_family_is_found_by_each_of_its_names() {
        let families = Architecture::built_in().unwrap();
        for kind in [Kind::Gguf, Kind::HuggingFace] {
            for name in families.iter().flat_map(|family| family.names(kind)) {
                let first = families.iter().find(|family| family.is_called(kind, name)).unwrap();
                let found = Architecture::built_in_for(kind, name).unwrap();
                assert_eq!(found.map(|family| family.name).as_ref(), Some(&first.name), "{name}");
            }
            assert!(Architecture::built_in_for(kind, "none").unwrap().is_none());
        }
    }

    #[test]
    fn mistakes_are_named() {
        for (text, part) in [
            ("name = 'x'\nparamters = {}", "paramters"),
            ("gguf = ['x']", "no `name`"),
            ("name = 'x'\nuse = ['comon']", "there are only "),
            ("name = 'x'\n[tensors]\nq = { gguf = 'a', hff = 'b' }", "hff"),
        ] {
            let error = Architecture::parse(text, "my.toml").unwrap_err().to_string();
            assert!(error.contains("my.toml") && error.contains(part), "{error}");
        }
    }
}
