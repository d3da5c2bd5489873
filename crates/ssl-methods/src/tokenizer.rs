//! What turns patches into words: the targets of BEiT.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{D, DType, Device, Error, Result, Tensor, Var, bail};
use ssl_backbones::TensorFile;
use ssl_losses::{normalize_patches, patchify};
use ssl_nn::{Init, Rng, Scope, permutation};

use crate::config::TrainingData;
use crate::dalle_tokenizer::DalleTokenizer;
use crate::masks::uniform;

/// Rows of patches that are compared with the centres at once.
const CHUNK: usize = 4096;

/// Rows for each centre among which the first centres are looked for.
const SEEDING: usize = 16;

/// Turns each patch of an image into one of a fixed number of codes.
///
/// BEiT (Bao et al., 2021, <https://arxiv.org/abs/2106.08254>) takes the encoder of a discrete variational autoencoder,
/// [`DalleTokenizer`](crate::DalleTokenizer); [`KMeansTokenizer`] is what a run learns by itself. A type of one's own with another network goes into
/// [`Beit::with_tokenizer`](crate::Beit::with_tokenizer).
pub trait Tokenizer: Send + Sync {
    /// Number of codes.
    fn codes(&self) -> usize;

    /// The code of each patch of normalised images `(B, 3, H, W)`, row by row: `(B, N)` of type `U32`, below
    /// [`Tokenizer::codes`].
    ///
    /// # Errors
    /// If the images do not have the size that the tokenizer is made for, or it has learned nothing yet.
    fn tokenize(&self, images: &Tensor) -> Result<Tensor>;

    /// What a patch of each code looks like, `(K, 3 p²)` normalised pixels in the order of [`patchify`], if codes are
    /// pixels.
    fn appearance(&self) -> Option<Tensor> {
        None
    }
}

/// Reads the tokenizer of a file, which is one of [`KMeansTokenizer::write`] or the encoder of DALL-E's autoencoder, for
/// patches of side `patch` of images that are normalised as `data` says.
pub(crate) fn read_tokenizer(
    path: &Path,
    patch: usize,
    data: &TrainingData,
    device: &Device,
) -> Result<Box<dyn Tokenizer>> {
    let file = TensorFile::read_foreign(path, device).map_err(Error::wrap)?;
    Ok(if file.metadata.contains_key(NORMALIZE) {
        Box::new(KMeansTokenizer::read(path, patch, data, device)?)
    } else {
        Box::new(DalleTokenizer::read(path, patch, data, device)?)
    })
}

/// Metadata of a file of centres: whether they are those of normalised patches.
const NORMALIZE: &str = "normalize_patches";

/// Codes are the nearest of `K` centres that k-means (Lloyd's algorithm) has found among the pixels of patches.
///
/// Its centres are buffers of the store: they are saved, resumed and exported with the run.
///
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use ssl_methods::{KMeansTokenizer, Tokenizer};
/// use ssl_nn::{Params, Purpose, rng};
///
/// let params = Params::new(0, DType::F32, &Device::Cpu);
/// let mut tokenizer = KMeansTokenizer::new(2, 1, false, &params.root().pp("tokenizer"))?;
/// // Two images of two pixels, black or white.
/// let images = Tensor::new(&[[[0f32, 1.]], [[1., 1.]]], &Device::Cpu)?.unsqueeze(1)?.repeat((1, 3, 1, 1))?;
/// tokenizer.learn(&tokenizer.patches(&images)?, 10, &mut rng(0, Purpose::Mask, 0, 0, 0))?;
/// let codes = tokenizer.tokenize(&images)?.to_vec2::<u32>()?;
/// assert!(codes[0][0] != codes[0][1] && codes[1] == [codes[0][1]; 2]);
/// # Ok::<(), candle_core::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct KMeansTokenizer {
    /// `(K, 3 p²)`.
    centers: Var,
    /// 1 once the centres are learned.
    learned: Var,
    patch: usize,
    normalize: bool,
    fit: Option<KMeansFit>,
}

/// What k-means has found.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct KMeansFit {
    /// Rounds until nothing changed, or as many as were allowed.
    pub rounds: usize,
    /// Share of the variance of the patches that the centres explain, in [0, 1].
    pub explained: f64,
    /// Centres that are nearest to some patch.
    pub used: usize,
}

impl KMeansTokenizer {
    /// A tokenizer with `codes` centres for patches of side `patch`; creates the buffers `centers` and `learned`. With
    /// `normalize` every patch is normalised by itself, so that its brightness and contrast do not matter.
    ///
    /// # Errors
    /// If a size is 0 or a name is taken.
    pub fn new(codes: usize, patch: usize, normalize: bool, scope: &Scope) -> Result<Self> {
        if codes == 0 || patch == 0 {
            bail!("tokenizer: {codes} codes of patches of {patch} pixels, must be at least 1");
        }
        let centers = scope.buffer("centers", (codes, 3 * patch * patch), Init::Const(0.0))?;
        let learned = scope.buffer("learned", 1, Init::Const(0.0))?;
        Ok(Self { centers, learned, patch, normalize, fit: None })
    }

    /// Writes its centres to a safetensors file, together with how the images were normalised: other runs read their codes
    /// from there.
    ///
    /// # Errors
    /// If it has not learned them yet, or the file system refuses.
    pub fn write(&self, path: &Path, data: &TrainingData) -> Result<()> {
        if !self.is_learned()? {
            bail!("tokenizer: its centres are not learned yet");
        }
        let (centers, device) = (self.centers(), self.centers.device());
        let [mean, std] = [Tensor::new(&data.mean, device)?, Tensor::new(&data.std, device)?];
        let named = [("centers", centers), ("mean", mean), ("std", std)];
        let tensors = named.map(|(name, tensor)| (name.to_owned(), tensor)).into();
        let metadata = BTreeMap::from([(NORMALIZE.to_owned(), self.normalize.to_string())]);
        TensorFile { tensors, metadata }.write(path).map_err(Error::wrap)
    }

    /// Reads the centres that [`KMeansTokenizer::write`] wrote, for patches of side `patch` of images that are normalised
    /// as `data` says.
    ///
    /// # Errors
    /// If the file cannot be read, or was written for patches of another size or images normalised otherwise.
    pub fn read(path: &Path, patch: usize, data: &TrainingData, device: &Device) -> Result<Self> {
        let mut file = TensorFile::read(path, device).map_err(Error::wrap)?;
        let mut take = |name: &str| {
            let lacking = || Error::Msg(format!("{}: lacks `{name}` of a tokenizer", path.display()));
            file.tensors.remove(name).ok_or_else(lacking)
        };
        let (centers, mean, std) = (take("centers")?, take("mean")?, take("std")?);
        let (codes, width) = centers.dims2()?;
        if codes == 0 || width != 3 * patch * patch {
            bail!(
                "{}: has {codes} codes of {width} values, but patches of {patch} pixels have {}",
                path.display(),
                3 * patch * patch
            );
        }
        for (name, theirs, ours) in [("mean", mean, data.mean), ("std", std, data.std)] {
            let theirs = theirs.to_dtype(DType::F64)?.flatten_all()?.to_vec1::<f64>()?;
            if theirs != ours {
                bail!(
                    "{}: was learned with augment.{name} = {theirs:?}, but this run has {ours:?}",
                    path.display()
                );
            }
        }
        let normalize = file.metadata.get(NORMALIZE).is_some_and(|value| value == "true");
        let centers = Var::from_tensor(&centers.to_dtype(DType::F32)?)?;
        let learned = Var::ones(1, DType::F32, device)?;
        Ok(Self { centers, learned, patch, normalize, fit: None })
    }

    /// What k-means has found when it learned; `None` before, and for centres that were read.
    pub fn fit(&self) -> Option<KMeansFit> {
        self.fit
    }

    /// Side of a patch.
    pub fn patch(&self) -> usize {
        self.patch
    }

    /// Whether it has learned its centres.
    ///
    /// # Errors
    /// If a tensor operation fails.
    pub fn is_learned(&self) -> Result<bool> {
        Ok(self.learned.to_dtype(DType::F64)?.to_vec1::<f64>()?.iter().all(|learned| *learned == 1.0))
    }

    /// The centres, `(K, 3 p²)`, detached.
    pub fn centers(&self) -> Tensor {
        self.centers.as_detached_tensor()
    }

    /// The patches of images `(B, 3, H, W)` as rows that it compares, `(B N, 3 p²)`.
    ///
    /// # Errors
    /// If the images do not consist of whole patches.
    pub fn patches(&self, images: &Tensor) -> Result<Tensor> {
        let patches = patchify(images, self.patch)?;
        if self.normalize { normalize_patches(&patches) } else { Ok(patches) }?.flatten_to(1)
    }

    /// Learns its centres from rows of [`KMeansTokenizer::patches`], in at most `rounds` rounds.
    ///
    /// It starts as k-means++ (Arthur & Vassilvitskii, 2007) from a part of the rows: the next centre is a row drawn in
    /// proportion to its squared distance from those there are. A centre without any row moves to the row that is farthest
    /// from its own centre. The result depends on rows and generator alone.
    ///
    /// # Errors
    /// If there are fewer rows than centres, or one has another width or is not finite.
    pub fn learn(&mut self, rows: &Tensor, rounds: usize, rng: &mut Rng) -> Result<KMeansFit> {
        let (k, width) = self.centers.dims2()?;
        let (n, columns) = rows.dims2()?;
        if columns != width || n < k {
            bail!("tokenizer: {k} centres of {width} values cannot be learned from {n} patches of {columns}");
        }
        let values = rows.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
        if values.iter().any(|value| !value.is_finite()) {
            bail!("tokenizer: a patch has pixels that are not finite");
        }
        let mut centers = seeds(&values, k, width, rng);
        let mut codes = vec![u32::MAX; n];
        for round in 1..=rounds.max(1) {
            self.centers
                .set(&Tensor::from_slice(&centers, (k, width), rows.device())?.to_dtype(rows.dtype())?)?;
            let found = self.nearest(rows)?.to_vec1::<u32>()?;
            let settled = found == codes;
            codes = found;
            let distances = distances(&values, &centers, &codes, width);
            let (means, counts) = means(&values, &codes, k, width);
            if settled || round == rounds.max(1) {
                let mean = means_of_all(&values, width);
                let total: f64 = values.chunks(width).map(|row| squared(row, &mean)).sum();
                let explained = 1.0 - distances.iter().sum::<f64>() / total.max(f64::MIN_POSITIVE);
                let used = counts.iter().filter(|count| **count > 0).count();
                self.learned.set(&self.learned.ones_like()?)?;
                let fit = KMeansFit { rounds: round, explained: explained.clamp(0.0, 1.0), used };
                self.fit = Some(fit);
                return Ok(fit);
            }
            centers = means;
            relocate(&mut centers, &counts, &values, &distances, width);
        }
        bail!("tokenizer: no round of k-means was run")
    }

    /// The number of the centre that is nearest to each row, `(M)` of type `U32`.
    fn nearest(&self, rows: &Tensor) -> Result<Tensor> {
        let centers = self.centers();
        let half_squares = (centers.sqr()?.sum(1)? * 0.5)?.unsqueeze(0)?; // (1, K)
        let transposed = centers.t()?.contiguous()?;
        let m = rows.dim(0)?;
        let chunks = (0..m).step_by(CHUNK).map(|start| {
            // |x - c|² / 2 without the part that is the same for all centres, with the other sign.
            let scores = rows.narrow(0, start, CHUNK.min(m - start))?.contiguous()?.matmul(&transposed)?;
            scores.broadcast_sub(&half_squares)?.argmax(D::Minus1)
        });
        Tensor::cat(&chunks.collect::<Result<Vec<_>>>()?, 0)
    }
}

impl Tokenizer for KMeansTokenizer {
    fn codes(&self) -> usize {
        self.centers.dims()[0]
    }

    fn tokenize(&self, images: &Tensor) -> Result<Tensor> {
        if !self.is_learned()? {
            bail!("tokenizer: its centres are not learned yet");
        }
        let batch = images.dim(0)?;
        self.nearest(&self.patches(&images.detach())?)?.reshape((batch, ()))
    }

    fn appearance(&self) -> Option<Tensor> {
        (!self.normalize).then(|| self.centers())
    }
}

fn squared(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| f64::from(a - b).powi(2)).sum()
}

/// Rows to start from, `(k, width)`: k-means++ among [`SEEDING`] rows a centre, drawn at random.
fn seeds(values: &[f32], k: usize, width: usize, rng: &mut Rng) -> Vec<f32> {
    let n = values.len() / width;
    let mut order = permutation(rng, u32::try_from(n).unwrap_or(u32::MAX));
    order.truncate(k * SEEDING);
    let row = |place: usize| &values[order[place] as usize * width..][..width];
    let mut centers = row(0).to_vec();
    let mut nearest: Vec<f64> = (0..order.len()).map(|place| squared(row(place), row(0))).collect();
    for _ in 1..k {
        let drawn = uniform(rng, 0.0, nearest.iter().sum());
        let mut below = 0.0;
        // Where all rows lie on centres the first will do: such centres have no rows and move.
        let next = nearest.iter().position(|distance| {
            below += distance;
            below > drawn
        });
        let next = next.unwrap_or(0);
        centers.extend_from_slice(row(next));
        for (place, distance) in nearest.iter_mut().enumerate() {
            *distance = distance.min(squared(row(place), row(next)));
        }
    }
    centers
}

/// The squared distance of each row to its centre.
fn distances(values: &[f32], centers: &[f32], codes: &[u32], width: usize) -> Vec<f64> {
    let rows = values.chunks(width).zip(codes);
    rows.map(|(row, code)| squared(row, &centers[*code as usize * width..][..width])).collect()
}

fn means_of_all(values: &[f32], width: usize) -> Vec<f32> {
    means(values, &vec![0; values.len() / width.max(1)], 1, width).0
}

/// The mean of the rows of each code, zeros for a code without rows, and how many rows each has.
fn means(values: &[f32], codes: &[u32], k: usize, width: usize) -> (Vec<f32>, Vec<usize>) {
    let (mut sums, mut counts) = (vec![0f64; k * width], vec![0usize; k]);
    for (row, code) in values.chunks(width).zip(codes) {
        let code = *code as usize;
        counts[code] += 1;
        sums[code * width..][..width].iter_mut().zip(row).for_each(|(sum, x)| *sum += f64::from(*x));
    }
    let of = |(place, sum): (usize, f64)| (sum / counts[place / width].max(1) as f64) as f32;
    (sums.into_iter().enumerate().map(of).collect(), counts)
}

/// Moves centres without rows to the rows that are farthest from their own centres, the farthest first.
fn relocate(centers: &mut [f32], counts: &[usize], values: &[f32], distances: &[f64], width: usize) {
    let empty: Vec<usize> = (0..counts.len()).filter(|code| counts[*code] == 0).collect();
    if empty.is_empty() {
        return;
    }
    let mut farthest: Vec<usize> = (0..distances.len()).collect();
    farthest.sort_by(|a, b| distances[*b].total_cmp(&distances[*a]).then(a.cmp(b)));
    for (code, row) in empty.into_iter().zip(farthest) {
        centers[code * width..][..width].copy_from_slice(&values[row * width..][..width]);
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;
    use ssl_nn::{Params, Purpose, rng};

    use super::*;
    use crate::testing::params;

    fn tokenizer(codes: usize, params: &Params) -> KMeansTokenizer {
        KMeansTokenizer::new(codes, 1, false, &params.root().pp("tokenizer")).unwrap()
    }

    /// Three clouds of twenty points, apart from each other, and twenty equal points.
    fn clouds() -> Tensor {
        let point = |i: usize| {
            let wobble = if i % 4 == 3 { 0.0 } else { (i * 7919 % 101) as f32 / 1010.0 };
            let [x, y] = [[0.0, 0.0], [5.0, 0.0], [0.0, 5.0], [-4.0, -4.0]][i % 4];
            [x + wobble, y - wobble, wobble]
        };
        Tensor::from_vec((0..80).flat_map(point).collect(), (80, 3), &Device::Cpu).unwrap()
    }

    #[test]
    fn clouds_get_a_code_each_wherever_it_starts() {
        for seed in 0..8 {
            let params = params();
            let mut tokenizer = tokenizer(4, &params);
            let fit = tokenizer.learn(&clouds(), 30, &mut rng(seed, Purpose::Mask, 0, 0, 0)).unwrap();
            assert_eq!(fit.used, 4, "{fit:?}");
            assert!(fit.explained > 0.9, "seed {seed}: {fit:?}");
            let codes = tokenizer.nearest(&clouds()).unwrap().to_vec1::<u32>().unwrap();
            assert!((0..80).all(|i| codes[i] == codes[i % 4]), "{codes:?}");
        }
    }

    #[test]
    fn centres_are_the_means_of_their_rows_and_nearest_is_the_definition() {
        let params = params();
        let mut tokenizer = tokenizer(7, &params);
        let rows = clouds();
        tokenizer.learn(&rows, 100, &mut rng(3, Purpose::Mask, 0, 0, 0)).unwrap();
        let centers = tokenizer.centers.to_vec2::<f32>().unwrap();
        let (values, codes) = (rows.to_vec2::<f32>().unwrap(), tokenizer.nearest(&rows).unwrap());
        let codes = codes.to_vec1::<u32>().unwrap();
        for (row, code) in values.iter().zip(&codes) {
            let own = squared(row, &centers[*code as usize]);
            assert!(centers.iter().all(|center| own <= squared(row, center) + 1e-4));
        }
        for (code, center) in centers.iter().enumerate() {
            let own: Vec<_> = values.iter().zip(&codes).filter(|(_, own)| **own as usize == code).collect();
            assert!(!own.is_empty());
            for column in 0..3 {
                let mean = own.iter().map(|(row, _)| row[column]).sum::<f32>() / own.len() as f32;
                assert!((mean - center[column]).abs() < 1e-5);
            }
        }
    }

    #[test]
    fn the_same_rows_and_generator_make_the_same_centres() {
        let learned = |seed| {
            let params = params();
            let mut tokenizer = tokenizer(9, &params);
            tokenizer.learn(&clouds(), 5, &mut rng(seed, Purpose::Mask, 0, 0, 0)).unwrap();
            tokenizer.centers.to_vec2::<f32>().unwrap()
        };
        assert_eq!(learned(1), learned(1));
        assert_ne!(learned(1), learned(2));
    }

    #[test]
    fn a_file_gives_the_same_codes_and_says_what_does_not_fit() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("codes.safetensors");
        let data = TrainingData { images: 80, mean: [0.1, 0.2, 0.3], std: [0.5; 3] };
        let params = params();
        let mut learned = tokenizer(4, &params);
        assert!(learned.write(&path, &data).unwrap_err().to_string().contains("not learned yet"));
        let fit = learned.learn(&clouds(), 30, &mut rng(0, Purpose::Mask, 0, 0, 0)).unwrap();
        assert_eq!(learned.fit(), Some(fit));
        learned.write(&path, &data).unwrap();
        let images = clouds().reshape((20, 4, 3)).unwrap().transpose(1, 2).unwrap().contiguous().unwrap();
        let images = images.reshape((20, 3, 2, 2)).unwrap();
        let read = read_tokenizer(&path, 1, &data, &Device::Cpu).unwrap();
        let codes =
            |tokenizer: &dyn Tokenizer| tokenizer.tokenize(&images).unwrap().to_vec2::<u32>().unwrap();
        assert_eq!((codes(&*read), read.codes()), (codes(&learned), 4));
        let centers = |tokenizer: &dyn Tokenizer| tokenizer.appearance().unwrap().to_vec2::<f32>().unwrap();
        assert_eq!(centers(&*read), centers(&learned));
        let error = |patch: usize, data: &TrainingData| match read_tokenizer(&path, patch, data, &Device::Cpu)
        {
            Ok(_) => String::new(),
            Err(error) => error.to_string(),
        };
        let size = error(2, &data);
        assert!(
            size.contains("codes.safetensors: has 4 codes of 3 values") && size.contains("2 pixels have 12"),
            "{size}"
        );
        let other = error(1, &TrainingData { std: [0.25; 3], ..data });
        assert!(other.contains("augment.std = [0.5, 0.5, 0.5], but this run has [0.25"), "{other}");
        std::fs::write(&path, &std::fs::read(&path).unwrap()[..200]).unwrap();
        assert!(error(1, &data).contains("codes.safetensors"), "{}", error(1, &data));
    }

    #[test]
    fn what_it_cannot_learn_from_is_refused() {
        let params = params();
        let mut tokenizer = tokenizer(4, &params);
        let images = Tensor::zeros((1, 3, 2, 2), DType::F32, &Device::Cpu).unwrap();
        let error = tokenizer.tokenize(&images).unwrap_err().to_string();
        assert!(error.contains("not learned yet"), "{error}");
        let mut error = |rows: Tensor| {
            tokenizer.learn(&rows, 3, &mut rng(0, Purpose::Mask, 0, 0, 0)).unwrap_err().to_string()
        };
        assert!(
            error(clouds().narrow(0, 0, 3).unwrap())
                .contains("4 centres of 3 values cannot be learned from 3")
        );
        assert!(error(clouds().narrow(1, 0, 2).unwrap()).contains("patches of 2"));
        assert!(error((clouds() / 0.0).unwrap()).contains("not finite"));
        assert!(KMeansTokenizer::new(0, 4, false, &params.root().pp("none")).is_err());
    }
}
