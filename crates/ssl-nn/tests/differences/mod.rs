//! Random inputs, and gradients against central differences, in f64.

use candle_core::{Device, Result, Tensor, Var};
use rand_core::RngCore;
use ssl_nn::{Purpose, Rng, rng};

pub(crate) fn cases(name: u64, n: u64) -> impl Iterator<Item = Rng> {
    (0..n).map(move |case| rng(7, Purpose::Init, name, case, 0))
}

pub(crate) fn below(rng: &mut Rng, n: u64) -> usize {
    (rng.next_u64() % n) as usize
}

pub(crate) fn uniform(rng: &mut Rng, shape: &[usize]) -> Tensor {
    let n = shape.iter().product::<usize>();
    let data: Vec<f64> = (0..n).map(|_| (rng.next_u64() >> 11) as f64 / (1u64 << 52) as f64 - 1.0).collect();
    Tensor::from_vec(data, shape, &Device::Cpu).unwrap()
}

/// Checks the gradient of `sum(f(inputs) * pattern)` in up to 24 elements of every input.
pub(crate) fn check(rng: &mut Rng, label: &str, inputs: &[Var], f: impl Fn() -> Result<Tensor>) {
    let pattern = uniform(rng, f().unwrap().dims());
    let loss = || (f().unwrap() * &pattern).unwrap().sum_all().unwrap();
    let grads = loss().backward().unwrap();
    for (which, input) in inputs.iter().enumerate() {
        let grad = grads.get(input).unwrap_or_else(|| panic!("{label}: input {which} has no gradient"));
        let grad = grad.flatten_all().unwrap().to_vec1::<f64>().unwrap();
        let start = input.flatten_all().unwrap().to_vec1::<f64>().unwrap();
        for _ in 0..24.min(start.len()) {
            let (i, step) = (below(rng, start.len() as u64), 1e-6);
            let value_at = |x: f64| {
                let mut moved = start.clone();
                moved[i] = x;
                input.set(&Tensor::from_vec(moved, input.shape(), &Device::Cpu).unwrap()).unwrap();
                loss().to_scalar::<f64>().unwrap()
            };
            let slope = (value_at(start[i] + step) - value_at(start[i] - step)) / (2.0 * step);
            value_at(start[i]);
            let error = (slope - grad[i]).abs();
            assert!(
                error <= 1e-6 * (1.0 + slope.abs()),
                "{label}: input {which}[{i}]: {} is not {slope}",
                grad[i]
            );
        }
    }
}
