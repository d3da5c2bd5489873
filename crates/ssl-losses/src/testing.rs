//! What the tests of all losses share.

use candle_core::{Device, Result, Tensor, Var};

/// A `(n, d)` matrix in f64 of deterministic values in [-1, 1), without a pattern that a permutation would keep.
pub(crate) fn matrix(n: usize, d: usize, salt: u64) -> Tensor {
    let hash = |i: u64| {
        (i + 1).wrapping_mul(0x9e3779b97f4a7c15 ^ salt).rotate_left(29).wrapping_mul(0xbf58476d1ce4e5b9)
    };
    let data: Vec<f64> =
        (0..(n * d) as u64).map(|i| (hash(i) >> 11) as f64 / (1u64 << 52) as f64 - 1.0).collect();
    Tensor::from_vec(data, (n, d), &Device::Cpu).unwrap()
}

/// The rows of `z` in another order, the same for all of one length.
pub(crate) fn permuted(z: &Tensor) -> Tensor {
    let n = z.dim(0).unwrap() as u32;
    let order: Vec<u32> = (0..n).map(|i| (3 * i + 1) % n).collect();
    let distinct: std::collections::BTreeSet<_> = order.iter().collect();
    assert_eq!(distinct.len(), order.len(), "{n} rows are a multiple of 3");
    z.index_select(&Tensor::new(order, z.device()).unwrap(), 0).unwrap()
}

/// The value of a scalar of f64.
pub(crate) fn scalar(loss: Result<Tensor>) -> f64 {
    loss.unwrap().to_scalar().unwrap()
}

/// Asserts that the gradients of `loss` in `a` and `b`, both in f64, equal central differences.
pub(crate) fn assert_gradients(a: &Tensor, b: &Tensor, loss: impl Fn(&Tensor, &Tensor) -> Result<Tensor>) {
    let (a, b) = (Var::from_tensor(a).unwrap(), Var::from_tensor(b).unwrap());
    let grads = loss(&a, &b).unwrap().backward().unwrap();
    for z in [&a, &b] {
        let grad = grads.get(z).unwrap().flatten_all().unwrap().to_vec1::<f64>().unwrap();
        let start = z.flatten_all().unwrap().to_vec1::<f64>().unwrap();
        for i in 0..start.len() {
            let at = |step: f64| {
                let mut moved = start.clone();
                moved[i] += step;
                z.set(&Tensor::from_vec(moved, z.shape(), &Device::Cpu).unwrap()).unwrap();
                scalar(loss(&a, &b))
            };
            let slope = (at(1e-6) - at(-1e-6)) / 2e-6;
            at(0.0);
            let tolerance = 1e-8 * (1.0 + slope.abs());
            assert!((slope - grad[i]).abs() < tolerance, "{i}: {} is not {slope}", grad[i]);
        }
    }
}
