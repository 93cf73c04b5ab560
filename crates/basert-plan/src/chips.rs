//! The chips with a known roofline: `chips.toml`.

use serde::Deserialize;

/// A chip's limits.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Chip {
    /// Lower case, with the size class after a dash.
    pub name: String,
    /// Memory bandwidth in GB/s (10⁹ bytes).
    pub bandwidth: f64,
    /// Arithmetic in TFLOP/s (10¹²).
    pub rate: f64,
    /// Cores of its GPU, in the largest variant.
    pub cores: usize,
    /// The Apple family of its GPU, if it has one: 9 for M3 and M4.
    pub family: Option<u32>,
    /// The least cost of launching work, if known.
    #[serde(skip)]
    pub launching: Option<Launching>,
}

/// The rates that bound every op on a device.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Bounds {
    /// Memory bandwidth in bytes per second.
    pub bandwidth: f64,
    /// Floating-point operations per second.
    pub rate: f64,
}

/// The least time that a GPU takes to launch work.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Launching {
    /// Microseconds for a barrier between dispatches.
    pub barrier: f64,
    /// Microseconds for a step's command buffer.
    pub submission: f64,
}

impl Chip {
    /// The rates that bound every op on it.
    pub fn bounds(&self) -> Bounds {
        Bounds { bandwidth: self.bandwidth * 1e9, rate: self.rate * 1e12 }
    }

    /// The least time to launch a step with this number of barriers, in microseconds; 0 if not known.
    pub fn launch_microseconds(&self, barriers: usize) -> f64 {
        self.launching.map_or(0.0, |launching| launching.submission + launching.barrier * barriers as f64)
    }
}

#[derive(Deserialize)]
struct Table {
    apple: Launching,
    chip: Vec<Chip>,
}

/// All chips of the table.
pub fn chips() -> Vec<Chip> {
    let Ok(Table { apple, chip }) = toml::from_str(include_str!("chips.toml")) else { return Vec::new() };
    chip.into_iter().map(|chip| Chip { launching: chip.family.map(|_| apple), ..chip }).collect()
}

/// The chip called `name`, in either case; an error that lists the names otherwise.
///
/// # Errors
/// When there is none.
pub fn chip(name: &str) -> Result<Chip, String> {
    let all = chips();
    all.iter().find(|chip| chip.name.eq_ignore_ascii_case(name)).cloned().ok_or_else(|| {
        let names: Vec<_> = all.iter().map(|chip| chip.name.as_str()).collect();
        format!("no chip is called '{name}'; known are this (measured now), {}", names.join(", "))
    })
}

/// The chip of a GPU whose driver reports `name`, such as `Apple M4 Pro`.
pub fn chip_of_device(name: &str) -> Option<Chip> {
    let words: Vec<_> = name.strip_prefix("Apple ")?.split_whitespace().collect();
    chip(&words.join("-")).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_found_by_what_they_call_themselves() {
        assert_eq!(chip_of_device("Apple M4 Pro").map(|chip| chip.cores), Some(20));
        assert_eq!(chip_of_device("Apple M1").map(|chip| chip.name).as_deref(), Some("m1"));
        for unknown in ["Apple Paravirtual device", "Apple M99", "AMD Radeon Pro", "Apple ", ""] {
            assert_eq!(chip_of_device(unknown), None, "{unknown}");
        }
    }

    #[test]
    fn the_table_parses_and_names_are_unique() {
        let mut names: Vec<_> = chips().into_iter().map(|chip| chip.name).collect();
        assert!(names.len() > 15);
        names.sort();
        names.dedup();
        assert_eq!(names.len(), chips().len());
        assert!(chip("m4").unwrap().launching.is_some() && chip("h100").unwrap().launching.is_none());
        assert_eq!(chip("m4").unwrap().launch_microseconds(100), 140.0);
        assert!(chips().iter().all(|chip| chip.bandwidth > 0.0 && chip.rate > 0.0 && chip.cores > 0));
        assert_eq!(chip("M4-Pro").unwrap().bandwidth, 273.0);
        assert!(chip("m9").unwrap_err().contains("m5-max"));
    }
}
