//! A Swin Transformer's tensors in the files of other programs.

use std::collections::BTreeMap;

use candle_core::Tensor;

/// The tensors under our names, which are timm's, without classifier and tables that follow from the sizes.
///
/// The official code, and weights that timm had from it, count what joins the tokens of two stages to the first of them;
/// timm and we to the second.
pub(crate) fn from_others(theirs: BTreeMap<String, Tensor>) -> BTreeMap<String, Tensor> {
    let official = theirs.keys().any(|name| name.starts_with("layers.0.downsample."));
    let own = |name: &str| {
        ![".relative_position_index", ".attn_mask"].iter().any(|end| name.ends_with(end))
            && !name.starts_with("head.")
    };
    let moved = |name: String| match name.strip_prefix("layers.").and_then(|rest| rest.split_once('.')) {
        Some((stage, rest)) if official && rest.starts_with("downsample.") => match stage.parse::<usize>() {
            Ok(stage) => format!("layers.{}.{rest}", stage + 1),
            Err(_) => name,
        },
        _ => name,
    };
    theirs.into_iter().filter(|(name, _)| own(name)).map(|(name, tensor)| (moved(name), tensor)).collect()
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};

    use super::*;

    #[test]
    fn what_joins_two_stages_is_counted_to_the_second_one() {
        let names = |names: &[&str]| {
            let zero = Tensor::zeros(1, DType::F32, &Device::Cpu).unwrap();
            let theirs = names.iter().map(|name| ((*name).to_owned(), zero.clone())).collect();
            from_others(theirs).into_keys().collect::<Vec<_>>()
        };
        let official = [
            "head.weight",
            "layers.0.blocks.1.attn_mask",
            "layers.0.blocks.1.attn.relative_position_index",
            "layers.0.blocks.1.attn.relative_position_bias_table",
            "layers.0.downsample.norm.weight",
            "layers.1.downsample.norm.weight",
            "norm.weight",
        ];
        let ours = [
            "layers.0.blocks.1.attn.relative_position_bias_table",
            "layers.1.downsample.norm.weight",
            "layers.2.downsample.norm.weight",
            "norm.weight",
        ];
        assert_eq!(names(&official), ours);
        assert_eq!(names(&ours), ours);
    }
}
