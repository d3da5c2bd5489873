//! Exponential moving averages of parameters: teachers, momentum encoders, centres.

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, InplaceOp2, Layout, Result, Tensor, Var, bail};
use rayon::prelude::*;

use crate::storage::{Element, slice};

/// Elements that a thread takes at once.
const CHUNK: usize = 1 << 16;

/// `average ← momentum · average + (1 − momentum) · value`, in place and in one pass.
///
/// # Errors
/// If the shapes or types differ, the type is not `f32` or `f64`, `momentum` is not in [0, 1], or `value` shares the
/// memory of `average`.
///
/// # Example
/// ```
/// use candle_core::{Device, Tensor, Var};
///
/// let average = Var::new(&[1f32, 2.0], &Device::Cpu)?;
/// ssl_nn::ema_update(&average, &Tensor::new(&[3f32, 2.0], &Device::Cpu)?, 0.75)?;
/// assert_eq!(average.to_vec1::<f32>()?, [1.5, 2.0]);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn ema_update(average: &Var, value: &Tensor, momentum: f64) -> Result<()> {
    if !(0.0..=1.0).contains(&momentum) {
        bail!("the momentum of an average is {momentum}, must be in [0, 1]");
    }
    if average.shape() != value.shape() || average.dtype() != value.dtype() {
        bail!(
            "an average of {:?} {:?} cannot take a value of {:?} {:?}",
            average.dtype(),
            average.shape(),
            value.dtype(),
            value.shape()
        );
    }
    let value = value.detach();
    if !average.device().is_cpu() {
        return average.set(&((average.as_tensor() * momentum)? + (value * (1.0 - momentum))?)?);
    }
    average.inplace_op2(&value.contiguous()?, &Update { momentum })
}

struct Update {
    momentum: f64,
}

impl InplaceOp2 for Update {
    fn name(&self) -> &'static str {
        "ssl-ema-update"
    }

    fn cpu_fwd(
        &self,
        average: &mut CpuStorage,
        at: &Layout,
        value: &CpuStorage,
        v_at: &Layout,
    ) -> Result<()> {
        match average {
            CpuStorage::F32(average) => self.update(average, at, slice(value, v_at)?),
            CpuStorage::F64(average) => self.update(average, at, slice(value, v_at)?),
            _ => bail!("an average must be f32 or f64, got {:?}", average.dtype()),
        }
    }
}

impl Update {
    fn update<T: Element>(&self, average: &mut [T], at: &Layout, value: &[T]) -> Result<()> {
        let Some((start, end)) = at.contiguous_offsets() else { bail!("an average must be contiguous") };
        let (keep, take) = (T::from_f64(self.momentum), T::from_f64(1.0 - self.momentum));
        average[start..end].par_chunks_mut(CHUNK).zip(value.par_chunks(CHUNK)).for_each(
            |(average, value)| {
                average.iter_mut().zip(value).for_each(|(average, value)| {
                    *average = keep * *average + take * *value;
                });
            },
        );
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};

    use super::*;

    #[test]
    fn every_element_of_a_long_tensor_moves() {
        let n = 2 * CHUNK + 3;
        for dtype in [DType::F32, DType::F64] {
            let average = Var::ones(n, dtype, &Device::Cpu).unwrap();
            let value = (Tensor::ones((n, 2), dtype, &Device::Cpu).unwrap() * 3.0).unwrap();
            ema_update(&average, &value.t().unwrap().get(1).unwrap(), 0.5).unwrap();
            let average = average.to_dtype(DType::F64).unwrap().to_vec1::<f64>().unwrap();
            assert!(average.iter().all(|x| *x == 2.0));
        }
    }

    #[test]
    fn the_ends_of_the_range_keep_and_copy() {
        let (average, value) =
            (Var::new(&[1f32], &Device::Cpu).unwrap(), Tensor::new(&[5f32], &Device::Cpu).unwrap());
        ema_update(&average, &value, 1.0).unwrap();
        assert_eq!(average.to_vec1::<f32>().unwrap(), [1.0]);
        ema_update(&average, &value, 0.0).unwrap();
        assert_eq!(average.to_vec1::<f32>().unwrap(), [5.0]);
    }

    #[test]
    fn an_average_of_itself_is_refused() {
        let average = Var::new(&[1f32, 2.0], &Device::Cpu).unwrap();
        let error = ema_update(&average, average.as_tensor(), 0.5).unwrap_err().to_string();
        assert!(error.contains("shares storage"), "{error}");
    }

    #[test]
    fn other_shapes_types_and_momenta_are_refused() {
        let average = Var::new(&[1f32, 2.0], &Device::Cpu).unwrap();
        let good = Tensor::new(&[1f32, 2.0], &Device::Cpu).unwrap();
        assert!(ema_update(&average, &good.get(0).unwrap(), 0.5).is_err());
        assert!(ema_update(&average, &good.to_dtype(DType::F64).unwrap(), 0.5).is_err());
        for momentum in [-0.1, 1.1, f64::NAN] {
            assert!(ema_update(&average, &good, momentum).unwrap_err().to_string().contains("[0, 1]"));
        }
        assert_eq!(average.to_vec1::<f32>().unwrap(), [1.0, 2.0]);
    }
}
