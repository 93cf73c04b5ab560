//! `basert pull`, `list` and `rm`.

use std::io::{self, IsTerminal, Write};

use basert::files::{Kind, gguf};
use basert::graph::Architecture;
use basert_hub::{Check, Installed, Preview, PullOptions, Store};
use serde_json::{Value, json};

use super::failure::mistake;
use super::progress::PullBars;
use super::system::Memory;
use super::terminal::visible;
use super::units;

/// Downloads a model, or updates an installed one. An interrupted pull is resumed.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  basert pull smollm2-135m
  basert pull bartowski/Qwen2.5-0.5B-Instruct-GGUF:Q4_K_M
  basert pull https://huggingface.co/bartowski/Qwen2.5-0.5B-Instruct-GGUF
  HF_TOKEN=... basert pull org/private-model")]
pub struct PullArgs {
    /// A name of the catalogue, a hub id org/name[:variant], or the address of a model on huggingface.co
    #[arg(value_name = "REF")]
    reference: String,
    /// Download it even if its architecture is not supported
    #[arg(long)]
    force: bool,
}

/// Lists installed models, incomplete ones, and those of the catalogue that are not installed.
#[derive(clap::Args)]
#[command(after_help = "Example:\n  basert list --json | jq -r '.[] | select(.status == \"installed\") | .path'")]
pub struct ListArgs {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Deletes a downloaded model, or the files of an interrupted pull.
#[derive(clap::Args)]
#[command(after_help = "Example:\n  basert rm smollm2-135m")]
pub struct RmArgs {
    /// The model, as `basert list` shows it
    #[arg(value_name = "REF")]
    reference: String,
}

/// Downloads a model whose architecture is supported, with progress bars on a terminal.
pub fn fetch(store: &Store, reference: &str) -> basert_hub::Result<Installed> {
    pull_with(store, reference, Some(check))
}

fn pull_with(store: &Store, reference: &str, check: Option<Check>) -> basert_hub::Result<Installed> {
    basert_hub::pull(store, reference, &PullOptions { check, ..PullOptions::from_env() }, &PullBars::default())
}

/// Refuses an unknown architecture. Too little memory is only noted, as the model may be meant for another machine.
fn check(preview: &Preview<'_>) -> Result<(), String> {
    let memory = Memory::now();
    if let Some(most) = memory.limit.or(memory.total).filter(|most| preview.size > *most) {
        let [files, most] = [preview.size, most].map(|bytes| units::bytes(bytes as f64));
        let _ = writeln!(io::stderr(), "note: the model's files have {files}, but this machine's memory is {most}");
    }
    let config;
    let (found, kind) = if preview.file == "config.json" {
        config = serde_json::from_slice::<Value>(preview.head).unwrap_or_default();
        // For vision and audio models, only the text part is loaded.
        let types = [&config["text_config"]["model_type"], &config["model_type"]];
        (types.into_iter().find_map(Value::as_str), Kind::HuggingFace)
    } else if preview.head.starts_with(&gguf::MAGIC) {
        (gguf::architecture(preview.head), Kind::Gguf)
    } else {
        return Err(format!("{} is not a GGUF file", preview.file));
    };
    // If the first bytes do not have the architecture, opening the model will check it.
    let Some(found) = found else { return Ok(()) };
    let families = Architecture::built_in().map_err(|error| error.to_string())?;
    let known: Vec<&str> = families.iter().flat_map(|family| family.names(kind)).map(String::as_str).collect();
    if known.contains(&found) {
        return Ok(());
    }
    let known = known.join(", ");
    Err(format!(
        "its architecture '{}' is not supported; supported are {known}; --force downloads it anyway",
        visible(found)
    ))
}

/// Runs `basert pull`.
pub fn pull(args: &PullArgs) -> anyhow::Result<()> {
    let check: Option<Check> = if args.force { None } else { Some(check) };
    let model = pull_with(&Store::open_default()?, &args.reference, check)?;
    let (name, size, path) = (model.reference(), units::bytes(model.size as f64), model.path.display());
    writeln!(io::stdout(), "{name} ({size}) is at {path}")?;
    if io::stdout().is_terminal() {
        writeln!(io::stdout(), "chat with it: basert run {name}")?;
    }
    Ok(())
}

/// Compares a downloaded model's files with the checksums recorded when it was pulled.
#[derive(clap::Args)]
#[command(after_help = "Example:\n  basert verify smollm2-135m")]
pub struct VerifyArgs {
    /// The model, as `basert list` shows it
    #[arg(value_name = "REF")]
    reference: String,
}

/// Runs `basert verify`.
pub fn verify(args: &VerifyArgs) -> anyhow::Result<()> {
    let found = Store::open_default()?.resolve(&args.reference)?;
    let Some(model) = found.installed else {
        return Err(mistake(format!(
            "'{}' was not pulled, so there are no checksums to compare it with",
            args.reference
        )));
    };
    model.verify(&PullBars::default())?;
    Ok(writeln!(io::stdout(), "all files of {} match their checksums", model.reference())?)
}

/// Runs `basert rm`.
pub fn remove(args: &RmArgs) -> anyhow::Result<()> {
    let removed = Store::open_default()?.remove(&args.reference)?;
    Ok(writeln!(io::stdout(), "removed {} ({})", removed.reference, units::bytes(removed.size as f64))?)
}

/// One line of the list.
struct Row {
    reference: String,
    status: &'static str,
    size: u64,
    note: String,
    path: Option<String>,
}

/// Runs `basert list`.
pub fn list(args: &ListArgs) -> anyhow::Result<()> {
    let store = Store::open_default()?;
    let (installed, incomplete) = (store.list()?, store.incomplete()?);
    let name_of = |reference: &str| {
        let entry = store.catalogue().entries().iter().find(|entry| entry.reference() == reference);
        entry.and_then(|entry| entry.names.first().cloned())
    };
    let mut rows: Vec<Row> = installed
        .iter()
        .map(|model| Row {
            note: name_of(&model.reference()).unwrap_or_default(),
            reference: model.reference(),
            status: "installed",
            size: model.size,
            path: Some(model.path.display().to_string()),
        })
        .collect();
    rows.extend(incomplete.iter().map(|model| Row {
        reference: format!("{}:{}", model.id, model.variant),
        status: "incomplete",
        size: model.size,
        note: model.reason.clone(),
        path: None,
    }));
    let absent = store.catalogue().entries().iter();
    let absent: Vec<_> = absent
        .filter(|entry| rows.iter().all(|row| row.reference != entry.reference()))
        .map(|entry| Row {
            reference: entry.reference(),
            status: "available",
            size: entry.size,
            note: format!("basert pull {}", entry.names.first().map_or("", String::as_str)),
            path: None,
        })
        .collect();
    rows.extend(absent);
    let mut out = io::stdout().lock();
    if args.json {
        let rows: Vec<_> = rows
            .into_iter()
            .map(|row| {
                let Row { reference, status, size, note, path } = row;
                json!({ "model": reference, "status": status, "bytes": size, "note": note, "path": path })
            })
            .collect();
        return Ok(writeln!(out, "{}", serde_json::to_string_pretty(&rows)?)?);
    }
    let cells = |row: &Row| {
        let note = visible(&row.note).into_owned();
        vec![row.reference.clone(), row.status.to_owned(), units::bytes(row.size as f64), note]
    };
    Ok(write!(out, "{}", units::table(&rows.iter().map(cells).collect::<Vec<_>>(), 2))?)
}
