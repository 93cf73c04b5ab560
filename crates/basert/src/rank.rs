//! How relevant documents are to a query: by models that read both together and give a score (cross-encoders), and by models
//! that say whether a document meets a requirement (Qwen3-Reranker; Zhang et al. 2025, arXiv 2506.05176).

use basert_engine::Pooling;
use basert_files::ModelFile;
use basert_graph::{Graph, Op, WeightError};
use basert_text::{EncodeOptions, Pair, Tokenizer};

use crate::info::ModelInfo;
use crate::request::Request;
use crate::{Error, Model};

/// What Qwen3-Reranker is asked if a request does not say it.
const INSTRUCTION: &str = "Given a web search query, retrieve relevant passages that answer the query";
const BEFORE: &str = "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct \
    provided. Note that the answer can only be \"yes\" or \"no\".<|im_end|>\n<|im_start|>user\n";
const AFTER: &str = "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n";

/// How a model ranks.
pub(crate) enum Ranking {
    /// It reads query and document together, and gives a score, which becomes a probability unless the model says that it is
    /// to be taken as it is.
    Pair { pooling: Pooling, is_raw: bool },
    /// It says yes or no, of which the file has the two rows of the output alone.
    Judge,
    /// It says yes or no: the difference of the rows of the output for both.
    YesNo(Vec<f32>),
}

impl Ranking {
    /// How the model of this file ranks, or why it does not.
    pub fn of(file: &ModelFile, graph: &Graph, tokenizer: &Tokenizer) -> Result<Ranking, String> {
        if let Some(pooled) = graph.pooled.as_ref().filter(|pooled| pooled.is_scores) {
            let scores = graph.values[pooled.out.0].width;
            return match (scores, graph.is_causal()) {
                (1, _) => Ok(Ranking::Pair { pooling: pooling(pooled.pooling.as_deref())?, is_raw: is_raw(file) }),
                (2, true) => Ok(Ranking::Judge),
                _ => Err(format!("the model gives {scores} scores, and is for classification, not for ranking")),
            };
        }
        let id = |text: &str| tokenizer.encode(text, EncodeOptions::default()).ok().filter(|ids| ids.len() == 1);
        let is_of_kind = tokenizer.special_id("<|im_start|>").is_some() && graph.generates;
        let Some((yes, no)) = id("yes").zip(id("no")).filter(|_| is_of_kind) else {
            return Err("the model was not trained to rank texts".to_owned());
        };
        let rows = difference(file, graph, yes[0] as usize, no[0] as usize).map_err(|error| error.to_string())?;
        rows.map(Ranking::YesNo).ok_or_else(|| "the model's logits are not a product with its hidden state".to_owned())
    }

    /// The relevance, from 0 to 1 unless the model says otherwise, that follows from what a model makes of a text.
    fn relevance(&self, vector: &[f32]) -> f32 {
        let probability = |x: f32| 1.0 / (1.0 + (-x).exp());
        match (self, vector) {
            (Ranking::Pair { is_raw: true, .. }, [score, ..]) => *score,
            (Ranking::Pair { .. }, [score, ..]) => probability(*score),
            (Ranking::Judge, [yes, no, ..]) => probability(yes - no),
            (Ranking::YesNo(difference), state) => {
                probability(state.iter().zip(difference).map(|(x, d)| x * d).sum::<f32>())
            }
            _ => 0.0,
        }
    }
}

/// The pooling that an architecture file names.
fn pooling(name: Option<&str>) -> Result<Pooling, String> {
    match name {
        Some("first") | None => Ok(Pooling::First),
        Some("mean") => Ok(Pooling::Mean),
        Some("last") => Ok(Pooling::Last),
        Some(other) => Err(format!("the architecture pools by '{other}'; known are first, mean and last")),
    }
}

/// Whether sentence-transformers would leave scores as they are.
fn is_raw(file: &ModelFile) -> bool {
    let keys = ["sentence_transformers.activation_fn", "sbert_ce_default_activation_function"];
    let named = keys.iter().find_map(|key| file.get(key)?.as_str().map(str::to_owned));
    named.is_some_and(|name| name.ends_with("Identity"))
}

/// The difference of two rows of the matrix that gives the logits.
fn difference(file: &ModelFile, graph: &Graph, a: usize, b: usize) -> Result<Option<Vec<f32>>, WeightError> {
    let of_model = &graph.nodes[..graph.head.map_or(graph.nodes.len(), |head| head.after)];
    let last = of_model.last().filter(|node| node.out == graph.logits);
    let Some(&Op::Linear { weight, bias: None, experts: None }) = last.map(|node| &node.op) else { return Ok(None) };
    let weight = &graph.weights[weight.0];
    let row = |row: usize| -> Result<Vec<f32>, WeightError> {
        let mut values = vec![0.0; weight.columns];
        let bytes = weight.read(file, row..row + 1)?;
        // The format was checked when the graph was built.
        let _ = basert_core::codec::decode(weight.format, &bytes, &mut values);
        Ok(values)
    };
    let (a, b) = (row(a)?, row(b)?);
    Ok(Some(a.iter().zip(&b).map(|(a, b)| a - b).collect()))
}

impl ModelInfo {
    /// Whether the model ranks, and what is to be said if not.
    ///
    /// # Errors
    /// When it does not.
    pub(crate) fn ranking(&self) -> Result<&Ranking, Error> {
        let ranking = self.rankings.get_or_init(|| Ranking::of(&self.file, &self.plan.graph, self.tokenizer()));
        ranking.as_ref().map_err(|what| Error::Model { file: self.name(), what: what.clone() })
    }

    /// A request that ranks documents by a query, with a prompt for each document, of at most `limit` tokens: longer
    /// documents are cut. `instruction` is for models that are told what to look for. [`ModelInfo::relevance`] is what
    /// the vector means that comes of each.
    ///
    /// # Errors
    /// When the model does not rank, or a text cannot be spelled.
    pub fn rank_request(
        &self,
        query: &str,
        documents: &[&str],
        instruction: Option<&str>,
        limit: usize,
    ) -> Result<Request, Error> {
        let failed = |source| Error::Tokenizer { file: self.name(), source };
        let documents = documents.iter().copied();
        let (prompts, pooling) = match self.ranking()? {
            Ranking::Pair { pooling, .. } => {
                let segments = self.plan.graph.segments;
                let vocabulary = self.plan.graph.vocabulary as u32;
                let pair = |document: &str| {
                    let Pair { ids, is_second } =
                        self.tokenizer().encode_pair(query, document, limit).map_err(failed)?;
                    let of = |(id, second): (u32, bool)| if second && segments > 1 { id + vocabulary } else { id };
                    Ok(ids.into_iter().zip(is_second).map(of).collect())
                };
                (documents.map(pair).collect::<Result<_, Error>>()?, *pooling)
            }
            Ranking::Judge | Ranking::YesNo(_) => {
                let special = EncodeOptions { add_special: false, parse_special: true };
                let encode = |text: &str, options| self.tokenizer().encode(text, options).map_err(failed);
                let instruction = instruction.unwrap_or(INSTRUCTION);
                let before = encode(BEFORE, special)?;
                let after = encode(AFTER, special)?;
                let judged = |document: &str| {
                    let text = format!("<Instruct>: {instruction}\n<Query>: {query}\n<Document>: {document}");
                    let mut asked = encode(&text, EncodeOptions::default())?;
                    asked.truncate(limit.saturating_sub(before.len() + after.len()));
                    Ok([&before[..], &asked, &after].concat())
                };
                (documents.map(judged).collect::<Result<_, Error>>()?, Pooling::Last)
            }
        };
        Ok(Request { prompts, pooling: Some(pooling), is_raw: true, ..Request::default() })
    }

    /// The relevance of a document, from 0 to 1 unless the model says otherwise, that follows from the vector of its prompt.
    pub fn relevance(&self, vector: &[f32]) -> f32 {
        self.ranking().map_or(0.0, |ranking| ranking.relevance(vector))
    }
}

impl Model {
    /// How relevant each document is to a query, computed together.
    ///
    /// # Errors
    /// As for [`ModelInfo::rank_request`]; and when the device fails.
    pub fn rank(&self, query: &str, documents: &[&str]) -> Result<Vec<f32>, Error> {
        let request = self.rank_request(query, documents, None, self.context())?;
        Ok(self.answers(&request)?.vectors()?.iter().map(|vector| self.relevance(vector)).collect())
    }
}
