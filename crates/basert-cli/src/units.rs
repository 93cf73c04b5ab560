//! Human-readable numbers.

use std::time::Duration;

/// With a decimal prefix and three digits: `98.4 MB`, `1.23 GFLOP`.
pub fn with_prefix(value: f64, unit: &str) -> String {
    let mut value = value;
    for prefix in ["", "k", "M", "G", "T"] {
        if value < 999.5 {
            let digits = match value {
                _ if prefix.is_empty() || value >= 99.95 => 0,
                _ if value >= 9.995 => 1,
                _ => 2,
            };
            return format!("{value:.digits$} {prefix}{unit}");
        }
        value /= 1000.0;
    }
    format!("{value:.0} P{unit}")
}

/// Bytes with a decimal prefix.
pub fn bytes(bytes: f64) -> String {
    with_prefix(bytes, "B")
}

/// `12.3 ms`, `4.56 s`.
pub fn seconds(time: Duration) -> String {
    let seconds = time.as_secs_f64();
    if seconds < 1.0 { format!("{:.1} ms", seconds * 1e3) } else { format!("{seconds:.2} s") }
}

/// The largest width of a column, in characters.
const WIDEST: usize = 100;

/// A table with columns as wide as their cells, two spaces apart. The first `left` columns and the last are
/// left-aligned.
pub fn table(rows: &[Vec<String>], left: usize) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    // A longer cell is written in full, beyond its column.
    let width = |column: usize| {
        rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count().min(WIDEST)).max()
    };
    let widths: Vec<_> = (0..columns).map(|column| width(column).unwrap_or(0)).collect();
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (column, (cell, width)) in row.iter().zip(&widths).enumerate() {
            // Padded by hand, because the width in a format string has a limit.
            let space = " ".repeat(width.saturating_sub(cell.chars().count()));
            let gap = if column == 0 { "" } else { "  " };
            let (before, after) = if column < left || column + 1 == columns { ("", &*space) } else { (&*space, "") };
            line.extend([gap, before, cell, after]);
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_digits() {
        assert_eq!(bytes(98_362_432.0), "98.4 MB");
        assert_eq!(bytes(0.0), "0 B");
        assert_eq!(bytes(999.0), "999 B");
        assert_eq!(bytes(999_600.0), "1.00 MB");
        assert_eq!(with_prefix(2e16, "FLOP"), "20 PFLOP");
    }

    #[test]
    fn columns_line_up() {
        let row = |cells: [&str; 3]| cells.map(str::to_owned).to_vec();
        assert_eq!(table(&[row(["a", "1", "x"]), row(["bb", "22", "y"])], 1), "a    1  x\nbb  22  y\n");
    }
}
