//! Values of lightly 1.6.0 (kNN, top-k accuracy), scikit-learn 1.9.1 (logistic regression, principal
//! components), scipy (Gaussian information) and PyTorch (spectra).

use candle_core::{DType, Device, Tensor};
use ssl_eval::{
    Covariance, Features, GaussianInformation, KnnConfig, LogisticRegression, LogisticRegressionConfig,
    PrincipalComponents, Queries, Shrinkage, accuracy, adjusted_rand_index, clustering_accuracy,
    knn_accuracy, knn_predict, mean_average_precision, normalized_mutual_information, purity, topk_accuracy,
};

#[test]
fn ranks_are_those_of_pytorch() {
    let case = Case::load("rankme");
    for i in 0..3 {
        let z = &case.rows(&format!("in.z{i}"));
        let singular = ssl_eval::singular_values(z).unwrap();
        // Eigenvalues of the Gram matrix carry its rounding, which is larger in their roots: √ε of the largest.
        assert_close(&singular, &case.values(&format!("out.f64.singular_values{i}")), 1e-9, 1e-6);
        for (name, value) in [
            ("rankme", ssl_eval::rank_me(z)),
            ("effective_rank", ssl_eval::effective_rank(z)),
            ("cov_effective_rank", ssl_eval::covariance_effective_rank(z)),
            ("participation_ratio", ssl_eval::participation_ratio(z)),
        ] {
            assert_close(&[value.unwrap()], &case.values(&format!("out.f64.{name}{i}")), 1e-6, 0.0);
        }
    }
}

#[test]
fn uniformity_is_that_of_pytorch() {
    let case = Case::load("alignment_uniformity");
    let found = ssl_eval::uniformity(&case.rows("in.x")).unwrap();
    // Similarities are f32.
    assert_close(&[found], &case.values("out.f64.uniform_t2"), 1e-6, 0.0);
}

#[test]
fn shrinkage_is_that_of_scikit_learn() {
    let case = Case::load("ledoit_wolf");
    for i in 0..3 {
        let covariance = Covariance::of(&case.rows(&format!("in.x{i}")), Shrinkage::LedoitWolf).unwrap();
        assert_close(&[covariance.shrinkage()], &case.values(&format!("out.f64.weight{i}")), 1e-9, 0.0);
        assert_close(covariance.values(), &case.values(&format!("out.f64.covariance{i}")), 1e-9, 1e-12);
    }
}

#[test]
fn agreement_of_clusters_is_that_of_scikit_learn() {
    let case = Case::load("clustering");
    let labels = case.labels("in.labels");
    for i in 0..5 {
        let clusters = case.labels(&format!("in.clusters{i}"));
        for (name, value) in [
            ("nmi", normalized_mutual_information(&labels, &clusters)),
            ("ari", adjusted_rand_index(&labels, &clusters)),
            ("purity", purity(&labels, &clusters)),
            ("accuracy", clustering_accuracy(&labels, &clusters)),
        ] {
            assert_close(&[value.unwrap()], &case.values(&format!("out.f64.{name}{i}")), 1e-9, 1e-12);
        }
    }
}

#[test]
fn average_precision_is_that_of_scikit_learn() {
    let case = Case::load("average_precision");
    let found = mean_average_precision(&case.features("rows"), Queries::LeaveOneOut).unwrap();
    assert_close(&[found], &case.values("out.f64.mean_average_precision"), 1e-9, 0.0);
}

#[test]
fn principal_components_are_those_of_scikit_learn() {
    let case = Case::load("pca");
    let x = case.rows("in.x");
    let fit = PrincipalComponents::fit(&x, 4).unwrap();
    let (components, along) = (fit.components().unwrap(), fit.project(&x).unwrap());
    // A component may point either way, and takes its coordinates with it.
    let theirs = case.rows("out.components").to_dtype(DType::F64).unwrap();
    let sign = (&components * theirs).unwrap().sum_keepdim(1).unwrap().sign().unwrap();
    let (components, along) = (components.broadcast_mul(&sign), along.broadcast_mul(&sign.t().unwrap()));
    let flat =
        |tensor: candle_core::Result<Tensor>| tensor.unwrap().flatten_all().unwrap().to_vec1().unwrap();
    for (name, values) in [
        ("mean", fit.mean()),
        ("explained_variance", fit.explained_variance()),
        ("explained_variance_ratio", fit.explained_variance_ratio()),
        ("components", &flat(components)),
        ("projected", &flat(along)),
    ] {
        // The file has f32.
        assert_close(values, &case.values(&format!("out.{name}")), 1e-6, 1e-6);
    }
}

#[test]
fn gaussian_information_is_that_of_scipy_and_of_the_formula() {
    let case = Case::load("gaussian_mi");
    for i in 0..3 {
        let (x, y) = (case.rows(&format!("in.x{i}")), case.rows(&format!("in.y{i}")));
        let sample = GaussianInformation::between(&x, &y, Shrinkage::None).unwrap();
        assert_close(&[sample.nats()], &case.values(&format!("out.f64.mi_sample{i}")), 1e-9, 0.0);
        let both = Covariance::of(&Tensor::cat(&[&x, &y], 1).unwrap(), Shrinkage::None).unwrap();
        assert_close(both.values(), &case.values(&format!("out.f64.sample_cov{i}")), 1e-9, 1e-9);
        let known = Covariance::new(&case.rows(&format!("in.f64.true_cov{i}"))).unwrap();
        let known = GaussianInformation::from_covariance(&known, x.dim(1).unwrap()).unwrap();
        assert_close(&[known.nats()], &case.values(&format!("out.f64.mi_analytic{i}")), 0.0, 1e-9);
    }
}

#[test]
fn knn_k20_is_that_of_lightly() {
    check_knn("knn_k20_t0.07", &KnnConfig::default());
}

#[test]
fn knn_k200_is_that_of_lightly() {
    check_knn("knn_k200_t0.1", &KnnConfig { k: 200, temperature: 0.1 });
}

#[test]
fn strong_penalty_is_that_of_scikit_learn() {
    check_logistic_regression("logreg_C0.1", 0.1);
}

#[test]
fn weak_penalty_is_that_of_scikit_learn() {
    check_logistic_regression("logreg_C1.0", 1.0);
}

#[test]
fn topk_accuracy_is_that_of_lightly() {
    let case = Case::load("topk_accuracy");
    let (scores, labels) = (case.values("in.logits"), case.labels("in.labels"));
    for (name, k) in [("out.f64.top1", 1), ("out.f64.top3", 3), ("out.f64.top5", 5)] {
        let top = topk_accuracy(&scores, &labels, 6, k).unwrap();
        assert!((top - case.values(name)[0]).abs() < 1e-7, "top {k}: {top}");
    }
}

fn check_knn(name: &str, config: &KnnConfig) {
    let case = Case::load(name);
    let (bank, queries) = (case.features("train"), case.features("test"));
    let prediction = knn_predict(&bank, &queries, 6, config).unwrap();
    // lightly computes similarities in f32: an error of 1e-6 in one becomes 1e-6 / temperature in a weight.
    assert_close(&prediction.scores, &case.values("out.scores"), 1e-4, 1e-6);
    // The smallest relative margin of the file is 1.7e-4, so every prediction is certain.
    assert_eq!(prediction.classes, case.labels("out.pred_top1"));
    let top1 = knn_accuracy(&bank, &queries, 6, config).unwrap();
    assert!((top1 - case.values("out.f64.top1")[0]).abs() < 1e-7, "top 1: {top1}");
}

fn check_logistic_regression(name: &str, c: f64) {
    let case = Case::load(name);
    let (train, test) = (case.features("train"), case.features("test"));
    let config = LogisticRegressionConfig { c, tolerance: 1e-6, ..Default::default() };
    let classifier = LogisticRegression::fit(&train, 6, &config).unwrap();
    assert!(classifier.converged());
    // The stopping rules differ, and the flattest direction turns a gradient of 1e-6 into an error of 3e-4.
    assert_close(&classifier.coefficients(), &case.values("out.coef"), 1e-3, 1e-3);
    assert_close(&classifier.intercepts(), &case.values("out.intercept"), 1e-3, 1e-3);
    assert_close(&classifier.probabilities(&test).unwrap(), &case.values("out.test_proba"), 1e-3, 1e-3);
    assert_eq!(classifier.predict(&test).unwrap(), case.labels("out.pred"));
    for (features, name) in [(&train, "out.f64.train_accuracy"), (&test, "out.f64.test_accuracy")] {
        let top1 = accuracy(&classifier.predict(features).unwrap(), features.labels()).unwrap();
        assert!((top1 - case.values(name)[0]).abs() < 1e-7, "{name}: {top1}");
    }
}

struct Case(Vec<(String, Tensor)>);

impl Case {
    fn load(name: &str) -> Self {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/golden/eval");
        let path = format!("{folder}/{name}.safetensors");
        Self(candle_core::safetensors::load(path, &Device::Cpu).unwrap().into_iter().collect())
    }

    fn rows(&self, name: &str) -> Tensor {
        let (_, tensor) =
            self.0.iter().find(|(own, _)| own == name).expect("the file has a tensor of this name");
        tensor.clone()
    }

    fn tensor(&self, name: &str) -> Tensor {
        self.rows(name).flatten_all().unwrap()
    }

    fn values(&self, name: &str) -> Vec<f64> {
        self.tensor(name).to_dtype(DType::F64).unwrap().to_vec1().unwrap()
    }

    fn labels(&self, name: &str) -> Vec<u32> {
        self.tensor(name).to_dtype(DType::U32).unwrap().to_vec1().unwrap()
    }

    fn features(&self, set: &str) -> Features {
        let data: Vec<f32> = self.tensor(&format!("in.{set}")).to_vec1().unwrap();
        let labels = self.labels(&format!("in.{set}_labels"));
        let dim = data.len() / labels.len();
        Features::new(data, dim, labels).unwrap()
    }
}

fn assert_close(actual: &[f64], expected: &[f64], rtol: f64, atol: f64) {
    assert_eq!(actual.len(), expected.len());
    for (index, (actual, expected)) in actual.iter().zip(expected).enumerate() {
        let error = (actual - expected).abs();
        assert!(error <= atol + rtol * expected.abs(), "entry {index} is {actual}, expected {expected}");
    }
}
