//! What says how good features are, on features of a whole data set: 60,000 images, ten classes, 512 dimensions.
//!
//! The features are made up, but not of noise alone: clusters of each class along the first of many directions, whose
//! variances fall as those of an encoder do. A probe would converge on noise in no time, and never on separate classes.

use std::f64::consts::PI;

use anyhow::Result;
use candle_core::{DType, Device, IndexOp, Tensor};
use ssl_vision::eval::{
    Features, GaussianInformation, KnnConfig, LinearProbeConfig, LinearProbeResult, Queries, Shrinkage,
    alpha_req, covariance_spectrum, effective_rank, knn_accuracy, linear_probe, mean_average_precision_at,
    rank_me,
};
use ssl_vision::train::Measures;

use super::Suite;
use super::measure::{Case, Timing, Unit, time};
use super::step::noise;

const IMAGES: usize = 60_000;
const TEST_IMAGES: usize = 10_000;
const DIM: usize = 512;
const CLASSES: usize = 10;

/// Clusters of all classes together.
const CLUSTERS: usize = 3 * CLASSES;
/// Directions in which their centres differ, with this deviation.
const CLUSTER_DIRECTIONS: usize = 32;
const CLUSTER_SPREAD: f32 = 1.0;
/// The variance along the direction `j` is `j^−DECAY`.
const DECAY: f64 = 1.0;
/// The deviation of an image from its cluster, and of a view from its image: together 1.
const IMAGE_DEVIATION: f64 = 0.8;
const VIEW_DEVIATION: f64 = 0.6;

pub(super) fn cases() -> Vec<Case> {
    let case = |id: &str, run: fn() -> Result<Timing>| Case {
        has_peer: false,
        ..Case::new(Suite::Eval, format!("eval/{id}"), Unit::Call, run)
    };
    vec![
        case("probe-60000x512", || {
            let (train, test) = (labelled(1, IMAGES)?, labelled(2, TEST_IMAGES)?);
            time(0, 1, || probe(&train, &test))
        }),
        case("measures-60000x2x512", || {
            let views = views(1, IMAGES, 2)?;
            time(0, 1, || measures(&views))
        }),
        case("retrieval-60000x512", || {
            let train = labelled(1, IMAGES)?;
            time(0, 1, || Ok(mean_average_precision_at(100, &train, Queries::LeaveOneOut)?))
        }),
        case("all-60000x2x512", || {
            let (train, test) = (labelled(1, IMAGES)?, labelled(2, TEST_IMAGES)?);
            let views = views(1, IMAGES, 2)?;
            time(0, 1, || {
                knn_accuracy(&train, &test, CLASSES, &KnnConfig::default())?;
                probe(&train, &test)?;
                measures(&views)
            })
        }),
    ]
}

fn probe(train: &Features, test: &Features) -> Result<LinearProbeResult> {
    Ok(linear_probe(train, test, CLASSES, &LinearProbeConfig::default())?)
}

/// What is measured between epochs, and more of the first view and of what both know of each other.
fn measures(views: &Tensor) -> Result<()> {
    Measures::of(views)?;
    let (x, y) = (views.i((.., 0))?, views.i((.., 1))?);
    for measure in [rank_me, effective_rank, alpha_req] {
        measure(&x)?;
    }
    covariance_spectrum(&x)?;
    GaussianInformation::between(&x, &y, Shrinkage::LedoitWolf)?;
    Ok(())
}

/// One view of each image, with its class.
fn labelled(seed: u64, images: usize) -> Result<Features> {
    let data = views(seed, images, 1)?.flatten_all()?.to_vec1()?;
    let class = |image| (image % CLUSTERS % CLASSES) as u32;
    Ok(Features::new(data, DIM, (0..images).map(class).collect())?)
}

/// Features `(images, views, DIM)` of views.
fn views(seed: u64, images: usize, views: usize) -> Result<Tensor> {
    let spread = |at| if at < CLUSTER_DIRECTIONS { CLUSTER_SPREAD } else { 0.0 };
    let spread = Tensor::from_iter((0..DIM).map(spread), &Device::Cpu)?;
    let cluster = Tensor::from_iter((0..images).map(|image| (image % CLUSTERS) as u32), &Device::Cpu)?;
    let centres = noise(0, (CLUSTERS, DIM))?.broadcast_mul(&spread)?.index_select(&cluster, 0)?;
    let images_alone = (centres + (noise(2 * seed, (images, DIM))? * IMAGE_DEVIATION)?)?.unsqueeze(1)?;
    let views_alone = (noise(2 * seed + 1, (images, views, DIM))? * VIEW_DEVIATION)?;
    let along = views_alone.broadcast_add(&images_alone)?.reshape((images * views, DIM))?;
    Ok(along.matmul(&directions()?)?.reshape((images, views, DIM))?)
}

/// The directions as rows `(DIM, DIM)`, each as long as the standard deviation along it: those of a cosine transform,
/// which are orthogonal and touch every dimension.
fn directions() -> Result<Tensor> {
    let value = |at: usize| {
        let (j, k) = ((at / DIM) as f64, (at % DIM) as f64);
        (2.0 / DIM as f64).sqrt()
            * (PI / DIM as f64 * (j + 0.5) * (k + 0.5)).cos()
            * (j + 1.0).powf(-DECAY / 2.0)
    };
    Ok(Tensor::from_iter((0..DIM * DIM).map(value), &Device::Cpu)?
        .reshape((DIM, DIM))?
        .to_dtype(DType::F32)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn features_are_neither_noise_nor_separate_classes() {
        let (train, test) = (labelled(1, 3000).unwrap(), labelled(2, 1000).unwrap());
        let found = probe(&train, &test).unwrap();
        assert!(found.converged && (0.6..0.95).contains(&found.top1), "{found:?}");
        let views = views(1, 3000, 2).unwrap();
        // The clusters add to the first of the eigenvalues that the line goes through.
        let alpha = alpha_req(&views.i((.., 0)).unwrap()).unwrap();
        assert!((DECAY..DECAY + 0.5).contains(&alpha), "{alpha}");
        measures(&views).unwrap();
    }
}
