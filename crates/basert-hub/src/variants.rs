//! Which files of a repository make up one model.

use std::collections::{BTreeMap, BTreeSet};

use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::reference::{component, safe_file_name};

/// Which variant is meant when none is named: the first of these that exists.
///
/// Four bits with mixed precision first, the usual balance; then the other common ones by how well they are known,
/// then by size; unquantised ones last.
pub const PREFERENCE: [&str; 23] = [
    "Q4_K_M",
    "Q4_0",
    "Q8_0",
    "Q4_K_S",
    "Q4_1",
    "Q5_K_M",
    "Q6_K",
    "MXFP4",
    "MXFP4_MOE",
    "IQ4_XS",
    "IQ4_NL",
    "Q5_K_S",
    "Q5_0",
    "Q5_1",
    "Q4_K_L",
    "UD-Q4_K_XL",
    "Q3_K_M",
    "Q3_K_L",
    "Q3_K_S",
    "Q2_K",
    "BF16",
    "F16",
    "F32",
];

/// The variant name of a folder with `config.json` and `*.safetensors`.
pub const SAFETENSORS: &str = "safetensors";

/// The files a safetensors model has besides its weights.
const COMPANIONS: [&str; 10] = [
    "config.json",
    "generation_config.json",
    "model.safetensors.index.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
];

/// The place of the preferred one among `variants`; `None` if no rule tells and there are several.
pub(crate) fn preferred<'a>(variants: impl Iterator<Item = &'a str> + Clone) -> Option<usize> {
    PREFERENCE
        .iter()
        .chain([&SAFETENSORS])
        .find_map(|p| variants.clone().position(|v| v.eq_ignore_ascii_case(p)))
        .or_else(|| (variants.count() == 1).then_some(0))
}

/// A file of a repository.
#[derive(Clone, Debug)]
pub(crate) struct RemoteFile {
    pub path: String,
    /// Where the hub says it.
    pub size: Option<u64>,
    pub digest: Option<Digest>,
}

/// One model of a repository.
#[derive(Clone, Debug)]
pub(crate) struct Selection {
    pub variant: String,
    pub files: Vec<RemoteFile>,
}

/// Chooses the files of `wanted`, or of the preferred variant.
pub(crate) fn select(repo: &str, files: &[RemoteFile], wanted: Option<&str>) -> Result<Selection> {
    let mut choices = gguf_models(files);
    choices.extend(safetensors_model(files));
    if choices.is_empty() {
        let shown: Vec<_> = files.iter().take(8).map(|f| f.path.escape_debug().to_string()).collect();
        let more = files.len().saturating_sub(shown.len());
        let found = crate::error::list(&shown) + &if more > 0 { format!(", and {more} more") } else { String::new() };
        return Err(Error::NoModelFiles { repo: repo.into(), found });
    }
    let names = || choices.iter().map(|c| c.variant.as_str());
    let index = match wanted {
        Some(wanted) => names().position(|v| v.eq_ignore_ascii_case(wanted)).ok_or_else(|| Error::UnknownVariant {
            model: repo.into(),
            variant: wanted.into(),
            available: names().map(str::to_owned).collect(),
        })?,
        None => preferred(names()).ok_or_else(|| Error::Ambiguous {
            reference: repo.into(),
            candidates: names().map(|v| format!("{repo}:{v}")).collect(),
        })?,
    };
    let choice = choices.swap_remove(index);
    check_names(&choice)?;
    Ok(choice)
}

/// Local names are safe, and distinct even where the file system ignores case.
fn check_names(choice: &Selection) -> Result<()> {
    let mut seen = BTreeSet::new();
    for file in &choice.files {
        if !seen.insert(safe_file_name(&file.path)?.to_ascii_lowercase()) {
            let reason = "another file of the model has the same name";
            return Err(Error::UnsafeName { name: file.path.clone(), reason });
        }
    }
    Ok(())
}

/// GGUF files, split ones put together, under distinct names.
fn gguf_models(files: &[RemoteFile]) -> Vec<Selection> {
    // Keyed by the path without suffix and part number.
    let mut groups: BTreeMap<(&str, usize), Vec<(usize, &RemoteFile)>> = BTreeMap::new();
    for file in files {
        let Some(stem) = strip_suffix_ignoring_case(&file.path, ".gguf") else { continue };
        let lower = stem.to_ascii_lowercase();
        // Vision projectors and importance matrices are no models by themselves.
        if lower.contains("mmproj") || lower.contains("imatrix") {
            continue;
        }
        let (base, part, count) = split_part(stem).unwrap_or((stem, 1, 1));
        groups.entry((base, count)).or_default().push((part, file));
    }
    let groups: Vec<(&str, Vec<RemoteFile>)> = groups
        .into_iter()
        .filter_map(|((base, count), mut parts)| {
            parts.sort_by_key(|(part, _)| *part);
            let complete = parts.len() == count && parts.iter().zip(1..).all(|((part, _), i)| *part == i);
            complete.then(|| (base, parts.into_iter().map(|(_, f)| f.clone()).collect()))
        })
        .collect();

    // A group is named by its quantisation; where that is missing or not unique, by more and more of its path.
    let levels: [fn(&str) -> Option<String>; 3] = [
        |base| {
            let (folder, stem) = base.rsplit_once('/').unwrap_or(("", base));
            quantisation(stem).or_else(|| quantisation(folder.rsplit('/').next()?))
        },
        |base| Some(as_component(base.rsplit('/').next()?)),
        |base| Some(as_component(base)),
    ];
    let mut names: Vec<Option<String>> = vec![None; groups.len()];
    let mut taken = BTreeSet::new();
    for level in levels {
        let mut uses = BTreeMap::new();
        for (base, _) in &groups {
            *uses.entry(level(base)).or_insert(0) += 1;
        }
        for (name, (base, _)) in names.iter_mut().zip(&groups).filter(|(name, _)| name.is_none()) {
            let proposal = level(base);
            if uses.get(&proposal) == Some(&1) && taken.insert(proposal.clone()) {
                *name = proposal;
            }
        }
    }
    groups
        .into_iter()
        .zip(names)
        .filter_map(|((_, files), name)| Some(Selection { variant: name.filter(|n| component(n).is_ok())?, files }))
        .collect()
}

/// A text as the name of a variant, with hyphens for what cannot be in one.
fn as_component(text: &str) -> String {
    let plain: String =
        text.chars().map(|c| if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '-' }).collect();
    plain.trim_start_matches(|c: char| !c.is_ascii_alphanumeric()).to_owned()
}

fn safetensors_model(files: &[RemoteFile]) -> Option<Selection> {
    // The root folder only: subfolders hold copies in other formats.
    let weights = |prefix: &str| -> Vec<&RemoteFile> {
        let fits =
            |f: &&RemoteFile| f.path.starts_with(prefix) && f.path.ends_with(".safetensors") && !f.path.contains('/');
        files.iter().filter(fits).collect()
    };
    // Some repositories add a second copy as `consolidated.safetensors`.
    let mut chosen = weights("model");
    if chosen.is_empty() {
        chosen = weights("");
    }
    let has_config = files.iter().any(|f| f.path == "config.json");
    if chosen.is_empty() || !has_config {
        return None;
    }
    chosen.extend(files.iter().filter(|f| COMPANIONS.contains(&f.path.as_str())));
    Some(Selection { variant: SAFETENSORS.into(), files: chosen.into_iter().cloned().collect() })
}

fn strip_suffix_ignoring_case<'a>(text: &'a str, suffix: &str) -> Option<&'a str> {
    let (head, tail) = text.split_at_checked(text.len().checked_sub(suffix.len())?)?;
    tail.eq_ignore_ascii_case(suffix).then_some(head)
}

/// `name-00002-of-00003` → (`name`, 2, 3)
fn split_part(stem: &str) -> Option<(&str, usize, usize)> {
    let number = |text: &str| (text.len() == 5).then(|| text.parse::<usize>().ok()).flatten();
    let (rest, count) = stem.rsplit_once("-of-")?;
    let (base, part) = rest.rsplit_once('-')?;
    Some((base, number(part)?, number(count).filter(|n| *n > 0)?))
}

/// The quantisation a file name ends with, in capitals: `gemma-3-270m-q4_k_m` → `Q4_K_M`.
pub(crate) fn quantisation(stem: &str) -> Option<String> {
    let upper = stem.to_ascii_uppercase();
    let separator = |c: char| !c.is_ascii_alphanumeric();
    let starts = std::iter::once(0).chain(upper.match_indices(separator).map(|(i, found)| i + found.len()));
    starts.filter_map(|i| upper.get(i..)).find(|tail| is_quantisation(tail)).map(str::to_owned)
}

fn is_quantisation(text: &str) -> bool {
    let text = text.strip_prefix("UD-").unwrap_or(text);
    if ["F16", "BF16", "F32", "FP16", "FP32", "MXFP4", "MXFP4_MOE", "NVFP4"].contains(&text) {
        return true;
    }
    let Some(bits) = ["IQ", "TQ", "Q"].iter().find_map(|p| text.strip_prefix(p)) else { return false };
    let mut words = bits.split('_');
    words.next().is_some_and(|w| matches!(w.as_bytes(), [b'1'..=b'8']))
        && words.all(|w| {
            matches!(w, "K" | "XXS" | "XS" | "S" | "M" | "L" | "XL" | "XXL" | "NL")
                || matches!(w.as_bytes(), [b'0'..=b'9'])
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(paths: &[&str]) -> Vec<RemoteFile> {
        paths.iter().map(|p| RemoteFile { path: (*p).into(), size: Some(1), digest: None }).collect()
    }

    fn chosen(paths: &[&str], wanted: Option<&str>) -> Result<(String, Vec<String>)> {
        select("o/r", &files(paths), wanted).map(|s| (s.variant, s.files.into_iter().map(|f| f.path).collect()))
    }

    #[test]
    fn quantisation_names() {
        for (stem, name) in [
            ("SmolLM2-135M-Instruct.Q4_1", Some("Q4_1")),
            ("gemma-3-270m-q4_k_m", Some("Q4_K_M")),
            ("Qwen3-0.6B-UD-Q4_K_XL", Some("UD-Q4_K_XL")),
            ("m-IQ2_XXS", Some("IQ2_XXS")),
            ("m_TQ1_0", Some("TQ1_0")),
            ("gpt-oss-20b-MXFP4_MOE", Some("MXFP4_MOE")),
            ("m.bf16", Some("BF16")),
            ("Q8_0", Some("Q8_0")),
            ("Qwen3-4B", None),
            ("m-Q4_0-imat", None),
            ("m-q4f16", None),
            ("", None),
        ] {
            assert_eq!(quantisation(stem).as_deref(), name, "{stem}");
        }
    }

    #[test]
    fn gguf_by_name_and_by_preference() {
        let repo = ["README.md", "m-Q8_0.gguf", "m-Q4_K_M.gguf", "m-F16.gguf", "mmproj-m-f16.gguf", "imatrix.gguf"];
        assert_eq!(chosen(&repo, None).unwrap().1, ["m-Q4_K_M.gguf"]);
        assert_eq!(chosen(&repo, Some("q8_0")).unwrap(), ("Q8_0".into(), vec!["m-Q8_0.gguf".into()]));
        let message = chosen(&repo, Some("Q5_K_M")).unwrap_err().to_string();
        assert!(message.contains("F16, Q4_K_M and Q8_0"), "{message}");
        assert_eq!(chosen(&["m-F16.gguf", "m-Q8_0.gguf", "m-Q4_0.gguf"], None).unwrap().0, "Q4_0");
        assert_eq!(chosen(&["strange.gguf"], None).unwrap().0, "strange");
        assert!(matches!(chosen(&["a.gguf", "b.gguf"], None), Err(Error::Ambiguous { .. })));
    }

    #[test]
    fn split_gguf() {
        let repo = [
            "Q4_K_M/m-Q4_K_M-00002-of-00002.gguf",
            "Q4_K_M/m-Q4_K_M-00001-of-00002.gguf",
            "Q8_0/m-Q8_0-00001-of-00003.gguf",
            "Q8_0/m-Q8_0-00003-of-00003.gguf",
        ];
        let (variant, paths) = chosen(&repo, None).unwrap();
        assert_eq!(variant, "Q4_K_M");
        assert_eq!(paths, [repo[1], repo[0]]);
        // A part of Q8_0 is missing, so it is not offered.
        let message = chosen(&repo, Some("Q8_0")).unwrap_err().to_string();
        assert!(message.ends_with("it has Q4_K_M"), "{message}");
    }

    #[test]
    fn colliding_quantisations_are_told_apart() {
        let repo = ["a-Q4_0.gguf", "b-Q4_0.gguf", "x/c-Q8_0.gguf", "y/c-Q8_0.gguf", "Q5_0/model.gguf"];
        let mut all: Vec<_> = gguf_models(&files(&repo)).into_iter().map(|s| s.variant).collect();
        all.sort();
        assert_eq!(all, ["Q5_0", "a-Q4_0", "b-Q4_0", "x-c-Q8_0", "y-c-Q8_0"]);
    }

    #[test]
    fn safetensors() {
        let repo = [
            "config.json",
            "tokenizer.json",
            "model-00001-of-00002.safetensors",
            "model-00002-of-00002.safetensors",
            "model.safetensors.index.json",
            "consolidated.safetensors",
            "original/model.safetensors",
            "pytorch_model.bin",
            "README.md",
            "chat_template.jinja",
        ];
        let (variant, mut paths) = chosen(&repo, None).unwrap();
        paths.sort();
        assert_eq!(variant, SAFETENSORS);
        let expected = [
            "chat_template.jinja",
            "config.json",
            "model-00001-of-00002.safetensors",
            "model-00002-of-00002.safetensors",
            "model.safetensors.index.json",
            "tokenizer.json",
        ];
        assert_eq!(paths, expected);
        let both = ["config.json", "model.safetensors", "m-Q6_K.gguf"];
        assert_eq!(chosen(&both, None).unwrap().0, "Q6_K");
        assert_eq!(chosen(&both, Some("safetensors")).unwrap().1.len(), 2);
    }

    #[test]
    fn nothing_usable() {
        let message = chosen(&["pytorch_model.bin", "config.json"], None).unwrap_err().to_string();
        assert!(message.contains("it holds pytorch_model.bin and config.json"), "{message}");
        assert!(matches!(chosen(&["model.safetensors"], None), Err(Error::NoModelFiles { .. })));
    }

    #[test]
    fn hostile_names() {
        for path in ["../m-Q4_0.gguf", "/etc/m-Q4_0.gguf", "a/../../m-Q4_0.gguf", "a/.m-Q4_0.gguf", "a\\m-Q4_0.gguf"] {
            assert!(matches!(chosen(&[path], None), Err(Error::UnsafeName { .. })), "{path}");
        }
        let twins = ["config.json", "model-a.safetensors", "model-A.safetensors"];
        assert!(matches!(chosen(&twins, None), Err(Error::UnsafeName { .. })));
    }
}
