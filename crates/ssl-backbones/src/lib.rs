//! Vision backbones that train on candle, under the names that torchvision and timm use.
//!
//! A [`BackboneConfig`] names an architecture and builds it; [`save_encoder`] writes a trained one to a safetensors
//! file that torchvision loads with `strict=True`, and [`load_encoder`] rebuilds it from that file alone.
//!
//! ```
//! use candle_core::{DType, Device, Tensor};
//! use ssl_backbones::{BackboneConfig, Stem};
//! use ssl_nn::Params;
//!
//! let config = BackboneConfig { stem: Some(Stem::Cifar), width: Some(8), ..BackboneConfig::named("resnet18")? };
//! let params = Params::new(0, DType::F32, &Device::Cpu);
//! let backbone = config.build(&params.root())?;
//! let features = backbone.forward_t(&Tensor::zeros((2, 3, 32, 32), DType::F32, &Device::Cpu)?, false)?;
//! assert_eq!(features.dims(), [2, backbone.embed_dim()]);
//! # Ok::<(), candle_core::Error>(())
//! ```

mod backbone;
mod encoder;
mod error;
mod hub;
mod jepa_predictor;
mod last_blocks;
mod layers;
mod mae_decoder;
mod part;
mod patch_projection;
mod regnet;
mod resnet;
mod swin;
mod swin_config;
mod swin_names;
mod swin_windows;
mod tensor_file;
mod vit;
mod vit_config;
mod vit_embedding;
mod vit_name_tables;
mod vit_names;

pub use backbone::{Backbone, BackboneConfig};
pub use encoder::{Encoder, EncoderInfo, export_foreign, import_foreign, load_encoder, save_encoder};
pub use error::{Error, Result};
pub use hub::HubFile;
pub use jepa_predictor::{JepaPredictor, JepaPredictorConfig};
pub use last_blocks::LastBlocks;
pub use layers::layers_after_token;
pub use mae_decoder::{MaeDecoder, MaeDecoderConfig};
pub use patch_projection::MaskedPatches;
pub use regnet::{RegNet, RegNetConfig, RegNetStage};
pub use resnet::{Block, ResNet, ResNetConfig, Stem};
pub use swin::Swin;
pub use swin_config::SwinConfig;
pub use tensor_file::{TensorFile, write_atomically};
pub use vit::{Vit, VitPass, VitTokens};
pub use vit_config::{
    Pooling, Positions, RelativePositions, VitConfig, VitInit, VitMlp, VitOptions, VitQkvBias,
};
pub use vit_embedding::{patch_pixels, sin_cos_positions};
pub use vit_names::{Place, VitNames};
