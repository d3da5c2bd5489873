//! What a case is, and what a run of it yields.

use std::time::Instant;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::Suite;

/// A piece of work to be measured.
pub(super) struct Case {
    pub(super) id: String,
    pub(super) suite: Suite,
    pub(super) unit: Unit,
    /// Whether `bench_peer.py` has the same work.
    pub(super) has_peer: bool,
    pub(super) run: Box<dyn Fn() -> Result<Timing>>,
}

/// What a call of the work is worth.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Unit {
    /// So many images.
    Images(f64),
    /// So many floating-point operations.
    Flop(f64),
    /// Nothing to count.
    Call,
}

/// The time of a call of the work.
#[derive(Clone, Copy, Debug)]
pub(super) struct Timing {
    pub(super) seconds: f64,
    /// The times that matrix multiplication would take for the same arithmetic.
    pub(super) roof: Option<Roof>,
}

/// How long the convolutions of a call would take at the rate of a large matrix multiplication.
#[derive(Clone, Copy, Debug)]
pub(super) struct Roof {
    /// With the multiplications that are done.
    pub(super) executed_seconds: f64,
    /// With those of direct convolutions, of which Winograd's method saves some.
    pub(super) direct_seconds: f64,
}

/// What one process measured.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sample {
    pub(super) timing: Timing,
    /// Largest resident set of the process, where the system tells.
    pub(super) peak_rss_bytes: Option<u64>,
}

impl Case {
    pub(super) fn new(
        suite: Suite,
        id: impl Into<String>,
        unit: Unit,
        run: impl Fn() -> Result<Timing> + 'static,
    ) -> Self {
        Self { id: id.into(), suite, unit, has_peer: true, run: Box::new(run) }
    }

    /// Threads for this case if `asked` are allowed.
    pub(super) fn threads(&self, asked: usize) -> usize {
        if self.suite == Suite::Augment { 1 } else { asked }
    }
}

impl Sample {
    pub(super) fn of_this_process(timing: Timing) -> Self {
        Self { timing, peak_rss_bytes: ssl_vision::train::peak_rss_bytes() }
    }

    pub(super) fn to_json(self) -> Value {
        json!({
            "seconds": self.timing.seconds,
            "roof_executed_seconds": self.timing.roof.map(|roof| roof.executed_seconds),
            "roof_direct_seconds": self.timing.roof.map(|roof| roof.direct_seconds),
            "peak_rss_bytes": self.peak_rss_bytes,
        })
    }

    pub(super) fn from_json(text: &str) -> Result<Self> {
        let value: Value = serde_json::from_str(text).context("a run has not printed a JSON object")?;
        let seconds = value["seconds"].as_f64().context("a run has not told its seconds")?;
        let roof = value["roof_executed_seconds"].as_f64().zip(value["roof_direct_seconds"].as_f64());
        let roof = roof.map(|(executed_seconds, direct_seconds)| Roof { executed_seconds, direct_seconds });
        let timing = Timing { seconds, roof };
        Ok(Self { timing, peak_rss_bytes: value["peak_rss_bytes"].as_u64() })
    }
}

/// Calls `work` to warm up, then at least `calls` times and for a second; the median time of a call.
pub(super) fn time<T>(warm_up: usize, calls: usize, mut work: impl FnMut() -> Result<T>) -> Result<Timing> {
    for _ in 0..warm_up {
        work()?;
    }
    let (started, mut seconds) = (Instant::now(), Vec::new());
    while seconds.len() < calls || started.elapsed().as_secs_f64() < 1.0 {
        let call = Instant::now();
        work()?;
        seconds.push(call.elapsed().as_secs_f64());
    }
    Ok(Timing { seconds: median(seconds), roof: None })
}

/// The middle value, or the mean of the two in the middle; NaN of none.
pub(super) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    let n = values.len();
    if n == 0 { f64::NAN } else { (values[(n - 1) / 2] + values[n / 2]) / 2.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle() {
        assert_eq!(median(vec![3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(vec![4.0, 1.0, 2.0, 3.0]), 2.5);
        assert!(median(vec![]).is_nan());
    }
}
