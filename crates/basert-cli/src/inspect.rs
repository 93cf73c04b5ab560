//! `basert inspect`.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::{self, Write};
use std::path::PathBuf;

use basert::core::Format;
use basert::files::{Kind, ModelFile, Value};
use basert::{KvFormat, Model, Options};
use basert_hub::Store;
use serde_json::json;

use super::plan;
use super::terminal::visible;
use super::units;

/// Shows the contents of a model file: kind, architecture, sizes, formats, metadata, tensors. The model is not run, and
/// its architecture need not be supported.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  basert inspect smollm2-135m
  basert inspect ./model.gguf --tensors
  basert inspect ./folder --json | jq .metadata")]
pub struct Args {
    /// The model: a path, a hub id org/name[:variant], or a name that `basert list` shows
    model: OsString,
    /// List all tensors, with format, shape and size
    #[arg(long)]
    tensors: bool,
    /// Print JSON, with all tensors
    #[arg(long)]
    json: bool,
    /// Read the model's architecture from this TOML file; may be repeated
    #[arg(long, value_name = "FILE")]
    arch_file: Vec<PathBuf>,
}

/// The part of a file's tensors that is in one format.
#[derive(Default)]
struct Total {
    tensors: usize,
    values: usize,
    bytes: usize,
}

/// Runs the command.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let file = ModelFile::open(Store::open_default()?.resolve(&args.model)?.path).map_err(basert::Error::from)?;
    let options = Options { arch_files: args.arch_file.clone(), ..Options::default() };
    let planned = Model::plan_of(&file, &options);
    let head = plan::head_bytes(&file, &options, KvFormat::default());
    let runs = planned.as_ref().map(|plan| plan.graph.family.clone()).map_err(|error| error.to_string());
    let mut totals: BTreeMap<Format, Total> = BTreeMap::new();
    for tensor in file.tensors() {
        let total = totals.entry(tensor.format).or_default();
        total.tensors += 1;
        total.values += tensor.elements();
        total.bytes += tensor.bytes.len();
    }
    let parameters: usize = totals.values().map(|total| total.values).sum();
    let mut out = io::stdout().lock();
    if args.json {
        let context = planned.as_ref().ok().map(|plan| plan.graph.context);
        let mut report = report(&file, runs, context, parameters, &totals);
        report["head_bytes"] = json!(head.map(|(weights, _)| weights));
        return Ok(writeln!(out, "{}", serde_json::to_string_pretty(&report)?)?);
    }

    let bytes: usize = totals.values().map(|total| total.bytes).sum();
    let mut facts = vec![
        ("file", file.path().display().to_string()),
        ("kind", kind_name(file.kind()).to_owned()),
        ("architecture", cut(declared(&file).unwrap_or("not said"))),
        ("runs as", runs.unwrap_or_else(|why| format!("it does not run: {why}"))),
        ("size", units::bytes(file.total_bytes() as f64)),
        ("parameters", units::with_prefix(parameters as f64, "").trim_end().to_owned()),
        ("bits each", format!("{:.2}", bytes as f64 * 8.0 / parameters.max(1) as f64)),
    ];
    if let Ok(plan) = &planned {
        facts.push(("context", format!("{} tokens", plan.graph.context)));
        facts.push(("vocabulary", format!("{} tokens", plan.graph.vocabulary)));
        facts.push(("layers", plan.graph.layers.to_string()));
        if let Some((weights, _)) = head {
            let weights = units::bytes(weights as f64);
            facts.push(("head", format!("for multi-token prediction, {weights}, with --speculate mtp")));
        }
    }
    let facts: Vec<_> =
        facts.into_iter().map(|(name, value)| vec![name.to_owned(), visible(&value).into_owned()]).collect();
    write!(out, "{}", units::table(&facts, 1))?;

    let mut rows = vec![["format", "tensors", "values", "bytes"].map(str::to_owned).to_vec()];
    rows.extend(totals.iter().map(|(format, total)| {
        vec![format.to_string(), total.tensors.to_string(), total.values.to_string(), units::bytes(total.bytes as f64)]
    }));
    write!(out, "\n{}\nmetadata\n", units::table(&rows, 1))?;
    for (key, value) in file.metadata() {
        writeln!(out, "  {} = {}", cut(&key), cut(&value.to_string()))?;
    }
    if args.tensors {
        let rows: Vec<_> = file
            .tensors()
            .map(|tensor| {
                let shape = tensor.shape.iter().map(usize::to_string).collect::<Vec<_>>().join("×");
                vec![cut(tensor.name), tensor.format.to_string(), shape, tensor.bytes.len().to_string()]
            })
            .collect();
        write!(out, "\ntensors\n{}", units::table(&rows, 3))?;
    }
    Ok(())
}

fn kind_name(kind: Kind) -> &'static str {
    match kind {
        Kind::Gguf => "GGUF",
        Kind::HuggingFace => "Hugging Face folder",
    }
}

/// The architecture's name in the file.
fn declared(file: &ModelFile) -> Option<&str> {
    ["general.architecture", "model_type"].into_iter().find_map(|key| file.get(key)).and_then(Value::as_str)
}

/// The beginning of a text from the file, with control characters made visible.
fn cut(text: &str) -> String {
    let text = visible(text);
    const SHOWN: usize = 160;
    let total = text.chars().count();
    if total <= SHOWN {
        return text.into_owned();
    }
    format!("{} … {total} characters in all", text.chars().take(SHOWN).collect::<String>())
}

fn report(
    file: &ModelFile,
    runs: Result<String, String>,
    context: Option<usize>,
    parameters: usize,
    totals: &BTreeMap<Format, Total>,
) -> serde_json::Value {
    let formats: serde_json::Map<_, _> = totals
        .iter()
        .map(|(format, total)| {
            let total = json!({ "tensors": total.tensors, "values": total.values, "bytes": total.bytes });
            (format.to_string(), total)
        })
        .collect();
    let metadata: serde_json::Map<_, _> =
        file.metadata().into_iter().map(|(key, value)| (key, json_of(value))).collect();
    let tensors: Vec<_> = file
        .tensors()
        .map(|t| json!({ "name": t.name, "format": t.format.to_string(), "shape": t.shape, "bytes": t.bytes.len() }))
        .collect();
    json!({
        "path": file.path().display().to_string(),
        "kind": file.kind().key(),
        "architecture": declared(file),
        "runs_as": runs.as_ref().ok(),
        "problem": runs.as_ref().err(),
        "file_bytes": file.total_bytes(),
        "parameters": parameters,
        "context": context,
        "formats": formats,
        "metadata": metadata,
        "tensors": tensors,
    })
}

/// A value as JSON; of a long list, such as a vocabulary, only the beginning and the length.
fn json_of(value: Value<'_>) -> serde_json::Value {
    const WHOLE: usize = 64;
    const SHOWN: usize = 8;
    match value {
        Value::Null | Value::Object => serde_json::Value::Null,
        Value::Bool(x) => json!(x),
        Value::Int(x) => json!(x),
        Value::Uint(x) => json!(x),
        Value::Float(x) => json!(x),
        Value::Str(text) => json!(text),
        Value::Bytes(bytes) => json!(String::from_utf8_lossy(bytes)),
        Value::Array(array) if array.len() <= WHOLE => array.iter().map(json_of).collect(),
        Value::Array(array) => {
            let first: Vec<_> = array.iter().take(SHOWN).map(json_of).collect();
            json!({ "length": array.len(), "first": first })
        }
    }
}
