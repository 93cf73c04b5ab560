//! Output of measurements.

use basert::{KvFormat, ModelInfo};
use serde_json::{Value, json};

use super::machine::{Machine, bytes_per_token};
use super::workload::{Kind, Test};
use crate::units;

/// Measurements to show.
pub struct Report<'a> {
    pub model: &'a ModelInfo,
    pub tests: &'a [Test],
    /// The machine's peaks, if the model ran on the CPU.
    pub machine: Option<&'a Machine>,
    /// The name of the other engine.
    pub peer: Option<&'a str>,
}

impl Report<'_> {
    /// Lines that describe the model, the device and the method.
    pub fn subject(&self) -> Vec<String> {
        let (file, device) = (self.model.file(), self.model.device());
        let size = units::bytes(file.total_bytes() as f64);
        let kv = match self.model.kv() {
            KvFormat::F16 => String::new(),
            kv => format!(", KV cache in {kv}"),
        };
        let model = format!("{}, {size}, on {}: {}{kv}", file.path().display(), device.name, device.description);
        let peer = self.peer.map(|peer| format!("in turn with {peer}; medians, and the range of the ratio"));
        [Some(model), self.machine.map(Machine::line), peer].into_iter().flatten().collect()
    }

    pub fn table(&self, markdown: bool) -> String {
        let mut head = vec!["test"];
        head.extend(match self.peer {
            Some(_) => &["tokens/s", "theirs", "ratio", "range"][..],
            None => &["tokens/s", "±"],
        });
        head.push("GB/s");
        head.extend(self.machine.map(|_| "of peak"));
        let mut rows = vec![head.into_iter().map(str::to_owned).collect()];
        rows.extend(self.tests.iter().map(|test| self.row(test)));
        layout(rows, markdown)
    }

    fn row(&self, test: &Test) -> Vec<String> {
        let rates = test.rates(&test.seconds);
        let (rate, mut row) = if self.peer.is_some() {
            let (rate, theirs) = (median(&rates), median(&test.rates(&test.peer_seconds)));
            let (ratio, (least, most)) = (median(&test.ratios()), range(&test.ratios()));
            let range = format!("{least:.2} to {most:.2}");
            (rate, vec![test.name(), format!("{rate:.1}"), format!("{theirs:.1}"), format!("{ratio:.2}"), range])
        } else {
            let (mean, deviation) = mean_and_deviation(&rates);
            (mean, vec![test.name(), format!("{mean:.1}"), format!("{deviation:.1}")])
        };
        row.push(self.bytes(test).map_or(String::new(), |bytes| format!("{:.1}", bytes * rate / 1e9)));
        row.extend(self.machine.map(|machine| format!("{:.0} %", 100.0 * self.share(machine, test, rate))));
        row
    }

    /// Bytes that decoding reads for each token; none for prefill.
    fn bytes(&self, test: &Test) -> Option<f64> {
        (test.kind == Kind::Decode).then(|| bytes_per_token(test, self.model))
    }

    fn share(&self, machine: &Machine, test: &Test, rate: f64) -> f64 {
        machine.share(test, self.model, (test.tokens * test.sequences) as f64 / rate)
    }

    pub fn json(&self) -> Value {
        let (file, device) = (self.model.file(), self.model.device());
        json!({
            "version": env!("CARGO_PKG_VERSION"),
            "model": file.path().display().to_string(),
            "architecture": self.model.plan().graph.family,
            "file_bytes": file.total_bytes(),
            "device": device.name,
            "device_description": device.description,
            "kv_bits": self.model.kv().bits(),
            "machine": self.machine.map(Machine::json),
            "peer": self.peer,
            "tests": self.tests.iter().map(|test| self.test_json(test)).collect::<Vec<_>>(),
        })
    }

    fn test_json(&self, test: &Test) -> Value {
        let (mean, deviation) = mean_and_deviation(&test.rates(&test.seconds));
        let bytes = self.bytes(test);
        let peer = self.peer.map(|_| {
            let (ratios, rates) = (test.ratios(), test.rates(&test.peer_seconds));
            let (least, most) = range(&ratios);
            json!({
                "tokens_per_second": mean_and_deviation(&rates).0,
                "deviation": mean_and_deviation(&rates).1,
                "ratio": { "median": median(&ratios), "least": least, "most": most },
                "seconds": test.peer_seconds,
            })
        });
        json!({
            "kind": if test.kind == Kind::Prefill { "prefill" } else { "decode" },
            "tokens": test.tokens,
            "depth": test.depth,
            "sequences": test.sequences,
            "tokens_per_second": mean,
            "deviation": deviation,
            "bytes_per_token": bytes,
            "gigabytes_per_second": bytes.map(|bytes| bytes * mean / 1e9),
            "share_of_peak": self.machine.map(|machine| self.share(machine, test, mean)),
            "seconds": test.seconds,
            "peer": peer,
        })
    }
}

/// A table whose first row is its head, as text or in Markdown. All columns but the first are right-aligned.
pub fn layout(mut rows: Vec<Vec<String>>, markdown: bool) -> String {
    if !markdown {
        // Otherwise the last column would be left-aligned.
        let widest = rows.iter().filter_map(|row| row.last()).map(|cell| cell.chars().count()).max().unwrap_or(0);
        rows.iter_mut().filter_map(|row| row.last_mut()).for_each(|cell| *cell = format!("{cell:>widest$}"));
        return units::table(&rows, 1);
    }
    let line = |cells: &Vec<String>| format!("| {} |\n", cells.join(" | "));
    let head = rows.remove(0);
    let rule = format!("| --- |{}\n", " ---: |".repeat(head.len() - 1));
    line(&head) + &rule + &rows.iter().map(line).collect::<String>()
}

fn mean_and_deviation(samples: &[f64]) -> (f64, f64) {
    let n = samples.len() as f64;
    let mean = samples.iter().sum::<f64>() / n;
    let squares: f64 = samples.iter().map(|sample| (sample - mean).powi(2)).sum();
    // A single sample has no deviation; it is shown as 0.
    (mean, (squares / (n - 1.0).max(1.0)).sqrt())
}

/// The middle sample, or the mean of the two in the middle.
fn median(samples: &[f64]) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = |i: usize| sorted.get(i).copied().unwrap_or(f64::NAN);
    (middle(sorted.len().saturating_sub(1) / 2) + middle(sorted.len() / 2)) / 2.0
}

fn range(samples: &[f64]) -> (f64, f64) {
    samples.iter().fold((f64::INFINITY, f64::NEG_INFINITY), |(least, most), &x| (least.min(x), most.max(x)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statistics() {
        assert_eq!(mean_and_deviation(&[1.0, 2.0, 3.0]), (2.0, 1.0));
        assert_eq!(mean_and_deviation(&[5.0]), (5.0, 0.0));
        assert_eq!((median(&[3.0, 1.0, 2.0]), median(&[4.0, 1.0, 2.0, 3.0]), median(&[7.0])), (2.0, 2.5, 7.0));
        assert_eq!(range(&[2.0, 1.0, 3.0]), (1.0, 3.0));
    }

    #[test]
    fn tables() {
        let rows = || [["a", "b"], ["cc", "×1"]].map(|row| row.map(str::to_owned).to_vec()).to_vec();
        assert_eq!(layout(rows(), false), "a    b\ncc  ×1\n");
        assert_eq!(layout(rows(), true), "| a | b |\n| --- | ---: |\n| cc | ×1 |\n");
    }
}
