//! The arithmetic of the optimisers, on slices: one pass over each parameter, in parallel.

use rayon::prelude::*;

use crate::chunks::{CHUNK, sum_of_squares};
use crate::optimizer::{AdamConfig, LarsConfig, SgdConfig};

/// One step of one parameter.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Step {
    pub(crate) lr: f64,
    pub(crate) weight_decay: f64,
    /// Whether LARS scales it.
    pub(crate) adapt: bool,
    /// Which step of this parameter it is, counted from 1.
    pub(crate) number: usize,
}

/// `g ← g + λw; v ← μv + g; w ← w − lr·v`; with Nesterov `w ← w − lr·(g + μv)`.
pub(crate) fn sgd(c: &SgdConfig, step: Step, w: &mut [f32], g: &[f32], slots: &mut [Vec<f32>]) {
    let (lr, momentum, decay) = (step.lr as f32, c.momentum as f32, step.weight_decay as f32);
    each(w, g, &mut slots[0], |w, g, v| {
        let g = g + decay * *w;
        *v = momentum * *v + g;
        *w -= lr * if c.nesterov { g + momentum * *v } else { *v };
    });
}

/// Adam (Kingma & Ba, 2015), with the decay applied to the weight (`decoupled`) or added to the gradient.
pub(crate) fn adam(
    c: &AdamConfig,
    decoupled: bool,
    step: Step,
    w: &mut [f32],
    g: &[f32],
    slots: &mut [Vec<f32>],
) {
    let [m, v] = slots else { return };
    let Step { lr, weight_decay, number, .. } = step;
    let (beta2, eps) = (c.beta2 as f32, c.eps as f32);
    // In f64, as PyTorch: in f32 the difference would be off by 5e-5 of itself.
    let (take1, take2) = ((1.0 - c.beta1) as f32, (1.0 - c.beta2) as f32);
    let root_correction = (1.0 - c.beta2.powi(number as i32)).sqrt() as f32;
    let step_size = (lr / (1.0 - c.beta1.powi(number as i32))) as f32;
    let (shrink, l2) = match decoupled {
        true => ((1.0 - lr * weight_decay) as f32, 0.0),
        false => (1.0, weight_decay as f32),
    };
    let chunks = w.par_chunks_mut(CHUNK).zip(g.par_chunks(CHUNK));
    let chunks = chunks.zip(m.par_chunks_mut(CHUNK)).zip(v.par_chunks_mut(CHUNK));
    chunks.for_each(|(((w, g), m), v)| {
        for (((w, g), m), v) in w.iter_mut().zip(g).zip(m).zip(v) {
            let g = g + l2 * *w;
            *m += take1 * (g - *m);
            *v = beta2 * *v + take2 * g * g;
            *w = shrink * *w - step_size * *m / (v.sqrt() / root_correction + eps);
        }
    });
}

/// `g ← q·(g + λw)` with the trust ratio `q = η‖w‖ / ‖g + λw‖`, then momentum.
pub(crate) fn lars(c: &LarsConfig, step: Step, w: &mut [f32], g: &[f32], slots: &mut [Vec<f32>]) {
    let Step { lr, weight_decay, adapt, number } = step;
    let decay = weight_decay as f32;
    let trust = if adapt { trust_ratio(c, weight_decay, lr, w, g) } else { Some(1.0) };
    // A parameter or gradient of norm 0 takes a plain step; You et al.'s rule then skips the decay as well.
    let (q, decay) = match trust {
        Some(q) => (q as f32, decay),
        None => (1.0, if c.separate_norms { 0.0 } else { decay }),
    };
    let momentum = c.momentum as f32;
    let (inside, outside) = if c.lr_in_momentum { (lr as f32, 1.0) } else { (1.0, lr as f32) };
    let first = number == 1;
    each(w, g, &mut slots[0], |w, g, v| {
        let g = inside * q * (g + decay * *w);
        *v = if first { g } else { momentum * *v + g };
        *w -= outside * if c.nesterov { g + momentum * *v } else { *v };
    });
}

/// Calls `update` with each weight, its gradient and its velocity.
fn each(w: &mut [f32], g: &[f32], v: &mut [f32], update: impl Fn(&mut f32, f32, &mut f32) + Sync) {
    let chunks = w.par_chunks_mut(CHUNK).zip(g.par_chunks(CHUNK)).zip(v.par_chunks_mut(CHUNK));
    chunks.for_each(|((w, g), v)| w.iter_mut().zip(g).zip(v).for_each(|((w, g), v)| update(w, *g, v)));
}

/// `η‖w‖ / ‖update‖`, or `None` where a norm is 0.
fn trust_ratio(c: &LarsConfig, weight_decay: f64, lr: f64, w: &[f32], g: &[f32]) -> Option<f64> {
    let w_norm = sum_of_squares(w, w, |w, _| w).sqrt();
    let update_norm = if c.separate_norms {
        let g_norm = sum_of_squares(g, g, |g, _| g).sqrt();
        if g_norm == 0.0 { 0.0 } else { g_norm + weight_decay * w_norm + c.eps }
    } else {
        sum_of_squares(w, g, |w, g| g + weight_decay * w).sqrt()
    };
    let ratio = c.trust_coefficient * w_norm / update_norm;
    // At a rate of 0 the clipped step is 0, whatever the ratio.
    let ratio = if c.clip { (ratio / lr).min(1.0) } else { ratio };
    (w_norm > 0.0 && update_norm > 0.0).then_some(ratio)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::optimizer::OptimizerConfig;

    #[test]
    fn the_first_lars_step_has_the_length_lr_eta_norm() {
        let Some(OptimizerConfig::Lars(c)) = OptimizerConfig::named("lars") else { panic!() };
        let (mut w, g) = (vec![3.0f32, -4.0], vec![0.1, 0.7]);
        let before = w.clone();
        let step = Step { lr: 2.0, weight_decay: 0.1, adapt: true, number: 1 };
        lars(&c, step, &mut w, &g, &mut [vec![0.0; 2]]);
        let moved: f32 = w.iter().zip(&before).map(|(a, b)| (a - b) * (a - b)).sum::<f32>().sqrt();
        assert!((moved - 2.0 * 1e-3 * 5.0).abs() < 1e-6, "{moved}");
    }

    #[test]
    fn adam_moves_every_element_alike_over_chunks() {
        let Some(OptimizerConfig::AdamW(c)) = OptimizerConfig::named("adamw") else { panic!() };
        let n = 2 * CHUNK + 5;
        let (mut w, mut slots) = (vec![1f32; n], [vec![0.0; n], vec![0.0; n]]);
        let step = Step { lr: 0.5, weight_decay: 0.1, adapt: true, number: 1 };
        adam(&c, true, step, &mut w, &vec![2.0; n], &mut slots);
        // 1 - lr * decay, less the first step of length lr.
        assert!((w[0] - 0.45).abs() < 1e-6 && w.iter().all(|x| *x == w[0]), "{}", w[0]);
    }

    #[test]
    fn excluded_parameters_take_a_plain_step() {
        let Some(OptimizerConfig::Lars(c)) = OptimizerConfig::named("lars") else { panic!() };
        let mut w = vec![3.0f32];
        let step = Step { lr: 2.0, weight_decay: 0.0, adapt: false, number: 1 };
        lars(&c, step, &mut w, &[0.5], &mut [vec![0.0]]);
        assert_eq!(w, [2.0]);
    }
}
