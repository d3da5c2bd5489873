//! Classification by the names of the classes, of a method that puts images and texts into one space.

use candle_core::{DType, Device, Tensor};
use serde_json::{Value, json};
use ssl_eval::{Features, zero_shot_accuracy};
use ssl_methods::DualEncoder;
use ssl_text::ClipTokenizer;

use crate::captions::TextConfig;
use crate::error::Result;

/// Texts of one forward pass.
const BATCH: usize = 256;

/// How well images are classified by texts alone.
#[derive(Clone, Debug, PartialEq)]
pub struct ZeroShot {
    /// Top-1 accuracy on the test images, a fraction in `[0, 1]`.
    pub top1: f64,
    /// Number of classes, of which guessing finds one in so many.
    pub classes: usize,
    /// The sentences that every class is described with.
    pub templates: Vec<String>,
}

impl ZeroShot {
    pub(crate) fn to_json(&self) -> Value {
        json!({
            "top1": self.top1,
            "chance": 1.0 / self.classes as f64,
            "templates": self.templates,
            "protocol": "cosine with the mean over the templates of the normalised embeddings of a class's name",
        })
    }
}

/// The accuracy for `images`, embeddings of the method's encoder.
pub(crate) fn zero_shot(
    towers: &dyn DualEncoder,
    text: &TextConfig,
    class_names: &[String],
    images: &Features,
    device: &Device,
) -> Result<ZeroShot> {
    let tokenizer = ClipTokenizer::new()?;
    let (mut ids, mut classes) = (Vec::new(), Vec::new());
    for (class, name) in (0..).zip(class_names) {
        for sentence in text.sentences(name) {
            ids.push(tokenizer.encode(&sentence)?);
            classes.push(class);
        }
    }
    let mut texts = Vec::new();
    for ids in ids.chunks(BATCH) {
        let ids = Tensor::from_vec(ids.concat(), (ids.len(), ClipTokenizer::CONTEXT), device)?;
        texts.extend(values(&towers.embed_texts(&ids)?)?);
    }
    let texts = features(texts, classes)?;
    let h = Tensor::from_slice(images.data(), (images.rows(), images.dim()), device)?;
    let images = features(values(&towers.project_images(&h)?)?, images.labels().to_vec())?;
    let top1 = zero_shot_accuracy(&texts, &images, class_names.len())?;
    Ok(ZeroShot { top1, classes: class_names.len(), templates: text.templates.clone() })
}

fn features(values: Vec<f32>, labels: Vec<u32>) -> Result<Features> {
    let dim = values.len() / labels.len().max(1);
    Ok(Features::new(values, dim, labels)?)
}

fn values(tensor: &Tensor) -> Result<Vec<f32>> {
    Ok(tensor.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?)
}
