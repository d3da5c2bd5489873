//! Trainings with labels for `cargo xtask eval`: on an encoder, and on the same network as it is initialised.

use candle_core::Device;
use serde_json::{Value, json};
use ssl_vision::backbones::Encoder;
use ssl_vision::train::{FineTuneConfig, FineTuned, Images, Protocol, fine_tune};

use crate::progress::Steps;

/// Trainings with labels that a user may ask for, by the table of their settings.
#[derive(Clone, Copy, Debug)]
pub(super) enum Tuning {
    /// Of the whole network.
    FineTune,
    /// Of a linear classifier.
    Probe,
}

impl Tuning {
    /// The first word of its keys in `--set`, and its name in JSON.
    pub(super) fn section(self) -> &'static str {
        match self {
            Self::FineTune => "fine_tune",
            Self::Probe => "augmented_probe",
        }
    }

    fn title(self) -> &'static str {
        match self {
            Self::FineTune => "fine-tuning of the whole network with labels",
            Self::Probe => "linear classifier on augmented images, encoder frozen",
        }
    }

    /// Its settings: the defaults, and those of `settings` that are its own.
    pub(super) fn config(self, settings: &[(String, String)]) -> anyhow::Result<FineTuneConfig> {
        let defaults = match self {
            Self::FineTune => FineTuneConfig::whole(),
            Self::Probe => FineTuneConfig::probe(),
        };
        let own = |(key, value): &(String, String)| {
            let key = key.strip_prefix(self.section())?.strip_prefix('.')?;
            Some((key.to_owned(), value.clone()))
        };
        let own: Vec<(String, String)> = settings.iter().filter_map(own).collect();
        Ok(defaults.with(self.section(), &own)?)
    }
}

/// What a training reached from the encoder and from the network as it is initialised.
pub(super) struct Tuned {
    tuning: Tuning,
    config: FineTuneConfig,
    pub(super) encoder: FineTuned,
    untrained: FineTuned,
}

impl Tuned {
    pub(super) fn run(
        tuning: Tuning,
        config: FineTuneConfig,
        encoder: &Encoder,
        protocol: &Protocol,
        images: &Images,
        threads: usize,
    ) -> anyhow::Result<Self> {
        let train = |weights, of: &str| {
            let mut steps = Steps::new(&format!("{}, {of}", tuning.section()));
            let tell = |step: &ssl_vision::train::FineTuneStep| {
                steps.tell(step.step, step.steps, &format!("loss {:.4}", step.loss));
            };
            fine_tune(weights, protocol, images, &config, threads, &Device::Cpu, tell)
        };
        let found = train(Some(&encoder.params), "trained encoder")?;
        let untrained = train(None, "untrained network")?;
        Ok(Self { tuning, config, encoder: found, untrained })
    }

    pub(super) fn to_json(&self) -> (String, Value) {
        let value = json!({
            "encoder": self.encoder.to_json(),
            "untrained": self.untrained.to_json(),
            "protocol": self.config.to_json(),
        });
        (self.tuning.section().to_owned(), value)
    }

    /// For people.
    pub(super) fn table(&self) -> String {
        let row = |name: &str, found: &FineTuned| {
            let (low, high) = (100.0 * found.interval.low, 100.0 * found.interval.high);
            format!("{name:<20} {:>8.1}  ({low:.1} to {high:.1})\n", 100.0 * found.top1)
        };
        let (config, title) = (&self.config, self.tuning.title());
        let decay =
            if config.frozen { String::new() } else { format!(", layer decay {}", config.layer_decay) };
        format!(
            "{title}, top-1 %\n{}{}{} epochs, batches of {}, lr {}{decay}\n",
            row("trained encoder", &self.encoder),
            row("untrained network", &self.untrained),
            config.epochs,
            config.batch_size,
            config.optimizer.lr(),
        )
    }
}
