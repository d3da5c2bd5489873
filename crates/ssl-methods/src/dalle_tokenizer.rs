//! The codes of DALL-E (Ramesh et al., 2021, <https://arxiv.org/abs/2102.12092>, section 2.1; official code openai/DALL-E),
//! which BEiT predicts.
//!
//! The encoder of its discrete autoencoder has four groups of bottleneck blocks, with a pool after each of the first three:
//! from 8 x 8 pixels comes a vector, and the place of its largest number is their code. It is frozen, and read from a file
//! that the user has.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{DType, Device, Error, Result, Tensor, bail};
use ssl_backbones::TensorFile;
use ssl_nn::{BicubicConfig, Conv2dConfig, conv2d, max_pool2d, relu, resize_bicubic};

use crate::config::TrainingData;
use crate::tokenizer::Tokenizer;

/// Pixels, along each side, that make one code.
const STRIDE: usize = 8;

/// Groups of blocks.
const GROUPS: usize = 4;

/// Images that pass at once: with the published network the logits of one are 6 MB.
const CHUNK: usize = 16;

/// Pixels `x` in [0, 1] are moved to `(1 - 2 ε) x + ε`.
const EPSILON: f64 = 0.1;

/// The encoder of DALL-E's discrete autoencoder.
///
/// It sees each image with 8 x 8 pixels in place of each patch: BEiT's views of 224 pixels in patches of 16 as images of
/// 112 pixels, shrunk from the view by bicubic interpolation, where the official code shrinks the crop by Lanczos'.
#[derive(Clone, Debug)]
pub struct DalleTokenizer {
    input: Layer,
    groups: Vec<Vec<Block>>,
    output: Layer,
    /// Mean and deviation `(1, 3, 1, 1)` by which images were normalised.
    mean: Tensor,
    std: Tensor,
    patch: usize,
}

/// A convolution that keeps the size of an image.
#[derive(Clone, Debug)]
struct Layer {
    weight: Tensor,
    /// `(1, C, 1, 1)`.
    bias: Tensor,
}

/// `id(x) + gain · res(x)`.
#[derive(Clone, Debug)]
struct Block {
    id: Option<Layer>,
    res: [Layer; 4],
    gain: f64,
}

impl DalleTokenizer {
    /// Reads the encoder from a safetensors file with the names of the official code's `state_dict`, for patches of side
    /// `patch` of images that are normalised as `data` says.
    ///
    /// # Errors
    /// If `patch` is 0, or the file cannot be read, lacks a tensor, has others, or one is not of its shape.
    pub fn read(path: &Path, patch: usize, data: &TrainingData, device: &Device) -> Result<Self> {
        let file = TensorFile::read_foreign(path, device).map_err(Error::wrap)?;
        let named = |e: Error| Error::Msg(format!("{}: {e}", path.display()));
        Self::of(file.tensors, patch, data).map_err(named)
    }

    fn of(tensors: BTreeMap<String, Tensor>, patch: usize, data: &TrainingData) -> Result<Self> {
        if patch == 0 {
            bail!("tokenizer: patches of 0 pixels, must be at least 1");
        }
        let blocks = |group: usize| {
            let block = |i: usize| format!("blocks.group_{group}.block_{i}.");
            (1..).take_while(|i| tensors.keys().any(|name| name.starts_with(&block(*i)))).map(block).collect()
        };
        let names: Vec<Vec<String>> = (1..=GROUPS).map(blocks).collect();
        let all: usize = names.iter().map(Vec::len).sum();
        let gain = 1.0 / (all.max(1) as f64).powi(2);
        let mut rest = tensors;
        let device = rest.values().next().map_or(Device::Cpu, |tensor| tensor.device().clone());
        let input = Layer::take(&mut rest, "blocks.input", (None, 3, 7))?;
        let width = input.channels();
        let mut channels = width;
        let mut groups = Vec::with_capacity(GROUPS);
        for (group, names) in names.iter().enumerate() {
            let outputs = width << group;
            let mut blocks = Vec::with_capacity(names.len());
            for name in names {
                blocks.push(Block::take(&mut rest, name, (channels, outputs), gain)?);
                channels = outputs;
            }
            groups.push(blocks);
        }
        let output = Layer::take(&mut rest, "blocks.output.conv", (None, channels, 1))?;
        if let Some(name) = rest.keys().next() {
            bail!("`{name}` is no tensor of DALL-E's encoder");
        }
        let constant =
            |values: [f64; 3]| Tensor::new(&values, &device)?.to_dtype(DType::F32)?.reshape((1, 3, 1, 1));
        Ok(Self { input, groups, output, mean: constant(data.mean)?, std: constant(data.std)?, patch })
    }

    /// The numbers `(B, codes, H/8, W/8)` of pixels `(B, 3, H, W)` in [0, 1].
    fn logits(&self, pixels: &Tensor) -> Result<Tensor> {
        let mut x = self.input.forward(&pixels.affine(1.0 - 2.0 * EPSILON, EPSILON)?)?;
        for (group, blocks) in self.groups.iter().enumerate() {
            for block in blocks {
                x = block.forward(&x)?;
            }
            if group + 1 < self.groups.len() {
                x = max_pool2d(&x, 2, 2, 0)?;
            }
        }
        self.output.forward(&relu(&x)?)
    }

    /// The pixels `(B, 3, 8 rows, 8 columns)` in [0, 1] of normalised images of so many rows and columns of patches.
    fn pixels(&self, images: &Tensor, (rows, columns): (usize, usize)) -> Result<Tensor> {
        let pixels = images.broadcast_mul(&self.std)?.broadcast_add(&self.mean)?;
        let size = (rows * STRIDE, columns * STRIDE);
        let config = BicubicConfig { antialias: true, scale: None };
        let pixels = if self.patch == STRIDE { pixels } else { resize_bicubic(&pixels, size, config)? };
        pixels.clamp(0.0, 1.0)
    }
}

impl Tokenizer for DalleTokenizer {
    fn codes(&self) -> usize {
        self.output.channels()
    }

    fn tokenize(&self, images: &Tensor) -> Result<Tensor> {
        let (batch, _, height, width) = images.dims4()?;
        let grid = (height / self.patch, width / self.patch);
        if (grid.0 * self.patch, grid.1 * self.patch) != (height, width) || height * width == 0 {
            bail!("tokenizer: images {:?} do not consist of whole patches of {}", images.dims(), self.patch);
        }
        let images = images.detach();
        let chunks = (0..batch).step_by(CHUNK).map(|start| {
            let images = images.narrow(0, start, CHUNK.min(batch - start))?;
            self.logits(&self.pixels(&images, grid)?)?.argmax(1)?.flatten_from(1)
        });
        Tensor::cat(&chunks.collect::<Result<Vec<_>>>()?, 0)
    }
}

impl Layer {
    /// Takes `NAME.w` `(outputs, inputs, kernel, kernel)` and `NAME.b` `(outputs)`; without `outputs` any number of them.
    fn take(
        tensors: &mut BTreeMap<String, Tensor>,
        name: &str,
        (outputs, inputs, kernel): (Option<usize>, usize, usize),
    ) -> Result<Self> {
        let mut taken = |kind: &str| match tensors.remove(&format!("{name}.{kind}")) {
            Some(tensor) => tensor.to_dtype(DType::F32),
            None => bail!("lacks `{name}.{kind}` of DALL-E's encoder"),
        };
        let (weight, bias) = (taken("w")?, taken("b")?);
        let outputs = outputs.unwrap_or(bias.elem_count());
        if outputs == 0 || weight.dims() != [outputs, inputs, kernel, kernel] || bias.dims() != [outputs] {
            bail!(
                "`{name}` has weights {:?} and biases {:?}, expected ({outputs}, {inputs}, {kernel}, {kernel}) and \
                 ({outputs})",
                weight.dims(),
                bias.dims()
            );
        }
        Ok(Self { weight, bias: bias.reshape((1, outputs, 1, 1))? })
    }

    fn channels(&self) -> usize {
        self.bias.elem_count()
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let padding = self.weight.dim(3)? / 2;
        conv2d(x, &self.weight, Conv2dConfig { padding, ..Default::default() })?.broadcast_add(&self.bias)
    }
}

impl Block {
    fn take(
        tensors: &mut BTreeMap<String, Tensor>,
        name: &str,
        (inputs, outputs): (usize, usize),
        gain: f64,
    ) -> Result<Self> {
        let hidden = outputs / 4;
        let id = (inputs != outputs)
            .then(|| Layer::take(tensors, &format!("{name}id_path"), (Some(outputs), inputs, 1)))
            .transpose()?;
        let mut conv = |i: usize, inputs, outputs, kernel| {
            Layer::take(tensors, &format!("{name}res_path.conv_{i}"), (Some(outputs), inputs, kernel))
        };
        let res = [
            conv(1, inputs, hidden, 3)?,
            conv(2, hidden, hidden, 3)?,
            conv(3, hidden, hidden, 3)?,
            conv(4, hidden, outputs, 1)?,
        ];
        Ok(Self { id, res, gain })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let res = self.res.iter().try_fold(x.clone(), |x, layer| layer.forward(&relu(&x)?))?;
        let id = self.id.as_ref().map_or_else(|| Ok(x.clone()), |layer| layer.forward(x))?;
        id + (res * self.gain)?
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/golden/tokenizer");

    fn data() -> TrainingData {
        TrainingData { images: 1, mean: [0.4, 0.5, 0.6], std: [0.2, 0.25, 0.5] }
    }

    fn weights() -> BTreeMap<String, Tensor> {
        let path = Path::new(FOLDER).join("dalle_weights.safetensors");
        TensorFile::read_foreign(&path, &Device::Cpu).unwrap().tensors
    }

    #[test]
    fn numbers_and_codes_are_those_of_the_reference() {
        let path = Path::new(FOLDER).join("dalle_weights.safetensors");
        let tokenizer = DalleTokenizer::read(&path, STRIDE, &data(), &Device::Cpu).unwrap();
        assert_eq!(tokenizer.codes(), 64);
        let golden = Path::new(FOLDER).join("dalle.safetensors");
        let golden = TensorFile::read_foreign(&golden, &Device::Cpu).unwrap().tensors;
        let logits = tokenizer.logits(&golden["in.images"]).unwrap();
        let values = |x: &Tensor| x.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        for (ours, theirs) in values(&logits).into_iter().zip(values(&golden["out.logits"])) {
            assert!((ours - theirs).abs() <= 1e-5 + 1e-4 * theirs.abs(), "{ours} {theirs}");
        }
        let normalised = golden["in.images"].broadcast_sub(&tokenizer.mean).unwrap();
        let codes = tokenizer.tokenize(&normalised.broadcast_div(&tokenizer.std).unwrap()).unwrap();
        assert_eq!((codes.dims(), codes.dtype()), (&[2, 16][..], DType::U32));
        let theirs = golden["out.codes"].to_dtype(DType::U32).unwrap().to_vec2::<u32>().unwrap();
        assert_eq!(codes.to_vec2::<u32>().unwrap(), theirs);
    }

    #[test]
    fn patches_of_other_sizes_get_a_code_each_and_many_images_those_of_each() {
        let tokenizer = DalleTokenizer::of(weights(), 4, &data()).unwrap();
        let values = (0..17 * 3 * 12 * 8).map(|i| ((i * 7919) % 251) as f32 / 125.0 - 1.0);
        let images = Tensor::from_vec(values.collect(), (17, 3, 12, 8), &Device::Cpu).unwrap();
        let codes = tokenizer.tokenize(&images).unwrap();
        assert_eq!(codes.dims(), [17, 6]);
        let last = tokenizer.tokenize(&images.narrow(0, 16, 1).unwrap()).unwrap();
        assert_eq!(codes.get(16).unwrap().to_vec1::<u32>().unwrap(), last.to_vec2::<u32>().unwrap()[0]);
        let error = tokenizer.tokenize(&images.narrow(3, 0, 6).unwrap()).unwrap_err().to_string();
        assert!(error.contains("whole patches of 4"), "{error}");
    }

    #[test]
    fn files_that_do_not_fit_are_refused_by_name() {
        let error = |change: &dyn Fn(&mut BTreeMap<String, Tensor>)| {
            let mut tensors = weights();
            change(&mut tensors);
            DalleTokenizer::of(tensors, 8, &data()).unwrap_err().to_string()
        };
        let lacking = "blocks.group_3.block_1.id_path.w";
        assert!(error(&|tensors| drop(tensors.remove(lacking))).contains(&format!("lacks `{lacking}`")));
        let more = |tensors: &mut BTreeMap<String, Tensor>| {
            let other = tensors["blocks.input.b"].clone();
            tensors.insert("head.bias".to_owned(), other);
        };
        assert!(error(&more).contains("`head.bias` is no tensor of DALL-E's encoder"));
        let narrow = |tensors: &mut BTreeMap<String, Tensor>| {
            let name = "blocks.group_1.block_1.res_path.conv_2.w";
            let weight = tensors[name].narrow(1, 0, 1).unwrap();
            tensors.insert(name.to_owned(), weight);
        };
        assert!(
            error(&narrow).contains("conv_2` has weights [2, 1, 3, 3] and biases [2], expected (2, 2, 3, 3)")
        );
        let nothing = DalleTokenizer::of(weights(), 0, &data()).unwrap_err().to_string();
        assert!(nothing.contains("patches of 0 pixels"), "{nothing}");
        let path = Path::new(FOLDER).join("none.safetensors");
        let error = DalleTokenizer::read(&path, 8, &data(), &Device::Cpu).unwrap_err().to_string();
        assert!(error.contains("none.safetensors"), "{error}");
    }
}
