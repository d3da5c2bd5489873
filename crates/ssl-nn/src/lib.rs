//! Layers that train, on candle.
//!
//! candle's own layers are made for inference: several drop gradients without an error, and the backward passes of
//! its convolution and batch norm are many times slower than their forward passes. The layers here are
//! differentiable, agree with PyTorch in value and gradient, and take their parameters from [`Params`]: an ordered,
//! named and seeded store of everything that a run must remember.
//!
//! On the CPU each layer is one operation with a hand-written backward pass, for `f32` and `f64`. On other devices it
//! is composed of candle's own operations, which gives the same numbers; those paths are not tested here.
//!
//! Results do not depend on the number of threads: work is split by index and sums are reduced in a fixed order.
//!
//! ```
//! use candle_core::{DType, Device, Tensor};
//! use ssl_nn::{Conv2d, Conv2dConfig, Params};
//!
//! let params = Params::new(7, DType::F32, &Device::Cpu);
//! let conv = Conv2d::new(3, 8, 3, Conv2dConfig { padding: 1, ..Default::default() }, &params.root().pp("conv1"))?;
//! let y = conv.forward(&Tensor::zeros((2, 3, 9, 7), DType::F32, &Device::Cpu)?)?;
//! assert_eq!(y.dims(), [2, 8, 9, 7]);
//! assert_eq!(params.names(), ["conv1.weight"]);
//! # Ok::<(), candle_core::Error>(())
//! ```

mod activation;
mod attention;
mod avg_pool;
mod batch_norm;
mod bicubic;
mod branch;
mod channel_norm;
mod channels_last;
mod conv2d;
mod convolve;
mod cross_entropy;
mod dense;
mod dropout;
mod ema;
mod fresh;
mod gelu;
mod geometry;
mod graph;
mod group_norm;
mod init;
mod input;
mod kernel;
mod lanes;
mod layer_norm;
mod linear;
mod matrix;
mod mlp;
mod pack;
mod params;
mod perceptron;
mod pool;
mod probe;
mod real;
mod recompute;
mod relative_position;
mod reorder;
mod residual;
mod rms_norm;
mod rng;
mod schedule;
mod scratch;
mod softmax;
mod squeeze_excitation;
mod storage;
mod transformer;
mod transformer_block;
mod weight_gradient;
mod winograd;
mod worker;

pub use activation::{Activation, add_relu, relu};
pub use attention::{AttentionOptions, attention, attention_map};
pub use avg_pool::avg_pool2d;
pub use batch_norm::{Affine, BatchNorm, BatchNormConfig};
pub use bicubic::{BicubicConfig, interpolate_positions, resize_bicubic};
pub use conv2d::{Conv2d, Conv2dConfig, conv2d};
pub use cross_entropy::{cross_entropy, soft_cross_entropy};
pub use dropout::{DrawsAt, drop_path, drop_path_factors, dropout};
pub use ema::ema_update;
pub use gelu::{gelu, gelu_tanh, quick_gelu};
pub use group_norm::{GroupNorm, group_norm};
pub use init::{Fan, Init};
pub use layer_norm::{LayerNorm, layer_norm};
pub use linear::{Linear, LinearConfig, linear};
pub use mlp::{Mlp, MlpConfig};
pub use params::{Params, Role, Scope};
pub use perceptron::{Perceptron, swiglu};
pub use pool::{global_avg_pool, global_avg_pool_channels_last, max_pool2d, max_pool2d_channels_last};
pub use probe::Probe;
pub use recompute::recompute;
pub use relative_position::RelativePositionBias;
pub use reorder::reorder_tokens;
pub use residual::{ConvNorm, Residual, Shortcut, residual_block, residual_blocks, stem};
pub use rms_norm::{RmsNorm, rms_norm};
pub use rng::{Purpose, Rng, permutation, rng};
pub use schedule::Schedule;
pub use softmax::{log_softmax, softmax};
pub use squeeze_excitation::SqueezeExcitation;
pub use transformer::transformer_blocks;
pub use transformer_block::{BlockNames, BlockOptions, QkvBias, TransformerBlock, TransformerBlockConfig};
pub use worker::on_worker;
