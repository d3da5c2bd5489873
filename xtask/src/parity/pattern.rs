//! Weights that are a function of their names, so that no file has to hold them.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail};
use candle_core::{Device, Tensor};

use super::case::{Case, Weight};
use super::check::Check;

/// The sums in the manifest are of the same numbers in another order.
const SUM_TOLERANCE: [f64; 2] = [1e-9, 1e-9];

/// All weights of a case by name; their sums are judged.
pub(crate) fn weights(case: &Case<'_>, check: &mut Check<'_>) -> Result<BTreeMap<String, Tensor>> {
    let mut tensors = BTreeMap::new();
    for (name, info) in &case.entry.weights {
        let tensor = weight(case, name, info).with_context(|| format!("weight `{name}`"))?;
        if let Some(sum) = info.sum {
            let actual = super::case::elements(&tensor)?.iter().sum();
            check.number(&format!("sum of weight `{name}`"), actual, sum, SUM_TOLERANCE);
        }
        tensors.insert(name.clone(), tensor);
    }
    Ok(tensors)
}

/// The factors `P` of the loss `mean(y P)`, in `f64`.
pub(crate) fn loss_factors(shape: &[usize]) -> Result<Tensor> {
    let values: Vec<f64> = units("loss_pattern", shape).map(symmetric).collect();
    Ok(Tensor::from_vec(values, shape, &Device::Cpu)?)
}

fn weight(case: &Case<'_>, name: &str, info: &Weight) -> Result<Tensor> {
    let shape = info.shape.as_slice();
    let of = |value: &dyn Fn(f64) -> f64| {
        let values: Vec<f32> = units(name, shape).map(|u| value(u) as f32).collect();
        Ok(Tensor::from_vec(values, shape, &Device::Cpu)?)
    };
    match info.kind.as_str() {
        "weight" => {
            let fan_in = shape.iter().skip(1).product::<usize>() as f64;
            of(&|u| symmetric(u) * (3.0 / fan_in).sqrt())
        }
        "norm_weight" => of(&|u| 1.0 + 0.1 * symmetric(u)),
        "norm_weight_res" => of(&|u| 0.25 * (1.0 + 0.1 * symmetric(u))),
        "bias" | "running_mean" => of(&|u| 0.1 * symmetric(u)),
        "running_var" => of(&|u| 0.5 + u),
        "layer_scale" => of(&|u| 0.5 + 0.5 * u),
        "token" => of(&|u| 0.2 * symmetric(u)),
        "ones" => of(&|_| 1.0),
        "zero_int" => Ok(Tensor::zeros(shape, candle_core::DType::I64, &Device::Cpu)?),
        "given" => Ok(case.tensor(&format!("in.weight.{name}"))?.clone()),
        kind => bail!("no pattern of the kind `{kind}`"),
    }
}

/// Numbers in `[0, 1)`, one for each element of the tensor `name`: splitmix64 from the FNV-1a hash of the name on.
fn units(name: &str, shape: &[usize]) -> impl Iterator<Item = f64> + use<> {
    let hash = |h: u64, byte: u8| (h ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    let start = name.bytes().fold(0xcbf2_9ce4_8422_2325, hash);
    (0..shape.iter().product::<usize>() as u64).map(move |i| {
        let z = start.wrapping_add(i).wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 40) as f64 / f64::from(1 << 24)
    })
}

/// `[0, 1)` to `[-1, 1)`.
fn symmetric(u: f64) -> f64 {
    2.0 * u - 1.0
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Worked values of the fixtures' README.
    #[test]
    fn units_are_those_of_the_fixtures() {
        let unit = |name, shape: &[usize], i| units(name, shape).nth(i).unwrap();
        assert_eq!(unit("conv1.weight", &[64, 3, 7, 7], 0), 0.5450749397277832);
        assert_eq!(unit("layer1.0.bn1.weight", &[64], 5), 0.5165892243385315);
        assert_eq!(unit("cls_token", &[1, 1, 192], 7), 0.24445438385009766);
        assert_eq!(symmetric(unit("loss_pattern", &[2, 512], 100)) as f32, -0.32442904);
    }
}
