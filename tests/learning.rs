//! Short trainings on real images: a method learns, and collapses without what keeps it from collapsing. New tests of
//! that kind go here, a few lines a method. Last, training on with labels.

use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};

use candle_core::{DType, Device};
use ssl_vision::eval::KnnConfig;
use ssl_vision::nn::Params;
use ssl_vision::train::{
    Control, DataConfig, Evaluation, FineTuneConfig, Images, Observer, Outcome, Protocol, Recipe, Session,
    StepReport, fine_tune,
};

use crate::{few_images, half_of_the_images};

/// A hundred steps on small images.
const SHORT: [(&str, &str); 7] = [
    ("augment.size", "16"),
    ("train.epochs", "2"),
    ("train.max_steps", "100"),
    ("train.batch_size", "64"),
    ("schedule.warmup_epochs", "0.2"),
    ("measure.images", "64"),
    ("measure.views", "2"),
];

/// Two global and two local views.
const CROPS: &str = "[{ copies = 1, size = 16, crop_scale = [0.4, 1.0] }, \
                      { copies = 1, size = 16, crop_scale = [0.4, 1.0] }, \
                      { copies = 2, size = 8, crop_scale = [0.15, 0.5] }]";

/// A network small enough for a test, of the kind that the recipe of `method` has.
fn small_network(method: &str) -> &'static [(&'static str, &'static str)] {
    match method {
        "simmim-swin" => &[("backbone.width", "32")],
        "mae" | "simmim" | "beit" | "data2vec" | "i-jepa" => {
            &[("backbone.width", "64"), ("backbone.depth", "3"), ("backbone.patch_size", "4")]
        }
        "dino" | "ibot" | "dinov2" | "msn" => &[
            ("backbone.width", "64"),
            ("backbone.depth", "2"),
            ("backbone.patch_size", "4"),
            ("augment.views", CROPS),
            ("train.epochs", "4"),
            ("train.max_steps", "300"),
        ],
        // Without the zero-initialised blocks the untrained network is a stronger opponent.
        "seer" => &[],
        // Their features show what they have learned after fewer steps.
        _ => &[("backbone.width", "8"), ("backbone.zero_init_residual", "false"), ("train.max_steps", "70")],
    }
}

/// What a run said: the terms of every step, and the notices.
#[derive(Clone, Default)]
struct Listener(Arc<Mutex<Heard>>);

#[derive(Default)]
struct Heard {
    losses: Vec<f64>,
    std: Vec<f64>,
    dimensions: Vec<f64>,
    /// Of methods that predict what is hidden: how much better than the mean.
    gain: Vec<f64>,
    notices: Vec<String>,
    /// Whether to stop as soon as the doctor has named the safeguard that is missing.
    until_collapse: bool,
}

impl Heard {
    /// Whether the doctor has said that the run has collapsed, and which setting took the method's safeguard away.
    fn collapsed(&self) -> bool {
        self.notices.iter().any(|notice| notice.contains("collapsed") && notice.contains(" away "))
    }
}

impl Observer for Listener {
    fn on_step(&mut self, report: &StepReport<'_>) -> Control {
        let find = |name: &str| report.terms.iter().find(|(own, _)| *own == name).map(|(_, value)| *value);
        let term = |name: &str| find(name).unwrap();
        let mut heard = self.0.lock().unwrap();
        heard.losses.push(report.loss);
        heard.std.push(term("embedding_std"));
        heard.dimensions.push(term("embedding_dimensions"));
        heard.gain.extend(find("reconstruction_gain").or_else(|| find("prediction_gain")));
        if heard.until_collapse && heard.collapsed() { Control::Stop } else { Control::Continue }
    }

    fn on_notice(&mut self, notice: &str) {
        self.0.lock().unwrap().notices.push(notice.to_owned());
    }
}

/// The mean of the first ten values.
fn start(values: &[f64]) -> f64 {
    values[..10].iter().sum::<f64>() / 10.0
}

/// The mean of the last ten values.
fn end(values: &[f64]) -> f64 {
    values.iter().rev().take(10).sum::<f64>() / 10.0
}

/// Trains the recipe of `method` for Fashion-MNIST, made [`SHORT`], with `more` settings.
fn train(method: &str, more: &[(&str, &str)], out: &Path) -> (Session, Heard) {
    let (session, outcome, heard) = heard(method, more, out, Heard::default());
    assert_eq!(outcome, Outcome::Finished);
    (session, heard)
}

fn heard(method: &str, more: &[(&str, &str)], out: &Path, heard: Heard) -> (Session, Outcome, Heard) {
    let settings = SHORT
        .iter()
        .chain(small_network(method))
        .chain(more)
        .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
    let recipe = Recipe::load(&format!("{method}-fashion-mnist"), &settings.collect::<Vec<_>>()).unwrap();
    let mut session = Session::start(recipe, &half_of_the_images(), out, &Device::Cpu, 2).unwrap();
    let listener = Listener(Arc::new(Mutex::new(heard)));
    let outcome = session.train(&mut [Box::new(listener.clone())], &AtomicBool::new(false)).unwrap();
    let heard = std::mem::take(&mut *listener.0.lock().unwrap());
    (session, outcome, heard)
}

/// Asserts that a short training lifts kNN above that of the untrained network, in good health.
fn learns(method: &str, more: &[(&str, &str)]) {
    let folder = tempfile::tempdir().unwrap();
    let (session, heard) = train(method, more, &folder.path().join("run"));
    learned(method, &session, &heard, start(&heard.losses));
}

/// Asserts that kNN is more than a point above that of the untrained network, that the loss has fallen below `start`, and
/// that nothing was noticed.
fn learned(method: &str, session: &Session, heard: &Heard, start: f64) -> Evaluation {
    let evaluation = session.evaluate(|_| {}).unwrap().unwrap();
    let (trained, untrained) = (evaluation.encoder.knn, evaluation.baselines.untrained.knn);
    assert!(trained > untrained + 0.01, "{method}: kNN {trained} after training, {untrained} before");
    assert!(heard.notices.is_empty(), "{method}: {:?}", heard.notices);
    assert!(end(&heard.losses) < start, "{method}: {:?}", heard.losses);
    evaluation
}

/// Asserts that a short training collapses, and that the run says so and names the missing safeguard.
fn collapses(method: &str, more: &[(&str, &str)]) -> Heard {
    let folder = tempfile::tempdir().unwrap();
    let until = Heard { until_collapse: true, ..Heard::default() };
    let (_, _, heard) = heard(method, more, &folder.path().join("run"), until);
    assert!(
        heard.collapsed(),
        "{method}: {:?}, standard deviation {}, dimensions {}",
        heard.notices,
        end(&heard.std),
        end(&heard.dimensions)
    );
    heard
}

#[test]
fn contrastive_losses_stay_at_their_uniform_value_where_the_temperature_hides_all_differences() {
    let text = [("method.text_width", "32"), ("method.text_layers", "1")];
    for (method, more, remedy) in [
        ("simclr", &[("method.temperature", "10")][..], "try method.temperature"),
        ("moco-v2", &[("method.temperature", "10")], "try method.temperature"),
        // Here the temperature is learned, at a rate of nothing.
        ("clip", &[("method.temperature", "1"), text[0], text[1]], "try more telling captions"),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let still = [
            ("optimizer.lr", "0.000001"),
            ("train.batch_size", "16"),
            ("train.max_steps", "210"),
            ("augment.size", "12"),
            ("backbone.width", "4"),
        ];
        let (_, heard) = train(method, &[more, &still].concat(), &folder.path().join("run"));
        let told = |notice: &String| {
            notice.contains("at its value for a network that tells no image from another")
                && notice.contains(remedy)
        };
        assert!(heard.notices.iter().any(told), "{method}: {:?}", heard.notices);
    }
}

#[test]
fn simclr_learns_and_writes_its_result() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run");
    let (session, heard) = train("simclr", &[], &out);
    let evaluation = learned("simclr", &session, &heard, start(&heard.losses));
    let result = session.write_result(Some(&evaluation)).unwrap();
    for pointer in ["/knn/top1", "/linear/top1", "/baselines/pixels/knn", "/baselines/untrained/linear"] {
        let value = result.pointer(pointer).and_then(|v| v.as_f64()).unwrap_or_else(|| panic!("{pointer}"));
        assert!((0.1..1.0).contains(&value), "{pointer} = {value}");
    }
    let waited = result["wait_share"].as_f64().unwrap();
    assert!((0.0..1.0).contains(&waited) && session.wait_share() == Some(waited), "{waited}");
    assert!(out.join("result.json").is_file());
    let loss =
        |line: &str| serde_json::from_str::<serde_json::Value>(line).unwrap()["loss"].as_f64().unwrap();
    let metrics = std::fs::read_to_string(out.join("metrics.jsonl")).unwrap();
    let same = metrics.lines().map(loss).zip(&heard.losses).all(|(read, heard)| (read - heard).abs() < 1e-12);
    assert!(same && metrics.lines().count() == heard.losses.len());
    assert!(end(&heard.losses) < 0.9 * start(&heard.losses));
}

#[test]
fn byol_collapses_without_a_predictor_and_a_slow_target() {
    collapses(
        "byol",
        &[("method.predictor_hidden", "0"), ("method.momentum", "0"), ("method.final_momentum", "0")],
    );
}

#[test]
fn simsiam_collapses_without_its_stop_of_the_gradient() {
    collapses("simsiam", &[("method.stop_gradient", "false"), ("train.max_steps", "100")]);
}

#[test]
fn barlow_twins_fills_fewer_dimensions_without_its_second_part() {
    collapses("barlow-twins", &[("method.lambda", "0")]);
}

#[test]
fn vicreg_learns() {
    learns("vicreg", &[]);
}

#[test]
fn vicreg_shrinks_without_its_variance_part() {
    collapses("vicreg", &[("method.variance_weight", "0")]);
}

#[test]
fn vicreg_fills_fewer_dimensions_without_its_covariance_part() {
    collapses("vicreg", &[("method.covariance_weight", "0")]);
}

/// The recipes' own start, with residual branches of zero, from which few steps show of every method that it learns.
const ZERO_START: [(&str, &str); 1] = [("backbone.zero_init_residual", "true")];

#[test]
fn byol_learns() {
    learns("byol", &ZERO_START);
}

#[test]
fn simsiam_learns() {
    learns("simsiam", &ZERO_START);
}

#[test]
fn barlow_twins_learns() {
    learns("barlow-twins", &ZERO_START);
}

#[test]
fn moco_learns() {
    learns("moco-v3", &ZERO_START);
    let folder = tempfile::tempdir().unwrap();
    let (session, heard) = train("moco-v2", &ZERO_START, &folder.path().join("run"));
    // The queue starts with random keys, which are easy to tell from real ones: first the loss rises.
    let highest = heard.losses.windows(10).map(start).fold(0.0, f64::max);
    learned("moco-v2", &session, &heard, highest);
}

/// Heads and labels for a test: each costs time in every label step.
const FEW_HEADS: [(&str, &str); 4] = [
    ("method.heads", "3"),
    ("method.heads_per_label_step", "3"),
    ("method.labels", "32"),
    ("method.label_steps", "4"),
];

#[test]
fn sela_learns() {
    learns("sela", &[&ZERO_START[..], &FEW_HEADS].concat());
}

#[test]
fn sela_gives_all_images_one_label_without_equal_shares() {
    let heard = collapses("sela", &[&FEW_HEADS[..], &[("method.max_iterations", "0")]].concat());
    assert!(heard.notices[0].contains("all images choose 1 of 32 prototypes"), "{:?}", heard.notices);
}

/// Two large and two small crops, and prototypes that are frozen for a few steps only.
const SWAV: [(&str, &str); 2] = [
    (
        "augment.views",
        "[{copies = 2, size = 16, crop_scale = [0.3, 1]}, {copies = 2, size = 10, crop_scale = [0.1, 0.4]}]",
    ),
    ("method.freeze_prototypes_steps", "10"),
];

#[test]
fn swav_gathers_at_one_prototype_without_equal_shares() {
    let heard = collapses("swav", &[&SWAV[..], &[("method.sinkhorn_iterations", "0")]].concat());
    assert!(heard.notices[0].contains("all images choose 1 of 60 prototypes"), "{:?}", heard.notices);
}

#[test]
fn swav_learns() {
    learns("swav", &[&SWAV[..], &ZERO_START].concat());
}

/// The smallest RegNet, in the size of its recipe: its stem takes no smaller images.
const SEER: [(&str, &str); 4] = [
    ("augment.size", "28"),
    ("augment.views", "[{copies = 2, size = 28, crop_scale = [0.3, 1]}]"),
    ("schedule.warmup_epochs", "0"),
    ("method.freeze_prototypes_steps", "10"),
];

#[test]
fn seer_gathers_at_one_prototype_without_equal_shares() {
    let more = [("method.sinkhorn_iterations", "0"), ("train.max_steps", "30"), ("train.batch_size", "32")];
    let heard = collapses("seer", &[&SEER[..], &more].concat());
    assert!(heard.notices[0].contains("all images choose 1 of 60 prototypes"), "{:?}", heard.notices);
}

/// Asserts that a short training of a method that predicts what is hidden gets better than the mean of what is hidden, in good
/// health. A hundred steps are too few to show in the features.
fn predicts(method: &str, more: &[(&str, &str)]) {
    let folder = tempfile::tempdir().unwrap();
    let (_, heard) = train(method, more, &folder.path().join("run"));
    assert!(heard.notices.is_empty(), "{method}: {:?}", heard.notices);
    let (first, last) = (start(&heard.gain), end(&heard.gain));
    assert!(last > 0.02 && last > first, "{method}: gain {first}, then {last}");
}

#[test]
fn mae_learns() {
    predicts("mae", &[]);
}

#[test]
fn simmim_learns() {
    predicts("simmim", &[("method.mask_cell", "4")]);
}

#[test]
fn simmim_learns_with_a_swin_transformer() {
    predicts(
        "simmim-swin",
        &[
            ("method.mask_cell", "4"),
            ("backbone.depths", "[1, 1]"),
            ("backbone.window", "4"),
            ("train.max_steps", "70"),
        ],
    );
}

#[test]
fn beit_learns() {
    let codes = [("method.codes", "64"), ("method.tokenizer_patches", "4096")];
    predicts("beit", &[&codes[..], &[("method.min_block", "2")]].concat());
}

#[test]
fn data2vec_learns() {
    predicts("data2vec", &[("method.min_block", "2")]);
}

#[test]
fn i_jepa_learns() {
    // The paper's rate, twice that of the recipe, for a smaller network and fewer steps.
    let more = [("method.min_context", "3"), ("method.predictor_dim", "32"), ("optimizer.lr", "0.001")];
    predicts("i-jepa", &more);
}

/// A target that is the network's own answer, as it is.
const OWN_ANSWER: [(&str, &str); 5] = [
    ("method.normalize_targets", "false"),
    ("method.momentum", "0"),
    ("method.final_momentum", "0"),
    ("train.epochs", "4"),
    ("train.max_steps", "200"),
];

#[test]
fn data2vec_gives_all_patches_one_target_without_norm_and_slow_teacher() {
    let more = [
        ("method.min_block", "2"),
        ("method.target_layers", "1"),
        ("backbone.vit.layer_scale", "0"),
        ("optimizer.lr", "0.005"),
    ];
    collapses("data2vec", &[&OWN_ANSWER[..], &more].concat());
}

#[test]
fn i_jepa_gives_all_patches_targets_on_a_line_without_norm_and_slow_teacher() {
    let more = [("method.min_context", "3"), ("method.predictor_dim", "32"), ("optimizer.lr", "0.003")];
    collapses("i-jepa", &[&OWN_ANSWER[..], &more, &[("train.max_steps", "120")]].concat());
}

#[test]
fn clip_learns_what_its_words_mean() {
    let folder = tempfile::tempdir().unwrap();
    let text = [
        ("method.text_width", "32"),
        ("method.text_layers", "1"),
        ("optimizer.lr", "0.003"),
        ("train.max_steps", "100"),
    ];
    let (session, heard) = train("clip", &[&ZERO_START[..], &text].concat(), &folder.path().join("run"));
    let evaluation = learned("clip", &session, &heard, start(&heard.losses));
    let zero_shot = evaluation.zero_shot.as_ref().unwrap();
    // Guessing finds one of ten.
    assert!(zero_shot.classes == 10 && zero_shot.top1 > 0.4, "{zero_shot:?}");
    let result = session.write_result(Some(&evaluation)).unwrap();
    assert_eq!(result["zero_shot"]["top1"].as_f64(), Some(zero_shot.top1));
    assert_eq!(result["zero_shot"]["templates"].as_array().unwrap().len(), 4);
}

/// Asserts that a few hundred steps lift kNN or the linear probe above that of the untrained network, in good health.
fn distils(method: &str, more: &[(&str, &str)]) {
    let folder = tempfile::tempdir().unwrap();
    let (session, heard) = train(method, more, &folder.path().join("run"));
    let evaluation = session.evaluate(|_| {}).unwrap().unwrap();
    let (trained, untrained) = (evaluation.encoder, evaluation.baselines.untrained);
    let gain = (trained.knn - untrained.knn).max(trained.linear - untrained.linear);
    assert!(gain > 0.01, "{method}: {trained:?} after training, {untrained:?} before");
    assert!(heard.notices.is_empty(), "{method}: {:?}", heard.notices);
}

/// Patches cost as much again, so one epoch, and small heads.
const PATCHES: [(&str, &str); 4] = [
    ("train.epochs", "2"),
    ("train.max_steps", "156"),
    ("method.head_hidden", "128"),
    ("method.prototypes", "64"),
];

#[test]
fn dino_learns() {
    distils("dino", &[]);
}

#[test]
fn dino_gives_all_images_one_prototype_without_its_center() {
    let heard = collapses(
        "dino",
        &[
            ("method.center_momentum", "1"),
            ("method.teacher_temperature", "0.02"),
            ("method.head_norm", "false"),
            ("train.max_steps", "60"),
        ],
    );
    assert!(end(&heard.losses) < 0.5, "{:?}", heard.losses);
}

/// What [`dino_gives_all_images_one_prototype_without_its_center`] sets, for methods with patches.
const NO_CENTER: [(&str, &str); 4] = [
    ("method.center_momentum", "1"),
    ("method.teacher_temperature", "0.02"),
    ("method.head_norm", "false"),
    ("train.max_steps", "80"),
];

#[test]
fn ibot_gives_all_images_one_prototype_without_its_centers() {
    collapses("ibot", &[&PATCHES[..], &NO_CENTER].concat());
}

#[test]
fn dinov2_gives_all_images_one_prototype_without_equal_shares() {
    let more = [
        ("method.patch_prototypes", "64"),
        ("method.sinkhorn_iterations", "0"),
        ("method.koleo_weight", "0"),
        ("method.warmup_teacher_temperature", "0.02"),
        ("optimizer.lr", "0.006"),
        ("train.epochs", "4"),
        ("train.max_steps", "110"),
    ];
    collapses("dinov2", &[&PATCHES[..], &NO_CENTER, &more].concat());
}

#[test]
fn msn_learns() {
    distils("msn", &[("method.momentum", "0.95"), ("method.patch_drop", "0")]);
}

#[test]
fn msn_gathers_at_few_prototypes_without_its_spread() {
    collapses(
        "msn",
        &[
            ("method.spread_weight", "0"),
            ("method.sinkhorn_iterations", "0"),
            ("method.sharpening", "0.1"),
            ("train.max_steps", "200"),
        ],
    );
}

#[test]
fn ibot_learns() {
    distils("ibot", &[&PATCHES[..], &[("train.epochs", "4"), ("train.max_steps", "312")]].concat());
}

#[test]
fn dinov2_learns() {
    distils("dinov2", &[&PATCHES[..], &[("method.patch_prototypes", "64")]].concat());
}

#[test]
fn fine_tuning_moves_last_layers_most_and_a_frozen_encoder_not_at_all() {
    let config = DataConfig::default();
    let images = Images::open(&config, &few_images()).unwrap();
    let narrow = [("stem", "cifar"), ("width", "4")];
    let narrow = narrow.map(|(key, value)| (format!("backbone.{key}"), value.to_owned()));
    let recipe = Recipe::load("simclr-fashion-mnist", &narrow).unwrap();
    let protocol = Protocol {
        backbone: recipe.backbone,
        input_size: 12,
        mean: [0.5; 3],
        std: [0.5; 3],
        knn: KnnConfig::default(),
        seed: 3,
    };
    let untouched = Params::new(3, DType::F32, &Device::Cpu);
    protocol.backbone.build(&untouched.root()).unwrap();
    // Those of the named tensors that are not as they were initialised.
    let moved = |config: FineTuneConfig| {
        let settings = [("epochs", "1"), ("batch_size", "200")];
        let settings = settings.map(|(key, value)| (key.to_owned(), value.to_owned()));
        let config = config.with("fine_tune", &settings).unwrap();
        let tuned = fine_tune(None, &protocol, &images, &config, 2, &Device::Cpu, |_| {}).unwrap();
        let values = |params: &Params, name: &str| {
            params.get(name).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap()
        };
        ["conv1.weight", "layer2.0.conv1.weight", "layer4.0.conv1.weight", "bn1.running_mean"]
            .map(|name| values(&tuned.encoder, name) != values(&untouched, name))
    };
    let whole = FineTuneConfig::whole();
    assert_eq!(moved(FineTuneConfig { layer_decay: 1e-4, ..whole.clone() }), [false, false, true, true]);
    assert_eq!(moved(whole), [true; 4]);
    assert_eq!(moved(FineTuneConfig::probe()), [false; 4]);
}
