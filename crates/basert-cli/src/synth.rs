//! `basert synth`.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use anyhow::Context;
use basert_convert::Synth;

use super::failure::mistake;
use super::{progress, units};

/// Writes a model with random weights, and with the sizes, formats and metadata of a published one. It runs as fast as
/// that model, here and in other engines, but its text is meaningless.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  basert synth --arch qwen3 --size 1.7b --quant q8_0 qwen3.gguf
  basert synth --arch qwen3 --size 8b --quant q4_0 --outline qwen3-8b.gguf && basert plan ./qwen3-8b.gguf --chip m4-pro
  basert synth --arch llama --size 135m --quant q4_k_m smollm2.gguf && basert bench ./smollm2.gguf

There are sizes of every built-in family that GGUF files have, experts included; a name that is unknown is answered with \
those there are. Quantisations are the mixtures of llama.cpp: q4_k_m and so on have a few tensors in a finer format, and of \
q4_0 and so on the output matrix is Q6_K or Q8_0; --pure has every matrix in the same.")]
pub struct Args {
    /// The file to write
    #[arg(value_name = "OUT.gguf")]
    out: PathBuf,
    /// The architecture, as GGUF files call it
    #[arg(long, value_name = "NAME")]
    arch: String,
    /// A published size of that architecture, such as 1.7b; or tiny
    #[arg(long, value_name = "NAME")]
    size: String,
    /// The quantisation: f32, f16, bf16, q8_0, q4_0, q4_k_m, …
    #[arg(long, value_name = "NAME")]
    quant: String,
    /// Use the same format for every matrix
    #[arg(long)]
    pure: bool,
    /// Leave out the weights: write a sparse file of the same length, for `plan` and `inspect`
    #[arg(long)]
    outline: bool,
    /// The same seed gives the same file
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Replace the file if it exists
    #[arg(long)]
    force: bool,
}

/// Runs the command.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let model = Synth::new(&args.arch, &args.size, &args.quant, args.pure, args.seed)?;
    let taken = || mistake(format!("'{}' exists already; --force replaces it", args.out.display()));
    if !args.force && args.out.exists() {
        return Err(taken());
    }
    // Written under another name and renamed: no incomplete file under this name, and no change to a file that is open.
    let mut part = args.out.clone().into_os_string();
    part.push(".part");
    let part = PathBuf::from(part);
    let done = write(&model, &part, args.outline)
        .with_context(|| format!("cannot write '{}'", part.display()))
        .and_then(|()| {
            if !args.force && args.out.exists() {
                return Err(taken());
            }
            fs::rename(&part, &args.out).with_context(|| format!("cannot write '{}'", args.out.display()))
        });
    if done.is_err() {
        // The first error is reported, whether or not this succeeds.
        let _ = fs::remove_file(&part);
    }
    done?;
    let bytes = fs::metadata(&args.out)?.len() as f64;
    Ok(writeln!(io::stdout(), "{} ({}) is at {}", model.name(), units::bytes(bytes), args.out.display())?)
}

fn write(model: &Synth, path: &Path, outline: bool) -> anyhow::Result<()> {
    if outline {
        let (head, length) = model.outline()?;
        let mut file = File::create(path)?;
        file.write_all(&head)?;
        return Ok(file.set_len(length)?);
    }
    let mut bar = progress::LateBar::bytes("writing");
    let file = BufWriter::new(File::create(path)?);
    Ok(model.write(file, &mut |done, total| bar.set(done as usize, total as usize))?)
}
