//! The names under which other programs know the tensors of a vision transformer.
//!
//! `vit_name_tables.rs` has a table for each program. Reading a tensor is looking up its place in it, writing one is
//! looking up its name.

use std::collections::BTreeMap;

use candle_core::{Result, Tensor, bail};

use crate::vit_config::{Positions, VitConfig, VitMlp};
use crate::vit_name_tables::{
    BEIT, CLIP, DATA2VEC, DINOV2, DINOV2_GATED, Entry, Scheme, TIMM, TRANSFORMERS_DINOV2,
    TRANSFORMERS_DINOV2_GATED, VIT,
};

/// A program that names the tensors of a vision transformer.
///
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use ssl_backbones::{VitConfig, VitNames};
/// use ssl_nn::Params;
///
/// let config = VitConfig { image_size: 8, patch_size: 4, dim: 12, depth: 1, ..VitConfig::vit_tiny() };
/// let params = Params::new(0, DType::F32, &Device::Cpu);
/// config.build(&params.root())?;
/// let ours = params.all().into_iter().map(|(name, var)| (name, var.as_tensor().clone())).collect();
///
/// let theirs = VitNames::TransformersVit.export(&ours, &config)?;
/// assert_eq!(theirs["encoder.layer.0.attention.attention.key.weight"].dims(), [12, 12]);
/// let back = VitNames::TransformersVit.import(&theirs, &config)?;
/// params.load(&back)?;
/// # Ok::<(), candle_core::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VitNames {
    /// timm's `VisionTransformer` and `Beit`, the official code of BEiT and SimMIM, and ours.
    Timm,
    /// The official code of DINO and iBOT: timm's, perhaps behind `module.` and `backbone.`.
    Dino,
    /// The official code of DINOv2, with and without registers.
    Dinov2,
    /// The official code of MAE and of its encoder: timm's.
    Mae,
    /// `ViTModel` of transformers.
    TransformersVit,
    /// `ViTMAEModel` of transformers.
    TransformersVitMae,
    /// `Dinov2Model` and `Dinov2WithRegistersModel` of transformers.
    TransformersDinov2,
    /// `BeitModel` of transformers.
    TransformersBeit,
    /// `Data2VecVisionModel` of transformers.
    TransformersData2Vec,
    /// `CLIPVisionModel` of transformers.
    TransformersClip,
}

/// Where a tensor of another program belongs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Our name.
    pub name: String,
    /// Which of `parts` equal parts of our tensor, along its first dimension, it is.
    pub part: usize,
    /// 1 if it is the whole tensor.
    pub parts: usize,
}

impl VitNames {
    /// All of them.
    pub const ALL: [Self; 10] = [
        Self::Timm,
        Self::Dino,
        Self::Dinov2,
        Self::Mae,
        Self::TransformersVit,
        Self::TransformersVitMae,
        Self::TransformersDinov2,
        Self::TransformersBeit,
        Self::TransformersData2Vec,
        Self::TransformersClip,
    ];

    /// Where the tensor that the program calls `theirs` belongs, or `None` if it is no part of the backbone.
    ///
    /// Of transformers, both the names of version 5 in memory and those of files and of version 4 are known.
    pub fn place(self, theirs: &str) -> Option<Place> {
        let scheme = self.scheme(true);
        let prefixes = scheme.prefixes.iter().filter_map(|prefix| theirs.strip_prefix(prefix));
        prefixes.into_iter().find_map(|name| scheme.place(name))
    }

    /// The program's tensors of a backbone under our names. What is not of the backbone, such as heads, decoders and mask
    /// tokens, is left out.
    ///
    /// # Errors
    /// If a name is unknown, a part is missing, or positions do not fit `config`.
    pub fn import(
        self,
        theirs: &BTreeMap<String, Tensor>,
        config: &VitConfig,
    ) -> Result<BTreeMap<String, Tensor>> {
        let mut found: BTreeMap<String, BTreeMap<usize, (&Tensor, usize)>> = BTreeMap::new();
        for (name, tensor) in theirs {
            match self.place(name) {
                Some(Place { name, part, parts }) => {
                    found.entry(name).or_default().insert(part, (tensor, parts));
                }
                None if self.is_other(name) => {}
                None => bail!("`{name}` is no tensor of a vision transformer named as {self:?}"),
            }
        }
        let mut ours = BTreeMap::new();
        for (name, parts) in found {
            let expected = parts.values().map(|(_, parts)| *parts).max().unwrap_or(1);
            if parts.len() != expected {
                bail!("`{name}` consists of {expected} tensors in {self:?}, got {}", parts.len());
            }
            let parts: Vec<&Tensor> = parts.values().map(|(tensor, _)| *tensor).collect();
            let mut tensor = if expected == 1 { parts[0].clone() } else { Tensor::cat(&parts, 0)? };
            while TOKENS.contains(&name.as_str()) && tensor.rank() < 3 {
                tensor = tensor.unsqueeze(0)?;
            }
            ours.insert(name, tensor);
        }
        if self.has_registers_without_positions() {
            read_positions(&mut ours, config)?;
        }
        Ok(ours)
    }

    /// The tensors of a backbone, under our names, as the program's files have them.
    ///
    /// A network must be one that the program has, too: [`crate::VitOptions`] has the settings of each. Of transformers
    /// the names are those of files, which version 4 has in memory as well and version 5 translates. DINOv2 gets a mask
    /// token of zeros, which its encoder does not use by itself.
    ///
    /// # Errors
    /// If the program has no place for a tensor.
    pub fn export(
        self,
        ours: &BTreeMap<String, Tensor>,
        config: &VitConfig,
    ) -> Result<BTreeMap<String, Tensor>> {
        let scheme = self.scheme(config.options.mlp == VitMlp::SwiGlu);
        let mut ours = ours.clone();
        if self.has_registers_without_positions() {
            write_positions(&mut ours, config)?;
        }
        let mut theirs = BTreeMap::new();
        for (name, tensor) in &ours {
            let Some(names) = scheme.write(name) else {
                bail!("`{name}` has no place in {self:?}");
            };
            for (name, part) in names.iter().zip(tensor.chunk(names.len(), 0)?) {
                theirs.insert(name.clone(), part.detach().force_contiguous()?);
            }
        }
        if self == Self::TransformersClip {
            let flat = |name: &str| format!("{}{name}", scheme.prefixes[0]);
            for name in [flat("embeddings.class_embedding"), flat("embeddings.position_embedding.weight")] {
                if let Some(tensor) = theirs.get_mut(&name) {
                    *tensor = if tensor.dim(1)? == 1 { tensor.flatten_all()? } else { tensor.squeeze(0)? };
                }
            }
        }
        if let Some(token) = ours.get("cls_token").filter(|_| self.has_registers_without_positions()) {
            let name = if self == Self::Dinov2 { "mask_token" } else { "embeddings.mask_token" };
            theirs.insert(name.to_owned(), token.detach().zeros_like()?.squeeze(0)?);
        }
        Ok(theirs)
    }

    fn scheme(self, gated: bool) -> &'static Scheme {
        match (self, gated) {
            (Self::Timm | Self::Dino | Self::Mae, _) => &TIMM,
            (Self::Dinov2, false) => &DINOV2,
            (Self::Dinov2, true) => &DINOV2_GATED,
            (Self::TransformersVit | Self::TransformersVitMae, _) => &VIT,
            (Self::TransformersDinov2, false) => &TRANSFORMERS_DINOV2,
            (Self::TransformersDinov2, true) => &TRANSFORMERS_DINOV2_GATED,
            (Self::TransformersBeit, _) => &BEIT,
            (Self::TransformersData2Vec, _) => &DATA2VEC,
            (Self::TransformersClip, _) => &CLIP,
        }
    }

    fn is_other(self, name: &str) -> bool {
        let scheme = self.scheme(true);
        let index = name.ends_with("relative_position_index");
        let mut bare = scheme.prefixes.iter().filter_map(|prefix| name.strip_prefix(prefix));
        index || bare.any(|name| scheme.others.iter().any(|other| name.starts_with(other)))
    }

    /// Whether the program adds positions to class token and patches and puts registers without positions between them.
    fn has_registers_without_positions(self) -> bool {
        matches!(self, Self::Dinov2 | Self::TransformersDinov2)
    }
}

/// Our tensors of rank 3, which have fewer dimensions in some programs.
const TOKENS: [&str; 3] = ["cls_token", "reg_token", "pos_embed"];

impl Scheme {
    fn place(&self, name: &str) -> Option<Place> {
        if let Some((number, rest)) = self.blocks.iter().find_map(|blocks| split_block(name, blocks)) {
            let place = self.inner.iter().find_map(|entries| find(entries, rest))?;
            return Some(Place { name: format!("blocks.{number}.{}", place.name), ..place });
        }
        find(self.outer, name)
    }

    /// The names of the parts of our tensor `name`.
    fn write(&self, name: &str) -> Option<Vec<String>> {
        let (front, rest, tables) = match split_block(name, "blocks") {
            Some((number, rest)) => (format!("{}.{number}.", self.blocks[0]), rest, self.inner),
            None => (String::new(), name, std::slice::from_ref(&self.outer)),
        };
        let (forms, rest) = tables
            .iter()
            .flat_map(|entries| entries.iter())
            .find_map(|(ours, forms)| behind(rest, ours).map(|rest| (forms, rest)))?;
        let prefix = self.prefixes[0];
        Some(forms[0].iter().map(|part| format!("{prefix}{front}{part}{rest}")).collect())
    }
}

/// The place of `name` by the first entry that has it.
fn find(entries: &[Entry], name: &str) -> Option<Place> {
    let forms = entries.iter().flat_map(|(ours, forms)| forms.iter().map(move |form| (ours, form)));
    let mut parts =
        forms.flat_map(|(ours, form)| form.iter().enumerate().map(move |(i, p)| (ours, form, i, p)));
    parts.find_map(|(ours, form, part, theirs)| {
        let rest = behind(name, theirs)?;
        Some(Place { name: format!("{ours}{rest}"), part, parts: form.len() })
    })
}

/// What follows `front` in `name`, if it ends there or a dot follows.
fn behind<'a>(name: &'a str, front: &str) -> Option<&'a str> {
    name.strip_prefix(front).filter(|rest| rest.is_empty() || rest.starts_with('.'))
}

/// `blocks.3.rest` as the number and the rest. DINOv2 in training groups its blocks: the number is then the second one.
fn split_block<'a>(name: &'a str, blocks: &str) -> Option<(usize, &'a str)> {
    let numbered = |text: &'a str| {
        let (number, rest) = text.split_once('.')?;
        Some((number.parse::<usize>().ok()?, rest))
    };
    let (number, rest) = numbered(behind(name, blocks)?.strip_prefix('.')?)?;
    Some(numbered(rest).unwrap_or((number, rest)))
}

/// From positions of class token and patches to ours.
fn read_positions(ours: &mut BTreeMap<String, Tensor>, config: &VitConfig) -> Result<()> {
    let (Some(positions), Some(class_token)) = (ours.get("pos_embed"), ours.get("cls_token")) else {
        bail!("there is no class token or no position embedding");
    };
    let (_, tokens, dim) = positions.dims3()?;
    if tokens != 1 + config.num_patches() {
        bail!(
            "{tokens} positions do not fit a class token and {} patches of {} pixels in an image of {}",
            config.num_patches(),
            config.patch_size,
            config.image_size
        );
    }
    let (of_class, of_patches) = (positions.narrow(1, 0, 1)?, positions.narrow(1, 1, tokens - 1)?);
    match config.options.positions {
        Positions::LearnedPatches => {
            let class_token = (class_token + of_class)?;
            ours.insert("cls_token".to_owned(), class_token);
            ours.insert("pos_embed".to_owned(), of_patches.contiguous()?);
        }
        _ if config.options.registers > 0 => {
            let none =
                Tensor::zeros((1, config.options.registers, dim), positions.dtype(), positions.device())?;
            let all = Tensor::cat(&[&of_class, &none, &of_patches], 1)?;
            ours.insert("pos_embed".to_owned(), all);
        }
        _ => {}
    }
    Ok(())
}

/// From our positions to those of class token and patches.
fn write_positions(ours: &mut BTreeMap<String, Tensor>, config: &VitConfig) -> Result<()> {
    let Some(positions) = ours.get("pos_embed").cloned() else {
        bail!("there is no position embedding");
    };
    let (_, tokens, dim) = positions.dims3()?;
    let registers = config.options.registers;
    match (config.options.positions, ours.get("reg_token")) {
        (Positions::LearnedPatches, _) => {
            let none = Tensor::zeros((1, 1, dim), positions.dtype(), positions.device())?;
            ours.insert("pos_embed".to_owned(), Tensor::cat(&[&none, &positions], 1)?);
        }
        (_, Some(tokens_of_registers)) => {
            let with_positions = (tokens_of_registers + positions.narrow(1, 1, registers)?)?;
            let (of_class, first) = (positions.narrow(1, 0, 1)?, 1 + registers);
            let all = Tensor::cat(&[&of_class, &positions.narrow(1, first, tokens - first)?], 1)?;
            ours.insert("reg_token".to_owned(), with_positions);
            ours.insert("pos_embed".to_owned(), all);
        }
        _ => {}
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};
    use ssl_nn::Params;

    use super::*;
    use crate::vit_config::{RelativePositions, VitOptions};

    fn network(options: VitOptions) -> (VitConfig, BTreeMap<String, Tensor>) {
        let config =
            VitConfig { image_size: 8, patch_size: 4, dim: 12, depth: 2, options, ..VitConfig::vit_tiny() };
        let params = Params::new(1, DType::F32, &Device::Cpu);
        config.build(&params.root()).unwrap();
        (config, params.all().into_iter().map(|(name, var)| (name, var.as_detached_tensor())).collect())
    }

    fn values(tensors: &BTreeMap<String, Tensor>) -> BTreeMap<&str, (Vec<usize>, Vec<f32>)> {
        let of = |tensor: &Tensor| {
            (tensor.dims().to_vec(), tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap())
        };
        tensors.iter().map(|(name, tensor)| (name.as_str(), of(tensor))).collect()
    }

    #[test]
    fn what_is_written_is_read_back_bit_by_bit() {
        let registers = |positions| VitOptions { registers: 2, positions, ..VitOptions::dinov2() };
        let swiglu = VitOptions { mlp: VitMlp::SwiGlu, ..VitOptions::dinov2() };
        let each = VitOptions { relative_positions: RelativePositions::Each, ..VitOptions::beit() };
        for (names, options) in [
            (VitNames::Timm, VitOptions::beit()),
            (VitNames::Dino, VitOptions::default()),
            (VitNames::Mae, VitOptions::mae()),
            (VitNames::Dinov2, swiglu),
            (VitNames::Dinov2, registers(Positions::LearnedPatches)),
            (VitNames::TransformersVit, VitOptions::default()),
            (VitNames::TransformersVitMae, VitOptions::mae()),
            (VitNames::TransformersDinov2, VitOptions::dinov2()),
            (VitNames::TransformersDinov2, swiglu),
            (VitNames::TransformersDinov2, registers(Positions::LearnedPatches)),
            (VitNames::TransformersBeit, VitOptions::beit()),
            (VitNames::TransformersBeit, each),
            (VitNames::TransformersData2Vec, VitOptions::beit()),
            (VitNames::TransformersClip, VitOptions::clip()),
        ] {
            let (config, ours) = network(options);
            let theirs = names.export(&ours, &config).unwrap();
            let back = names.import(&theirs, &config).unwrap();
            assert_eq!(values(&back), values(&ours), "{names:?}");
        }
        // Positions of registers move into the registers.
        let (config, ours) = network(registers(Positions::Learned));
        let theirs = VitNames::Dinov2.export(&ours, &config).unwrap();
        assert_eq!(theirs["pos_embed"].dims(), [1, 5, 12]);
        assert_eq!(VitNames::Dinov2.import(&theirs, &config).unwrap()["pos_embed"].dims(), [1, 7, 12]);
    }

    #[test]
    fn names_of_all_versions_have_their_place() {
        let place = |names: VitNames, theirs: &str| {
            let Place { name, part, parts } = names.place(theirs).unwrap_or_else(|| panic!("{theirs}"));
            (name, part, parts)
        };
        for (names, theirs, expected) in [
            (VitNames::Dino, "module.backbone.blocks.3.norm1.bias", ("blocks.3.norm1.bias", 0, 1)),
            (VitNames::Dinov2, "backbone.blocks.1.7.mlp.w12.weight", ("blocks.7.mlp.fc1.weight", 0, 1)),
            (
                VitNames::TransformersDinov2,
                "encoder.layer.2.mlp.up_proj.bias",
                ("blocks.2.mlp.fc1.bias", 1, 2),
            ),
            (VitNames::TransformersVit, "vit.layers.0.mlp.fc2.weight", ("blocks.0.mlp.fc2.weight", 0, 1)),
            (
                VitNames::TransformersVit,
                "vit.encoder.layer.0.attention.attention.value.bias",
                ("blocks.0.attn.qkv.bias", 2, 3),
            ),
            (
                VitNames::TransformersBeit,
                "beit.layers.0.attention.v_proj.bias",
                ("blocks.0.attn.v_bias", 0, 1),
            ),
            (
                VitNames::TransformersBeit,
                "shared_position_bias.relative_position_bias_table",
                ("rel_pos_bias.relative_position_bias_table", 0, 1),
            ),
            (
                VitNames::TransformersClip,
                "encoder.layers.11.self_attn.k_proj.weight",
                ("blocks.11.attn.qkv.weight", 1, 3),
            ),
        ] {
            let (name, part, parts) = expected;
            assert_eq!(place(names, theirs), (name.to_owned(), part, parts));
        }
    }

    #[test]
    fn strangers_and_missing_parts_are_refused_and_heads_left_out() {
        let (config, ours) = network(VitOptions::default());
        let names = VitNames::TransformersVit;
        let mut theirs = names.export(&ours, &config).unwrap();
        theirs.insert("classifier.weight".to_owned(), ours["cls_token"].clone());
        assert_eq!(names.import(&theirs, &config).unwrap().len(), ours.len());
        theirs.insert("encoder.layer.0.adapter.weight".to_owned(), ours["cls_token"].clone());
        let error = names.import(&theirs, &config).unwrap_err().to_string();
        assert!(error.contains("`encoder.layer.0.adapter.weight` is no tensor of a"), "{error}");
        theirs.remove("encoder.layer.0.adapter.weight");
        theirs.remove("encoder.layer.1.attention.attention.key.weight");
        let error = names.import(&theirs, &config).unwrap_err().to_string();
        assert!(error.contains("`blocks.1.attn.qkv.weight` consists of 3 tensors"), "{error}");
        let (config, beit) = network(VitOptions::beit());
        let error = VitNames::TransformersClip.export(&beit, &config).unwrap_err().to_string();
        assert!(error.contains("has no place in TransformersClip"), "{error}");
    }

    #[test]
    fn no_two_of_our_names_become_the_same_name() {
        for (names, options) in [
            (VitNames::TransformersBeit, VitOptions::beit()),
            (VitNames::TransformersClip, VitOptions::clip()),
        ] {
            let (config, ours) = network(options);
            let theirs = names.export(&ours, &config).unwrap();
            let split = 2 * ours.keys().filter(|name| name.contains("qkv")).count();
            assert_eq!(theirs.len(), ours.len() + split);
        }
    }
}
