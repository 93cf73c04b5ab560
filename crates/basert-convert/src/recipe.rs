//! Which number format each tensor gets.
//!
//! The recipes have the names and choices of llama.cpp's `llama-quantize` without an importance matrix
//! (`llama_tensor_get_type` in `llama-quant.cpp`), for dense models: most matrices in one format, and a few that matter
//! more in a more precise one. Vectors are never quantised.

use basert_core::Format::{self, *};

use When::*;

/// A way to quantise a model.
#[derive(Debug, Clone, Copy)]
pub struct Recipe {
    /// Its name, in lower case.
    pub name: &'static str,
    /// Its number as `general.file_type` of a GGUF file.
    pub file_type: u32,
    /// The format of most matrices.
    pub format: Format,
    /// Tensors with another format; the first matching row counts.
    pub exceptions: &'static [Exception],
    /// Whether the output matrix may get a more precise format than the rest.
    pub finer_output: bool,
}

/// A tensor with another format than most.
#[derive(Debug, Clone, Copy)]
pub struct Exception {
    /// Its name in architecture files, or `qkv` where queries, keys and values are one matrix.
    pub tensor: &'static str,
    /// In which layers or models.
    pub when: When,
    /// The format it gets.
    pub format: Format,
}

/// In which layers or models an [`Exception`] is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum When {
    /// In all layers and models.
    Always,
    /// In models in which four or more query heads share a KV head.
    SharedHeads,
    /// In this number of first layers.
    First(usize),
    /// In the first 1/n of the layers.
    FirstPart(usize),
    /// In the first eighth, the last eighth, and every third layer in between.
    Spread,
}

/// The properties of a tensor that its format depends on.
#[derive(Debug, Clone, Copy)]
pub struct Place<'a> {
    /// Its name in architecture files, or `qkv` where queries, keys and values are one matrix.
    pub tensor: &'a str,
    /// Its layer, if it belongs to one.
    pub layer: usize,
    /// The number of layers of the model.
    pub layers: usize,
    /// Values in a row.
    pub columns: usize,
    /// Query heads per KV head.
    pub queries_per_kv: usize,
    /// Whether the embeddings are also the output matrix.
    pub tied: bool,
}

const fn plain(name: &'static str, file_type: u32, format: Format) -> Recipe {
    mixed(name, file_type, format, &[])
}

const fn mixed(name: &'static str, file_type: u32, format: Format, exceptions: &'static [Exception]) -> Recipe {
    Recipe { name, file_type, format, exceptions, finer_output: true }
}

const fn but(tensor: &'static str, when: When, format: Format) -> Exception {
    Exception { tensor, when, format }
}

/// All recipes. That of MXFP4 is ours: llama.cpp uses this format for experts only.
pub static RECIPES: [Recipe; 20] = [
    plain("f32", 0, F32),
    plain("f16", 1, F16),
    plain("bf16", 32, BF16),
    plain("q4_0", 2, Q4_0),
    plain("q4_1", 3, Q4_1),
    plain("q5_0", 8, Q5_0),
    plain("q5_1", 9, Q5_1),
    plain("q8_0", 7, Q8_0),
    mixed(
        "q2_k",
        10,
        Q2_K,
        &[but("v", SharedHeads, Q4_K), but("v", Always, Q3_K), but("down", Always, Q3_K), but("o", Always, Q3_K)],
    ),
    plain("q3_k_s", 11, Q3_K),
    mixed(
        "q3_k_m",
        12,
        Q3_K,
        &[
            but("v", First(2), Q5_K),
            but("v", Always, Q4_K),
            but("down", FirstPart(16), Q5_K),
            but("down", Always, Q4_K),
            but("o", Always, Q4_K),
            but("qkv", Always, Q4_K),
        ],
    ),
    mixed(
        "q3_k_l",
        13,
        Q3_K,
        &[but("v", Always, Q5_K), but("down", Always, Q5_K), but("o", Always, Q5_K), but("qkv", Always, Q4_K)],
    ),
    mixed("q4_k_s", 14, Q4_K, &[but("v", First(4), Q5_K), but("down", FirstPart(8), Q5_K)]),
    mixed("q4_k_m", 15, Q4_K, &[but("v", Spread, Q6_K), but("down", Spread, Q6_K), but("qkv", Always, Q5_K)]),
    plain("q5_k_s", 16, Q5_K),
    mixed("q5_k_m", 17, Q5_K, &[but("v", Spread, Q6_K), but("down", Spread, Q6_K), but("qkv", Always, Q6_K)]),
    plain("q6_k", 18, Q6_K),
    mixed("iq4_nl", 25, IQ4_NL, &[but("v", SharedHeads, Q5_K), but("down", FirstPart(8), Q5_K)]),
    mixed("iq4_xs", 30, IQ4_XS, &[but("v", SharedHeads, Q5_K), but("down", FirstPart(8), Q5_K)]),
    plain("mxfp4", 38, MXFP4),
];

impl Recipe {
    /// The recipe called `name`, in either case. A K-quant without a letter for its size is the medium one.
    pub fn named(name: &str) -> Option<Recipe> {
        let called = |name: &str| RECIPES.into_iter().find(|recipe| recipe.name.eq_ignore_ascii_case(name));
        called(name).or_else(|| called(&format!("{name}_m")))
    }

    /// This recipe without its exceptions: every matrix in one format.
    pub fn pure(self) -> Recipe {
        Recipe { exceptions: &[], finer_output: false, ..self }
    }

    /// The format of a matrix.
    pub fn format(&self, place: &Place<'_>) -> Format {
        // Which experts are used hangs on small differences; of learned positions there are few.
        if matches!(place.tensor, "router" | "positions") {
            return F32;
        }
        let tensor = place.tensor.strip_suffix("_exps").unwrap_or(place.tensor);
        let is_output = place.tensor == "output" || (place.tied && place.tensor == "embed");
        let chosen = if is_output && self.finer_output && !self.format.is_float() {
            self.output_format(place.columns)
        } else {
            let exception = self.exceptions.iter().find(|row| row.tensor == tensor && row.when.holds(place));
            exception.map_or(self.format, |row| row.format)
        };
        fitting(chosen, place.columns)
    }

    fn output_format(&self, columns: usize) -> Format {
        let fits = columns.is_multiple_of(self.format.block().elements);
        if !fits || matches!(self.format, Q8_0 | MXFP4) { Q8_0 } else { Q6_K }
    }
}

impl When {
    fn holds(self, place: &Place<'_>) -> bool {
        let Place { layer, layers, .. } = *place;
        match self {
            Always => true,
            SharedHeads => place.queries_per_kv >= 4,
            First(count) => layer < count,
            FirstPart(part) => layer < layers / part,
            Spread => layer < layers / 8 || layer >= 7 * layers / 8 || (layer - layers / 8) % 3 == 2,
        }
    }
}

/// `format`, or, if rows of `columns` values are not whole blocks of it, the next more precise one with shorter blocks.
fn fitting(format: Format, columns: usize) -> Format {
    let fits = |format: &Format| columns.is_multiple_of(format.block().elements);
    let shorter = match format {
        // llama.cpp takes Q4_0 instead since 2026; published files have IQ4_NL.
        Q2_K | Q3_K | IQ4_XS => IQ4_NL,
        Q4_K => Q5_0,
        Q5_K => Q5_1,
        Q6_K => Q8_0,
        _ => F16,
    };
    [format, shorter].into_iter().find(fits).unwrap_or(F16)
}

#[cfg(test)]
mod tests {
    use std::fmt::Write;

    use super::*;

    fn place(tensor: &str, layer: usize) -> Place<'_> {
        Place { tensor, layer, layers: 28, columns: 2048, queries_per_kv: 2, tied: true }
    }

    /// The layers of a tensor by format, such as `Q4_K 3-4 6`.
    fn by_layer(recipe: &Recipe, of: Place<'_>) -> String {
        let formats: Vec<_> = (0..of.layers).map(|layer| recipe.format(&Place { layer, ..of })).collect();
        let mut kinds = formats.clone();
        kinds.sort();
        kinds.dedup();
        if let [one] = kinds[..] {
            return one.to_string();
        }
        let listed = kinds.iter().map(|kind| {
            let layers = (0..of.layers).filter(|&layer| formats[layer] == *kind).map(|layer| layer.to_string());
            format!("{kind} in {}", layers.collect::<Vec<_>>().join(" "))
        });
        listed.collect::<Vec<_>>().join(", ")
    }

    #[test]
    fn choices() {
        let mut text = String::new();
        for recipe in RECIPES.iter().copied().chain([Recipe::named("q2_k").unwrap().pure()]) {
            let pure = if recipe.finer_output { "" } else { " pure" };
            writeln!(text, "{}{pure}", recipe.name).unwrap();
            for tensor in ["embed", "q", "v", "qkv", "o", "gate", "down"] {
                writeln!(text, "  {tensor}: {}", by_layer(&recipe, place(tensor, 0))).unwrap();
            }
            let shared = Place { queries_per_kv: 4, ..place("v", 0) };
            writeln!(text, "  v of 4 heads: {}", by_layer(&recipe, shared)).unwrap();
            let untied = Place { tied: false, ..place("embed", 0) };
            writeln!(text, "  embed, untied: {}", recipe.format(&untied)).unwrap();
            let narrow = |tensor| recipe.format(&Place { columns: 576, ..place(tensor, 9) });
            writeln!(text, "  rows of 576: embed {}, q {}, v {}", narrow("embed"), narrow("q"), narrow("v")).unwrap();
        }
        insta::assert_snapshot!(text);
    }

    /// What llama.cpp chose for the published Gemma 3 270M Q4_K_M, of 18 layers and rows of 640, 1024 and 2048.
    #[test]
    fn a_published_file() {
        let recipe = Recipe::named("Q4_K_M").unwrap();
        let format = |tensor, columns, layer| {
            recipe.format(&Place { tensor, layer, layers: 18, columns, queries_per_kv: 4, tied: true })
        };
        assert_eq!(format("embed", 640, 0), Q8_0);
        for layer in 0..18 {
            let finer = [0, 1, 4, 7, 10, 13, 15, 16, 17].contains(&layer);
            assert_eq!(format("v", 640, layer), if finer { Q8_0 } else { Q5_0 }, "layer {layer}");
            assert_eq!(format("down", 2048, layer), if finer { Q6_K } else { Q4_K }, "layer {layer}");
            assert_eq!([format("q", 640, layer), format("o", 1024, layer)], [Q5_0, Q4_K]);
        }
    }

    #[test]
    fn names() {
        assert_eq!(Recipe::named("Q8_0").unwrap().format, Q8_0);
        assert_eq!(Recipe::named("q4_k").unwrap().name, "q4_k_m");
        assert!(Recipe::named("q7_k").is_none());
        for row in &basert_core::FORMATS {
            let recipe = Recipe::named(row.name).unwrap().pure();
            assert_eq!(recipe.format(&place("embed", 0)), row.format);
        }
    }
}
