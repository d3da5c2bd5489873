//! Random inputs in all layouts, and gradients against central differences, in f64.

use candle_core::{DType, Device, Result, Tensor, Var};
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

/// How the elements of an input lie in memory.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Layout {
    /// In order.
    Contiguous,
    /// With the first and the last dimension exchanged.
    Transposed,
    /// In order, behind elements of no concern.
    Offset,
    /// Every second element.
    Strided,
}

/// All layouts, over and over.
pub(crate) fn layouts() -> impl Iterator<Item = Layout> {
    [Layout::Contiguous, Layout::Transposed, Layout::Offset, Layout::Strided].into_iter().cycle()
}

/// A variable that is seen in another layout than its own.
pub(crate) struct Input {
    pub(crate) var: Var,
    layout: Layout,
}

impl Input {
    /// Uniform in [-1, 1), of this shape when seen.
    pub(crate) fn uniform(rng: &mut Rng, shape: &[usize], layout: Layout) -> Self {
        let mut stored = shape.to_vec();
        match layout {
            Layout::Contiguous => (),
            Layout::Transposed => stored.swap(0, shape.len() - 1),
            Layout::Offset => stored[0] += 1,
            Layout::Strided => stored.push(2),
        }
        Self { var: Var::from_tensor(&uniform(rng, &stored)).unwrap(), layout }
    }

    /// Times a number.
    pub(crate) fn times(self, factor: f64) -> Self {
        self.var.set(&(self.var.as_tensor() * factor).unwrap()).unwrap();
        self
    }

    pub(crate) fn see(&self) -> Result<Tensor> {
        let last = self.var.rank() - 1;
        match self.layout {
            Layout::Contiguous => Ok(self.var.as_tensor().clone()),
            Layout::Transposed => self.var.transpose(0, last),
            Layout::Offset => self.var.narrow(0, 1, self.var.dim(0)? - 1),
            Layout::Strided => self.var.narrow(last, 1, 1)?.squeeze(last),
        }
    }
}

pub(crate) fn values(x: &Tensor) -> Vec<f64> {
    x.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

pub(crate) fn assert_close(a: &Tensor, b: &Tensor, tolerance: f64) {
    assert_eq!(a.dims(), b.dims());
    for (a, b) in values(a).iter().zip(values(b)) {
        assert!((a - b).abs() <= tolerance * (1.0 + b.abs()), "{a} is not {b}");
    }
}

/// The same result on one, two and four threads.
pub(crate) fn assert_independent_of_threads<R: PartialEq + std::fmt::Debug + Send>(
    run: impl Fn() -> R + Sync,
) {
    let with = |n| rayon::ThreadPoolBuilder::new().num_threads(n).build().unwrap().install(&run);
    let one = with(1);
    assert_eq!(one, with(2));
    assert_eq!(one, with(4));
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
