//! Batch norm over groups of a batch, each with statistics of its own, as on several devices: the other half of MoCo's
//! shuffled batch norm.

use candle_core::{Result, Tensor, Var, bail};
use ssl_backbones::Backbone;
use ssl_nn::{DrawsAt, Params, Purpose, Rng, permutation, rng};

use crate::method::StepContext;

/// Runs a network over equal groups of a batch, one after the other.
///
/// Every group is normalised by its own statistics with the shared scale and shift. The running statistics move once a
/// batch, by the mean over the groups: the running mean by the mean of the groups' means, the running variance by the
/// mean of their unbiased variances. This is the official notebook's `SplitBatchNorm`, whose groups interleave where
/// these are neighbours; the order of a batch is random anyway.
#[derive(Debug)]
pub(crate) struct SplitNorm {
    groups: usize,
    /// Running means and variances, and counters of batches.
    statistics: Vec<Var>,
}

impl SplitNorm {
    /// For the network whose tensors in `params` begin with `prefix`. One group is ordinary batch norm.
    pub(crate) fn new(groups: usize, params: &Params, prefix: &str) -> Self {
        let tracked = ["running_mean", "running_var", "num_batches_tracked"];
        let buffers = params.buffers().into_iter().filter(|(name, _)| {
            name.starts_with(prefix) && tracked.iter().any(|buffer| name.ends_with(buffer))
        });
        Self { groups, statistics: buffers.map(|(_, var)| var).collect() }
    }

    /// `backbone` in training mode: `(B, 3, H, W)` to `(B, d)`, leaving out what it draws at `draws`.
    ///
    /// # Errors
    /// If the groups do not divide the batch.
    pub(crate) fn forward(
        &self,
        backbone: &dyn Backbone,
        x: &Tensor,
        draws: Option<DrawsAt>,
    ) -> Result<Tensor> {
        if self.groups == 1 {
            return backbone.forward_train(x, draws);
        }
        let n = x.dim(0)?;
        if !n.is_multiple_of(self.groups) {
            bail!("method.batch_norm_groups = {} does not divide a batch of {n} images", self.groups);
        }
        let size = n / self.groups;
        let before = self.copies()?;
        let mut means: Option<Vec<Tensor>> = None;
        let mut outputs = Vec::with_capacity(self.groups);
        for group in 0..self.groups {
            self.set(&before)?;
            let first = group * size;
            let draws =
                draws.map(|at| DrawsAt { first_sample: at.first_sample.wrapping_add(first as u64), ..at });
            outputs.push(backbone.forward_train(&x.narrow(0, first, size)?, draws)?);
            // Each group has moved the statistics from where they were before the batch.
            means = Some(self.add(means, 1.0 / self.groups as f64)?);
        }
        self.set(&means.unwrap_or(before))?;
        Tensor::cat(&outputs, 0)
    }

    /// [`SplitNorm::forward`] of the images in a random order, put right again afterwards, so that a key shares its
    /// statistics with other images than its query does. With one group there is nothing to shuffle.
    ///
    /// # Errors
    /// As [`SplitNorm::forward`].
    pub(crate) fn forward_shuffled(
        &self,
        backbone: &dyn Backbone,
        x: &Tensor,
        context: &StepContext,
        view: u32,
    ) -> Result<Tensor> {
        if self.groups == 1 {
            return self.forward(backbone, x, None);
        }
        let order = permutation(&mut draws(context, view), u32::try_from(x.dim(0)?)?);
        let mut back = vec![0; order.len()];
        order.iter().zip(0..).for_each(|(&from, to)| back[from as usize] = to);
        let [order, back] = [order, back].map(|rows| Tensor::new(rows, x.device()));
        self.forward(backbone, &x.index_select(&order?, 0)?, None)?.index_select(&back?, 0)
    }

    fn copies(&self) -> Result<Vec<Tensor>> {
        self.statistics.iter().map(|var| var.as_detached_tensor().copy()).collect()
    }

    fn set(&self, values: &[Tensor]) -> Result<()> {
        self.statistics.iter().zip(values).try_for_each(|(var, value)| var.set(value))
    }

    /// `sums + share · statistics`; counters are copied.
    fn add(&self, sums: Option<Vec<Tensor>>, share: f64) -> Result<Vec<Tensor>> {
        let now = self.copies()?.into_iter().map(|x| if x.dtype().is_float() { x * share } else { Ok(x) });
        let Some(sums) = sums else { return now.collect() };
        now.zip(sums).map(|(x, sum)| if sum.dtype().is_float() { x? + sum } else { x }).collect()
    }
}

/// The draws of the order of one view's keys.
fn draws(context: &StepContext, view: u32) -> Rng {
    rng(context.seed, Purpose::ShuffleBatchNorm, context.step as u64, context.part as u64, view)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{CONTEXT, images, params, resnet};

    /// A network, and the norms of its tensors.
    fn network(groups: usize) -> (Params, Box<dyn Backbone>, SplitNorm) {
        let params = params();
        let backbone = resnet().build(&params.root().pp("backbone")).unwrap();
        let split = SplitNorm::new(groups, &params, "backbone.");
        (params, backbone, split)
    }

    fn buffer(params: &Params, name: &str) -> Vec<f32> {
        params.get(&format!("backbone.{name}")).unwrap().to_vec1().unwrap()
    }

    #[test]
    fn each_group_has_its_own_statistics_and_the_running_ones_move_by_their_mean() {
        let x = images(1, 6).views.remove(0);
        let (params, backbone, split) = network(2);
        let y = split.forward(&*backbone, &x, None).unwrap().to_vec2::<f32>().unwrap();
        let names =
            ["bn1.running_mean", "bn1.running_var", "layer4.1.bn2.running_mean", "layer4.1.bn2.running_var"];
        let mut sums = names.map(|name| vec![0.0; buffer(&params, name).len()]);
        for group in 0..2 {
            let (alone, backbone, _) = network(1);
            let own = backbone.forward_t(&x.narrow(0, 3 * group, 3).unwrap(), true).unwrap();
            assert_eq!(own.to_vec2::<f32>().unwrap(), y[3 * group..3 * group + 3]);
            for (sum, name) in sums.iter_mut().zip(names) {
                sum.iter_mut().zip(buffer(&alone, name)).for_each(|(sum, value)| *sum += 0.5 * value);
            }
        }
        for (sum, name) in sums.iter().zip(names) {
            assert!(sum.iter().zip(buffer(&params, name)).all(|(a, b)| (a - b).abs() < 1e-6), "{name}");
        }
        let batches = params.get("backbone.bn1.num_batches_tracked").unwrap();
        assert_eq!(batches.to_scalar::<i64>().unwrap(), 1);
    }

    #[test]
    fn one_group_is_ordinary_batch_norm_shuffled_or_not() {
        let x = images(1, 6).views.remove(0);
        let (_, backbone, split) = network(1);
        let plain = backbone.forward_t(&x, true).unwrap().to_vec2::<f32>().unwrap();
        assert_eq!(split.forward(&*backbone, &x, None).unwrap().to_vec2::<f32>().unwrap(), plain);
        let shuffled = split.forward_shuffled(&*backbone, &x, &CONTEXT, 0).unwrap();
        assert_eq!(shuffled.to_vec2::<f32>().unwrap(), plain);
    }

    #[test]
    fn shuffled_images_come_back_in_order_and_share_statistics_with_others() {
        let x = images(1, 8).views.remove(0);
        let (_, backbone, split) = network(2);
        let order = permutation(&mut draws(&CONTEXT, 1), 8);
        let y = split.forward_shuffled(&*backbone, &x, &CONTEXT, 1).unwrap().to_vec2::<f32>().unwrap();
        for rows in order.chunks(4) {
            let group = x.index_select(&Tensor::new(rows, x.device()).unwrap(), 0).unwrap();
            let own = backbone.forward_t(&group, true).unwrap().to_vec2::<f32>().unwrap();
            rows.iter().zip(own).for_each(|(&row, own)| assert_eq!(y[row as usize], own));
        }
        let other = |context: StepContext, view| permutation(&mut draws(&context, view), 8);
        assert_ne!(order, other(CONTEXT, 0));
        assert_ne!(order, other(StepContext { step: 1, ..CONTEXT }, 1));
        assert_ne!(order, other(StepContext { part: 1, ..CONTEXT }, 1));
        assert_ne!(order, other(StepContext { seed: 4, ..CONTEXT }, 1));
    }
}
