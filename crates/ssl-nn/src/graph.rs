//! Own operations of any number of inputs in candle's graph.
//!
//! candle's custom operations have at most three inputs, and a fused layer has more: image, kernel, scale, shift,
//! residual. Here the value is computed first and then tied to its inputs by a chain of one-element *tickets*. candle
//! goes back through the value before its tickets: the value's backward pass leaves all gradients in a shared place,
//! from where each ticket hands one on.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use candle_core::{CpuStorage, CustomOp1, CustomOp2, Device, Layout, Result, Shape, Tensor, bail};

use crate::storage::Element;

/// The gradient of each input; `None` where the input does not need one.
pub(crate) type Gradients = Vec<Option<Tensor>>;

/// Makes `y`, computed on the CPU from `inputs`, a node of candle's graph.
///
/// `backward` gets the value and its gradient, both contiguous, and returns a gradient for each of `inputs` that
/// tracks its operations.
pub(crate) fn node<T: Element>(
    name: &'static str,
    inputs: &[&Tensor],
    (y, shape): (Vec<T>, impl Into<Shape>),
    backward: impl Fn(&Tensor, &Tensor) -> Result<Gradients> + Send + Sync + 'static,
) -> Result<Tensor> {
    let gradients = Arc::<Mutex<Gradients>>::default();
    let mut ticket = Tensor::zeros(1, T::DTYPE, &Device::Cpu)?;
    for (i, input) in inputs.iter().enumerate().filter(|(_, input)| input.track_op()) {
        ticket = ticket.apply_op2(input, Ticket { name, i, gradients: gradients.clone() })?;
    }
    if !ticket.track_op() {
        return Tensor::from_vec(y, shape, &Device::Cpu);
    }
    ticket.apply_op1(Node { name, value: Mutex::new(Some(y)), shape: shape.into(), gradients, backward })
}

/// `data` as the gradient of `input`, if that needs one.
pub(crate) fn gradient<T: Element>(data: Vec<T>, input: &Tensor) -> Result<Option<Tensor>> {
    input.track_op().then(|| Tensor::from_vec(data, input.shape(), input.device())).transpose()
}

struct Node<T, F> {
    name: &'static str,
    value: Mutex<Option<Vec<T>>>,
    shape: Shape,
    gradients: Arc<Mutex<Gradients>>,
    backward: F,
}

impl<T: Element, F: Fn(&Tensor, &Tensor) -> Result<Gradients>> CustomOp1 for Node<T, F> {
    fn name(&self) -> &'static str {
        self.name
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        match lock(&self.value).take() {
            Some(value) => Ok((T::to_cpu_storage_owned(value), self.shape.clone())),
            None => bail!("{}: the value is gone", self.name),
        }
    }

    fn bwd(&self, ticket: &Tensor, y: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        *lock(&self.gradients) = (self.backward)(y, &dy.contiguous()?)?;
        ticket.zeros_like().map(Some)
    }
}

/// Hands the gradient of input `i` to candle.
struct Ticket {
    name: &'static str,
    i: usize,
    gradients: Arc<Mutex<Gradients>>,
}

impl CustomOp2 for Ticket {
    fn name(&self) -> &'static str {
        self.name
    }

    fn cpu_fwd(
        &self,
        previous: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        Ok((previous.clone(), Shape::from(1)))
    }

    fn bwd(
        &self,
        previous: &Tensor,
        _: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let Some(gradient) = lock(&self.gradients).get_mut(self.i).and_then(Option::take) else {
            bail!("{}: no gradient for input {}", self.name, self.i)
        };
        Ok((previous.track_op().then(|| grad.clone()), Some(gradient)))
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What is behind it is replaced as a whole, so it is never half-written.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use candle_core::Var;

    use super::*;

    /// `a · b · c · d` of four one-element tensors.
    fn product(inputs: [&Tensor; 4]) -> Result<Tensor> {
        let values = inputs.map(|x| x.to_vec1::<f64>().unwrap()[0]);
        let all: f64 = values.iter().product();
        node("product", &inputs, (vec![all], 1), move |y, dy| {
            let (y, dy) = (y.to_vec1::<f64>()?[0], dy.to_vec1::<f64>()?[0]);
            values.iter().map(|v| Tensor::new(&[dy * y / v], &Device::Cpu).map(Some)).collect()
        })
    }

    #[test]
    fn every_tracked_input_gets_its_gradient_also_when_used_twice() {
        let var = |v: f64| Var::new(&[v], &Device::Cpu).unwrap();
        let (a, b, constant) = (var(2.0), var(3.0), Tensor::new(&[5f64], &Device::Cpu).unwrap());
        let inner = product([&a, &b, &constant, &a]).unwrap();
        let loss = product([&inner, &a, &b, &constant]).unwrap();
        // 25 · a³ · b²
        assert_eq!(loss.to_vec1::<f64>().unwrap(), [25.0 * 8.0 * 9.0]);
        for _ in 0..2 {
            let grads = loss.backward().unwrap();
            assert_eq!(grads.get(&a).unwrap().to_vec1::<f64>().unwrap(), [25.0 * 3.0 * 4.0 * 9.0]);
            assert_eq!(grads.get(&b).unwrap().to_vec1::<f64>().unwrap(), [25.0 * 8.0 * 2.0 * 3.0]);
        }
    }

    #[test]
    fn without_variables_there_is_no_graph() {
        let x = Tensor::new(&[2f64], &Device::Cpu).unwrap();
        assert!(!product([&x, &x, &x, &x]).unwrap().track_op());
    }
}
