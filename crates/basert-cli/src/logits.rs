//! `basert logits`.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use anyhow::Context;
use basert::files::ModelFile;
use basert::{EncodeOptions, Options, Scorer, Tokenizer};
use serde_json::json;

use super::failure::mistake;
use super::model::{DeviceArgs, ModelArgs};
use super::terminal::visible;
use super::units;

/// Computes a model's logits for given tokens or a text, to compare it with another implementation. Tokens need no
/// tokenizer: a folder with a configuration and weights will do.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  basert logits smollm2-135m --text \"The capital of France is\"
  basert logits ./model --tokens 1,2,3 --positions all --out logits.npy
  basert logits ./model --tokens 1,2,3 --device reference --top 20 --out logits.json

A row has the logits of what follows a token; positions count from 0. An .npy or .safetensors file has all logits in \
float32, [positions, vocabulary]; a .json file has the largest ones.")]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    device: DeviceArgs,
    /// The tokens, by their ids
    #[arg(long, value_name = "ID,ID,…", value_delimiter = ',', required_unless_present = "text")]
    tokens: Vec<u32>,
    /// The text, of which the model's tokenizer makes tokens
    #[arg(long, conflicts_with = "tokens")]
    text: Option<String>,
    /// After which tokens: all, last, or a list of positions
    #[arg(long, value_name = "all|last|N,N,…", default_value = "last")]
    positions: String,
    /// The number of logits of a position that are printed, or written as JSON: the largest
    #[arg(long, value_name = "K", default_value_t = 10)]
    top: usize,
    /// Write them to this file: .npy, .safetensors or .json
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

/// Runs the command.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let (path, device) = (args.model.path()?, args.device.device()?);
    let options = Options { kv: args.device.kv(), ..args.model.options() };
    let file = ModelFile::open(&path).map_err(basert::Error::from)?;
    let tokenizer = basert::tokenizer(&file);
    let (tokens, tokenizer) = match &args.text {
        // Without a text, a tokenizer is only for the names of tokens.
        None => (args.tokens.clone(), tokenizer.ok()),
        Some(text) => {
            let tokenizer = tokenizer?;
            let options = EncodeOptions { add_special: true, parse_special: true };
            (tokenizer.encode(text, options).context("the text")?, Some(tokenizer))
        }
    };
    if tokens.is_empty() {
        return Err(mistake("there are no tokens; give some with --tokens or --text".to_owned()));
    }
    let positions = positions(&args.positions, tokens.len())?;
    let mut scorer = Scorer::open(&*device, &path, &options, tokens.len())?;
    let logits = scorer.logits(&tokens, &positions)?;
    let vocabulary = scorer.vocabulary();
    let rows: Vec<_> = positions.iter().copied().zip(logits.chunks_exact(vocabulary)).collect();
    match &args.out {
        Some(out) => write(out, &tokens, &rows, args.top).with_context(|| out.display().to_string()),
        None => print(&rows, tokenizer.as_ref(), args.top),
    }
}

/// The positions that were asked for, ascending.
fn positions(asked: &str, tokens: usize) -> anyhow::Result<Vec<usize>> {
    match asked {
        "all" => Ok((0..tokens).collect()),
        "last" => Ok(vec![tokens - 1]),
        list => {
            let position = |text: &str| text.trim().parse().ok().filter(|&position: &usize| position < tokens);
            let parsed: Option<Vec<_>> = list.split(',').map(position).collect();
            let wrong = || mistake(format!("--positions: '{list}' is not all, last, or numbers below {tokens}"));
            let mut positions = parsed.ok_or_else(wrong)?;
            positions.sort_unstable();
            positions.dedup();
            Ok(positions)
        }
    }
}

/// The largest logits with their tokens; of equals the first.
fn largest(row: &[f32], top: usize) -> Vec<(usize, f32)> {
    let mut all: Vec<_> = row.iter().copied().enumerate().collect();
    all.sort_by(|a, b| b.1.total_cmp(&a.1));
    all.truncate(top);
    all
}

fn print(rows: &[(usize, &[f32])], tokenizer: Option<&Tokenizer>, top: usize) -> anyhow::Result<()> {
    let mut table = vec![["position", "token", "logit", "text"].map(str::to_owned).to_vec()];
    for (position, row) in rows {
        table.extend(largest(row, top).into_iter().map(|(token, logit)| {
            let bytes = tokenizer.and_then(|tokenizer| tokenizer.token_bytes(token as u32));
            let text = bytes.map(|bytes| format!("{:?}", String::from_utf8_lossy(bytes))).unwrap_or_default();
            vec![position.to_string(), token.to_string(), format!("{logit:.5}"), visible(&text).into_owned()]
        }));
    }
    Ok(write!(io::stdout(), "{}", units::table(&table, 3))?)
}

fn write(out: &Path, tokens: &[u32], rows: &[(usize, &[f32])], top: usize) -> anyhow::Result<()> {
    let (count, vocabulary) = (rows.len(), rows.first().map_or(0, |(_, row)| row.len()));
    let header = match out.extension().and_then(|extension| extension.to_str()) {
        Some("json") => {
            let row = |(position, row): &(usize, &[f32])| {
                let largest = largest(row, top);
                let (tokens, logits): (Vec<_>, Vec<_>) = largest.into_iter().unzip();
                json!({ "position": position, "tokens": tokens, "logits": logits })
            };
            let report = json!({ "tokens": tokens, "rows": rows.iter().map(row).collect::<Vec<_>>() });
            return Ok(serde_json::to_writer(BufWriter::new(File::create(out)?), &report)?);
        }
        Some("npy") => npy_header(count, vocabulary),
        Some("safetensors") => safetensors_header(rows, vocabulary)?,
        _ => return Err(mistake(format!("{}: the name ends in none of .npy, .safetensors, .json", out.display()))),
    };
    let mut file = BufWriter::new(File::create(out)?);
    file.write_all(&header)?;
    for x in rows.iter().flat_map(|(_, row)| row.iter()) {
        file.write_all(&x.to_le_bytes())?;
    }
    Ok(file.flush()?)
}

/// The head of an .npy file (NumPy's format 1.0) with one matrix of float32.
fn npy_header(rows: usize, columns: usize) -> Vec<u8> {
    let mut text = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({rows}, {columns}), }}");
    // The data begin at a multiple of 64 bytes, after a newline.
    let padded = (10 + text.len() + 1).next_multiple_of(64) - 10;
    text += &" ".repeat(padded - text.len() - 1);
    text.push('\n');
    [b"\x93NUMPY\x01\x00", &(text.len() as u16).to_le_bytes()[..], text.as_bytes()].concat()
}

/// The head of a safetensors file with the matrix `logits`, and its positions as metadata.
fn safetensors_header(rows: &[(usize, &[f32])], columns: usize) -> anyhow::Result<Vec<u8>> {
    let positions: Vec<_> = rows.iter().map(|(position, _)| position.to_string()).collect();
    let bytes = rows.len() * columns * size_of::<f32>();
    let header = json!({
        "__metadata__": { "positions": positions.join(",") },
        "logits": { "dtype": "F32", "shape": [rows.len(), columns], "data_offsets": [0, bytes] },
    });
    let mut text = serde_json::to_vec(&header)?;
    text.resize(text.len().next_multiple_of(8), b' ');
    Ok([&(text.len() as u64).to_le_bytes()[..], &text].concat())
}
