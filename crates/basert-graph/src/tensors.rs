//! The tensors of a model to be synthesised, from its family and its hyperparameters.

use std::collections::BTreeSet;

use basert_files::Kind;

use crate::GraphError;
use crate::arch::{Architecture, Expression};
use crate::expr::Value;
use crate::parameters::{Metadata, Parameters};

/// A tensor of a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorShape {
    /// Its name in the architecture file.
    pub key: String,
    /// Its name in the model file.
    pub name: String,
    /// The layer that it belongs to, if any.
    pub layer: Option<usize>,
    /// Its dimensions, outermost first.
    pub shape: Vec<usize>,
    /// Its role in the ops.
    pub part: Part,
}

/// The role of a tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// A matrix of a linear op, or a table of embeddings.
    Matrix,
    /// Weights of a norm.
    Norm,
    /// The bias of a linear op.
    Bias,
    /// Divisors of rotary frequencies.
    RopeFactors,
}

/// The role of the tensor that the attribute `attribute` of op `op` names.
fn part(op: &str, attribute: &str) -> Option<Part> {
    match (op, attribute) {
        ("embed" | "linear", "weight") => Some(Part::Matrix),
        ("norm", "weight") | (_, "q_norm" | "k_norm") => Some(Part::Norm),
        (_, "bias") => Some(Part::Bias),
        _ => None,
    }
}

impl Architecture {
    /// Every tensor of the model of this family that `metadata` describes and whose architecture is named `arch_name`,
    /// each once, in the order in which ops use them. `with` says whether the model has an optional tensor, by its name
    /// in the architecture file.
    ///
    /// # Errors
    /// When a hyperparameter is missing or invalid, or a tensor has no shape or no name.
    pub fn tensors(
        &self,
        metadata: &dyn Metadata,
        arch_name: &str,
        with: &dyn Fn(&str) -> bool,
    ) -> Result<Vec<TensorShape>, GraphError> {
        let kind = metadata.kind();
        let parameters = Parameters::new(self, metadata, arch_name.to_owned());
        let mut list = List { arch: self, kind, parameters, with, tensors: Vec::new(), seen: BTreeSet::new() };
        for rope in self.rope.values() {
            if let Some(Expression::Text(key)) = rope.get("factors") {
                list.add(key, None, Part::RopeFactors)?;
            }
        }
        list.ops(&self.graph.start, None)?;
        let layers = list.size(&Expression::Text("layers".to_owned()), "the number of layers")?;
        for layer in 0..layers {
            list.parameters.set_layer(Some(layer));
            list.ops(&self.graph.block, Some(layer))?;
        }
        list.parameters.set_layer(None);
        list.ops(&self.graph.finish, None)?;
        Ok(list.tensors)
    }
}

struct List<'a> {
    arch: &'a Architecture,
    kind: Kind,
    parameters: Parameters<'a>,
    with: &'a dyn Fn(&str) -> bool,
    tensors: Vec<TensorShape>,
    seen: BTreeSet<String>,
}

impl List<'_> {
    fn ops(&mut self, ops: &[toml::Table], layer: Option<usize>) -> Result<(), GraphError> {
        for op in ops {
            let when = op.get("when").and_then(toml::Value::as_str).map(|text| Expression::Text(text.to_owned()));
            if let Some(when) = when
                && self.parameters.evaluate(&when)? == Value::Bool(false)
            {
                continue;
            }
            let name = op.get("op").and_then(toml::Value::as_str).unwrap_or_default();
            for (attribute, key) in op {
                if let (Some(part), Some(key)) = (part(name, attribute), key.as_str()) {
                    self.add(key, layer, part)?;
                }
            }
        }
        Ok(())
    }

    fn add(&mut self, key: &str, layer: Option<usize>, part: Part) -> Result<(), GraphError> {
        let fail = |what: &str| GraphError::Architecture {
            file: self.arch.name.clone(),
            what: format!("tensor '{key}' {what} under [tensors]"),
        };
        let entry = self.arch.tensors.get(key).ok_or_else(|| fail("is not"))?;
        if (entry.optional || entry.otherwise.is_some()) && !(self.with)(key) {
            return Ok(());
        }
        let pattern = match self.kind {
            Kind::Gguf => &entry.gguf,
            Kind::HuggingFace => &entry.hf,
        };
        let pattern = pattern.as_ref().ok_or_else(|| fail("has no name for this kind of file"))?;
        let name = layer.map_or(pattern.clone(), |layer| pattern.replace("{layer}", &layer.to_string()));
        if !self.seen.insert(name.clone()) {
            return Ok(());
        }
        if entry.shape.is_empty() {
            return Err(fail("has no shape"));
        }
        let shape = entry.shape.iter().map(|dimension| self.size(dimension, &name)).collect::<Result<_, _>>()?;
        self.tensors.push(TensorShape { key: key.to_owned(), name, layer, shape, part });
        Ok(())
    }

    /// A whole number from 1 to 2^32.
    fn size(&self, expression: &Expression, what: &str) -> Result<usize, GraphError> {
        match self.parameters.evaluate(expression)? {
            Value::Number(x) if x.fract() == 0.0 && (1.0..=4_294_967_296.0).contains(&x) => Ok(x as usize),
            other => Err(self.parameters.fail(format!("a dimension of {what} is {other}, not a number of values"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    struct Model(BTreeMap<&'static str, u64>);

    impl Metadata for Model {
        fn kind(&self) -> Kind {
            Kind::Gguf
        }

        fn name(&self) -> String {
            "a model".to_owned()
        }

        fn get(&self, key: &str) -> Option<basert_files::Value<'_>> {
            self.0.get(key).map(|&x| basert_files::Value::Uint(x))
        }
    }

    #[test]
    fn tensors_follow_from_hyperparameters() {
        let families = Architecture::built_in().unwrap();
        let llama = families.iter().find(|family| family.name == "llama").unwrap();
        let mut model = Model(BTreeMap::from([
            ("llama.block_count", 2),
            ("llama.embedding_length", 64),
            ("llama.feed_forward_length", 96),
            ("llama.attention.head_count", 4),
            ("llama.attention.head_count_kv", 2),
            ("llama.vocab_size", 300),
        ]));
        let with = |key: &str| key == "rope_factors";
        let tensors = llama.tensors(&model, "llama", &with).unwrap();
        let of = |name: &str| tensors.iter().find(|tensor| tensor.name == name);
        assert_eq!(tensors.len(), 3 + 2 * 9);
        assert_eq!(of("rope_freqs.weight").unwrap().shape, [8]);
        assert_eq!(of("blk.1.attn_k.weight").unwrap().shape, [32, 64]);
        assert_eq!(of("blk.1.attn_norm.weight").unwrap().part, Part::Norm);
        assert_eq!(of("token_embd.weight").unwrap().shape, [300, 64]);
        assert!(of("output.weight").is_none() && of("blk.0.attn_q.bias").is_none());
        let all = llama.tensors(&model, "llama", &|_| true).unwrap();
        let bias = all.iter().find(|tensor| tensor.name == "blk.0.ffn_down.bias").unwrap();
        assert_eq!((bias.part, &bias.shape[..], bias.layer), (Part::Bias, &[64][..], Some(0)));

        model.0.insert("llama.attention.head_count", 3);
        let error = llama.tensors(&model, "llama", &with).unwrap_err().to_string();
        assert!(error.contains("rope_freqs.weight is 10.6"), "{error}");
        model.0.insert("llama.attention.head_count", 4);
        model.0.remove("llama.feed_forward_length");
        let error = llama.tensors(&model, "llama", &|_| false).unwrap_err().to_string();
        assert!(error.contains("'llama.feed_forward_length' is missing"), "{error}");
    }
}
