//! A method chosen by name.

use candle_core::Result;
use serde::{Deserialize, Serialize};
use ssl_backbones::BackboneConfig;
use ssl_nn::Params;

use crate::method::Method;
use crate::simclr::{SimClr, SimClrConfig};

/// A method with its settings; in a recipe the table `[method]`, told apart by its key `name`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "name", rename_all = "kebab-case")]
pub enum MethodConfig {
    /// SimCLR.
    #[serde(rename = "simclr")]
    SimClr(SimClrConfig),
}

impl MethodConfig {
    /// The names that `name` may have.
    pub const NAMES: [&'static str; 1] = ["simclr"];

    /// The paper's settings of the method `name`, or `None` if there is no such method.
    pub fn named(name: &str) -> Option<Self> {
        match name {
            "simclr" => Some(Self::SimClr(SimClrConfig::default())),
            _ => None,
        }
    }

    /// The name on the command line.
    pub fn name(&self) -> &'static str {
        match self {
            Self::SimClr(_) => "simclr",
        }
    }

    /// Checks every setting.
    ///
    /// # Errors
    /// Names the setting, its value and the allowed range.
    pub fn validate(&self) -> std::result::Result<(), String> {
        match self {
            Self::SimClr(config) => config.validate(),
        }
    }

    /// Creates the parameters in `params` and returns the method.
    ///
    /// # Errors
    /// If a setting is out of range.
    pub fn build(&self, backbone: &BackboneConfig, params: &Params) -> Result<Box<dyn Method>> {
        match self {
            Self::SimClr(config) => Ok(Box::new(SimClr::new(config, backbone, params)?)),
        }
    }
}
