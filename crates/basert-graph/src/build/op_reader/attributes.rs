//! The attributes of an op: values, tensors, and expressions with their defaults; and checks of shapes.

use super::OpReader;
use crate::GraphError;
use crate::build::{MAX_WIDTH, Result};
use crate::expr::Value as Val;
use crate::graph::{Rows, ValueId, WeightId};

impl<'t> OpReader<'_, '_, 't> {
    pub(in crate::build) fn wrong(&self, what: String) -> GraphError {
        let op = self.table.get("op").and_then(toml::Value::as_str).unwrap_or("?");
        let out = self.table.get("out").and_then(toml::Value::as_str).unwrap_or("?");
        self.builder.wrong(format!("op '{op}' that computes '{out}': {what}"))
    }

    pub(super) fn required(&mut self, attribute: &'static str) -> Result<&'t str> {
        self.read.insert(attribute);
        let value = self.table.get(attribute).and_then(toml::Value::as_str);
        value.ok_or_else(|| self.wrong(format!("`{attribute}` is missing or is not text")))
    }

    pub(super) fn input(&mut self, attribute: &'static str) -> Result<ValueId> {
        let name = self.required(attribute)?;
        self.value_named(name)
    }

    /// The input, if it is there.
    pub(super) fn optional_input(&mut self, attribute: &'static str) -> Result<Option<ValueId>> {
        self.read.insert(attribute);
        self.table.contains_key(attribute).then(|| self.input(attribute)).transpose()
    }

    pub(super) fn value_named(&self, name: &str) -> Result<ValueId> {
        let value = self.any_named(name)?;
        match self.width(value) {
            0 => Err(self.wrong(format!("'{name}' stands for what is stored; only `kv` of attention may name it"))),
            _ => Ok(value),
        }
    }

    /// A value, or what stands for what a cache stores.
    pub(super) fn any_named(&self, name: &str) -> Result<ValueId> {
        let value = self.builder.names.get(name).copied();
        value.ok_or_else(|| self.wrong(format!("no op before it computes '{name}'")))
    }

    /// Refuses a value without a row for every token.
    pub(super) fn of_tokens(&self, value: ValueId) -> Result<()> {
        match self.rows(value) {
            Rows::Tokens => Ok(()),
            Rows::Wanted => {
                let name = &self.builder.graph.values[value.0].name;
                Err(self.wrong(format!("'{name}' has rows for the wanted tokens only, and it needs all")))
            }
        }
    }

    pub(super) fn weight(&mut self, attribute: &'static str) -> Result<WeightId> {
        let name = self.required(attribute)?;
        let weight = self.builder.weight(name)?;
        weight.ok_or_else(|| self.builder.fail(format!("tensor '{name}' is missing")))
    }

    pub(super) fn optional_weight(&mut self, attribute: &'static str) -> Result<Option<WeightId>> {
        self.read.insert(attribute);
        if !self.table.contains_key(attribute) {
            return Ok(None);
        }
        let name = self.required(attribute)?;
        self.builder.weight(name)
    }

    /// The attribute's value, if it is there.
    pub(super) fn optional(&mut self, attribute: &'static str) -> Result<Option<Val>> {
        self.read.insert(attribute);
        let Some(value) = self.table.get(attribute) else { return Ok(None) };
        let expression = self.builder.expression(attribute, value)?;
        self.builder.parameters.evaluate(&expression).map(Some)
    }

    pub(super) fn optional_truth(&mut self, attribute: &'static str) -> Result<Option<bool>> {
        self.optional(attribute)?.map(|value| self.truth(attribute, value)).transpose()
    }

    pub(super) fn truth(&self, attribute: &str, value: Val) -> Result<bool> {
        match value {
            Val::Bool(truth) => Ok(truth),
            other => Err(self.wrong(format!("`{attribute}` is {other}, neither true nor false"))),
        }
    }

    /// The attribute's value, or that of the parameter called `parameter` if it is left out.
    pub(super) fn value_or(&mut self, attribute: &'static str, parameter: &str) -> Result<Val> {
        if let Some(value) = self.optional(attribute)? {
            return Ok(value);
        }
        let value = self.builder.parameters.named(parameter)?;
        value.ok_or_else(|| self.wrong(format!("`{attribute}` is missing, and there is no parameter '{parameter}'")))
    }

    pub(super) fn number_or(&mut self, attribute: &'static str, parameter: &str) -> Result<f64> {
        match self.value_or(attribute, parameter)? {
            Val::Number(x) if x.is_finite() => Ok(x),
            other => Err(self.builder.fail(format!("{attribute} is {other}, not a number"))),
        }
    }

    /// A number of tokens, or 0.
    pub(super) fn tokens_or(&mut self, attribute: &'static str, parameter: &str) -> Result<usize> {
        let tokens = Val::Number(self.number_or(attribute, parameter)?);
        self.builder.whole(&format!("the attention {attribute}"), &tokens, 0, usize::MAX >> 12)
    }

    pub(super) fn number(&mut self, attribute: &'static str) -> Result<f64> {
        self.number_or(attribute, attribute)
    }

    pub(super) fn count(&mut self, attribute: &'static str) -> Result<usize> {
        let value = self.value_or(attribute, attribute)?;
        self.builder.whole(attribute, &value, 1, MAX_WIDTH)
    }

    pub(super) fn width(&self, value: ValueId) -> usize {
        self.builder.graph.values[value.0].width
    }

    pub(super) fn rows(&self, value: ValueId) -> Rows {
        self.builder.graph.values[value.0].rows
    }

    pub(super) fn same_shape(&self, a: ValueId, b: ValueId) -> Result<()> {
        let (a, b) = (&self.builder.graph.values[a.0], &self.builder.graph.values[b.0]);
        if a.rows != b.rows {
            return Err(self.wrong(format!("'{}' and '{}' have rows for different tokens", a.name, b.name)));
        }
        if a.width == b.width {
            return Ok(());
        }
        Err(self.builder.fail(format!("'{}' is {} wide, and '{}' is {}", a.name, a.width, b.name, b.width)))
    }

    pub(super) fn check_vector(&self, weight: WeightId, length: usize) -> Result<()> {
        let weight = &self.builder.graph.weights[weight.0];
        if weight.len() == length {
            return Ok(());
        }
        let (rows, columns) = (weight.rows, weight.columns);
        Err(self.builder.fail(format!("tensor '{}' has shape [{rows}, {columns}], expected [{length}]", weight.name())))
    }

    pub(super) fn check_heads(&self, name: &str, value: ValueId, heads: usize, head_dim: usize) -> Result<()> {
        let width = self.width(value);
        if heads.checked_mul(head_dim) == Some(width) {
            return Ok(());
        }
        Err(self.builder.fail(format!("{name} is {width} wide, and {heads} heads of {head_dim} are expected")))
    }
}
