//! Exact k nearest neighbours of random features.

use anyhow::Result;
use ssl_vision::eval::{Features, KnnConfig, knn_predict};

use super::Suite;
use super::measure::{Case, Timing, Unit, time};
use super::step::noise;

const BANK: usize = 60_000;
const QUERIES: usize = 10_000;
const DIM: usize = 512;
const CLASSES: usize = 10;

pub(super) fn cases() -> Vec<Case> {
    vec![Case::new(Suite::Knn, "knn/60000x10000x512", Unit::Call, predict)]
}

fn predict() -> Result<Timing> {
    let (bank, queries) = (features(0, BANK)?, features(1, QUERIES)?);
    let config = KnnConfig { k: 20, ..KnnConfig::default() };
    time(1, 1, || Ok(knn_predict(&bank, &queries, CLASSES, &config)?))
}

fn features(seed: u64, rows: usize) -> Result<Features> {
    let data = noise(seed, rows * DIM)?.to_vec1()?;
    Ok(Features::new(data, DIM, (0..rows).map(|row| (row % CLASSES) as u32).collect())?)
}
