//! The table of `cargo xtask bench`, or its JSON objects.

use serde_json::{Value, json};

use super::measure::{Case, Sample, Unit, median};
use crate::machine;

/// How the results are printed, and under which conditions they were measured.
pub(super) struct Report {
    pub(super) threads: usize,
    pub(super) runs: usize,
    /// Versions of the peer's packages.
    pub(super) versions: Option<String>,
    pub(super) json: bool,
}

/// Medians over the runs of one side.
struct Medians {
    seconds: f64,
    /// Shares of the rate of matrix multiplication: with the multiplications that are done, and with those of direct
    /// convolutions.
    roof_share: Option<f64>,
    direct_roof_share: Option<f64>,
    peak_rss_bytes: Option<f64>,
}

impl Medians {
    fn of(samples: &[Sample]) -> Option<Self> {
        let median_of = |value: &dyn Fn(&Sample) -> Option<f64>| {
            let values: Vec<f64> = samples.iter().filter_map(value).collect();
            (!values.is_empty()).then(|| median(values))
        };
        Some(Self {
            seconds: median_of(&|s| Some(s.timing.seconds))?,
            roof_share: median_of(&|s| s.timing.roof.map(|roof| roof.executed_seconds / s.timing.seconds)),
            direct_roof_share: median_of(&|s| {
                s.timing.roof.map(|roof| roof.direct_seconds / s.timing.seconds)
            }),
            peak_rss_bytes: median_of(&|s| s.peak_rss_bytes.map(|bytes| bytes as f64)),
        })
    }

    fn rate(&self, unit: Unit) -> String {
        match unit {
            Unit::Images(n) => format!("{:.1} images/s", n / self.seconds),
            Unit::Flop(n) => format!("{:.1} GFLOP/s", n / self.seconds / 1e9),
            Unit::Call if self.seconds < 1.0 => format!("{:.2} ms", 1e3 * self.seconds),
            Unit::Call => format!("{:.2} s", self.seconds),
        }
    }

    fn memory(&self) -> String {
        self.peak_rss_bytes.map_or("-".to_owned(), |bytes| format!("{:.2} GiB", bytes / f64::from(1 << 30)))
    }

    fn to_json(&self, unit: Unit) -> Value {
        let peak_rss_bytes = self.peak_rss_bytes.map(|bytes| bytes as u64);
        let mut object = json!({ "seconds": self.seconds, "peak_rss_bytes": peak_rss_bytes });
        match unit {
            Unit::Images(n) => object["images_per_second"] = json!(n / self.seconds),
            Unit::Flop(n) => object["gflop_per_second"] = json!(n / self.seconds / 1e9),
            Unit::Call => {}
        }
        if let (Some(share), Some(direct)) = (self.roof_share, self.direct_roof_share) {
            object["roof_share"] = json!(share);
            object["direct_roof_share"] = json!(direct);
        }
        object
    }
}

impl Report {
    pub(super) fn print_header(&self, width: usize) {
        if self.json {
            return;
        }
        let (version, cpu) = (env!("CARGO_PKG_VERSION"), machine::cpu());
        println!("ssl-vision {version} on {cpu}, threads: {}, runs: {}", self.threads, self.runs);
        if let Some(versions) = &self.versions {
            println!("peer: {versions}");
        }
        let peer = if self.versions.is_some() {
            format!("  {:>16}  {:>9}  {:>6}  {:>6}", "peer", "peak", "speed", "memory")
        } else {
            String::new()
        };
        println!("\n{:width$}  {:>16}  {:>9}{peer}", "case", "ours", "peak");
    }

    pub(super) fn print(&self, case: &Case, ours: &[Sample], theirs: &[Sample], width: usize) {
        let Some(own) = Medians::of(ours) else { return };
        let peer = Medians::of(theirs);
        if self.json {
            println!("{}", self.object(case, &own, peer.as_ref()));
            return;
        }
        let mut line = format!("{:width$}  {:>16}  {:>9}", case.id, own.rate(case.unit), own.memory());
        if let Some(peer) = &peer {
            let speed = peer.seconds / own.seconds;
            let memory = memory_ratio(&own, peer).map_or("-".to_owned(), |ratio| format!("{ratio:.2}"));
            line +=
                &format!("  {:>16}  {:>9}  {speed:>6.2}  {memory:>6}", peer.rate(case.unit), peer.memory());
        }
        if let (Some(share), Some(direct)) = (own.roof_share, own.direct_roof_share) {
            line += &format!(
                "  {share:.2} of the rate of matrix multiplication ({direct:.2} if counted as direct convolutions)"
            );
        }
        println!("{line}");
    }

    fn object(&self, case: &Case, own: &Medians, peer: Option<&Medians>) -> Value {
        let mut object = json!({ "case": case.id });
        merge(&mut object, own.to_json(case.unit));
        object["threads"] = json!(case.threads(self.threads));
        object["runs"] = json!(self.runs);
        object["version"] = json!(env!("CARGO_PKG_VERSION"));
        object["cpu"] = json!(machine::cpu());
        if let Some(peer) = peer {
            object["peer"] = peer.to_json(case.unit);
            object["peer"]["versions"] = json!(self.versions);
            object["speed_ratio"] = json!(peer.seconds / own.seconds);
            object["memory_ratio"] = json!(memory_ratio(own, peer));
        }
        object
    }
}

fn merge(object: &mut Value, more: Value) {
    if let (Value::Object(fields), Value::Object(more)) = (object, more) {
        fields.extend(more);
    }
}

fn memory_ratio(own: &Medians, peer: &Medians) -> Option<f64> {
    Some(peer.peak_rss_bytes? / own.peak_rss_bytes?)
}

/// Width of the column of ids.
pub(super) fn width(cases: &[Case]) -> usize {
    cases.iter().map(|case| case.id.len()).max().unwrap_or(0)
}
