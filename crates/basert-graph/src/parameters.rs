//! The values of an architecture's names for one model.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};

use basert_core::codec;
use basert_files::{Kind, ModelFile};

use crate::GraphError;
use crate::arch::{Architecture, Expression, Parameter, StoredParameter};
use crate::expr::{self, Value};

/// A source of hyperparameters: a model file, or a description of one.
pub trait Metadata {
    /// The kind of model file whose keys it has.
    fn kind(&self) -> Kind;

    /// Its name in error messages.
    fn name(&self) -> String;

    /// The value of `key`.
    fn get(&self, key: &str) -> Option<basert_files::Value<'_>>;

    /// The first value of a tensor.
    fn number_of(&self, _tensor: &str) -> Option<f64> {
        None
    }
}

impl Metadata for ModelFile {
    fn kind(&self) -> Kind {
        ModelFile::kind(self)
    }

    fn name(&self) -> String {
        self.path().display().to_string()
    }

    fn get(&self, key: &str) -> Option<basert_files::Value<'_>> {
        ModelFile::get(self, key)
    }

    fn number_of(&self, tensor: &str) -> Option<f64> {
        let tensor = self.tensor(tensor)?;
        let block = tensor.format.block();
        let mut values = vec![0.0; block.elements];
        codec::decode(tensor.format, tensor.bytes.get(..block.bytes)?, &mut values).ok()?;
        values.first().map(|&x| f64::from(x))
    }
}

/// Looks up names: values of the layer first, then parameters; before both `source`, `layer`, and `longest`, the most
/// tokens that a sequence may have.
pub(crate) struct Parameters<'a> {
    arch: &'a Architecture,
    file: &'a dyn Metadata,
    arch_name: String,
    found: RefCell<BTreeMap<String, Value>>,
    /// Tensors whose values were read.
    read: RefCell<BTreeSet<String>>,
    layer: Option<usize>,
    longest: usize,
}

impl<'a> Parameters<'a> {
    pub(crate) fn new(arch: &'a Architecture, file: &'a dyn Metadata, arch_name: String, longest: usize) -> Self {
        Parameters { arch, file, arch_name, found: RefCell::default(), read: RefCell::default(), layer: None, longest }
    }

    /// Sets the layer that names are looked up for.
    pub(crate) fn set_layer(&mut self, layer: Option<usize>) {
        self.layer = layer;
        // Parameters may depend on values of the layer.
        self.found.get_mut().clear();
    }

    /// The kind of model file whose keys it has.
    pub(crate) fn kind(&self) -> Kind {
        self.file.kind()
    }

    /// Whether a tensor's value was read as a parameter's.
    pub(crate) fn has_read(&self, tensor: &str) -> bool {
        self.read.borrow().contains(tensor)
    }

    /// An error about the model file.
    pub(crate) fn fail(&self, what: String) -> GraphError {
        GraphError::Model { file: self.file.name(), what }
    }

    /// The value of an expression.
    pub(crate) fn evaluate(&self, expression: &Expression) -> Result<Value, GraphError> {
        self.evaluate_within(expression, &mut BTreeSet::new())
    }

    /// The value of a name, or `None` if there is no such parameter.
    pub(crate) fn named(&self, name: &str) -> Result<Option<Value>, GraphError> {
        self.find(name, &mut BTreeSet::new())
    }

    fn evaluate_within(&self, expression: &Expression, open: &mut BTreeSet<String>) -> Result<Value, GraphError> {
        let text = match expression {
            Expression::Bool(x) => return Ok(Value::Bool(*x)),
            Expression::Number(x) => return Ok(Value::Number(*x)),
            Expression::Text(text) => text,
        };
        // The first error inside a name that the expression uses; it says more than "not known".
        let inner = RefCell::new(None);
        let open = RefCell::new(open);
        let lookup = |name: &str| {
            self.find(name, &mut open.borrow_mut()).unwrap_or_else(|error| {
                inner.borrow_mut().get_or_insert(error);
                None
            })
        };
        let value = expr::evaluate(text, &lookup);
        match inner.into_inner() {
            Some(error) => Err(error),
            None => value.map_err(|error| self.fail(format!("{}: {error}", self.arch.name))),
        }
    }

    fn find(&self, name: &str, open: &mut BTreeSet<String>) -> Result<Option<Value>, GraphError> {
        if let Some(value) = self.found.borrow().get(name) {
            return Ok(Some(value.clone()));
        }
        match name {
            "source" => return Ok(Some(Value::Text(self.file.kind().key().to_owned()))),
            "layer" => return Ok(self.layer.map(|layer| Value::Number(layer as f64))),
            "longest" => {
                let trained = self.find("context", open)?.and_then(|context| context.number());
                return Ok(Some(Value::Number(trained.unwrap_or(f64::INFINITY).min(self.longest as f64))));
            }
            _ => {}
        }
        let of_layer = self.layer.and_then(|_| self.arch.layer.get(name));
        let parameter = self.arch.parameters.get(name);
        if of_layer.is_none() && parameter.is_none() {
            return Ok(None);
        }
        if !open.insert(name.to_owned()) {
            return Err(self.fail(format!("{}: the parameter '{name}' depends on itself", self.arch.name)));
        }
        let value = match (of_layer, parameter) {
            (Some(expression), _) | (None, Some(Parameter::Derived(expression))) => {
                self.evaluate_within(expression, open)?
            }
            (None, Some(Parameter::Stored(stored))) => {
                let keys = match self.file.kind() {
                    Kind::Gguf => stored.gguf.as_slice(),
                    Kind::HuggingFace => stored.hf.as_slice(),
                };
                let keys: Vec<_> = keys.iter().map(|key| key.replace("{arch}", &self.arch_name)).collect();
                let found = keys.iter().find_map(|key| self.stored(key)).or_else(|| self.first_value(stored));
                match (found, &stored.default) {
                    (Some(value), _) => value,
                    (None, Some(default)) => self.evaluate_within(default, open)?,
                    (None, None) => {
                        let keys =
                            if keys.is_empty() { "no key of this kind of file".into() } else { keys.join("' or '") };
                        return Err(self.fail(format!("'{keys}' is missing, which gives {name}")));
                    }
                }
            }
            (None, None) => unreachable!("returned above"),
        };
        open.remove(name);
        self.found.borrow_mut().insert(name.to_owned(), value.clone());
        Ok(Some(value))
    }

    /// The first value of the tensor that a parameter names, if the file has it.
    fn first_value(&self, stored: &StoredParameter) -> Option<Value> {
        let entry = self.arch.tensors.get(stored.tensor.as_ref()?)?;
        let layer = self.layer.map_or(String::new(), |layer| layer.to_string());
        self.arch.tensor_names(entry, self.kind()).iter().find_map(|pattern| {
            let tensor = pattern.replace("{layer}", &layer);
            let value = self.file.number_of(&tensor)?;
            self.read.borrow_mut().insert(tensor);
            Some(Value::Number(value))
        })
    }

    fn stored(&self, key: &str) -> Option<Value> {
        fn convert(value: basert_files::Value<'_>) -> Option<Value> {
            if let Some(x) = value.as_bool() {
                return Some(Value::Bool(x));
            }
            if let Some(x) = value.as_f64() {
                return Some(Value::Number(x));
            }
            if let Some(x) = value.as_str() {
                return Some(Value::Text(x.to_owned()));
            }
            let items = value.as_array()?;
            // Lists have an entry per layer; a longer one is a vocabulary.
            (items.len() <= 4096).then(|| Value::List(items.iter().filter_map(convert).collect()))
        }
        convert(self.file.get(key)?)
    }
}
