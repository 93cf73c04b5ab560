//! The chips that rooflines are known for: `chips.toml`.

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
}

#[derive(Deserialize)]
struct Table {
    chip: Vec<Chip>,
}

/// All chips of the table.
pub fn chips() -> Vec<Chip> {
    toml::from_str::<Table>(include_str!("chips.toml")).map(|table| table.chip).unwrap_or_default()
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_parses_and_names_are_unique() {
        let mut names: Vec<_> = chips().into_iter().map(|chip| chip.name).collect();
        assert!(names.len() > 15);
        names.sort();
        names.dedup();
        assert_eq!(names.len(), chips().len());
        assert_eq!(chip("M4-Pro").unwrap().bandwidth, 273.0);
        assert!(chip("m9").unwrap_err().contains("m5-max"));
    }
}
