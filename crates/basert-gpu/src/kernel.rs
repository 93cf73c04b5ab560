//! A kernel's source and what it is specialised for.

use std::collections::BTreeMap;
use std::fmt::{self, Write};
use std::hash::{Hash, Hasher};
use std::path::Path;
use std::sync::{Mutex, PoisonError};

/// Environment variable that names a folder with `kernels` and `tuning` like those of this crate. What is in it takes the place
/// of what was built in, without being checked first: for those who work on kernels.
pub const SOURCES_VARIABLE: &str = "BASERT_GPU_SOURCES";

macro_rules! sources {
    ($($path:literal),* $(,)?) => {
        /// All kernel sources, by their path in `kernels/`.
        pub const SOURCES: &[(&str, &str)] = &[$(($path, include_str!(concat!("../kernels/", $path)))),*];
    };
}

sources![
    "common/activation.h",
    "common/after.h",
    "common/attention.h",
    "common/base.h",
    "common/epilogue.h",
    "common/format.h",
    "common/kv.h",
    "common/quantise.h",
    "common/rank.h",
    "common/rope.h",
    "common/step.h",
    "common/strips.h",
    "common/tile.h",
    "attention/decode.metal",
    "attention/combine.metal",
    "attention/parts.h",
    "attention/prefill.metal",
    "check/tiles.metal",
    "elementwise/affine.metal",
    "elementwise/elementwise.metal",
    "elementwise/embed.metal",
    "linear/experts.metal",
    "linear/gemm.metal",
    "linear/gemv.metal",
    "linear/sum_parts.metal",
    "moe/combine.metal",
    "moe/route.metal",
    "moe/sort.metal",
    "moe/uses.h",
    "moe/weigh.metal",
    "norm/norm.metal",
    "recurrent/conv.metal",
    "recurrent/linear_attention.metal",
    "rope/rope.metal",
    "rope/rope_cache.metal",
    "rope/store.metal",
    "sample/advance.metal",
    "sample/candidate.h",
    "sample/exact.h",
    "sample/largest.metal",
    "sample/sample.metal",
];

/// A kernel specialised by macros: what a compiler gets.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Kernel {
    /// Path of its source in `kernels/`.
    pub file: &'static str,
    /// What is in it.
    pub text: &'static str,
    /// Name of the kernel function in it.
    pub function: &'static str,
    /// Preprocessor macros and their values, in order of their names.
    pub macros: Vec<(&'static str, String)>,
    /// Threads of the threadgroups it is launched with: the macro `THREADS`.
    pub threads: u32,
    /// Whether a product and a sum are fused only where the source says so, for results that are the same everywhere.
    pub exact: bool,
}

impl Kernel {
    /// A kernel without macros but `THREADS`.
    ///
    /// # Panics
    /// When there is no such source, which a test rules out.
    pub fn new(file: &'static str, function: &'static str, threads: u32) -> Kernel {
        Kernel::of_text(file, text_of(file), function, threads)
    }

    /// The same, of a source that is not in the table.
    pub fn of_text(file: &'static str, text: &'static str, function: &'static str, threads: u32) -> Kernel {
        let kernel = Kernel { file, text, function, macros: Vec::new(), threads, exact: false };
        kernel.define("THREADS", threads)
    }

    /// With another macro; the last definition of a name counts.
    #[must_use]
    pub fn define(mut self, name: &'static str, value: impl fmt::Display) -> Kernel {
        match self.macros.binary_search_by_key(&name, |(name, _)| name) {
            Ok(i) => self.macros[i].1 = value.to_string(),
            Err(i) => self.macros.insert(i, (name, value.to_string())),
        }
        self
    }

    /// The source with all its `#include "…"` in place, each once, and without the macros.
    ///
    /// # Panics
    /// When a source includes a file that does not exist, which a test rules out.
    pub fn source(&self) -> String {
        let mut out = String::new();
        include(self.text, &mut out, &mut Vec::new());
        out
    }

    /// The macros as preprocessor lines.
    pub fn defines(&self) -> String {
        self.macros.iter().fold(String::new(), |mut out, (name, value)| {
            let _ = writeln!(out, "#define {name} {value}");
            out
        })
    }

    /// What it is but for sizes, places and constants. Kernels that differ in nothing else compile alike, so checks of that
    /// take one of them.
    pub fn specialisation(&self) -> (&'static str, Vec<(&'static str, String)>) {
        const SIZES: [&str; 8] =
            ["ROWS_OF_W", "COLUMNS", "WIDTH", "CHANNELS", "PAGE_BYTES", "PART_ROWS", "SLOT_VALUES", "VOCABULARY"];
        const CONSTANTS: [&str; 5] = ["COUNT", "FACTOR", "MAGNITUDE", "SCALE", "ZERO"];
        let differs = |name: &str| {
            let place = ["_AT", "_STRIDE", "_EPS"].iter().any(|end| name.ends_with(end)) || name.starts_with("STEP_");
            !place && !SIZES.contains(&name) && !CONSTANTS.contains(&name)
        };
        (self.function, self.macros.iter().filter(|(name, _)| differs(name)).cloned().collect())
    }

    /// A number that differs for kernels that differ, in source or macros; the same on every machine.
    pub fn fingerprint(&self) -> u64 {
        let mut hasher = Fnv::default();
        (self.defines(), self.source(), self.function, self.exact).hash(&mut hasher);
        hasher.finish()
    }
}

impl fmt::Display for Kernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.function)?;
        self.macros.iter().try_for_each(|(name, value)| write!(f, " {name}={value}"))
    }
}

fn text_of(file: &str) -> &'static str {
    let (_, built_in) = SOURCES.iter().find(|(path, _)| *path == file).expect("every source is in the table");
    developed(&format!("kernels/{file}")).unwrap_or(built_in)
}

/// A source or a table from the folder that [`SOURCES_VARIABLE`] names, read once; none where none is named, or it has no such
/// file.
pub(crate) fn developed(path: &str) -> Option<&'static str> {
    static READ: Mutex<BTreeMap<String, Option<&'static str>>> = Mutex::new(BTreeMap::new());
    let folder = std::env::var_os(SOURCES_VARIABLE).filter(|folder| !folder.is_empty())?;
    let mut read = READ.lock().unwrap_or_else(PoisonError::into_inner);
    *read.entry(path.to_owned()).or_insert_with(|| {
        let text = std::fs::read_to_string(Path::new(&folder).join(path)).ok()?;
        Some(Box::leak(text.into_boxed_str()))
    })
}

fn include(text: &'static str, out: &mut String, seen: &mut Vec<&'static str>) {
    for line in text.lines() {
        match line.strip_prefix("#include \"").and_then(|rest| rest.strip_suffix('"')) {
            Some(path) if seen.contains(&path) => {}
            Some(path) => {
                seen.push(path);
                include(text_of(path), out, seen);
            }
            None => {
                out.push_str(line);
                out.push('\n');
            }
        }
    }
}

/// FNV-1a: stable across machines and releases, which the standard library's hasher need not be.
struct Fnv(u64);

impl Default for Fnv {
    fn default() -> Self {
        Fnv(0xcbf2_9ce4_8422_2325)
    }
}

impl Hasher for Fnv {
    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.0 = (self.0 ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }

    fn finish(&self) -> u64 {
        self.0
    }
}
