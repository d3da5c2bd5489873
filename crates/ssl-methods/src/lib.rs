//! Self-supervised methods, one file each: architecture, forward pass and loss in the paper's symbols.
//!
//! A [`Method`] turns a [`Batch`] of views into a loss. It knows nothing of files, epochs, optimisers or loggers; all
//! its state lives in the [`ssl_nn::Params`] it was built with.

mod barlow_twins;
mod beit;
mod byol;
mod checks;
mod clip;
mod clusters;
mod config;
mod contrast;
mod crops;
mod dalle_tokenizer;
mod data2vec;
mod dino;
mod dino_head;
mod dinov2;
mod i_jepa;
mod ibot;
mod ibot_parts;
mod mae;
mod masked_encoder;
mod masks;
mod method;
mod moco;
mod moco_v3;
mod msn;
mod queue;
mod reconstruction;
mod safeguard;
mod seer;
mod sela;
mod simclr;
mod simmim;
mod simsiam;
mod split_norm;
mod swav;
mod teacher;
#[cfg(test)]
mod testing;
mod text_tower;
mod tokenizer;
mod vicreg;

pub use barlow_twins::{BarlowTwins, BarlowTwinsConfig};
pub use beit::{Beit, BeitConfig};
pub use byol::{Byol, ByolConfig};
pub use clip::{Clip, ClipConfig, SecondTower};
pub use config::{MethodConfig, TrainingData};
pub use dalle_tokenizer::DalleTokenizer;
pub use data2vec::{Data2Vec, Data2VecConfig};
pub use dino::{Dino, DinoConfig};
pub use dino_head::{DinoHead, DinoHeadConfig};
pub use dinov2::DinoV2Config;
pub use i_jepa::{IJepa, IJepaConfig};
pub use ibot::{Ibot, IbotConfig};
pub use mae::{Mae, MaeConfig};
pub use masks::{
    BlockMask, MultiBlockMask, MultiBlocks, RandomMask, cell_mask, inverse_block_mask, mask_tensor,
};
pub use method::{Batch, DualEncoder, Method, ParameterRule, Reconstruction, StepContext, StepOutput};
pub use moco::{Moco, MocoConfig};
pub use moco_v3::{MocoV3, MocoV3Config};
pub use msn::{Msn, MsnConfig};
pub use queue::Queue;
pub use safeguard::{Removed, Safeguard};
pub use seer::SeerConfig;
pub use sela::{LabelTimes, Sela, SelaConfig};
pub use simclr::{SimClr, SimClrConfig};
pub use simmim::{SimMim, SimMimConfig};
pub use simsiam::{SimSiam, SimSiamConfig};
pub use swav::{Swav, SwavConfig};
pub use text_tower::{TextTower, TextTowerConfig};
pub use tokenizer::{KMeansFit, KMeansTokenizer, Tokenizer};
pub use vicreg::{VicReg, VicRegConfig};
