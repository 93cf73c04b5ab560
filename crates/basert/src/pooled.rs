//! What becomes of the pooled hidden state of a text: scores of models that rank or classify, embeddings of another width.
//!
//! The ops are few and their weights small, so the host computes them, in f32.

use basert_cpu::Isa;
use basert_files::ModelFile;
use basert_graph::{Activation, Graph, Node, Norm, Op, WeightError, WeightId};

/// Ops on a pooled hidden state, with their weights.
pub(crate) struct Pooled {
    layers: Vec<Layer>,
    /// Whether they give scores, and not an embedding.
    pub is_scores: bool,
}

enum Layer {
    Linear { columns: usize, weight: Vec<f32>, bias: Option<Vec<f32>> },
    Activate(Activation),
    Norm { norm: Norm, weight: Option<Vec<f32>>, bias: Option<Vec<f32>> },
}

impl Pooled {
    /// Those of a model, if it has any.
    ///
    /// # Errors
    /// When a tensor is missing or damaged.
    pub fn of(graph: &Graph, file: &ModelFile) -> Result<Option<Pooled>, WeightError> {
        let Some(pooled) = &graph.pooled else { return Ok(None) };
        let values = |weight: WeightId| graph.weights[weight.0].values(file);
        let layer = |node: &Node| {
            Ok(Some(match node.op {
                Op::Linear { weight, bias, .. } => Layer::Linear {
                    columns: graph.weights[weight.0].columns,
                    weight: values(weight)?,
                    bias: bias.map(values).transpose()?,
                },
                Op::Norm(norm) => Layer::Norm {
                    norm,
                    weight: norm.weight.map(values).transpose()?,
                    bias: norm.bias.map(values).transpose()?,
                },
                Op::Activate(activation) => Layer::Activate(activation),
                // The graph has no others after pooling.
                _ => return Ok(None),
            }))
        };
        let layers = pooled.nodes.iter().map(layer).collect::<Result<Vec<Option<_>>, WeightError>>()?;
        Ok(Some(Pooled { layers: layers.into_iter().flatten().collect(), is_scores: pooled.is_scores }))
    }

    /// The result for a pooled hidden state.
    pub fn apply(&self, mut x: Vec<f32>) -> Vec<f32> {
        for layer in &self.layers {
            match layer {
                Layer::Linear { columns, weight, bias } => {
                    let dot = |row: &[f32]| row.iter().zip(&x).map(|(w, x)| w * x).sum::<f32>();
                    let mut y: Vec<f32> = weight.chunks_exact(*columns).map(dot).collect();
                    y.iter_mut().zip(bias.iter().flatten()).for_each(|(y, b)| *y += b);
                    x = y;
                }
                Layer::Activate(activation) => basert_cpu::activate(Isa::detect(), *activation, &mut x),
                Layer::Norm { norm, weight, bias } => {
                    let mean = x.iter().sum::<f32>() / x.len() as f32;
                    if norm.centred {
                        x.iter_mut().for_each(|x| *x -= mean);
                    }
                    let square = x.iter().map(|x| x * x).sum::<f32>() / x.len() as f32;
                    let scale = 1.0 / (square + norm.eps).sqrt();
                    x.iter_mut().for_each(|x| *x *= scale);
                    x.iter_mut().zip(weight.iter().flatten()).for_each(|(x, w)| *x *= w + norm.offset);
                    x.iter_mut().zip(bias.iter().flatten()).for_each(|(x, b)| *x += b);
                }
            }
        }
        x
    }
}

/// The vector with length 1, or zeros.
pub(crate) fn normalised(vector: &[f32]) -> Vec<f32> {
    let length = vector.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>().sqrt();
    let scale = if length > 0.0 { 1.0 / length } else { 0.0 };
    vector.iter().map(|&x| (f64::from(x) * scale) as f32).collect()
}
