//! Negative cosine similarity, the loss of SimSiam (Chen & He, 2021, <https://arxiv.org/abs/2011.10566>, equation 1) and,
//! scaled, of BYOL.

use candle_core::{Result, Tensor};

use crate::checks;
use crate::normalize::normalize;

/// `−mean_n p_n · z_n` of the normalised rows: −1 for equal directions, 0 for orthogonal and 1 for opposite ones.
///
/// Which of the two is a target without gradient is the caller's business: detach it.
///
/// # Shapes
/// `p`, `z`: `(N, D)`, row `n` of both from the same image. Returns a scalar.
///
/// # Errors
/// If the shapes differ or are not of rank 2.
///
/// # Example
/// ```
/// use candle_core::{Device, Tensor};
///
/// let p = Tensor::new(&[[2f32, 0.], [0., 1.]], &Device::Cpu)?;
/// let z = Tensor::new(&[[3f32, 0.], [1., 0.]], &Device::Cpu)?;
/// assert_eq!(ssl_losses::negative_cosine(&p, &z)?.to_scalar::<f32>()?, -0.5);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn negative_cosine(p: &Tensor, z: &Tensor) -> Result<Tensor> {
    checks::paired(p, z, "negative_cosine")?;
    (normalize(p)? * normalize(z)?)?.sum(1)?.mean_all()?.neg()
}
