//! The training loop and what belongs to it.
//!
//! A [`Recipe`] decides everything that changes the result; a [`Session`] runs it in a folder and can be stopped at any
//! step and resumed to the same bits; [`Observer`]s look on. [`evaluate`] judges the encoder against its baselines.

mod augment_config;
mod captions;
mod checkpoint;
mod chunks;
mod damage;
mod data_config;
mod doctor;
mod embedded;
mod error;
mod evaluate;
mod export;
mod fine_tune;
mod forward;
mod gradients;
mod history;
mod images;
mod layers;
mod loader;
mod measure;
mod memory;
mod monitor;
mod observer;
mod optimizer;
mod pass;
mod recipe;
mod result;
mod run_folder;
mod sampler;
mod schedule;
mod session;
mod spread;
mod study;
mod train_config;
mod trainer;
mod update;
mod zero_shot;

pub use augment_config::AugmentConfig;
pub use captions::TextConfig;
pub use checkpoint::{Checkpoint, CheckpointConfig};
pub use data_config::DataConfig;
pub use doctor::{Doctor, Symptom, Verdict};
pub use error::{Error, Result};
pub use evaluate::{Baselines, EvalConfig, Evaluation, Protocol, Scores, evaluate};
pub use export::encoder_of_checkpoint;
pub use fine_tune::{FineTuneConfig, FineTuneStep, FineTuned, fine_tune};
pub use forward::embeddings;
pub use gradients::{ClipScope, Gradients};
pub use history::{History, Line};
pub use images::{Images, open_images};
pub use loader::Loader;
pub use measure::{MeasureConfig, Measures};
pub use memory::peak_rss_bytes;
pub use observer::{Control, MeasureReport, Observer, StepReport};
pub use optimizer::{AdamConfig, LarsConfig, Optimizer, OptimizerConfig, ParamGroup, Rates, SgdConfig};
pub use recipe::Recipe;
pub use run_folder::RunFolder;
pub use sampler::Sampler;
pub use schedule::ScheduleConfig;
pub use session::{Outcome, Session};
pub use spread::Spread;
pub use study::{Figure, Study, study};
pub use train_config::TrainConfig;
pub use zero_shot::ZeroShot;
