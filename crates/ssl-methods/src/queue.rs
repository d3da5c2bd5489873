//! The queue of older keys that MoCo takes its negatives from.

use candle_core::{Result, Tensor, Var, bail};
use ssl_losses::normalize;
use ssl_nn::{Init, Scope};

/// The newest `K` keys, a ring of rows in the store: `queue` (K, D) and `queue_ptr`, the row that the next key replaces.
///
/// The official code has the transpose, (D, K), and a pointer of shape (1).
#[derive(Debug)]
pub struct Queue {
    rows: Var,
    pointer: Var,
    size: usize,
}

impl Queue {
    /// A queue of `size` random keys of length 1 and width `dim`, as buffers `queue` and `queue_ptr` in `scope`.
    ///
    /// # Errors
    /// If the size is 0 or a name is taken.
    pub fn new(size: usize, dim: usize, scope: &Scope) -> Result<Self> {
        if size == 0 {
            bail!("a queue needs at least one row, got 0");
        }
        // A normal direction is uniform on the sphere.
        let rows = scope.buffer("queue", (size, dim), Init::Normal { std: 1.0 })?;
        rows.set(&normalize(&rows.as_detached_tensor())?)?;
        Ok(Self { rows, pointer: scope.counter("queue_ptr")?, size })
    }

    /// The keys, `(K, D)`, without gradient. It shows what [`Queue::enqueue`] writes later: what is computed from it must
    /// go back before that.
    pub fn keys(&self) -> Tensor {
        self.rows.as_detached_tensor()
    }

    /// Writes `keys`, `(n, D)` of length 1, over the oldest ones.
    ///
    /// # Errors
    /// If `n` is above `K` or the width differs.
    pub fn enqueue(&self, keys: &Tensor) -> Result<()> {
        let (n, _) = keys.dims2()?;
        if n > self.size {
            bail!("a queue of {} keys cannot take {n} at once", self.size);
        }
        let start = self.pointer.to_scalar::<i64>()? as usize % self.size;
        let keys = keys.detach().contiguous()?;
        let first = n.min(self.size - start);
        for (from, count, to) in [(0, first, start), (first, n - first, 0)] {
            if count > 0 {
                self.rows.slice_set(&keys.narrow(0, from, count)?, 0, to)?;
            }
        }
        let next = (start + n) % self.size;
        self.pointer.set(&Tensor::new(next as i64, self.pointer.device())?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::params;

    /// `n` keys whose elements are all `value`.
    fn keys(n: usize, value: f32) -> Tensor {
        Tensor::full(value, (n, 2), &candle_core::Device::Cpu).unwrap()
    }

    #[test]
    fn it_starts_with_directions_and_the_newest_keys_replace_the_oldest() {
        let params = params();
        let queue = Queue::new(6, 2, &params.root()).unwrap();
        let norms = queue.keys().sqr().unwrap().sum(1).unwrap().to_vec1::<f32>().unwrap();
        assert!(norms.iter().all(|norm| (norm - 1.0).abs() < 1e-6), "{norms:?}");
        let column = || queue.keys().get_on_dim(1, 0).unwrap().to_vec1::<f32>().unwrap();
        let pointer = || params.get("queue_ptr").unwrap().to_scalar::<i64>().unwrap();
        let start = column();
        queue.enqueue(&keys(2, 2.0)).unwrap();
        assert_eq!((column(), pointer()), ([vec![2.0; 2], start[2..].to_vec()].concat(), 2));
        queue.enqueue(&keys(2, 3.0)).unwrap();
        queue.enqueue(&keys(2, 4.0)).unwrap();
        assert_eq!((column(), pointer()), (vec![2.0, 2.0, 3.0, 3.0, 4.0, 4.0], 0));
        queue.enqueue(&keys(2, 5.0)).unwrap();
        assert_eq!((column(), pointer()), (vec![5.0, 5.0, 3.0, 3.0, 4.0, 4.0], 2));
        // Five keys from row 2 on go round the end.
        queue.enqueue(&keys(5, 6.0)).unwrap();
        assert_eq!((column(), pointer()), (vec![6.0, 5.0, 6.0, 6.0, 6.0, 6.0], 1));
        queue.enqueue(&keys(6, 7.0)).unwrap();
        assert_eq!((column(), pointer()), (vec![7.0; 6], 1));
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let params = params();
        let queue = Queue::new(3, 2, &params.root()).unwrap();
        let error = queue.enqueue(&keys(4, 1.0)).unwrap_err().to_string();
        assert!(error.contains("a queue of 3 keys cannot take 4"), "{error}");
        assert!(
            queue
                .enqueue(&Tensor::zeros((1, 3), candle_core::DType::F32, &candle_core::Device::Cpu).unwrap())
                .is_err()
        );
        assert!(Queue::new(0, 2, &params.root().pp("none")).is_err());
    }
}
