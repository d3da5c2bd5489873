//! Multi-crop (Caron et al., 2020, <https://arxiv.org/abs/2006.09882>, section 3.3): views of one size pass the encoder
//! together.

use candle_core::{Result, Tensor, bail};

/// Which rows belong to which view, after views of one size have been joined.
#[derive(Debug)]
pub(crate) struct Crops {
    /// The views in the order of their rows.
    order: Vec<usize>,
}

impl Crops {
    /// The features of all views, `(V B, d)`: `forward` takes the views of one size as one batch, and the number of that
    /// size, counted from 0 in the order in which the sizes appear.
    ///
    /// # Errors
    /// If there are no views, or `forward` fails.
    pub(crate) fn features(
        views: &[Tensor],
        forward: impl Fn(&Tensor, usize) -> Result<Tensor>,
    ) -> Result<(Self, Tensor)> {
        let mut sizes: Vec<&[usize]> = Vec::new();
        for view in views {
            if !sizes.contains(&view.dims()) {
                sizes.push(view.dims());
            }
        }
        let (mut order, mut features) = (Vec::new(), Vec::new());
        for (number, size) in sizes.into_iter().enumerate() {
            let group = views.iter().enumerate().filter(|(_, view)| view.dims() == size);
            let (places, group): (Vec<usize>, Vec<&Tensor>) = group.unzip();
            features.push(forward(&Tensor::cat(&group, 0)?, number)?);
            order.extend(places);
        }
        if features.is_empty() {
            bail!("a batch without views has no features");
        }
        Ok((Self { order }, Tensor::cat(&features, 0)?))
    }

    /// Takes `rows` `(V B, …)`, in the order of the features, apart: `(B, …)` for each view.
    ///
    /// # Errors
    /// If the number of rows is not a multiple of that of the views.
    pub(crate) fn split(&self, rows: &Tensor) -> Result<Vec<Tensor>> {
        let (all, views) = (rows.dim(0)?, self.order.len());
        if !all.is_multiple_of(views) {
            bail!("{all} rows do not belong to {views} views of equally many images");
        }
        let n = all / views;
        let mut placed: Vec<(usize, usize)> =
            self.order.iter().enumerate().map(|(place, view)| (*view, place)).collect();
        placed.sort_unstable();
        placed.into_iter().map(|(_, place)| rows.narrow(0, place * n, n)).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;
    use crate::testing::batch;

    #[test]
    fn views_of_one_size_share_a_pass_and_come_back_in_their_order() {
        let views = batch(&[8, 6, 8, 4, 6], 3).views;
        let passes = RefCell::new(vec![]);
        let (crops, features) = Crops::features(&views, |x, pass| {
            passes.borrow_mut().push((pass, x.dims().to_vec()));
            x.flatten_from(1)?.narrow(1, 0, 5)
        })
        .unwrap();
        let expected = [(0, vec![6, 3, 8, 8]), (1, vec![6, 3, 6, 6]), (2, vec![3, 3, 4, 4])];
        assert_eq!(passes.into_inner(), expected);
        for (view, rows) in views.iter().zip(crops.split(&features).unwrap()) {
            let own = view.flatten_from(1).unwrap().narrow(1, 0, 5).unwrap();
            assert_eq!(rows.to_vec2::<f32>().unwrap(), own.to_vec2::<f32>().unwrap());
        }
        assert!(crops.split(&features.narrow(0, 0, 4).unwrap()).is_err());
        assert!(Crops::features(&[], |x, _| Ok(x.clone())).is_err());
    }
}
