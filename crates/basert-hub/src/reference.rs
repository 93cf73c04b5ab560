//! References to models: names, hub ids and paths.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::variants::quantisation;

/// A repository on a hub, and the two upper folders on disk: `org/name`.
///
/// Both parts are made of letters, digits, `.`, `_` and `-`, start with a letter or digit and hold no `..`,
/// so that they are safe as folder names. Comparison is exact; the store looks ids up ignoring case.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ModelId {
    org: String,
    name: String,
}

impl ModelId {
    /// The user or organisation.
    pub fn org(&self) -> &str {
        &self.org
    }

    /// The repository's name within it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Equality as hubs see it.
    pub(crate) fn same(&self, other: &ModelId) -> bool {
        self.org.eq_ignore_ascii_case(&other.org) && self.name.eq_ignore_ascii_case(&other.name)
    }
}

impl fmt::Display for ModelId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.org, self.name)
    }
}

impl From<ModelId> for String {
    fn from(id: ModelId) -> String {
        id.to_string()
    }
}

impl TryFrom<String> for ModelId {
    type Error = Error;
    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl FromStr for ModelId {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let bad = |reason: String| Error::BadReference { text: text.into(), reason };
        let (org, name) = text.split_once('/').ok_or_else(|| bad("a hub id has the form org/name".into()))?;
        component(org).map_err(|r| bad(format!("its organisation {r}")))?;
        component(name).map_err(|r| bad(format!("its name {r}")))?;
        Ok(ModelId { org: org.into(), name: name.into() })
    }
}

/// A reference to a model, as users write it.
///
/// ```
/// use basert_hub::Reference;
/// let text = |r: &str| r.parse::<Reference>();
/// assert!(matches!(text("./model.gguf"), Ok(Reference::Path(_))));
/// assert!(matches!(text("smollm2:Q4_1"), Ok(Reference::Name { .. })));
/// assert!(matches!(text("HuggingFaceTB/SmolLM2-135M-Instruct"), Ok(Reference::Hub { .. })));
/// assert!(text("org/../name").is_err());
/// ```
///
/// The grammar, in this order:
/// - `https://huggingface.co/org/name`, with or without the scheme, also of `hf.co`, also of a page below it: a hub id;
/// - `.`, `..`, or anything that begins with `/`, `./` or `../`, or ends in `.gguf`, `.safetensors` or `.base`: a path;
/// - `org/name` or `org/name:variant`: a hub id;
/// - more than one `/`: a path;
/// - `name` or `name:variant`: a name of the catalogue or of an installed model.
///
/// The variant `latest` is the same as none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reference {
    /// A file or folder on disk.
    Path(PathBuf),
    /// A repository.
    Hub {
        /// Which one.
        id: ModelId,
        /// Which quantisation or format of it; the preferred one if absent.
        variant: Option<String>,
    },
    /// A short name.
    Name {
        /// The catalogue's name, or an installed model's name without its organisation.
        name: String,
        /// As for a hub id.
        variant: Option<String>,
    },
}

const FILE_SUFFIXES: [&str; 3] = [".gguf", ".safetensors", ".base"];

impl FromStr for Reference {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let bad = |reason: String| Error::BadReference { text: text.into(), reason };
        if text.is_empty() {
            return Err(bad("it is empty".into()));
        }
        if let Some(address) = address(text) {
            return address.map_err(bad);
        }
        let explicit = matches!(text, "." | "..") || ["/", "./", "../"].iter().any(|p| text.starts_with(p));
        let is_file = FILE_SUFFIXES.iter().any(|s| text.to_ascii_lowercase().ends_with(s));
        if explicit || is_file {
            return Ok(Reference::Path(text.into()));
        }
        let (model, variant) = match text.split_once(':') {
            Some((model, variant)) => (model, Some(variant)),
            None => (text, None),
        };
        if model.contains("..") {
            return Err(bad("it contains `..`; begin a path with `./` or `../`".into()));
        }
        if model.matches('/').count() > 1 {
            return Ok(Reference::Path(text.into()));
        }
        if let Some(variant) = variant {
            component(variant).map_err(|r| bad(format!("its variant {r}")))?;
        }
        // In other programs this is what is meant where nothing is said.
        let variant = variant.filter(|variant| !variant.eq_ignore_ascii_case("latest")).map(str::to_owned);
        if model.contains('/') {
            let id = model.parse().map_err(|e| match e {
                Error::BadReference { reason, .. } => bad(reason),
                other => other,
            })?;
            return Ok(Reference::Hub { id, variant });
        }
        component(model).map_err(|r| bad(format!("its name {r}")))?;
        Ok(Reference::Name { name: model.into(), variant })
    }
}

/// The hosts of the hub whose addresses are understood.
const HOSTS: [&str; 3] = ["huggingface.co", "www.huggingface.co", "hf.co"];

/// What the address of a page of the hub means, if it is an address: the model, and where the page is that of a GGUF
/// file, the variant that its name ends with. The error is a reason.
fn address(text: &str) -> Option<Result<Reference, String>> {
    let scheme = ["https://", "http://"].iter().find_map(|scheme| text.strip_prefix(scheme));
    let rest = scheme.unwrap_or(text);
    let (host, path) = rest.split_once('/').or_else(|| scheme.map(|_| (rest, "")))?;
    if !HOSTS.iter().any(|known| host.eq_ignore_ascii_case(known)) {
        scheme?;
        let id = path.trim_end_matches('/');
        return Some(Err(format!(
            "only huggingface.co is known by its address; of another hub, HF_ENDPOINT names the \
            address and `basert pull {id}` the model"
        )));
    }
    let path = path.split(['?', '#']).next().unwrap_or(path).trim_end_matches('/');
    let mut parts = path.splitn(3, '/');
    let (org, name, rest) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default(), parts.next());
    let reference = || {
        let reference: Reference = format!("{org}/{name}").parse().map_err(|error| match error {
            Error::BadReference { reason, .. } => reason,
            other => other.to_string(),
        })?;
        let Reference::Hub { id, variant } = reference else {
            return Err("it is no address of a model, https://huggingface.co/org/name".into());
        };
        let rest: Vec<&str> = rest.unwrap_or_default().split('/').collect();
        match rest.as_slice() {
            ["blob" | "resolve" | "tree", revision, ..] if *revision != "main" => {
                Err(format!("it is an address of the revision '{revision}'; only main can be pulled"))
            }
            ["blob" | "resolve", _, .., file] => {
                let stem = file.strip_suffix(".gguf").ok_or("it is the address of a file that is no GGUF file")?;
                let variant = quantisation(stem).ok_or("the file's name does not end with a quantisation")?;
                Ok(Reference::Hub { id, variant: Some(variant) })
            }
            _ => Ok(Reference::Hub { id, variant }),
        }
    };
    Some(reference())
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (model, variant): (&dyn fmt::Display, _) = match self {
            Reference::Path(path) => return write!(f, "{}", path.display()),
            Reference::Hub { id, variant } => (id, variant),
            Reference::Name { name, variant } => (name, variant),
        };
        match variant {
            Some(variant) => write!(f, "{model}:{variant}"),
            None => write!(f, "{model}"),
        }
    }
}

/// Whether `text` may be one folder of `org/name/variant`. The error completes the sentence "its name …".
pub(crate) fn component(text: &str) -> Result<(), &'static str> {
    if text.is_empty() {
        return Err("is empty");
    }
    if text.len() > 96 {
        return Err("is longer than 96 characters");
    }
    if !text.starts_with(|c: char| c.is_ascii_alphanumeric()) {
        return Err("does not begin with a letter or digit");
    }
    if !text.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b)) {
        return Err("has characters other than letters, digits, `.`, `_` and `-`");
    }
    if text.contains("..") {
        return Err("contains `..`");
    }
    Ok(())
}

/// Checks a file path that came from a server or a manifest, and returns its last part, the name it gets here.
pub(crate) fn safe_file_name(path: &str) -> Result<&str> {
    let refuse = |reason| Error::UnsafeName { name: path.escape_debug().take(200).collect(), reason };
    if path.starts_with('/') {
        return Err(refuse("it is an absolute path"));
    }
    for part in path.split('/') {
        match part {
            "" => return Err(refuse("it has an empty part")),
            "." | ".." => return Err(refuse("it leaves its folder")),
            _ if part.starts_with('.') => return Err(refuse("it is a hidden file")),
            _ if part.len() > 200 => return Err(refuse("it is longer than 200 characters")),
            _ => {}
        }
        if part.trim() != part {
            return Err(refuse("it begins or ends with a space"));
        }
        let plain = |c: char| c.is_alphanumeric() || c == ' ' || c.is_ascii_graphic() && !"\\:*?\"<>|".contains(c);
        if !part.chars().all(plain) {
            return Err(refuse("it has characters other than letters, digits, spaces and plain punctuation"));
        }
    }
    Ok(path.rsplit('/').next().unwrap_or(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Reference> {
        text.parse()
    }

    #[test]
    fn paths() {
        for text in [
            "/models/x",
            "./x",
            "../x",
            ".",
            "..",
            "x.gguf",
            "X.GGUF",
            "dir/x.gguf",
            "a/b/c",
            "a/b/c:d",
            "model.base",
            "model.safetensors",
            "./a:b",
            "../../x",
            "/a/../b",
        ] {
            assert_eq!(parse(text).unwrap(), Reference::Path(text.into()), "{text}");
        }
    }

    #[test]
    fn hub_ids_and_names() {
        let hub = |text: &str| match parse(text).unwrap() {
            Reference::Hub { id, variant } => (id.org().to_owned(), id.name().to_owned(), variant),
            other => panic!("{text}: {other:?}"),
        };
        assert_eq!(hub("Qwen/Qwen3-0.6B"), ("Qwen".into(), "Qwen3-0.6B".into(), None));
        assert_eq!(hub("a/b:Q4_K_M"), ("a".into(), "b".into(), Some("Q4_K_M".into())));
        assert_eq!(hub("a/b:UD-Q4_K_XL").2.as_deref(), Some("UD-Q4_K_XL"));
        let name = |name: &str, variant: Option<&str>| Reference::Name {
            name: name.into(),
            variant: variant.map(str::to_owned),
        };
        assert_eq!(parse("smollm2").unwrap(), name("smollm2", None));
        assert_eq!(parse("gemma3-270m:Q4_K_M").unwrap(), name("gemma3-270m", Some("Q4_K_M")));
    }

    #[test]
    fn addresses_of_the_hub() {
        for (text, meant) in [
            ("https://huggingface.co/org/name", "org/name"),
            ("https://huggingface.co/org/name/", "org/name"),
            ("http://HF.co/org/name:Q4_0", "org/name:Q4_0"),
            ("hf.co/org/name", "org/name"),
            ("huggingface.co/org/name:latest", "org/name"),
            ("https://huggingface.co/org/name/tree/main?x=1#top", "org/name"),
            ("https://huggingface.co/org/name/blob/main/sub/name-Q5_K_M.gguf", "org/name:Q5_K_M"),
            ("https://huggingface.co/org/name/resolve/main/name.q8_0.gguf?download=true", "org/name:Q8_0"),
            ("name:latest", "name"),
        ] {
            assert_eq!(parse(text).unwrap().to_string(), meant, "{text}");
        }
        for (text, why) in [
            ("https://huggingface.co/", "no address of a model"),
            ("https://huggingface.co", "no address of a model"),
            ("hf.co/name", "name is empty"),
            ("https://example.org/org/name", "HF_ENDPOINT"),
            ("https://huggingface.co/org/name/tree/other", "revision 'other'"),
            ("https://huggingface.co/org/name/blob/main/README.md", "no GGUF file"),
        ] {
            let error = parse(text).unwrap_err().to_string();
            assert!(error.contains(why), "{text}: {error}");
        }
    }

    #[test]
    fn refusals() {
        for text in [
            "",
            ":",
            "a:",
            ":Q4",
            "a/b:",
            "a//b",
            "a/",
            "a/..",
            "a..b",
            "a/b:..",
            "a/b:c/d",
            "-x",
            "a b",
            "a\0b",
            "a:b:c",
            "é",
            "a/b:.x",
            "~x",
            "a/..:x",
            "org/na..me",
        ] {
            let result = parse(text);
            // `a//b` and `a/b:c/d` hold two slashes: whatever they are, they must not be a hub id.
            assert!(!matches!(result, Ok(Reference::Hub { .. } | Reference::Name { .. })), "{text:?}: {result:?}");
        }
        assert!(parse(&"x".repeat(97)).is_err());
        assert!(parse("a/").unwrap_err().is_user_mistake());
    }

    #[test]
    fn display_is_the_inverse() {
        for text in ["a/b:c", "a/b", "n", "n:v", "/x/y"] {
            assert_eq!(parse(text).unwrap().to_string(), text);
        }
    }

    #[test]
    fn file_names_from_outside() {
        assert_eq!(safe_file_name("Q4/m-00001-of-00002.gguf").unwrap(), "m-00001-of-00002.gguf");
        for name in ["my model (v1) Q4_0.gguf", "modèle-Q4_0.gguf", "模型.gguf", "a+b%20c.gguf"] {
            assert_eq!(safe_file_name(name).unwrap(), name);
        }
        for name in [
            "/etc/passwd",
            "../x.gguf",
            "a/../x",
            "a//x",
            "",
            ".ssh",
            "a/.b",
            "a\\b",
            "x\n",
            "x\0",
            "c:x",
            " a",
            "a ",
            "a\u{202e}b",
            "..",
            ".",
            "x/",
            "a/./b",
        ] {
            assert!(matches!(safe_file_name(name), Err(Error::UnsafeName { .. })), "{name:?}");
        }
        assert!(safe_file_name(&"x".repeat(201)).is_err());
    }
}
