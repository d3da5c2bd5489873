//! Projectors and predictors against lightly: those that are an [`Mlp`], and [`DinoHead`].

use anyhow::{Context, Result, ensure};
use candle_core::{DType, Var};
use ssl_vision::backbones::Place;
use ssl_vision::methods::{DinoHead, DinoHeadConfig};
use ssl_vision::nn::{Affine, Mlp, MlpConfig};

use super::case::Case;
use super::check::Check;
use super::store::Store;
use super::{network, pattern};

pub(crate) fn run(case: &Case<'_>, check: &mut Check<'_>) -> Result<bool> {
    let layers: Vec<String> = case.params.get("layers")?;
    let layers: Vec<Layer> = layers.iter().map(|text| Layer::parse(text)).collect::<Result<_>>()?;
    let Some((dims, config)) = mlp(&layers) else { return Ok(false) };
    let Some(place) = place(case) else { return dino(case, check, &dims, config) };
    let params = network::params();
    let mlp = Mlp::new(&dims, config, &params.root().pp(place))?;
    network::load(case, check, &params)?;
    let x = Var::from_tensor(case.tensor("in.x")?)?;
    for (train, suffix) in network::modes(case) {
        let y = mlp.forward_t(&x, train)?;
        check.tensor(&format!("out.y{suffix}"), &y)?;
        network::judge_loss(case, check, &params, (&x, &y), (train, suffix))?;
    }
    Ok(true)
}

/// The head of DINO, whose last layer lies apart; `false` if it is not one.
fn dino(case: &Case<'_>, check: &mut Check<'_>, dims: &[usize], mlp: MlpConfig) -> Result<bool> {
    let prototypes = case.entry.weights.get("last_layer.weight_v").and_then(|weight| weight.shape.first());
    let (Some(&prototypes), [inputs, hidden, .., bottleneck], true) = (prototypes, dims, mlp.gelu) else {
        return Ok(false);
    };
    let config = DinoHeadConfig {
        hidden: *hidden,
        layers: dims.len() - 1,
        norm: mlp.hidden_norm,
        bottleneck: *bottleneck,
        prototypes,
        norm_last_layer: true,
    };
    let store = Store::new(case);
    let head = DinoHead::new(*inputs, config, &store.params.root())?;
    let place = |theirs: &str| Some(Place { name: theirs.replace("layers.", "mlp."), part: 0, parts: 1 });
    let store = store.filled(check, place)?;
    let x = Var::from_tensor(case.tensor("in.x")?)?;
    let y = head.scores(&head.project(&x)?, false)?;
    check.tensor("out.y", &y)?;
    let loss = (y.to_dtype(DType::F64)? * pattern::loss_factors(y.dims())?)?.mean_all()?;
    store.judge(check, &x, &loss)?;
    Ok(true)
}

/// A layer as PyTorch prints it.
#[derive(Debug, PartialEq)]
enum Layer {
    Linear {
        inputs: usize,
        outputs: usize,
        bias: bool,
    },
    Norm {
        affine: bool,
    },
    Relu,
    Gelu,
    /// A layer that an `Mlp` does not have.
    Other,
}

impl Layer {
    fn parse(text: &str) -> Result<Self> {
        let (kind, arguments) = text
            .strip_suffix(')')
            .and_then(|text| text.split_once('('))
            .with_context(|| format!("`{text}` is not a layer"))?;
        let argument = |key: &str| {
            let mut pairs = arguments.split(", ").filter_map(|pair| pair.split_once('='));
            let value = pairs.find(|(name, _)| *name == key).map(|(_, value)| value);
            value.with_context(|| format!("`{text}` does not say its `{key}`"))
        };
        let flag = |key: &str| {
            let value = argument(key)?;
            ensure!(["True", "False"].contains(&value), "`{text}`: `{key}` is neither True nor False");
            Ok(value == "True")
        };
        Ok(match kind {
            "Linear" => Layer::Linear {
                inputs: argument("in_features")?.parse()?,
                outputs: argument("out_features")?.parse()?,
                bias: flag("bias")?,
            },
            "BatchNorm1d" => {
                let (eps, momentum): (f64, f64) = (argument("eps")?.parse()?, argument("momentum")?.parse()?);
                match (eps, momentum) == (1e-5, 0.1) && flag("track_running_stats")? {
                    true => Layer::Norm { affine: flag("affine")? },
                    false => Layer::Other,
                }
            }
            "ReLU" => Layer::Relu,
            "GELU" if argument("approximate")? == "'none'" => Layer::Gelu,
            _ => Layer::Other,
        })
    }
}

/// The widths and settings of the `Mlp` that has exactly these layers.
fn mlp(layers: &[Layer]) -> Option<(Vec<usize>, MlpConfig)> {
    let mut dims = Vec::new();
    let mut biases = Vec::new();
    for layer in layers {
        if let &Layer::Linear { inputs, outputs, bias } = layer {
            if dims.is_empty() {
                dims.push(inputs);
            }
            dims.push(outputs);
            biases.push(bias);
        }
    }
    let (last_bias, hidden_biases) = biases.split_last()?;
    let hidden_bias = *hidden_biases.first().unwrap_or(last_bias);
    let last_norm = match layers.last()? {
        Layer::Norm { affine: true } => Some(Affine::ScaleAndShift),
        Layer::Norm { affine: false } => Some(Affine::None),
        _ => None,
    };
    let hidden_norm = dims.len() > 2 && matches!(layers[1], Layer::Norm { .. });
    let gelu = layers.contains(&Layer::Gelu);
    let config = MlpConfig { hidden_bias, last_bias: *last_bias, hidden_norm, last_norm, gelu, init: None };
    (layers == expected_layers(&dims, &config)).then_some((dims, config))
}

/// The layers of an `Mlp`.
fn expected_layers(dims: &[usize], config: &MlpConfig) -> Vec<Layer> {
    let mut layers = Vec::new();
    let last = dims.len() - 2;
    for (i, width) in dims.windows(2).enumerate() {
        let bias = if i == last { config.last_bias } else { config.hidden_bias };
        layers.push(Layer::Linear { inputs: width[0], outputs: width[1], bias });
        if i < last {
            layers.extend(config.hidden_norm.then_some(Layer::Norm { affine: true }));
            layers.push(if config.gelu { Layer::Gelu } else { Layer::Relu });
        }
    }
    layers.extend(config.last_norm.map(|affine| Layer::Norm { affine: affine == Affine::ScaleAndShift }));
    layers
}

/// The module that holds the layers, or `None` if weights lie elsewhere too.
fn place<'a>(case: &Case<'a>) -> Option<&'a str> {
    let mut places = case.entry.weights.keys().filter_map(|name| name.split('.').next());
    let first = places.next()?;
    places.all(|place| place == first).then_some(first)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fits(layers: &[&str]) -> bool {
        let layers: Vec<Layer> = layers.iter().map(|text| Layer::parse(text).unwrap()).collect();
        mlp(&layers).is_some()
    }

    #[test]
    fn only_what_an_mlp_can_be_is_taken_for_one() {
        let (first, last) = (
            "Linear(in_features=4, out_features=3, bias=False)",
            "Linear(in_features=3, out_features=2, bias=False)",
        );
        let norm = |eps, affine| {
            format!("BatchNorm1d(3, eps={eps}, momentum=0.1, affine={affine}, track_running_stats=True)")
        };
        let plain = norm("1e-05", "True");
        assert!(fits(&[first, &plain, "ReLU()", last]));
        assert!(fits(&[first, "ReLU()", last, &norm("1e-05", "False")]));
        assert!(!fits(&[first, &norm("1e-05", "False"), "ReLU()", last]));
        assert!(!fits(&[first, &norm("0.001", "True"), "ReLU()", last]));
        assert!(fits(&[first, &plain, "GELU(approximate='none')", last]));
        assert!(!fits(&[first, &plain, "GELU(approximate='tanh')", last]));
        assert!(fits(&[first, &plain, "ReLU()", &last.replace("False", "True")]));
        assert!(!fits(&[first, last]));
    }
}
