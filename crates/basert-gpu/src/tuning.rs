//! How kernels are specialised on a device: the first rule of a table whose limits hold. What is legal is said here in
//! code; which of it is taken is the table's choice.

use std::fmt;
use std::io::{self, Write};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::cache::cache_dir;
use crate::kernel::developed;
use crate::lower::THREADGROUP_BYTES;
use crate::step::PAGE;
use crate::{CacheKey, GpuError, GpuFacts, SOURCES};

/// The shape of a matrix product.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Product {
    /// Rows of the input, at most.
    pub tokens: usize,
    /// Rows of the weights.
    pub rows: usize,
    /// Columns of both.
    pub columns: usize,
}

/// When a rule holds: up to these sizes, where they are given.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Limits {
    /// Of [`Product::tokens`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokens: Option<usize>,
    /// Of [`Product::rows`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rows: Option<usize>,
    /// Of [`Product::columns`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub columns: Option<usize>,
}

/// How a product of few rows is computed (`linear/gemv.metal`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gemv {
    /// Rows of weights that a simdgroup has: 2, 4, 8 or 16.
    pub each: usize,
    /// Simdgroups of a threadgroup, at most.
    pub simdgroups: usize,
    /// How many of them divide the columns.
    pub split: usize,
}

/// How a product of many rows is computed (`linear/gemm.metal`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gemm {
    /// Rows of the output that a threadgroup has.
    pub m: usize,
    /// Columns of the output that it has.
    pub n: usize,
    /// Its simdgroups, which divide those columns.
    pub simdgroups: usize,
    /// Threadgroups that a core is to have at once: their registers are limited to that, and where a product has not as many,
    /// some divide its columns.
    pub resident: usize,
}

/// How attention of single tokens is computed (`attention/decode.metal`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Decode {
    /// Simdgroups of a threadgroup.
    pub simdgroups: usize,
    /// Query values that a simdgroup holds at most: heads that share keys, times their size.
    pub values: usize,
    /// Threadgroups wanted for each core, where a long context is divided.
    pub groups_per_core: usize,
    /// Tokens of the shortest part of a divided context, in whole pages.
    pub least_split: usize,
    /// Whether heads that share keys are taken together as a product of matrices, where a context is divided: by half as many
    /// simdgroups at most, however many values there are.
    #[serde(default)]
    pub tiles: bool,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Rule<T> {
    #[serde(flatten)]
    limits: Limits,
    #[serde(flatten)]
    choice: T,
}

/// The table of a kind of device.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tuning {
    /// GPUs that it was measured on: parts of what they call themselves.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub measured_on: Vec<String>,
    /// Tokens of the largest step that is worth it.
    pub step_tokens: usize,
    /// Products of at most so many rows are computed as those of few.
    pub few_tokens: usize,
    /// Whether products of few rows have their inputs quantised, for a device that multiplies four bytes at once.
    pub integer_dots: bool,
    /// Bytes of threadgroup memory that products of many rows may take: 32 KiB, or more where all GPUs of the table have more.
    #[serde(default = "least_threadgroup_bytes")]
    pub threadgroup_bytes: usize,
    gemv: Vec<Rule<Gemv>>,
    gemm: Vec<Rule<Gemm>>,
    /// Attention of single tokens.
    pub decode: Decode,
}

fn least_threadgroup_bytes() -> usize {
    THREADGROUP_BYTES
}

/// Columns of a strip of what products of many rows have for their input (`common/strips.h`).
pub const STRIP: usize = 128;

/// The tables that come with the project.
const TABLES: [(&str, &str); 4] = [
    ("apple", include_str!("../tuning/apple.toml")),
    ("apple10", include_str!("../tuning/apple10.toml")),
    ("cuda", include_str!("../tuning/cuda.toml")),
    ("simt", include_str!("../tuning/simt.toml")),
];

impl Gemv {
    /// Those that are worth trying.
    pub fn candidates() -> Vec<Gemv> {
        let shapes = [
            (2, 1),
            (2, 2),
            (4, 1),
            (4, 2),
            (4, 4),
            (8, 1),
            (8, 2),
            (8, 4),
            (16, 1),
            (16, 2),
            (16, 4),
            (32, 4),
            (32, 8),
        ];
        let all =
            [2, 4].into_iter().flat_map(|each| shapes.map(|(simdgroups, split)| Gemv { each, simdgroups, split }));
        all.filter(|gemv| gemv.is_legal()).collect()
    }

    /// Rows of weights that a threadgroup has.
    pub fn rows(&self) -> usize {
        self.simdgroups / self.split * self.each
    }

    /// The same with as many simdgroups as give each core as many threadgroups as the others. Where there are threadgroups for
    /// less than half of the cores it stays what it is: each of them prepares the whole input, so more are not worth it.
    #[must_use]
    pub fn spread(self, rows: usize, cores: usize) -> Gemv {
        let groups = rows.div_ceil(self.rows());
        if 2 * groups < cores {
            return self;
        }
        let rounds = groups.div_ceil(cores.max(1)).max(1);
        let sets = rows.div_ceil(rounds * cores.max(1)).div_ceil(self.each).max(1);
        Gemv { simdgroups: self.simdgroups.min(sets * self.split), ..self }
    }

    fn is_legal(&self) -> bool {
        let Gemv { each, simdgroups, split } = *self;
        [2, 4, 8, 16].contains(&each) && (1..=32).contains(&simdgroups) && split > 0 && simdgroups.is_multiple_of(split)
    }
}

impl Gemm {
    /// Those that are worth trying.
    pub fn candidates() -> Vec<Gemm> {
        let mut all = Vec::new();
        for m in [16, 32, 64, 128] {
            for n in [32, 64, 128, 256] {
                for (simdgroups, resident) in [(2, 1), (2, 4), (4, 1), (4, 2), (4, 4), (8, 1), (8, 2)] {
                    all.push(Gemm { m, n, simdgroups, resident });
                }
            }
        }
        all.retain(Gemm::is_legal);
        all
    }

    /// Halves of strips (`common/strips.h`) that there is room for in so many bytes of threadgroup memory.
    pub fn stages(&self, threadgroup_bytes: usize) -> usize {
        const MOST: usize = 4;
        (threadgroup_bytes / (self.m * STRIP)).min(MOST)
    }

    /// How many threadgroups divide the columns of a product, where the rest of it is for so many `groups`: as many as cores
    /// have at once, as far as there are strips.
    pub fn parts(&self, groups: usize, columns: usize, cores: usize) -> usize {
        const MOST: usize = 16;
        let strips = columns.div_ceil(STRIP);
        let wanted = (self.resident * cores / groups.max(1)).clamp(1, strips.clamp(1, MOST));
        // Parts of whole strips, none of them empty.
        strips.div_ceil(strips.div_ceil(wanted).max(1)).max(1)
    }

    fn is_legal(&self) -> bool {
        let Gemm { m, n, simdgroups, resident } = *self;
        [16, 32, 64, 128].contains(&m)
            && (16..=512).contains(&n)
            && (1..=32).contains(&simdgroups)
            && (1..=8).contains(&resident)
            && n.is_multiple_of(16 * simdgroups)
            && self.stages(THREADGROUP_BYTES) >= 2
            // A lane holds eight sums of each tile.
            && m * n / (16 * 16) / simdgroups <= 16
            // Its sums, and 64 registers more, are what a thread has then.
            && resident * simdgroups * (64 + m * n / 32 / simdgroups) <= 2048
    }
}

impl Decode {
    /// Those that are worth trying.
    pub fn candidates() -> Vec<Decode> {
        let mut all = Vec::new();
        for simdgroups in [2, 4, 8] {
            for values in [128, 256, 512] {
                for (groups_per_core, least_split) in [(2, 64), (2, 256), (4, 64), (4, 128), (4, 256), (8, 128)] {
                    all.push(Decode { simdgroups, values, groups_per_core, least_split, tiles: false });
                }
            }
        }
        for (groups_per_core, least_split) in [(2, 64), (2, 256), (3, 64), (3, 128), (4, 128)] {
            all.push(Decode { simdgroups: 8, values: 256, groups_per_core, least_split, tiles: true });
        }
        all.retain(Decode::is_legal);
        all
    }

    fn is_legal(&self) -> bool {
        let Decode { simdgroups, values, groups_per_core, least_split, .. } = *self;
        // The largest heads have 256 values, and their sums are put together in threadgroup memory.
        let held = values.clamp(256, 1024);
        (1..=32).contains(&simdgroups)
            && (1..=1024).contains(&values)
            && (1..=64).contains(&groups_per_core)
            && (simdgroups * (held + 2) + held + 2 * 256) * size_of::<f32>() <= THREADGROUP_BYTES
            && (PAGE..=1 << 20).contains(&least_split)
            && least_split.is_multiple_of(PAGE)
    }
}

/// A way to specialise one of the kernels that there are several of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Variant {
    /// Of the product of few rows.
    Gemv(Gemv),
    /// Of the product of many rows.
    Gemm(Gemm),
    /// Of attention of single tokens.
    Decode(Decode),
}

impl Variant {
    /// The kernels that this is one of.
    pub fn family(&self) -> Family {
        match self {
            Variant::Gemv(_) => Family::Gemv,
            Variant::Gemm(_) => Family::Gemm,
            Variant::Decode(_) => Family::Decode,
        }
    }
}

impl fmt::Display for Variant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Variant::Gemv(Gemv { each, simdgroups, split }) => {
                write!(f, "gemv each={each} simdgroups={simdgroups} split={split}")
            }
            Variant::Gemm(Gemm { m, n, simdgroups, resident }) => {
                write!(f, "gemm m={m} n={n} simdgroups={simdgroups} resident={resident}")
            }
            Variant::Decode(Decode { simdgroups, values, groups_per_core, least_split, tiles }) => write!(
                f,
                "decode simdgroups={simdgroups} values={values} groups_per_core={groups_per_core} \
                 least_split={least_split} tiles={tiles}"
            ),
        }
    }
}

/// A kernel of which there are variants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// The product of few rows.
    Gemv,
    /// The product of many rows.
    Gemm,
    /// Attention of single tokens.
    Decode,
}

impl Family {
    /// All of them.
    pub const ALL: [Family; 3] = [Family::Gemv, Family::Gemm, Family::Decode];

    /// The variants that are worth trying on devices of this table; all are legal.
    pub fn candidates(self, table: &str) -> Vec<Variant> {
        // A product of the tensor units has 32 rows of x.
        let wide = |gemm: &Gemm| table != "apple10" || gemm.m >= 32;
        match self {
            Family::Gemv => Gemv::candidates().into_iter().map(Variant::Gemv).collect(),
            Family::Gemm => Gemm::candidates().into_iter().filter(wide).map(Variant::Gemm).collect(),
            Family::Decode => Decode::candidates().into_iter().map(Variant::Decode).collect(),
        }
    }
}

impl Tuning {
    /// The table that a device's kernels are chosen from: the one that was measured on it, if there is one, or else the
    /// one that comes with the project.
    ///
    /// # Errors
    /// When the measured table is not well-formed.
    pub fn of_device(facts: &GpuFacts) -> Result<Tuning, GpuError> {
        Ok(Tuning::measured(facts)?.unwrap_or_else(|| Tuning::named(facts.tuning)))
    }

    /// Where the table measured on a device is or would be, if there is a home: `~/.cache/basert/tuning/NAME-KEY.toml`. The
    /// key stands for the chip, what compiles and runs its kernels, and the kernels: what was found out with others may not hold.
    pub fn path(facts: &GpuFacts) -> Option<PathBuf> {
        let device = [facts.tuning, &facts.description, &facts.software];
        let sources = SOURCES.iter().map(|(_, text)| *text);
        let key = CacheKey::new(device.into_iter().chain(sources)).to_string();
        Some(cache_dir()?.join("tuning").join(format!("{}-{}.toml", facts.tuning, &key[..16])))
    }

    /// The table that was measured on a device, if there is one.
    ///
    /// # Errors
    /// When it is not well-formed, or has no rule for some sizes.
    pub fn measured(facts: &GpuFacts) -> Result<Option<Tuning>, GpuError> {
        if developed(&format!("tuning/{}.toml", facts.tuning)).is_some() {
            return Ok(Some(Tuning::named(facts.tuning)));
        }
        let Some((path, text)) =
            Tuning::path(facts).and_then(|path| Some((path.clone(), std::fs::read_to_string(path).ok()?)))
        else {
            return Ok(None);
        };
        let wrong = |what: &str| {
            GpuError::Failed(format!("{}: {what}; remove it, or let `basert tune` replace it", path.display()))
        };
        let tuning: Tuning = toml::from_str(&text).map_err(|error| wrong(error.message()))?;
        if !tuning.is_complete() {
            return Err(wrong("sizes and choices must be legal, and the last rules of gemv and gemm without limits"));
        }
        Ok(Some(tuning))
    }

    /// Keeps it as the table measured on a device, and tells where.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn keep(&self, facts: &GpuFacts) -> io::Result<PathBuf> {
        let path = Tuning::path(facts).ok_or_else(|| io::Error::other("there is no home folder"))?;
        let folder = path.parent().ok_or_else(|| io::Error::other("it has no folder"))?;
        std::fs::create_dir_all(folder)?;
        let mut file = tempfile::NamedTempFile::new_in(folder)?;
        write!(file, "# {}\n# {}\n\n{}", facts.description, facts.software, self.to_toml())?;
        file.persist(&path)?;
        Ok(path)
    }

    /// The table as a file has it.
    pub fn to_toml(&self) -> String {
        toml::to_string(self).unwrap_or_default()
    }

    /// Whether there is a rule for every product, and every choice is legal: all that the rest of the crate relies on.
    fn is_complete(&self) -> bool {
        let unlimited = |limits: Option<Limits>| limits == Some(Limits::default());
        (1..=1 << 16).contains(&self.step_tokens)
            && self.few_tokens <= 64
            && (THREADGROUP_BYTES..=48 << 10).contains(&self.threadgroup_bytes)
            && unlimited(self.gemv.last().map(|rule| rule.limits))
            && unlimited(self.gemm.last().map(|rule| rule.limits))
            && self.gemv.iter().all(|rule| rule.choice.is_legal())
            && self.gemm.iter().all(|rule| rule.choice.is_legal())
            && self.decode.is_legal()
    }

    /// For each rule of a family when it holds, and what it chooses.
    pub fn rules(&self, family: Family) -> Vec<(Limits, Variant)> {
        match family {
            Family::Gemv => self.gemv.iter().map(|rule| (rule.limits, Variant::Gemv(rule.choice))).collect(),
            Family::Gemm => self.gemm.iter().map(|rule| (rule.limits, Variant::Gemm(rule.choice))).collect(),
            Family::Decode => vec![(Limits::default(), Variant::Decode(self.decode))],
        }
    }

    /// The same table with another choice of one rule, or of all rules of that family.
    #[must_use]
    pub fn with(mut self, rule: Option<usize>, variant: Variant) -> Tuning {
        fn choose<T: Copy>(rules: &mut [Rule<T>], rule: Option<usize>, choice: T) {
            let chosen = rules.iter_mut().enumerate().filter(|(i, _)| rule.is_none_or(|rule| rule == *i));
            chosen.for_each(|(_, rule)| rule.choice = choice);
        }
        match variant {
            Variant::Gemv(choice) => choose(&mut self.gemv, rule, choice),
            Variant::Gemm(choice) => choose(&mut self.gemm, rule, choice),
            Variant::Decode(choice) => self.decode = choice,
        }
        self
    }

    /// The table of this name that comes with the project.
    ///
    /// # Panics
    /// When there is none, or it is not well-formed, which a test rules out.
    pub fn named(name: &str) -> Tuning {
        let (_, built_in) = TABLES.iter().find(|(table, _)| *table == name).expect("every device has its table");
        let text = developed(&format!("tuning/{name}.toml")).unwrap_or(built_in);
        toml::from_str(text).expect("tables are well-formed")
    }

    /// Whether it was measured on this GPU.
    pub fn knows(&self, facts: &GpuFacts) -> bool {
        self.measured_on.iter().any(|name| facts.description.contains(name))
    }

    /// How a product of few rows is computed, on so many cores.
    pub fn gemv(&self, product: Product, cores: usize) -> Gemv {
        choose(&self.gemv, product).spread(product.rows, cores)
    }

    /// How a product of many rows is computed.
    pub fn gemm(&self, product: Product) -> Gemm {
        choose(&self.gemm, product)
    }
}

fn choose<T: Copy>(rules: &[Rule<T>], product: Product) -> T {
    let within = |value: usize, limit: Option<usize>| limit.is_none_or(|limit| value <= limit);
    let holds = |limits: &Limits| {
        within(product.tokens, limits.tokens)
            && within(product.rows, limits.rows)
            && within(product.columns, limits.columns)
    };
    rules.iter().find(|rule| holds(&rule.limits)).expect("the last rule has no limits").choice
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_well_formed_and_their_rules_legal() {
        for (name, _) in TABLES {
            let tuning = Tuning::named(name);
            assert!(tuning.is_complete(), "{name}");
            let read: Tuning = toml::from_str(&tuning.to_toml()).unwrap();
            assert_eq!(read, tuning);
        }
    }
    /// Whatever a file says, no number in it gets as far as a kernel that it is not legal for.
    #[test]
    fn what_is_not_legal_is_no_table() {
        let text = Tuning::named("apple").to_toml();
        let read = |text: &str| toml::from_str::<Tuning>(text).is_ok_and(|tuning| tuning.is_complete());
        assert!(read(&text));
        let names = ["each", "simdgroups", "split", "m", "n", "resident", "values", "groups_per_core", "least_split"];
        for name in names.into_iter().chain(["step_tokens"]) {
            for number in [0, i64::MAX] {
                let changed: Vec<_> = text
                    .lines()
                    .map(|line| match line.split_once(" = ") {
                        Some((found, _)) if found == name => format!("{name} = {number}"),
                        _ => line.to_owned(),
                    })
                    .collect();
                assert!(!read(&changed.join("\n")), "{name} = {number}");
            }
        }
        assert!(!read(&text.replace("few_tokens = 8", "few_tokens = 9999")));
    }

    #[test]
    fn a_choice_is_changed_in_one_rule_or_all() {
        let tuning = Tuning::named("cuda");
        let choices =
            |tuning: &Tuning| tuning.rules(Family::Gemv).into_iter().map(|(_, choice)| choice).collect::<Vec<_>>();
        let other = Variant::Gemv(Gemv { each: 2, simdgroups: 2, split: 2 });
        let mut expected = choices(&tuning);
        assert!(!expected.contains(&other) && expected.len() > 2);
        assert_eq!(choices(&tuning.clone().with(None, other)), vec![other; expected.len()]);
        expected[1] = other;
        assert_eq!(choices(&tuning.clone().with(Some(1), other)), expected);
        assert_eq!(tuning.clone().with(None, other).rules(Family::Gemm), tuning.rules(Family::Gemm));
    }

    #[test]
    fn threadgroups_are_spread_over_the_cores() {
        let most = Gemv { each: 4, simdgroups: 32, split: 4 };
        let simdgroups = |rows, cores| most.spread(rows, cores).simdgroups;
        // 128 threadgroups of 32 rows, of 20, and of 24; and twice as many of 16 as there are cores.
        assert_eq!([4096, 2560, 3072, 4224 + 32].map(|rows| simdgroups(rows, 132)), [32, 20, 24, 20]);
        // Too few for half of the cores, and for any.
        assert_eq!([1024, 1, 0].map(|rows| simdgroups(rows, 132)), [32; 3]);
        for (rows, cores) in (0..5000).step_by(37).flat_map(|rows| [0, 1, 7, 132].map(|cores| (rows, cores))) {
            let spread = most.spread(rows, cores);
            assert!(spread.is_legal() && spread.rows() <= most.rows(), "{rows} {cores}");
            let rounds = |choice: Gemv| rows.div_ceil(choice.rows()).div_ceil(cores.max(1));
            assert_eq!(rounds(spread), rounds(most), "{rows} {cores}");
        }
    }

    #[test]
    fn candidates_are_many_and_distinct() {
        for family in Family::ALL {
            for (table, _) in TABLES {
                let candidates = family.candidates(table);
                assert!(candidates.len() >= 10, "{family:?} on {table}: {}", candidates.len());
                assert!(candidates.iter().enumerate().all(|(i, one)| !candidates[..i].contains(one)));
            }
        }
    }

    fn facts(description: &str, software: &str) -> GpuFacts {
        GpuFacts {
            name: "cuda:0".to_owned(),
            description: description.to_owned(),
            software: software.to_owned(),
            tuning: "cuda",
            free_memory: None,
            largest_buffer: 0,
            threadgroup_memory: 0,
            cores: 1,
            bounds: None,
        }
    }

    #[test]
    fn a_table_knows_what_it_was_measured_on() {
        let knows = |description| Tuning::named("cuda").knows(&facts(description, "a driver"));
        assert!(knows("NVIDIA H100 80GB HBM3, compute capability 9.0, 79.2 GiB"));
        assert!(!knows("NVIDIA A100-SXM4-80GB, compute capability 8.0, 79.3 GiB") && !knows(""));
        assert!(!Tuning::named("apple").knows(&facts("Apple M4 Pro", "macOS")));
    }

    #[test]
    fn what_was_measured_counts_for_one_chip_system_and_compiler() {
        let all = [facts("a", "b"), facts("a", "c"), facts("c", "b")].map(|facts| Tuning::path(&facts));
        assert!(all[0].is_none() || (all[0] != all[1] && all[0] != all[2]));
        assert_eq!(all[0], Tuning::path(&facts("a", "b")));
    }
}
