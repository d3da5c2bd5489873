//! What a Swin Transformer is made of.

/// Sizes and parts of a Swin Transformer.
#[derive(Clone, Debug, PartialEq)]
pub struct SwinConfig {
    /// Side of the square images in pixels, whole patches and whole windows in every stage.
    pub image_size: usize,
    /// Side of the square patches in pixels.
    pub patch_size: usize,
    /// Width of the first stage's tokens; every further stage has twice that of the one before.
    pub dim: usize,
    /// Blocks of each stage.
    pub depths: Vec<usize>,
    /// Heads of the first stage's blocks, which divide `dim`; every further stage has twice as many.
    pub heads: usize,
    /// Rows, and columns, of patches that see each other; a stage with fewer of them is one window.
    pub window: usize,
    /// Probability that training leaves the last block's branches out for a sample, in 0..1. It grows linearly from 0
    /// at the first block.
    pub drop_path: f64,
    /// Compute each block again in the backward pass ([`ssl_nn::recompute`]): equal results in less memory and more
    /// time.
    pub recompute: bool,
}

/// Most stages that are of use: each halves the grid.
const MAX_STAGES: usize = 8;

impl SwinConfig {
    fn new(dim: usize, heads: usize, depths: [usize; 4]) -> Self {
        Self {
            image_size: 224,
            patch_size: 4,
            dim,
            depths: depths.to_vec(),
            heads,
            window: 7,
            drop_path: 0.0,
            recompute: false,
        }
    }

    /// Swin-T: 27.5 million parameters, 768 features.
    pub fn swin_tiny() -> Self {
        Self::new(96, 3, [2, 2, 6, 2])
    }

    /// Swin-S: 48.8 million parameters, 768 features.
    pub fn swin_small() -> Self {
        Self::new(96, 3, [2, 2, 18, 2])
    }

    /// Swin-B: 86.7 million parameters, 1024 features.
    pub fn swin_base() -> Self {
        Self::new(128, 4, [2, 2, 18, 2])
    }

    /// Swin-L: 195 million parameters, 1536 features.
    pub fn swin_large() -> Self {
        Self::new(192, 6, [2, 2, 18, 2])
    }

    /// Width of the last stage's tokens and of the embedding.
    pub fn embed_dim(&self) -> usize {
        self.dim << self.last_stage()
    }

    /// Pixels from one token of the last stage to the next.
    pub fn stride(&self) -> usize {
        self.patch_size << self.last_stage()
    }

    /// Rows, and columns, of tokens in stage `stage`, counted from 0.
    pub fn grid(&self, stage: usize) -> usize {
        (self.image_size / self.patch_size.max(1)) >> stage
    }

    /// Side of the windows of stage `stage`.
    pub(crate) fn window_of(&self, stage: usize) -> usize {
        self.window.min(self.grid(stage))
    }

    /// Probability that block `i` of all leaves a branch out.
    pub(crate) fn drop_path_of(&self, i: usize) -> f64 {
        let depth: usize = self.depths.iter().sum();
        self.drop_path * i as f64 / (depth.max(2) - 1) as f64
    }

    fn last_stage(&self) -> usize {
        self.depths.len().saturating_sub(1)
    }

    /// Checks the sizes against each other.
    ///
    /// # Errors
    /// Names the setting, its value and what is allowed.
    pub fn validate(&self) -> Result<(), String> {
        let Self { image_size, patch_size, dim, heads, window, drop_path, .. } = *self;
        let depths = &self.depths;
        if !(1..=MAX_STAGES).contains(&depths.len()) || !depths.iter().all(|d| (1..=1000).contains(d)) {
            return Err(format!("depths = {depths:?} are not 1 to {MAX_STAGES} numbers in 1..=1000"));
        }
        if !(1..=1024).contains(&patch_size) {
            return Err(format!("patch_size = {patch_size} is not in 1..=1024"));
        }
        if !(1..=64).contains(&window) {
            return Err(format!("window = {window} is not in 1..=64"));
        }
        if !(0.0..1.0).contains(&drop_path) {
            return Err(format!("drop_path = {drop_path} is not in [0, 1)"));
        }
        if dim == 0 || heads == 0 || !dim.is_multiple_of(heads) {
            return Err(format!("{heads} heads must divide the width {dim}, at least one each"));
        }
        let stride = self.stride();
        if !(stride..=16_384).contains(&image_size) || !image_size.is_multiple_of(stride) {
            return Err(format!(
                "image_size = {image_size} is not a multiple of {stride} in {stride}..=16384, patch_size = {patch_size} \
                 doubled by each further stage"
            ));
        }
        for stage in 0..depths.len() {
            let (grid, window) = (self.grid(stage), self.window_of(stage));
            if !grid.is_multiple_of(window) {
                return Err(format!(
                    "window = {window} does not divide the {grid} by {grid} tokens of stage {stage} for image_size = \
                     {image_size} and patch_size = {patch_size}"
                ));
            }
        }
        Ok(())
    }
}
