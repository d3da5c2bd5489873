//! Recomputation of a block in the backward pass, also called gradient checkpointing (Chen et al., 2016,
//! <https://arxiv.org/abs/1604.06174>): memory for time.
//!
//! The first run keeps the value alone. The backward pass runs the block once more, from the same input and the same
//! buffers, and goes back through that second run at once, so that what a block keeps exists for one block at a time.

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, Var};

use crate::graph::{Gradients, node};
use crate::storage::{Element, dispatch};

/// `f(inputs)`, of which nothing is kept but the value; the backward pass runs `f` again.
///
/// Value, gradients and buffers have the bits of `f(inputs)` by itself, if `f` is a function of these and of the tensors
/// and `buffers` that it holds, and uses each input and each variable once; otherwise the parts of a gradient may be added
/// in another order. The variables that `f` holds need not be listed: they are found in the graph of the first run. What
/// several such parts of a network share and is no variable must be an input, or each part goes back through it by
/// itself.
///
/// `buffers` are the variables that `f` changes, such as running statistics: the second run starts from their values
/// before the first one and leaves those that they have now. One that is not listed is changed twice.
///
/// Elsewhere than on the CPU this is `f(inputs)` and saves nothing.
///
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use ssl_nn::{Linear, LinearConfig, Params, gelu, recompute};
///
/// let params = Params::new(0, DType::F32, &Device::Cpu);
/// let layer = Linear::new(4, 16, LinearConfig::default(), &params.root())?;
/// let x = Tensor::ones((2, 4), DType::F32, &Device::Cpu)?;
/// let y = recompute(&[&x], &[], move |inputs| gelu(&layer.forward(&inputs[0])?))?;
/// let gradients = y.sum_all()?.backward()?;
/// assert!(params.trainable().iter().all(|(_, var)| gradients.get(var).is_some()));
/// # Ok::<(), candle_core::Error>(())
/// ```
///
/// # Errors
/// Those of `f`, which the backward pass may return as well, or if the result is neither `f32` nor `f64`.
pub fn recompute(
    inputs: &[&Tensor],
    buffers: &[Var],
    f: impl Fn(&[Tensor]) -> Result<Tensor> + Send + Sync + 'static,
) -> Result<Tensor> {
    let given: Vec<Tensor> = inputs.iter().map(|input| (*input).clone()).collect();
    if !given.iter().all(|input| input.device().is_cpu()) {
        return f(&given);
    }
    let before = copies(buffers)?;
    let y = f(&given.iter().map(Tensor::detach).collect::<Vec<_>>())?;
    let mut all = given.clone();
    all.extend(variables(&y));
    let second = Second { inputs: all, given: given.len(), buffers: buffers.to_vec(), before, f };
    dispatch!(y.dtype(), "recompute", T => {
        let (value, shape) = (y.flatten_all()?.to_vec1::<T>()?, y.shape().clone());
        drop(y);
        let inputs = second.inputs.clone();
        let inputs: Vec<&Tensor> = inputs.iter().collect();
        node("recompute", &inputs, (value, shape), move |_, dy| second.gradients::<T>(dy))
    })
}

/// All that the second run needs.
struct Second<F> {
    /// What `f` is given, and the variables that it holds.
    inputs: Vec<Tensor>,
    /// How many of these are given.
    given: usize,
    buffers: Vec<Var>,
    /// The buffers' values before the first run.
    before: Vec<Tensor>,
    f: F,
}

impl<F: Fn(&[Tensor]) -> Result<Tensor>> Second<F> {
    /// The gradients of the inputs for that of the value.
    fn gradients<T: Element>(&self, dy: &Tensor) -> Result<Gradients> {
        let (given, held) = self.inputs.split_at(self.given);
        let given = given.iter().map(|input| match input.track_op() {
            true => Ok(Var::from_tensor(&input.detach())?.into_inner()),
            false => Ok(input.detach()),
        });
        let given: Vec<Tensor> = given.collect::<Result<_>>()?;
        let y = self.run(&given)?;
        let mut found = y.apply_op1(Start::<T> { dy: dy.clone(), zero: T::ZERO })?.backward()?;
        let inputs = given.iter().chain(held).map(|input| {
            // What `f` does not look at has none.
            let gradient = || found.remove(input).map_or_else(|| input.zeros_like(), Ok);
            input.track_op().then(gradient).transpose()
        });
        inputs.collect()
    }

    /// Runs `f` from the buffers' former values and leaves them as they were.
    fn run(&self, given: &[Tensor]) -> Result<Tensor> {
        let now = copies(&self.buffers)?;
        let y = set(&self.buffers, &self.before).and_then(|()| (self.f)(given));
        let restored = set(&self.buffers, &now);
        let y = y?;
        restored.map(|()| y)
    }
}

/// Where the backward pass of the second run starts: a number whose gradient is `dy` for the value, whatever it is.
struct Start<T> {
    dy: Tensor,
    zero: T,
}

impl<T: Element> CustomOp1 for Start<T> {
    fn name(&self) -> &'static str {
        "recompute"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        Ok((T::to_cpu_storage_owned(vec![self.zero]), Shape::from(())))
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, _: &Tensor) -> Result<Option<Tensor>> {
        Ok(Some(self.dy.clone()))
    }
}

/// The variables below `y`, each once.
fn variables(y: &Tensor) -> Vec<Tensor> {
    y.sorted_nodes().into_iter().filter(|node| node.is_variable()).cloned().collect()
}

fn copies(buffers: &[Var]) -> Result<Vec<Tensor>> {
    buffers.iter().map(|buffer| buffer.as_detached_tensor().copy()).collect()
}

fn set(buffers: &[Var], values: &[Tensor]) -> Result<()> {
    buffers.iter().zip(values).try_for_each(|(buffer, value)| buffer.set(value))
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device, bail};

    use super::*;
    use crate::{
        BatchNorm, BatchNormConfig, BlockOptions, Conv2d, Conv2dConfig, ConvNorm, Init, Params,
        TransformerBlock, TransformerBlockConfig, residual_block,
    };

    const CPU: Device = Device::Cpu;

    fn sample(name: &str, shape: &[usize]) -> Tensor {
        Init::Normal { std: 1.0 }.sample(shape, 1, name, DType::F32, &CPU).unwrap()
    }

    fn bits(x: &Tensor) -> Vec<u64> {
        let values = x.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1::<f64>().unwrap();
        values.into_iter().map(f64::to_bits).collect()
    }

    /// The bits of the loss, of all gradients in the order of the store (none as nothing), and of the buffers.
    fn outcome(loss: &Tensor, x: &Var, params: &Params) -> Vec<Vec<u64>> {
        let gradients = loss.backward().unwrap();
        let own = params.trainable().into_iter().map(|(_, var)| var).chain([x.clone()]);
        let own = own.map(|var| gradients.get(&var).map(bits).unwrap_or_default());
        let buffers = params.buffers().into_iter().map(|(_, buffer)| bits(&buffer));
        std::iter::once(bits(loss)).chain(own).chain(buffers).collect()
    }

    /// `f` of the only input.
    fn first(f: impl Fn(&Tensor) -> Result<Tensor>) -> impl Fn(&[Tensor]) -> Result<Tensor> {
        move |inputs| f(&inputs[0])
    }

    fn weighted(y: &Tensor) -> Tensor {
        (y * sample("dy", y.dims())).unwrap().sum_all().unwrap()
    }

    fn layer(params: &Params, name: &str, c_in: usize, c_out: usize, kernel: usize) -> ConvNorm {
        let scope = params.root().pp(name);
        let config = Conv2dConfig { padding: kernel / 2, ..Conv2dConfig::default() };
        ConvNorm {
            conv: Conv2d::new(c_in, c_out, kernel, config, &scope).unwrap(),
            norm: BatchNorm::new(c_out, BatchNormConfig::default(), &scope.pp("norm")).unwrap(),
        }
    }

    #[test]
    fn a_residual_block_has_the_bits_of_one_without_in_every_gradient_and_buffer() {
        let run = |again: bool| {
            let params = Params::new(0, DType::F32, &CPU);
            let branch = [layer(&params, "a", 3, 17, 3), layer(&params, "b", 17, 18, 1)];
            let shortcut = layer(&params, "c", 3, 18, 1);
            let buffers: Vec<Var> = branch.iter().chain([&shortcut]).flat_map(|l| l.norm.buffers()).collect();
            let block = move |x: &Tensor| residual_block(x, &branch, Some(&shortcut), true);
            let x = Var::from_tensor(&sample("x", &[2, 5, 6, 3])).unwrap();
            // Twice, so that the buffers of the first run are not those of the start.
            let both = (0..2).map(|_| {
                let y = if again { recompute(&[&x], &buffers, first(block.clone())) } else { block(&x) };
                outcome(&weighted(&y.unwrap()), &x, &params)
            });
            both.collect::<Vec<_>>()
        };
        let (plain, again) = (run(false), run(true));
        assert!(plain[0].iter().all(|part| !part.is_empty()));
        assert_ne!(plain[0], plain[1]);
        assert!(plain == again);
    }

    #[test]
    fn a_transformer_block_has_the_bits_of_one_without_and_frozen_parts_get_no_gradient() {
        for frozen in [false, true] {
            let run = |again: bool| {
                let params = Params::new(0, DType::F32, &CPU);
                let block =
                    TransformerBlock::new(12, TransformerBlockConfig::default(), &params.root()).unwrap();
                let block = if frozen { block.frozen() } else { block };
                let block = move |x: &Tensor| block.forward(x, &BlockOptions::default());
                let x = Var::from_tensor(&sample("x", &[3, 5, 12])).unwrap();
                let y = if again { recompute(&[&x], &[], first(block)) } else { block(&x) }.unwrap();
                outcome(&weighted(&y), &x, &params)
            };
            let (plain, again) = (run(false), run(true));
            assert!(plain[1..plain.len() - 1].iter().all(|gradient| gradient.is_empty() == frozen));
            assert!(plain == again);
        }
    }

    #[test]
    fn inputs_and_variables_may_be_used_several_times_inside_and_outside() {
        let run = |again: bool| {
            let params = Params::new(0, DType::F32, &CPU);
            let w = params.root().trainable("w", (4, 4), Init::Normal { std: 1.0 }).unwrap();
            let x = Var::from_tensor(&sample("x", &[4, 4])).unwrap();
            // Whole numbers: their sums are exact in every order.
            x.set(&(x.as_tensor() * 8.0).unwrap().round().unwrap()).unwrap();
            params.get("w").unwrap().set(&(&w * 8.0).unwrap().round().unwrap().detach()).unwrap();
            let (inner, outer) = (w.clone(), x.as_tensor().clone());
            let f = move |x: &Tensor| (x.matmul(&inner)? + (x * &inner)?)? + (x + &outer)?;
            let call =
                |x: &Tensor| if again { recompute(&[x], &[], first(f.clone())) } else { f(x) }.unwrap();
            let (a, b) = (call(&x), call(&x.t().unwrap()));
            let all = (((a + &b).unwrap() + call(&b)).unwrap() + x.as_tensor()).unwrap();
            outcome(&((all + w).unwrap().sum_all().unwrap()), &x, &params)
        };
        assert_eq!(run(false), run(true));
    }

    #[test]
    fn what_two_parts_share_has_the_bits_of_the_whole_in_its_gradient() {
        let run = |again: bool| {
            let params = Params::new(0, DType::F32, &CPU);
            let w = params.root().trainable("w", (4, 4), Init::Normal { std: 1.0 }).unwrap();
            let x = Var::from_tensor(&sample("x", &[4, 4])).unwrap();
            let shared = w.sqr().unwrap();
            let f = |inputs: &[Tensor]| inputs[0].matmul(&inputs[1]);
            let call = |x: &Tensor| match again {
                true => recompute(&[x, &shared], &[], f).unwrap(),
                false => f(&[x.clone(), shared.clone()]).unwrap(),
            };
            outcome(&weighted(&call(&call(&call(&x)))), &x, &params)
        };
        assert_eq!(run(false), run(true));
    }

    #[test]
    fn the_second_run_sees_the_buffers_of_the_first_and_leaves_those_of_now() {
        let buffer = Var::new(2f32, &CPU).unwrap();
        let x = Var::new(3f32, &CPU).unwrap();
        let held = buffer.clone();
        let f = move |x: &Tensor| {
            let value = held.as_detached_tensor().copy()?;
            held.set(&(&value * 2.0)?)?;
            x * value
        };
        let y = recompute(&[&x], std::slice::from_ref(&buffer), first(f)).unwrap();
        buffer.set(&Tensor::new(100f32, &CPU).unwrap()).unwrap();
        for _ in 0..2 {
            let gradients = y.backward().unwrap();
            assert_eq!(gradients.get(&x).unwrap().to_scalar::<f32>().unwrap(), 2.0);
            assert_eq!(buffer.to_scalar::<f32>().unwrap(), 100.0);
        }
    }

    #[test]
    fn an_error_of_the_second_run_is_returned_and_the_buffers_stay() {
        let buffer = Var::new(0f32, &CPU).unwrap();
        let x = Var::new(3f32, &CPU).unwrap();
        let (held, runs) = (buffer.clone(), std::sync::atomic::AtomicUsize::new(0));
        let f = move |x: &Tensor| {
            held.set(&Tensor::new(7f32, &CPU)?)?;
            match runs.fetch_add(1, std::sync::atomic::Ordering::Relaxed) {
                0 => x * 2.0,
                _ => bail!("not again"),
            }
        };
        let y = recompute(&[&x], std::slice::from_ref(&buffer), first(f)).unwrap();
        buffer.set(&Tensor::new(5f32, &CPU).unwrap()).unwrap();
        assert!(y.backward().unwrap_err().to_string().contains("not again"));
        assert_eq!(buffer.to_scalar::<f32>().unwrap(), 5.0);
    }

    #[test]
    fn without_variables_there_is_no_graph() {
        let x = sample("x", &[2, 3]);
        assert!(!recompute(&[&x], &[], first(Tensor::sqr)).unwrap().track_op());
        // What is not looked at gets zeros.
        let x = Var::from_tensor(&x).unwrap();
        let y = recompute(&[&x], &[], first(Tensor::zeros_like)).unwrap();
        assert!(bits(y.backward().unwrap().get(&x).unwrap()).iter().all(|bits| *bits == 0));
    }
}
