//! Weights under the names of another library in a network of ours.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use candle_core::backprop::GradStore;
use candle_core::{Tensor, Var};
use ssl_vision::backbones::Place;
use ssl_vision::nn::{Init, Params};

use super::case::{Case, elements};
use super::check::{Check, norm};
use super::{network, pattern};

/// Our parameters and where the case's weights are among them.
pub(crate) struct Store<'a> {
    case: &'a Case<'a>,
    pub(crate) params: Params,
    places: BTreeMap<String, Place>,
}

impl<'a> Store<'a> {
    pub(crate) fn new(case: &'a Case<'a>) -> Self {
        Self { case, params: network::params(), places: BTreeMap::new() }
    }

    /// Fills the parameters of the network with the case's weights. What `place` does not know, such as a head, gets a
    /// variable under the case's name.
    pub(crate) fn filled(
        mut self,
        check: &mut Check<'_>,
        place: impl Fn(&str) -> Option<Place>,
    ) -> Result<Self> {
        let mut found: BTreeMap<String, BTreeMap<usize, Tensor>> = BTreeMap::new();
        for (theirs, tensor) in pattern::weights(self.case, check)? {
            let place = match place(&theirs) {
                Some(place) => place,
                None => {
                    self.params.root().trainable(&theirs, tensor.shape(), Init::Const(0.0))?;
                    Place { name: theirs.clone(), part: 0, parts: 1 }
                }
            };
            found.entry(place.name.clone()).or_default().insert(place.part, tensor);
            self.places.insert(theirs, place);
        }
        let join = |(name, parts): (String, BTreeMap<usize, Tensor>)| {
            let parts: Vec<Tensor> = parts.into_values().collect();
            Ok::<_, anyhow::Error>((name, Tensor::cat(&parts, 0)?))
        };
        self.params.load(&found.into_iter().map(join).collect::<Result<_>>()?)?;
        if let Some(expected) = self.case.entry.n_parameters {
            // Fixed positions are parameters there, though they do not learn.
            let number: usize = self.params.all().iter().map(|(_, var)| var.elem_count()).sum();
            check.number("number of parameters", number as f64, expected as f64, [0.0, 0.0]);
        }
        Ok(self)
    }

    /// The variable that is the case's weight `theirs`.
    pub(crate) fn weight(&self, theirs: &str) -> Result<Tensor> {
        let place = self.places.get(theirs).with_context(|| format!("no weight `{theirs}`"))?;
        ensure!(place.parts == 1, "`{theirs}` is only a part of `{}`", place.name);
        let var = self.params.get(&place.name).with_context(|| format!("no parameter `{}`", place.name))?;
        Ok(var.as_tensor().clone())
    }

    /// Judges the loss, its gradients and their norms, each under the case's name.
    pub(crate) fn judge(&self, check: &mut Check<'_>, x: &Var, loss: &Tensor) -> Result<()> {
        check.tensor("out.loss", loss)?;
        let grads = loss.backward()?;
        check.tensor("grad.x", grads.get(x).context("the images have no gradient")?)?;
        let norms = self.case.entry.grad_norms.get("eval");
        let tolerance = self.case.entry.grad_norm_tol.get("eval").copied();
        let tolerance = tolerance.unwrap_or([self.case.entry.rtol, self.case.entry.atol]);
        for (theirs, place) in &self.places {
            let grad = self.gradient(&grads, place)?;
            if let Some(grad) = &grad {
                check.tensor(&format!("grad.param.{theirs}"), grad)?;
            }
            let actual = grad.map(|grad| Ok::<_, anyhow::Error>(norm(&elements(&grad)?))).transpose()?;
            match (actual, norms.and_then(|norms| norms.get(theirs))) {
                (Some(actual), Some(Some(expected))) => {
                    check.number(
                        &format!("norm of the gradient of `{theirs}`"),
                        actual,
                        *expected,
                        tolerance,
                    );
                }
                (None, Some(Some(_))) => check.fail(format!("`{theirs}` has no gradient")),
                (Some(_), Some(None)) => check.fail(format!("`{theirs}` has a gradient, expected none")),
                _ => {}
            }
        }
        Ok(())
    }

    fn gradient(&self, grads: &GradStore, place: &Place) -> Result<Option<Tensor>> {
        let Some(var) = self.params.get(&place.name) else { return Ok(None) };
        let Some(grad) = grads.get(&var) else { return Ok(None) };
        Ok(Some(grad.chunk(place.parts, 0)?[place.part].clone()))
    }
}
