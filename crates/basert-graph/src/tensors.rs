//! The tensors of a model to be synthesised, from its family and its hyperparameters.

use std::collections::BTreeSet;

use crate::GraphError;
use crate::arch::Architecture;
use crate::build::{Declared, Tensors, build};
use crate::op::{Affine, Op, Part};
use crate::parameters::Metadata;

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
    /// What it is to the ops.
    pub role: TensorRole,
}

/// What a tensor is to the ops that use it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TensorRole {
    /// A matrix of a linear op, or a table of embeddings.
    Matrix,
    /// Weights of a norm.
    Norm,
    /// Numbers that are added: biases, and the like.
    Bias,
    /// What time steps are multiplied by to give the logarithm of a decay: negative numbers.
    Decay,
    /// Divisors of rotary frequencies.
    RopeFactors,
}

impl TensorShape {
    pub(crate) fn new(key: &str, name: &str, layer: Option<usize>, shape: &[usize]) -> TensorShape {
        let (key, name, shape) = (key.to_owned(), name.to_owned(), shape.to_vec());
        TensorShape { key, name, layer, shape, role: TensorRole::RopeFactors }
    }
}

impl Architecture {
    /// Every tensor of the model of this family that `metadata` describes and whose architecture is named `arch_name`,
    /// each once, in the order in which ops use them. `with` says whether the model has an optional tensor, by its name
    /// in the architecture file.
    ///
    /// # Errors
    /// When a hyperparameter is missing or invalid, a tensor has no shape or no name, or shapes do not fit the ops.
    pub fn tensors(
        &self,
        metadata: &dyn Metadata,
        arch_name: &str,
        with: &dyn Fn(&str) -> bool,
    ) -> Result<Vec<TensorShape>, GraphError> {
        let (graph, mut declared) = build(self, metadata, Tensors::Declared(with), arch_name, usize::MAX, true)?;
        let mut roles = vec![TensorRole::Matrix; graph.weights.len()];
        for (weight, part) in graph.nodes.iter().flat_map(|node| node.op.signature().weights) {
            roles[weight.0] = match part {
                Part::Matrix | Part::Table => TensorRole::Matrix,
                Part::Norm(_) => TensorRole::Norm,
                Part::Bias | Part::Vector | Part::Decay => TensorRole::Bias,
            };
        }
        let linear = graph.nodes.iter().filter(|node| matches!(node.op, Op::LinearAttention(_)));
        let decays: Vec<_> = linear.filter_map(|node| node.inputs.get(3)).collect();
        for node in graph.nodes.iter().filter(|node| decays.contains(&&node.out)) {
            if let Op::Affine(Affine { weight: Some(weight), decay: false, .. }) = node.op {
                roles[weight.0] = TensorRole::Decay;
            }
        }
        let mut seen = BTreeSet::new();
        declared.retain(|(shape, _)| seen.insert(shape.name.clone()));
        let with_role = |(shape, weight): Declared| TensorShape {
            role: weight.map_or(shape.role, |weight| roles[weight.0]),
            ..shape
        };
        Ok(declared.into_iter().map(with_role).collect())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use basert_files::Kind;

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
            ("llama.context_length", 64),
        ]));
        let with = |key: &str| key == "rope_factors";
        let tensors = llama.tensors(&model, "llama", &with).unwrap();
        let of = |name: &str| tensors.iter().find(|tensor| tensor.name == name);
        assert_eq!(tensors.len(), 3 + 2 * 9);
        assert_eq!(of("rope_freqs.weight").unwrap().shape, [8]);
        assert_eq!(of("blk.1.attn_k.weight").unwrap().shape, [32, 64]);
        assert_eq!(of("blk.1.attn_norm.weight").unwrap().role, TensorRole::Norm);
        assert_eq!(of("token_embd.weight").unwrap().shape, [300, 64]);
        assert!(of("output.weight").is_none() && of("blk.0.attn_q.bias").is_none());
        let all = llama.tensors(&model, "llama", &|_| true).unwrap();
        let bias = all.iter().find(|tensor| tensor.name == "blk.0.ffn_down.bias").unwrap();
        assert_eq!((bias.role, &bias.shape[..], bias.layer), (TensorRole::Bias, &[64][..], Some(0)));

        model.0.insert("llama.attention.head_count", 3);
        let error = llama.tensors(&model, "llama", &with).unwrap_err().to_string();
        assert!(error.contains("attn_k.weight is 42.6"), "{error}");
        model.0.insert("llama.attention.head_count", 4);
        model.0.remove("llama.feed_forward_length");
        let error = llama.tensors(&model, "llama", &|_| false).unwrap_err().to_string();
        assert!(error.contains("'llama.feed_forward_length' is missing"), "{error}");
    }
}
