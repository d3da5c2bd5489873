//! kNN, logistic regression, accuracies and measures of embeddings against lightly, scikit-learn and formulas.

use anyhow::Result;
use candle_core::{DType, Tensor};
use serde_json::Value;
use ssl_vision::eval::{
    Covariance, Features, GaussianInformation, KnnConfig, LogisticRegression, LogisticRegressionConfig,
    PrincipalComponents, Queries, Shrinkage, accuracy, adjusted_rand_index, clustering_accuracy,
    covariance_effective_rank, effective_rank, knn_predict, mean_average_precision,
    normalized_mutual_information, participation_ratio, purity, rank_me, singular_values, topk_accuracy,
};
use ssl_vision::losses::{alignment, uniformity};

use super::case::Case;
use super::check::Check;

/// Two classes whose scores differ by less than this part may be confused.
const SURE_MARGIN: f64 = 1e-4;

pub(crate) fn run(case: &Case<'_>, check: &mut Check<'_>) -> Result<bool> {
    let name = &case.entry.case;
    if name.starts_with("knn") {
        knn(case, check)?;
    } else if name.starts_with("logreg") {
        logistic_regression(case, check)?;
    } else if name.starts_with("topk_accuracy") {
        topk(case, check)?;
    } else if name == "alignment_uniformity" {
        hypersphere(case, check)?;
    } else if name == "rankme" {
        ranks(case, check)?;
    } else if name == "gaussian_mi" {
        information(case, check)?;
    } else if name == "pca" {
        components(case, check)?;
    } else if name == "ledoit_wolf" {
        shrinkage(case, check)?;
    } else if name == "clustering" {
        clustering(case, check)?;
    } else if name == "average_precision" {
        let gallery = features(case, "rows")?;
        let found = mean_average_precision(&gallery, Queries::LeaveOneOut)?;
        check.scalar("out.f64.mean_average_precision", found)?;
    } else {
        return Ok(false);
    }
    Ok(true)
}

fn knn(case: &Case<'_>, check: &mut Check<'_>) -> Result<()> {
    let (bank, queries) = (features(case, "train")?, features(case, "test")?);
    let num_classes: usize = case.params.get("num_classes")?;
    let config = KnnConfig { k: case.params.get("k")?, temperature: case.params.get("t")? };
    let prediction = knn_predict(&bank, &queries, num_classes, &config)?;
    check.values("out.scores", &[queries.rows(), num_classes], &prediction.scores)?;
    let margins: Vec<f64> = prediction.scores.chunks_exact(num_classes).map(margin).collect();
    check.values("out.margin", &[margins.len()], &margins)?;
    let expected = case.labels("out.pred_top1")?;
    let sure = case.values("out.margin")?.into_iter().map(|margin| margin > SURE_MARGIN);
    let classes = prediction.classes.iter().zip(&expected).zip(sure);
    let classes: Vec<u32> = classes.map(|((own, theirs), sure)| if sure { *own } else { *theirs }).collect();
    check.values("out.pred_top1", &[classes.len()], &floats(&classes))?;
    check.scalar("out.f64.top1", accuracy(&classes, queries.labels())?)
}

/// How much the second score falls short of the first, as a part of the first.
fn margin(scores: &[f64]) -> f64 {
    let mut sorted = scores.to_vec();
    sorted.sort_unstable_by(|a, b| b.total_cmp(a));
    match sorted[..] {
        [first, second, ..] => (first - second) / first,
        _ => 1.0,
    }
}

fn logistic_regression(case: &Case<'_>, check: &mut Check<'_>) -> Result<()> {
    let (train, test) = (features(case, "train")?, features(case, "test")?);
    let num_classes: usize = case.params.get("num_classes")?;
    // The flattest direction turns the default's gradient of 1e-4 into an error of a few per cent.
    let config = LogisticRegressionConfig { c: case.params.get("C")?, tolerance: 1e-6, ..Default::default() };
    let classifier = LogisticRegression::fit(&train, num_classes, &config)?;
    if !classifier.converged() {
        check.fail(format!("the fit has not converged in {} steps", classifier.iterations()));
    }
    check.values("out.coef", &[num_classes, train.dim()], &classifier.coefficients())?;
    check.values("out.intercept", &[num_classes], &classifier.intercepts())?;
    check.values("out.test_proba", &[test.rows(), num_classes], &classifier.probabilities(&test)?)?;
    let classes = classifier.predict(&test)?;
    check.scalar("out.f64.test_accuracy", accuracy(&classes, test.labels())?)?;
    check.scalar("out.f64.train_accuracy", accuracy(&classifier.predict(&train)?, train.labels())?)?;
    check.values("out.pred", &[test.rows()], &floats(&classes))
}

fn topk(case: &Case<'_>, check: &mut Check<'_>) -> Result<()> {
    let (scores, labels) = (case.values("in.logits")?, case.labels("in.labels")?);
    let num_classes = scores.len() / labels.len().max(1);
    for k in case.params.get::<Vec<usize>>("ks")? {
        check.scalar(&format!("out.f64.top{k}"), topk_accuracy(&scores, &labels, num_classes, k)?)?;
    }
    Ok(())
}

/// How close views of an image are, and how evenly images are spread.
fn hypersphere(case: &Case<'_>, check: &mut Check<'_>) -> Result<()> {
    let double = |name: &str| Ok::<_, anyhow::Error>(case.tensor(name)?.to_dtype(DType::F64)?);
    let (x, y) = (double("in.x")?, double("in.y")?);
    for alpha in case.params.get::<Vec<u32>>("alphas")? {
        check.tensor(&format!("out.f64.align_a{alpha}"), &alignment(&x, &y, f64::from(alpha))?)?;
    }
    for t in case.params.get::<Vec<u32>>("ts")? {
        check.tensor(&format!("out.f64.uniform_t{t}"), &uniformity(&x, f64::from(t))?)?;
    }
    Ok(())
}

/// How many directions embeddings use.
fn ranks(case: &Case<'_>, check: &mut Check<'_>) -> Result<()> {
    for i in 0..case.params.get::<Vec<Value>>("settings")?.len() {
        let z = case.tensor(&format!("in.z{i}"))?;
        let values = singular_values(z)?;
        check.values(&format!("out.f64.singular_values{i}"), &[values.len()], &values)?;
        check.scalar(&format!("out.f64.rankme{i}"), rank_me(z)?)?;
        check.scalar(&format!("out.f64.effective_rank{i}"), effective_rank(z)?)?;
        check.scalar(&format!("out.f64.cov_effective_rank{i}"), covariance_effective_rank(z)?)?;
        check.scalar(&format!("out.f64.participation_ratio{i}"), participation_ratio(z)?)?;
    }
    Ok(())
}

/// What two Gaussian vectors know of each other, from samples and from their true covariance.
fn information(case: &Case<'_>, check: &mut Check<'_>) -> Result<()> {
    for i in 0..case.params.get::<Vec<Value>>("settings")?.len() {
        let (x, y) = (case.tensor(&format!("in.x{i}"))?, case.tensor(&format!("in.y{i}"))?);
        let sample = Covariance::of(&Tensor::cat(&[x, y], 1)?, Shrinkage::None)?;
        check.values(&format!("out.f64.sample_cov{i}"), &[sample.size(); 2], sample.values())?;
        let nats = GaussianInformation::between(x, y, Shrinkage::None)?.nats();
        check.scalar(&format!("out.f64.mi_sample{i}"), nats)?;
        let known = Covariance::new(case.tensor(&format!("in.f64.true_cov{i}"))?)?;
        let nats = GaussianInformation::from_covariance(&known, x.dim(1)?)?.nats();
        check.scalar(&format!("out.f64.mi_analytic{i}"), nats)?;
    }
    Ok(())
}

/// Principal components; one may point either way, and takes its coordinates with it.
fn components(case: &Case<'_>, check: &mut Check<'_>) -> Result<()> {
    let x = case.tensor("in.x")?;
    let (n, k) = (x.dim(0)?, case.params.get("n_components")?);
    let fit = PrincipalComponents::fit(x, k)?;
    let (own, theirs) = (fit.components()?, case.tensor("out.components")?.to_dtype(DType::F64)?);
    let signs = (&own * theirs)?.sum_keepdim(1)?.sign()?; // (k, 1)
    let along = fit.project(x)?.broadcast_mul(&signs.t()?)?;
    let variance = fit.explained_variance();
    let deviations = Tensor::new(variance, x.device())?.sqrt()?;
    check.values("out.mean", &[fit.mean().len()], fit.mean())?;
    check.tensor("out.components", &own.broadcast_mul(&signs)?)?;
    check.values("out.explained_variance", &[k], variance)?;
    check.values("out.explained_variance_ratio", &[k], fit.explained_variance_ratio())?;
    check.tensor("out.singular_values", &(&deviations * (n as f64 - 1.0).sqrt())?)?;
    check.tensor("out.projected_whitened", &along.broadcast_div(&deviations)?)?;
    check.tensor("out.projected", &along)
}

fn shrinkage(case: &Case<'_>, check: &mut Check<'_>) -> Result<()> {
    for i in 0..case.params.get::<Vec<Value>>("settings")?.len() {
        let covariance = Covariance::of(case.tensor(&format!("in.x{i}"))?, Shrinkage::LedoitWolf)?;
        check.values(&format!("out.f64.covariance{i}"), &[covariance.size(); 2], covariance.values())?;
        check.scalar(&format!("out.f64.weight{i}"), covariance.shrinkage())?;
    }
    Ok(())
}

/// How well clusters agree with labels.
fn clustering(case: &Case<'_>, check: &mut Check<'_>) -> Result<()> {
    let labels = case.labels("in.labels")?;
    for i in 0..case.params.get::<usize>("clusterings")? {
        let clusters = case.labels(&format!("in.clusters{i}"))?;
        let nmi = normalized_mutual_information(&labels, &clusters)?;
        check.scalar(&format!("out.f64.nmi{i}"), nmi)?;
        check.scalar(&format!("out.f64.ari{i}"), adjusted_rand_index(&labels, &clusters)?)?;
        check.scalar(&format!("out.f64.purity{i}"), purity(&labels, &clusters)?)?;
        check.scalar(&format!("out.f64.accuracy{i}"), clustering_accuracy(&labels, &clusters)?)?;
    }
    Ok(())
}

fn floats(classes: &[u32]) -> Vec<f64> {
    classes.iter().map(|class| f64::from(*class)).collect()
}

/// The features `in.SET` with their labels.
fn features(case: &Case<'_>, set: &str) -> Result<Features> {
    let rows = case.tensor(&format!("in.{set}"))?;
    let (_, dim) = rows.dims2()?;
    let data = rows.flatten_all()?.to_vec1()?;
    Ok(Features::new(data, dim, case.labels(&format!("in.{set}_labels"))?)?)
}
