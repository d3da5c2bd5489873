//! A method chosen by name.

use candle_core::{Result, bail};
use serde::{Deserialize, Serialize};
use ssl_backbones::BackboneConfig;
use ssl_nn::Params;

use crate::barlow_twins::BarlowTwinsConfig;
use crate::beit::BeitConfig;
use crate::byol::ByolConfig;
use crate::clip::ClipConfig;
use crate::data2vec::Data2VecConfig;
use crate::dino::DinoConfig;
use crate::dinov2::DinoV2Config;
use crate::i_jepa::IJepaConfig;
use crate::ibot::IbotConfig;
use crate::mae::MaeConfig;
use crate::method::Method;
use crate::moco::MocoConfig;
use crate::moco_v3::MocoV3Config;
use crate::msn::MsnConfig;
use crate::safeguard::Safeguard;
use crate::seer::SeerConfig;
use crate::sela::SelaConfig;
use crate::simclr::SimClrConfig;
use crate::simmim::SimMimConfig;
use crate::simsiam::SimSiamConfig;
use crate::swav::SwavConfig;
use crate::vicreg::VicRegConfig;

/// What a method is told of the images that it will train on.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TrainingData {
    /// Number of images, of which some methods remember something.
    pub images: usize,
    /// Mean of each channel, which was subtracted from pixels in [0, 1].
    pub mean: [f64; 3],
    /// Standard deviation of each channel, by which they were divided.
    pub std: [f64; 3],
}

/// The settings of one method.
pub(crate) trait Settings {
    /// Checks every setting; an error names the setting, its value and the allowed range.
    fn validate(&self) -> std::result::Result<(), String>;

    /// Checks the settings against a step of `images` images, computed in `parts` equal parts.
    fn validate_batch(&self, _images: usize, _parts: usize) -> std::result::Result<(), String> {
        Ok(())
    }

    /// Checks the settings against the network.
    fn validate_backbone(&self, _backbone: &BackboneConfig) -> std::result::Result<(), String> {
        Ok(())
    }

    /// What keeps the method from collapsing.
    fn safeguard(&self) -> Safeguard;

    /// Creates the parameters in `params` and returns the method. The settings are valid.
    fn build(
        &self,
        backbone: &BackboneConfig,
        params: &Params,
        data: &TrainingData,
    ) -> Result<Box<dyn Method>>;

    /// Name of the paper's augmentation.
    fn augmentation(&self) -> &'static str;

    /// Prefix of the tensors of [`Method::encoder`] in the store, with its dot.
    fn encoder_prefix(&self) -> &'static str {
        "backbone."
    }

    /// Whether every image needs a text.
    fn needs_text(&self) -> bool {
        false
    }

    /// Whether every image needs a partner of another kind.
    fn needs_pairs(&self) -> bool {
        false
    }

    /// Settings that are not written where they have their default, with that: later ones than the recipes of the method,
    /// which so keep their hashes.
    fn unwritten(&self) -> &'static [(&'static str, &'static str)] {
        &[]
    }
}

/// The enumeration of all methods: name on the command line, variant, settings, and the paper's values of them.
macro_rules! methods {
    ($($(#[$doc:meta])* $name:literal => $variant:ident($settings:ty) = $papers:expr,)*) => {
        /// A method with its settings; in a recipe the table `[method]`, told apart by its key `name`.
        #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
        #[serde(tag = "name")]
        pub enum MethodConfig {
            $($(#[$doc])* #[serde(rename = $name)] $variant($settings),)*
        }

        impl MethodConfig {
            /// The names that `name` may have.
            pub const NAMES: &'static [&'static str] = &[$($name),*];

            /// The paper's settings of the method `name`, or `None` if there is no such method.
            pub fn named(name: &str) -> Option<Self> {
                match name {
                    $($name => Some(Self::$variant($papers)),)*
                    _ => None,
                }
            }

            /// The name on the command line.
            pub fn name(&self) -> &'static str {
                match self {
                    $(Self::$variant(_) => $name,)*
                }
            }

            fn settings(&self) -> &dyn Settings {
                match self {
                    $(Self::$variant(settings) => settings,)*
                }
            }
        }
    };
}

methods! {
    /// SimCLR.
    "simclr" => SimClr(SimClrConfig) = SimClrConfig::default(),
    /// BYOL.
    "byol" => Byol(ByolConfig) = ByolConfig::default(),
    /// MoCo v1.
    "moco-v1" => MocoV1(MocoConfig) = MocoConfig::v1(),
    /// MoCo v2.
    "moco-v2" => MocoV2(MocoConfig) = MocoConfig::v2(),
    /// MoCo v3.
    "moco-v3" => MocoV3(MocoV3Config) = MocoV3Config::default(),
    /// SimSiam.
    "simsiam" => SimSiam(SimSiamConfig) = SimSiamConfig::default(),
    /// Barlow Twins.
    "barlow-twins" => BarlowTwins(BarlowTwinsConfig) = BarlowTwinsConfig::default(),
    /// VICReg.
    "vicreg" => VicReg(VicRegConfig) = VicRegConfig::default(),
    /// SwAV.
    "swav" => Swav(SwavConfig) = SwavConfig::default(),
    /// SEER.
    "seer" => Seer(SeerConfig) = SeerConfig::default(),
    /// SeLa.
    "sela" => Sela(SelaConfig) = SelaConfig::default(),
    /// MAE.
    "mae" => Mae(MaeConfig) = MaeConfig::default(),
    /// SimMIM.
    "simmim" => SimMim(SimMimConfig) = SimMimConfig::default(),
    /// DINO.
    "dino" => Dino(DinoConfig) = DinoConfig::default(),
    /// iBOT.
    "ibot" => Ibot(IbotConfig) = IbotConfig::default(),
    /// DINOv2.
    "dinov2" => DinoV2(DinoV2Config) = DinoV2Config::default(),
    /// MSN.
    "msn" => Msn(MsnConfig) = MsnConfig::default(),
    /// BEiT.
    "beit" => Beit(BeitConfig) = BeitConfig::default(),
    /// data2vec.
    "data2vec" => Data2Vec(Data2VecConfig) = Data2VecConfig::default(),
    /// I-JEPA.
    "i-jepa" => IJepa(IJepaConfig) = IJepaConfig::default(),
    /// CLIP.
    "clip" => Clip(ClipConfig) = ClipConfig::default(),
}

impl MethodConfig {
    /// Checks every setting.
    ///
    /// # Errors
    /// Names the setting, its value and the allowed range.
    pub fn validate(&self) -> std::result::Result<(), String> {
        self.settings().validate()
    }

    /// Checks the settings against an optimiser step of `images` images, computed in `parts` equal parts.
    ///
    /// # Errors
    /// Names the setting, its value and what it must fit.
    pub fn validate_batch(&self, images: usize, parts: usize) -> std::result::Result<(), String> {
        self.settings().validate_batch(images, parts)
    }

    /// Checks the settings against the network: some methods need a vision transformer.
    ///
    /// # Errors
    /// Names the setting, its value and what it must fit.
    pub fn validate_backbone(&self, backbone: &BackboneConfig) -> std::result::Result<(), String> {
        self.settings().validate_backbone(backbone)
    }

    /// Name of the paper's augmentation, a preset of `ssl-augment`.
    pub fn augmentation(&self) -> &'static str {
        self.settings().augmentation()
    }

    /// Creates the parameters in `params` and returns the method.
    ///
    /// # Errors
    /// If a setting is out of range or does not fit the network.
    pub fn build(
        &self,
        backbone: &BackboneConfig,
        params: &Params,
        data: &TrainingData,
    ) -> Result<Box<dyn Method>> {
        if let Err(reason) = self.validate().and_then(|()| self.validate_backbone(backbone)) {
            bail!("{reason}");
        }
        self.settings().build(backbone, params, data)
    }

    /// Prefix of the tensors of [`Method::encoder`] in the store, with its dot.
    pub fn encoder_prefix(&self) -> &'static str {
        self.settings().encoder_prefix()
    }

    /// Whether every image needs a text ([`Batch::text`](crate::Batch::text)).
    pub fn needs_text(&self) -> bool {
        self.settings().needs_text()
    }

    /// Whether every image needs a partner of another kind, of which the last views are.
    pub fn needs_pairs(&self) -> bool {
        self.settings().needs_pairs()
    }

    /// What keeps the method from giving all images the same embedding, and whether its settings have taken that away.
    pub fn safeguard(&self) -> Safeguard {
        self.settings().safeguard()
    }

    /// Settings that are not written where they have their default, with that.
    pub fn unwritten(&self) -> &'static [(&'static str, &'static str)] {
        self.settings().unwritten()
    }
}
