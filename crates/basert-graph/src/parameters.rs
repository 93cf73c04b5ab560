//! The values of an architecture's names for one model.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};

use basert_files::{Kind, ModelFile};

use crate::GraphError;
use crate::arch::{Architecture, Expression, Parameter};
use crate::expr::{self, Value};

/// A source of hyperparameters: a model file, or a description of one.
pub trait Metadata {
    /// The kind of model file whose keys it has.
    fn kind(&self) -> Kind;

    /// Its name in error messages.
    fn name(&self) -> String;

    /// The value of `key`.
    fn get(&self, key: &str) -> Option<basert_files::Value<'_>>;
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
}

/// Looks up names: values of the layer first, then parameters, then `source` and `layer`.
pub(crate) struct Parameters<'a> {
    arch: &'a Architecture,
    file: &'a dyn Metadata,
    arch_name: String,
    found: RefCell<BTreeMap<String, Value>>,
    layer: Option<usize>,
}

impl<'a> Parameters<'a> {
    pub(crate) fn new(arch: &'a Architecture, file: &'a dyn Metadata, arch_name: String) -> Self {
        Parameters { arch, file, arch_name, found: RefCell::default(), layer: None }
    }

    /// Sets the layer that names are looked up for.
    pub(crate) fn set_layer(&mut self, layer: Option<usize>) {
        self.layer = layer;
        let arch = self.arch;
        self.found.get_mut().retain(|name, _| !arch.layer.contains_key(name));
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
                match (keys.iter().find_map(|key| self.stored(key)), &stored.default) {
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
