//! Short trainings on real images. New tests that a method learns go here.

use std::sync::atomic::AtomicBool;

use candle_core::Device;
use ssl_vision::train::{Outcome, Recipe, Session};

use crate::shipped_data;

#[test]
fn simclr_beats_its_untrained_network_after_a_hundred_steps() {
    let settings = [
        ("backbone.width", "8"),
        ("augment.size", "16"),
        ("train.epochs", "1"),
        ("train.max_steps", "100"),
        ("schedule.warmup_epochs", "0.1"),
        // Without the zero-initialised blocks the untrained network is a stronger opponent.
        ("backbone.zero_init_residual", "false"),
    ];
    let settings: Vec<_> = settings.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    let recipe = Recipe::load("simclr-fashion-mnist", &settings).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run");
    let mut session = Session::start(recipe, &shipped_data(), &out, &Device::Cpu, 2).unwrap();
    assert_eq!(session.train(&mut [], &AtomicBool::new(false)).unwrap(), Outcome::Finished);
    let evaluation = session.evaluate(|_| {}).unwrap().unwrap();
    let (trained, untrained) = (evaluation.encoder.knn, evaluation.baselines.untrained.knn);
    assert!(trained > untrained + 0.01, "kNN {trained} after training, {untrained} before");
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
    let losses: Vec<f64> = metrics.lines().map(loss).collect();
    assert!(losses[90..].iter().sum::<f64>() < 0.9 * losses[..10].iter().sum::<f64>(), "{losses:?}");
}
