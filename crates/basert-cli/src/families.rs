//! `basert families`.

use std::io::{self, Write};

use basert::graph::Architecture;
use serde_json::json;

use super::units;

/// Lists the model families that are known, with the names by which files state them: `general.architecture` in GGUF
/// files, `model_type` in configurations of Hugging Face folders.
#[derive(clap::Args)]
pub struct Args {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let families = Architecture::built_in()?;
    let mut out = io::stdout().lock();
    if args.json {
        let family = |family: &Architecture| json!({ "name": family.name, "gguf": family.gguf, "hf": family.hf });
        let list: Vec<_> = families.iter().map(family).collect();
        return Ok(writeln!(out, "{}", serde_json::to_string_pretty(&list)?)?);
    }
    let mut rows = vec![["family", "GGUF", "Hugging Face"].map(str::to_owned).to_vec()];
    let cells = |family: &Architecture| vec![family.name.clone(), family.gguf.join(", "), family.hf.join(", ")];
    rows.extend(families.iter().map(cells));
    write!(out, "{}", units::table(&rows, 3))?;
    Ok(writeln!(out, "{} families", families.len())?)
}
