//! Masks against lightly's: counts, what always holds, and statistics of many masks.
//!
//! The masks of the files are draws of another generator. What can be compared are the numbers of hidden patches, where
//! they are fixed, and otherwise means over many times the reference's number of masks.

use anyhow::{Result, ensure};
use serde_json::Value;
use ssl_vision::methods::{BlockMask, RandomMask, inverse_block_mask};
use ssl_vision::nn::{Purpose, Rng, rng};

use super::case::{Case, Options, elements};
use super::check::Check;

/// How often the statistics of as many masks as the reference drew are taken, for their means.
const REPEATS: usize = 50;

pub(crate) fn run(case: &Case<'_>, check: &mut Check<'_>) -> Result<bool> {
    match case.entry.case.as_str() {
        "random_token_mask" => random(case, check)?,
        "random_block_mask_image" => blocks(case, check)?,
        "random_block_mask" => batches(case, check)?,
        "random_inverse_block_mask" => inverse(case, check)?,
        _ => return Ok(false),
    }
    Ok(true)
}

/// Numbers of tokens that are kept and hidden; the reference counts the class token among those that are kept.
fn random(case: &Case<'_>, check: &mut Check<'_>) -> Result<()> {
    for (i, setting) in settings(case)?.iter().enumerate() {
        let class_token = usize::from(!setting.get::<bool>("mask_class_token")?);
        let patches = setting.get::<usize>("sequence_length")? - class_token;
        let mask = RandomMask::draw(&mut generator(i), patches, setting.get("mask_ratio")?)?;
        let (visible, hidden) = (mask.visible(), mask.hidden());
        let seen: std::collections::BTreeSet<_> = visible.iter().chain(hidden).collect();
        if seen.len() != patches || visible.len() + hidden.len() != patches {
            check.fail(format!("visible and hidden patches are no partition of {patches}"));
        }
        partition(case, check, i, [visible.len() + class_token, hidden.len()])?;
    }
    Ok(())
}

/// The number of visible and hidden tokens of setting `i` against the lengths of the reference's lists.
fn partition(case: &Case<'_>, check: &mut Check<'_>, i: usize, ours: [usize; 2]) -> Result<()> {
    let suffix = if case.entry.expects("out.idx_keep") { String::new() } else { i.to_string() };
    for (list, ours) in ["keep", "mask"].into_iter().zip(ours) {
        let name = format!("out.idx_{list}{suffix}");
        let theirs = case.tensor(&name)?.dim(1)?;
        check.number(&format!("tokens in `{name}`"), ours as f64, theirs as f64, [0.0, 0.0]);
        check.exempt(&name);
    }
    Ok(())
}

/// Blocks in one image: counts, how often each patch is hidden, and how often neighbours are alike.
fn blocks(case: &Case<'_>, check: &mut Check<'_>) -> Result<()> {
    for (i, setting) in settings(case)?.iter().enumerate() {
        let grid: (usize, usize) = (setting.get("height")?, setting.get("width")?);
        let (target, calls): (usize, usize) = (setting.get("num_masks")?, setting.get("calls")?);
        let masks = block_mask(setting)?;
        let mut rng = generator(i);
        let (mut rows, mut frequency) = (vec![], vec![0.0; grid.0 * grid.1]);
        for _ in 0..REPEATS {
            let drawn: Vec<_> =
                (0..calls).map(|_| masks.draw(&mut rng, grid, target as f64)).collect::<Result<_, _>>()?;
            let counts: Vec<f64> = drawn.iter().map(|mask| count(mask) as f64).collect();
            let alike = drawn.iter().map(|mask| alike(mask, grid)).sum::<f64>() / calls as f64;
            rows.push([&moments(&counts)[..], &[alike]].concat());
            for mask in &drawn {
                frequency.iter_mut().zip(mask).for_each(|(sum, hidden)| *sum += f64::from(*hidden));
            }
        }
        frequency.iter_mut().for_each(|sum| *sum /= (REPEATS * calls) as f64);
        check.values(&format!("out.f64.stats{i}"), &[5], &means(&rows))?;
        check.values(&format!("out.f64.mask_frequency{i}"), &[grid.0, grid.1], &frequency)?;
        let theirs = case.values(&format!("out.counts{i}"))?;
        ensure!(theirs.iter().all(|count| *count <= target as f64), "the reference hides more than {target}");
        check.exempt(&format!("out.counts{i}"));
        check.exempt(&format!("out.example_masks{i}"));
    }
    Ok(())
}

/// Blocks in some images of a batch: how many are masked, and by how much.
fn batches(case: &Case<'_>, check: &mut Check<'_>) -> Result<()> {
    for (i, setting) in settings(case)?.iter().enumerate() {
        let grid: (usize, usize) = (setting.get("height")?, setting.get("width")?);
        let (images, calls): (usize, usize) = (setting.get("batch")?, setting.get("calls")?);
        let share: f64 = setting.get("batch_mask_ratio")?;
        let ratios = [setting.get("min_image_mask_ratio")?, setting.get("max_image_mask_ratio")?];
        let masks = block_mask(setting)?;
        let patches = (grid.0 * grid.1) as f64;
        let mut rng = generator(i);
        let (mut rows, mut sorted) = (vec![], vec![]);
        for _ in 0..REPEATS {
            let (mut masked, mut fractions) = (0, vec![]);
            for _ in 0..calls {
                let drawn = masks.draw_batch(&mut rng, grid, images, share, ratios)?;
                let counts = drawn.iter().map(|mask| count(mask)).filter(|count| *count > 0);
                let mut of_call: Vec<f64> = counts.map(|count| count as f64 / patches).collect();
                masked += of_call.len();
                of_call.sort_unstable_by(|a, b| b.total_cmp(a));
                fractions.extend(&of_call);
                sorted.push(of_call);
            }
            rows.push([&[masked as f64 / calls as f64], &moments(&fractions)[..]].concat());
        }
        check.values(&format!("out.f64.stats{i}"), &[5], &means(&rows))?;
        let expected = (share * images as f64).floor();
        if let Some(other) = sorted.iter().find(|of_call| of_call.len() as f64 != expected) {
            check.fail(format!("{} images of a batch are masked, not {expected}", other.len()));
        }
        let sorted = means(&sorted);
        check.values(&format!("out.f64.sorted_mean_fraction{i}"), &[sorted.len()], &sorted)?;
        let theirs = elements(&case.tensor(&format!("out.counts{i}"))?.gt(0f64)?.sum(1)?)?;
        ensure!(theirs.iter().all(|count| *count == expected), "the reference masks {theirs:?} images");
        check.exempt(&format!("out.counts{i}"));
        check.exempt(&format!("out.example_masks{i}"));
    }
    Ok(())
}

/// One visible block: its size is fixed; the class token is the first of those that are kept.
fn inverse(case: &Case<'_>, check: &mut Check<'_>) -> Result<()> {
    let patches = case.params.get::<usize>("sequence_length")? - 1;
    let side = patches.isqrt();
    ensure!(side * side == patches, "{patches} patches are no square");
    // The aspects of CAPI, which the manifest does not name.
    let mask = inverse_block_mask(&mut generator(0), (side, side), case.params.get("mask_ratio")?, 0.5)?;
    let hidden = count(&mask);
    partition(case, check, 0, [1 + patches - hidden, hidden])
}

fn settings(case: &Case<'_>) -> Result<Vec<Options>> {
    case.params.get::<Vec<Value>>("settings")?.into_iter().map(Options::new).collect()
}

/// The blocks of a setting.
fn block_mask(setting: &Options) -> Result<BlockMask> {
    let min_aspect: f64 = setting.get("min_block_aspect_ratio")?;
    let most = setting.optional("max_block_aspect_ratio")?.unwrap_or(1.0 / min_aspect);
    ensure!((most - 1.0 / min_aspect).abs() < 1e-9, "aspects up to {most} are no inverse of {min_aspect}");
    Ok(BlockMask {
        min_block: setting.get("min_num_masks_per_block")?,
        max_block: setting.optional("max_num_masks_per_block")?,
        min_aspect,
    })
}

fn generator(setting: usize) -> Rng {
    rng(0, Purpose::Mask, 0, setting as u64, 0)
}

fn count(mask: &[bool]) -> usize {
    mask.iter().filter(|hidden| **hidden).count()
}

/// The share of pairs of neighbours, beside or above each other, that are both hidden or both visible.
fn alike(mask: &[bool], (rows, columns): (usize, usize)) -> f64 {
    let beside = (0..rows * columns).filter(|i| i % columns + 1 < columns).map(|i| (i, i + 1));
    let above = (0..(rows - 1) * columns).map(|i| (i, i + columns));
    let same = beside.chain(above).map(|(a, b)| f64::from(mask[a] == mask[b]));
    let (pairs, sum) = same.fold((0.0, 0.0), |(pairs, sum), same| (pairs + 1.0, sum + same));
    sum / pairs
}

/// Mean, standard deviation, smallest and largest.
fn moments(values: &[f64]) -> [f64; 4] {
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    let std = (values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / n).sqrt();
    let (min, max) = values.iter().fold((f64::INFINITY, 0.0f64), |(min, max), v| (min.min(*v), max.max(*v)));
    [mean, std, min, max]
}

/// The mean of rows of one length.
fn means(rows: &[Vec<f64>]) -> Vec<f64> {
    let mut sums = vec![0.0; rows.first().map_or(0, Vec::len)];
    for row in rows {
        sums.iter_mut().zip(row).for_each(|(sum, value)| *sum += value / rows.len() as f64);
    }
    sums
}
