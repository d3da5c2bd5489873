//! A run that is stopped and resumed ends with the bits of one that was not. New tests of the run folder, of checkpoints
//! and of determinism go here.

use std::fs;
use std::path::Path;
use std::sync::atomic::AtomicBool;

use candle_core::{DType, Device};
use ssl_vision::train::{Checkpoint, Control, Observer, Outcome, Recipe, Session, StepReport};

use crate::few_images;

/// A network small enough to run a dozen times.
fn recipe(more: &[(&str, &str)]) -> Recipe {
    recipe_of("simclr", more)
}

/// The recipe of `method` for Fashion-MNIST, made small.
fn recipe_of(method: &str, more: &[(&str, &str)]) -> Recipe {
    let small = [
        ("backbone.width", "2"),
        ("augment.size", "8"),
        ("train.batch_size", "100"),
        ("train.epochs", "2"),
        ("train.max_steps", "25"),
        ("schedule.warmup_epochs", "0.1"),
        ("checkpoint.every_steps", "4"),
        ("measure.every_epochs", "1"),
        ("measure.images", "32"),
        ("measure.views", "2"),
    ];
    let settings = small.iter().chain(more).map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
    Recipe::load(&format!("{method}-fashion-mnist"), &settings.collect::<Vec<_>>()).unwrap()
}

struct StopAt(usize);

impl Observer for StopAt {
    fn on_step(&mut self, report: &StepReport<'_>) -> Control {
        if report.step == self.0 { Control::Stop } else { Control::Continue }
    }
}

#[derive(Default)]
struct Notices(std::sync::Arc<std::sync::Mutex<Vec<String>>>);

impl Observer for Notices {
    fn on_notice(&mut self, notice: &str) {
        self.0.lock().unwrap().push(notice.to_owned());
    }
}

fn train(mut session: Session, stop_at: usize) -> Outcome {
    session.train(&mut [Box::new(StopAt(stop_at))], &AtomicBool::new(false)).unwrap()
}

fn start(recipe: &Recipe, out: &Path, threads: usize) -> Session {
    Session::start(recipe.clone(), &few_images(), out, &Device::Cpu, threads).unwrap()
}

fn resume(out: &Path, threads: usize) -> ssl_vision::train::Result<Session> {
    Session::resume(out, |_| few_images(), |own| Ok(own.clone()), &Device::Cpu, threads, &mut [])
}

/// The last checkpoint, the metrics and the measures.
fn bits(out: &Path) -> (Vec<u8>, String, String) {
    let checkpoint = out.join("checkpoints").join(Checkpoint::file_name(25));
    let text = |name: &str| fs::read_to_string(out.join(name)).unwrap();
    (fs::read(checkpoint).unwrap(), text("metrics.jsonl"), text("measures.jsonl"))
}

/// Asserts that a run in parts, on other numbers of loader threads, ends with the bits of the whole run.
fn parts_equal_the_whole(recipe: &Recipe) {
    let folder = tempfile::tempdir().unwrap();
    let whole = folder.path().join("whole");
    assert_eq!(train(start(recipe, &whole, 2), 0), Outcome::Finished);
    assert_eq!(bits(&whole).1.lines().count(), 25);
    // Before the first step, after the first epoch, and after the last step.
    assert_eq!(bits(&whole).2.lines().count(), 3);
    let parts = folder.path().join("parts");
    // Step 20 is the end of the first epoch; 7 and 22 lie between checkpoints.
    assert_eq!(train(start(recipe, &parts, 1), 7), Outcome::Interrupted { step: 7 });
    assert_eq!(train(resume(&parts, 3).unwrap(), 20), Outcome::Interrupted { step: 20 });
    assert_eq!(train(resume(&parts, 1).unwrap(), 22), Outcome::Interrupted { step: 22 });
    assert_eq!(train(resume(&parts, 2).unwrap(), 0), Outcome::Finished);
    assert!(bits(&whole) == bits(&parts), "the resumed run differs ({})", recipe.name);
    // A finished run has nothing left to do.
    assert_eq!(train(resume(&parts, 2).unwrap(), 0), Outcome::Finished);
    assert!(bits(&whole) == bits(&parts));
}

#[test]
fn stopped_anywhere_on_any_number_of_loader_threads_it_ends_with_the_same_bits() {
    parts_equal_the_whole(&recipe(&[]));
    parts_equal_the_whole(&recipe(&[
        ("optimizer.name", "lars"),
        ("train.accumulate", "2"),
        ("train.clip_norm", "1"),
    ]));
}

#[test]
fn measuring_and_evaluating_meanwhile_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let run = |name: &str, more: &[(&str, &str)]| {
        let out = folder.path().join(name);
        let recipe = recipe(more);
        let mut session = start(&recipe, &out, 2);
        assert_eq!(session.train(&mut [], &AtomicBool::new(false)).unwrap(), Outcome::Finished);
        let params = session.params().all().into_iter();
        let params: Vec<_> = params
            .map(|(name, var)| (name, var.flatten_all().unwrap().to_dtype(DType::F64).unwrap()))
            .map(|(name, values)| (name, values.to_vec1::<f64>().unwrap()))
            .collect();
        let logs = ["metrics.jsonl", "measures.jsonl"].map(|log| fs::read_to_string(out.join(log)).unwrap());
        (params, logs, recipe.hash().unwrap())
    };
    let (params, [metrics, measures], hash) = run("none", &[("measure.every_epochs", "0")]);
    assert_eq!(measures, "");
    let (own, [own_metrics, measures], own_hash) = run("all", &[("eval.every_epochs", "1")]);
    assert!(params == own && metrics == own_metrics && hash == own_hash);
    let values: Vec<serde_json::Value> =
        measures.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(values.iter().map(|line| line["step"].as_u64().unwrap()).collect::<Vec<_>>(), [0, 20, 25]);
    for name in
        ["knn", "linear", "alignment", "entropy", "redundancy", "rank_me", "lidar", "view_information"]
    {
        assert!(
            values.iter().all(|line| line[name].as_f64().is_some_and(f64::is_finite)),
            "{name}: {measures}"
        );
    }
}

/// Every method with what it remembers between steps; new methods go here.
#[test]
fn what_a_method_remembers_survives_a_stop() {
    let methods = [
        ("simclr", vec![("augment.size", "9")]),
        ("byol", vec![("train.accumulate", "2")]),
        ("simsiam", vec![("train.accumulate", "2")]),
        ("barlow-twins", vec![]),
        ("vicreg", vec![]),
        ("moco-v1", vec![("method.queue_size", "300")]),
        (
            "moco-v2",
            vec![
                ("method.queue_size", "400"),
                ("method.symmetric", "true"),
                ("method.batch_norm_groups", "5"),
                ("train.accumulate", "2"),
            ],
        ),
        ("moco-v3", vec![]),
        (
            "swav",
            vec![
                ("augment.views", "[{copies=2,size=8},{copies=2,size=6}]"),
                ("method.queue_length", "100"),
                ("method.queue_start_epoch", "0"),
                ("method.freeze_prototypes_steps", "10"),
                ("train.accumulate", "2"),
            ],
        ),
        (
            "swav",
            vec![
                ("method.name", "seer"),
                ("method.projector_hidden", "32"),
                ("method.projector_dim", "16"),
                ("method.prototypes", "60"),
                ("augment.views", "[{copies=2,size=8},{copies=2,size=6}]"),
                ("schedule.warmup_epochs", "0"),
                ("schedule.warmup_steps", "9"),
            ],
        ),
    ];
    let methods = methods.into_iter().chain([(
        "sela",
        // Label steps before steps 0, 7, 14, 21 and 28, one of them where the run is stopped.
        vec![("method.labels", "5"), ("method.label_steps", "9"), ("method.label_times", "uniform")],
    )]);
    let methods = methods.chain([(
        "clip",
        vec![("method.text_width", "8"), ("method.text_layers", "1"), ("train.accumulate", "2")],
    )]);
    for (method, more) in methods {
        parts_equal_the_whole(&recipe_of(method, &more));
    }
}

/// The same for methods on vision transformers: teachers, centres, masks, drop path.
#[test]
fn what_a_method_on_transformers_remembers_survives_a_stop() {
    let network = [("backbone.width", "64"), ("backbone.depth", "1"), ("backbone.patch_size", "4")];
    let crops = ("augment.views", "[{copies=1,size=8},{copies=1,size=8},{copies=1,size=4}]");
    let head = [crops, ("method.head_hidden", "16"), ("method.prototypes", "16")];
    let with_head = |more: &[(&'static str, &'static str)]| [&head[..], more].concat();
    let methods = [
        ("dino", with_head(&[("backbone.vit.drop_path", "0.5"), ("schedule.weight_decay_end_factor", "10")])),
        ("ibot", with_head(&[("train.accumulate", "2")])),
        ("dinov2", with_head(&[("method.patch_prototypes", "16"), ("method.layer_decay", "0.9")])),
        (
            "msn",
            vec![
                ("augment.views", "[{copies=2,size=8},{copies=1,size=4}]"),
                ("method.projector_hidden", "16"),
                ("method.patch_drop", "0.5"),
            ],
        ),
        ("mae", vec![("train.accumulate", "2")]),
        ("simmim", vec![("method.mask_cell", "4")]),
        // Codes learned in the run.
        (
            "beit",
            vec![("backbone.patch_size", "2"), ("method.codes", "16"), ("method.tokenizer_patches", "500")],
        ),
        ("data2vec", vec![("backbone.patch_size", "2"), ("method.target_layers", "1")]),
        (
            "i-jepa",
            vec![("backbone.patch_size", "2"), ("method.min_context", "2"), ("train.accumulate", "2")],
        ),
    ];
    for (method, more) in methods {
        parts_equal_the_whole(&recipe_of(method, &[&network[..], &more].concat()));
    }
    let swin = [
        ("method.mask_cell", "4"),
        ("backbone.width", "32"),
        ("backbone.depths", "[2, 1]"),
        ("backbone.window", "2"),
        ("backbone.drop_path", "0.5"),
    ];
    parts_equal_the_whole(&recipe_of("simmim-swin", &swin));
}

#[test]
fn a_pass_over_all_images_can_be_stopped_and_leaves_nothing_behind() {
    let labels = [("method.labels", "5"), ("method.label_steps", "9"), ("method.label_times", "uniform")];
    let (own, folder) = (recipe_of("sela", &labels), tempfile::tempdir().unwrap());
    let (whole, parts) = (folder.path().join("whole"), folder.path().join("parts"));
    train(start(&own, &whole, 2), 0);
    // The first pass comes before the first step.
    let mut session = start(&own, &parts, 2);
    let outcome = session.train(&mut [], &AtomicBool::new(true)).unwrap();
    assert_eq!(outcome, Outcome::Interrupted { step: 0 });
    drop(session);
    assert_eq!(train(resume(&parts, 1).unwrap(), 0), Outcome::Finished);
    assert!(bits(&whole) == bits(&parts));
}

#[test]
fn a_run_may_go_on_with_recomputation_and_without_it() {
    let (own, folder) = (recipe(&[]), tempfile::tempdir().unwrap());
    let (whole, parts) = (folder.path().join("whole"), folder.path().join("parts"));
    train(start(&own, &whole, 2), 0);
    train(start(&own, &parts, 2), 7);
    let with = recipe(&[("backbone.recompute", "true")]);
    let wanted = |_: &Recipe| Ok(with.clone());
    let session = Session::resume(&parts, |_| few_images(), wanted, &Device::Cpu, 2, &mut []).unwrap();
    assert_eq!(train(session, 20), Outcome::Interrupted { step: 20 });
    train(resume(&parts, 2).unwrap(), 0);
    assert!(bits(&whole) == bits(&parts));
}

#[test]
fn a_damaged_checkpoint_is_passed_over_with_a_word() {
    let (recipe, folder) = (recipe(&[]), tempfile::tempdir().unwrap());
    let (whole, hurt) = (folder.path().join("whole"), folder.path().join("hurt"));
    train(start(&recipe, &whole, 2), 0);
    train(start(&recipe, &hurt, 2), 10);
    let newest = hurt.join("checkpoints").join(Checkpoint::file_name(10));
    let mut bytes = fs::read(&newest).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&newest, bytes).unwrap();
    let notices = Notices::default();
    let said = notices.0.clone();
    let own = |own: &Recipe| Ok(own.clone());
    let session =
        Session::resume(&hurt, |_| few_images(), own, &Device::Cpu, 2, &mut [Box::new(notices)]).unwrap();
    assert_eq!(session.step(), 8);
    let said = said.lock().unwrap().join("\n");
    assert!(said.contains(&Checkpoint::file_name(10)) && said.contains("checksum"), "{said}");
    train(session, 0);
    assert!(bits(&whole) == bits(&hurt));
}

#[test]
fn what_does_not_belong_together_is_refused_with_both_sides() {
    let (own, folder) = (recipe(&[("train.max_steps", "2")]), tempfile::tempdir().unwrap());
    let out = folder.path().join("run");
    let session = start(&own, &out, 1);
    let again = Session::start(own.clone(), &few_images(), &out, &Device::Cpu, 1).unwrap_err().to_string();
    assert!(again.contains("in use by another run"), "{again}");
    train(session, 0);
    let again = Session::start(own.clone(), &few_images(), &out, &Device::Cpu, 1).unwrap_err().to_string();
    assert!(again.contains("holds a run already"), "{again}");
    let other = recipe(&[("train.max_steps", "2"), ("optimizer.lr", "0.5")]);
    let wanted = |_: &Recipe| Ok(other.clone());
    let error = Session::resume(&out, |_| few_images(), wanted, &Device::Cpu, 1, &mut []).unwrap_err();
    assert!(error.to_string().contains("optimizer.lr: 0.002 there, 0.5 here"), "{error}");
}

#[test]
fn a_number_that_is_not_finite_stops_the_step_by_name_and_nothing_is_lost() {
    let (own, folder) = (recipe(&[]), tempfile::tempdir().unwrap());
    let out = folder.path().join("run");
    train(start(&own, &out, 1), 5);
    for name in ["backbone.layer2.0.conv1.weight", "projector.3.weight"] {
        let mut session = resume(&out, 1).unwrap();
        let weight = session.params().get(name).unwrap();
        weight.set(&(weight.as_tensor() * f64::NAN).unwrap()).unwrap();
        let error = session.train(&mut [], &AtomicBool::new(false)).unwrap_err().to_string();
        assert!(error.contains("step 6") && error.contains(name), "{error}");
    }
    assert_eq!(resume(&out, 1).unwrap().step(), 5);
}
