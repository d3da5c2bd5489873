//! Cross-entropy between logits and classes, or logits and distributions over classes.

use candle_core::{D, DType, Result, Tensor, WithDType, bail};
use rayon::prelude::*;

use crate::graph::{gradient, node};
use crate::kernel::vectorised;
use crate::real::{Real, sum_by};
use crate::softmax::{log_softmax, log_sum_exp};
use crate::storage::{dispatch, reader};

/// Rows that one task handles.
const ROWS: usize = 64;

/// Mean of `-log softmax(logits)[class]` over the batch, as `torch.nn.functional.cross_entropy`.
///
/// `logits` are `(B, C)`, `classes` `(B)` of type `u32` or `i64`; the result is a scalar. `label_smoothing` is the share
/// of the target that is spread evenly over all classes. There is no class that is ignored.
///
/// ```
/// use candle_core::{Device, Tensor};
///
/// let logits = Tensor::new(&[[0f64, 0.0], [0.0, 0.0]], &Device::Cpu)?;
/// let loss = ssl_nn::cross_entropy(&logits, &Tensor::new(&[0u32, 1], &Device::Cpu)?, 0.0)?;
/// assert_eq!(loss.to_scalar::<f64>()?, f64::ln(2.0));
/// # Ok::<(), candle_core::Error>(())
/// ```
///
/// # Errors
/// If the shapes do not fit or are empty, a class is not in `0..C`, `label_smoothing` is not in [0, 1], or a type is
/// not one of these.
pub fn cross_entropy(logits: &Tensor, classes: &Tensor, label_smoothing: f64) -> Result<Tensor> {
    let (rows, columns) = sizes(logits)?;
    if classes.dims() != [rows] {
        bail!("cross entropy: logits {:?} need classes ({rows}), got {:?}", logits.dims(), classes.dims());
    }
    if !(0.0..=1.0).contains(&label_smoothing) {
        bail!("cross entropy: label_smoothing is {label_smoothing}, must be in [0, 1]");
    }
    let indices = indices(classes, columns)?;
    if !logits.device().is_cpu() {
        let log_p = log_softmax(logits, D::Minus1)?;
        let chosen =
            log_p.gather(&Tensor::new(&indices[..], logits.device())?.unsqueeze(1)?, 1)?.mean_all()?;
        return chosen.affine(label_smoothing - 1.0, 0.0)? - (log_p.mean_all()? * label_smoothing)?;
    }
    dispatch!(logits.dtype(), "cross entropy", T => {
        of_classes::<T>(logits, indices, T::from_f64(label_smoothing))
    })
}

/// Mean of `-Σ target · log softmax(logits)` over the batch.
///
/// `logits` and `targets` are `(B, C)` of one type; the result is a scalar. The rows of `targets` are distributions, or
/// any other weights. They get a gradient as well; where that is not wanted, as of a teacher, detach them.
///
/// ```
/// use candle_core::{Device, Tensor};
///
/// let logits = Tensor::new(&[[0f64, 0.0]], &Device::Cpu)?;
/// let loss = ssl_nn::soft_cross_entropy(&logits, &Tensor::new(&[[0.25f64, 0.75]], &Device::Cpu)?)?;
/// assert_eq!(loss.to_scalar::<f64>()?, f64::ln(2.0));
/// # Ok::<(), candle_core::Error>(())
/// ```
///
/// # Errors
/// If the shapes or types differ, are empty, or are not of that rank and type `f32` or `f64`.
pub fn soft_cross_entropy(logits: &Tensor, targets: &Tensor) -> Result<Tensor> {
    let (rows, _) = sizes(logits)?;
    if targets.dims() != logits.dims() || targets.dtype() != logits.dtype() {
        bail!(
            "cross entropy: logits {:?} of type {:?} need targets of the same, got {:?} of type {:?}",
            logits.dims(),
            logits.dtype(),
            targets.dims(),
            targets.dtype()
        );
    }
    if !logits.device().is_cpu() {
        return (log_softmax(logits, D::Minus1)? * targets)?.sum_all()? / -(rows as f64);
    }
    dispatch!(logits.dtype(), "cross entropy", T => of_distributions::<T>(logits, targets))
}

fn sizes(logits: &Tensor) -> Result<(usize, usize)> {
    match *logits.dims() {
        [rows, columns] if rows > 0 && columns > 0 => Ok((rows, columns)),
        _ => bail!("cross entropy: expected logits (B, C) with at least one value, got {:?}", logits.dims()),
    }
}

/// The classes as indices of columns.
fn indices(classes: &Tensor, columns: usize) -> Result<Vec<u32>> {
    if !matches!(classes.dtype(), DType::U32 | DType::I64) {
        bail!("cross entropy: classes are of type {:?}, must be u32 or i64", classes.dtype());
    }
    let classes = classes.to_dtype(DType::I64)?.to_vec1::<i64>()?;
    let index = |class: i64| match u32::try_from(class) {
        Ok(index) if (index as usize) < columns => Ok(index),
        _ => bail!("cross entropy: class {class} is not in 0..{columns}"),
    };
    classes.into_iter().map(index).collect()
}

/// The loss of a row of logits `x`, its maximum `m`, and `log Σ exp(x - m)`.
type Row<T> = [T; 3];

/// `log softmax(x)` of one logit of a row.
#[inline(always)]
fn log_p<T: Real>(x: T, row: &Row<T>) -> T {
    x - row[1] - row[2]
}

/// The mean of the losses, as a scalar's data and shape.
fn mean<T: Real>(rows: &[Row<T>]) -> (Vec<T>, ()) {
    let mut sum = T::ZERO;
    rows.iter().for_each(|row| sum += row[0]);
    (vec![sum / T::from_f64(rows.len() as f64)], ())
}

fn of_classes<T: Real>(logits: &Tensor, classes: Vec<u32>, smoothing: T) -> Result<Tensor> {
    let logits = logits.contiguous()?;
    let (count, columns) = sizes(&logits)?;
    let (own, spread) = (T::ONE - smoothing, smoothing / T::from_f64(columns as f64));
    let mut rows = vec![[T::ZERO; 3]; count];
    {
        let x = reader(&logits);
        let pairs = x.slice::<T>()?.par_chunks(columns).zip(&classes).with_min_len(ROWS);
        rows.par_iter_mut().zip(pairs).for_each(|(row, (x, class))| {
            let (max, log_sum) = log_sum_exp(x);
            *row = [T::ZERO, max, log_sum];
            row[0] = T::ZERO - own * log_p(x[*class as usize], row);
            // Only where it is asked for: it is infinite if any class is impossible.
            if smoothing > T::ZERO {
                let sum = sum_by(x, x, |x, _| log_p(x, row));
                row[0] -= spread * sum;
            }
        });
    }
    let input = logits.clone();
    node("cross-entropy", &[&logits], mean(&rows), move |_, dy| {
        let scale = reader(dy).slice::<T>()?[0] / T::from_f64(count as f64);
        let mut dx = vec![T::ZERO; input.elem_count()];
        let x = reader(&input);
        let inputs = x.slice::<T>()?.par_chunks(columns).zip(&rows).zip(&classes).with_min_len(ROWS);
        dx.par_chunks_mut(columns).zip(inputs).for_each(|(dx, ((x, row), class))| {
            vectorised!(
                dx.iter_mut().zip(x).for_each(|(dx, x)| *dx = (log_p(*x, row).exp() - spread) * scale)
            );
            dx[*class as usize] -= own * scale;
        });
        Ok(vec![gradient(dx, &input)?])
    })
}

fn of_distributions<T: Real>(logits: &Tensor, targets: &Tensor) -> Result<Tensor> {
    let inputs = [logits.contiguous()?, targets.contiguous()?];
    let (count, columns) = sizes(logits)?;
    let mut rows = vec![[T::ZERO; 3]; count];
    {
        let (x, t) = (reader(&inputs[0]), reader(&inputs[1]));
        let pairs = x.slice::<T>()?.par_chunks(columns).zip(t.slice::<T>()?.par_chunks(columns));
        rows.par_iter_mut().zip(pairs).with_min_len(ROWS).for_each(|(row, (x, t))| {
            let (max, log_sum) = log_sum_exp(x);
            *row = [T::ZERO, max, log_sum];
            row[0] = T::ZERO - sum_by(x, t, |x, t| t * log_p(x, row));
        });
    }
    let kept = inputs.clone();
    node("soft-cross-entropy", &inputs.each_ref(), mean(&rows), move |_, dy| {
        let scale = reader(dy).slice::<T>()?[0] / T::from_f64(count as f64);
        let (x, t) = (reader(&kept[0]), reader(&kept[1]));
        let (x, t) = (x.slice::<T>()?, t.slice::<T>()?);
        let [mut dx, mut dt] =
            kept.each_ref().map(|input| vec![T::ZERO; if input.track_op() { x.len() } else { 0 }]);
        let pairs = x.par_chunks(columns).zip(t.par_chunks(columns)).zip(&rows).with_min_len(ROWS);
        dx.par_chunks_mut(columns).zip(pairs.clone()).for_each(|(dx, ((x, t), row))| {
            vectorised!({
                let total = sum_by(t, t, |t, _| t);
                for ((dx, x), t) in dx.iter_mut().zip(x).zip(t) {
                    *dx = (total * log_p(*x, row).exp() - *t) * scale;
                }
            });
        });
        dt.par_chunks_mut(columns).zip(pairs).for_each(|(dt, ((x, _), row))| {
            dt.iter_mut().zip(x).for_each(|(dt, x)| *dt = T::ZERO - log_p(*x, row) * scale);
        });
        Ok(vec![gradient(dx, &kept[0])?, gradient(dt, &kept[1])?])
    })
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    #[test]
    fn what_does_not_fit_is_refused() {
        let logits = Tensor::zeros((2, 3), DType::F32, &Device::Cpu).unwrap();
        let classes = |classes: &[i64]| Tensor::new(classes, &Device::Cpu).unwrap();
        let message =
            |classes: &Tensor, smoothing| cross_entropy(&logits, classes, smoothing).unwrap_err().to_string();
        assert!(message(&classes(&[0, 3]), 0.0).contains("class 3 is not in 0..3"));
        assert!(message(&classes(&[-100, 0]), 0.0).contains("class -100 is not in 0..3"));
        assert!(message(&classes(&[0]), 0.0).contains("need classes (2), got [1]"));
        assert!(message(&classes(&[0, 1]), 1.5).contains("label_smoothing is 1.5, must be in [0, 1]"));
        assert!(
            message(&logits.narrow(1, 0, 1).unwrap().squeeze(1).unwrap(), 0.0).contains("must be u32 or i64")
        );
        let empty = Tensor::zeros((0, 3), DType::F32, &Device::Cpu).unwrap();
        assert!(soft_cross_entropy(&empty, &empty).unwrap_err().to_string().contains("got [0, 3]"));
        let other = logits.to_dtype(DType::F64).unwrap();
        assert!(soft_cross_entropy(&logits, &other).unwrap_err().to_string().contains("F64"));
    }

    #[test]
    fn far_apart_logits_do_not_overflow_and_impossible_classes_cost_nothing() {
        let logits = Tensor::new(&[[1e4f32, -1e4, f32::NEG_INFINITY]], &Device::Cpu).unwrap();
        let loss = |class: u32| {
            let class = Tensor::new(&[class], &Device::Cpu).unwrap();
            cross_entropy(&logits, &class, 0.0).unwrap().to_scalar::<f32>().unwrap()
        };
        assert_eq!((loss(0), loss(1), loss(2)), (0.0, 2e4, f32::INFINITY));
    }
}
