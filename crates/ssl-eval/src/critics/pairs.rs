//! Rows of two sets of features that belong together, parted at random.

use candle_core::{Device, Tensor};
use rand_core::RngCore;

use super::CriticConfig;
use crate::standardize::Standardizer;
use crate::{Error, Features, Result};

/// Pairs of rows, `(M, D_x)` and `(M, D_y)`.
pub(super) struct Pairs {
    x: Tensor,
    y: Tensor,
}

impl Pairs {
    pub(super) fn x(&self) -> &Tensor {
        &self.x
    }

    pub(super) fn y(&self) -> &Tensor {
        &self.y
    }

    pub(super) fn select(&self, rows: &[u32]) -> Result<Self> {
        let rows = Tensor::new(rows, &Device::Cpu)?;
        Ok(Self { x: self.x.index_select(&rows, 0)?, y: self.y.index_select(&rows, 0)? })
    }

    pub(super) fn rows(&self) -> Result<usize> {
        Ok(self.x.dim(0)?)
    }

    /// Batches of `size` neighbours; what is left at the end is left out.
    pub(super) fn batches(&self, size: usize) -> Result<Vec<Self>> {
        let batch =
            |i| Ok(Self { x: self.x.narrow(0, i * size, size)?, y: self.y.narrow(0, i * size, size)? });
        (0..self.rows()? / size).map(batch).collect()
    }
}

/// Pairs to train on, to stop by and to measure on.
pub(super) struct Parts {
    pub(super) train: Pairs,
    pub(super) validation: Pairs,
    pub(super) test: Pairs,
}

impl Parts {
    /// Parts the rows at random and standardises their columns by the training rows.
    pub(super) fn draw(
        x: &Features,
        y: &Features,
        config: &CriticConfig,
        generator: &mut dyn RngCore,
    ) -> Result<Self> {
        let share = |share: f64| (share * x.rows() as f64).round() as usize;
        let (test, validation) = (share(config.test_share), share(config.validation_share));
        let train = x.rows().saturating_sub(test + validation);
        if config.batch_size < 2 || config.batch_size > train.min(validation).min(test) {
            return Err(Error::Config {
                field: "batch_size",
                value: config.batch_size.to_string(),
                allowed: "2 to the number of rows of the smallest of the parts for training, validation and test",
            });
        }
        let order: Vec<usize> =
            permutation(x.rows(), generator).into_iter().map(|row| row as usize).collect();
        let (test, rest) = order.split_at(test);
        let (validation, train) = rest.split_at(validation);
        let tensors = |features: &Features| -> Result<[Tensor; 3]> {
            let standardizer = Standardizer::fit(&features.select(train)?);
            let part = |rows: &[usize]| -> Result<Tensor> {
                let part = standardizer.apply(&features.select(rows)?)?;
                Ok(Tensor::from_slice(part.data(), (part.rows(), part.dim()), &Device::Cpu)?)
            };
            Ok([part(train)?, part(validation)?, part(test)?])
        };
        let ([x_train, x_validation, x_test], [y_train, y_validation, y_test]) = (tensors(x)?, tensors(y)?);
        Ok(Self {
            train: Pairs { x: x_train, y: y_train },
            validation: Pairs { x: x_validation, y: y_validation },
            test: Pairs { x: x_test, y: y_test },
        })
    }
}

/// A random order of `0..n`, by Fisher and Yates from the end.
pub(super) fn permutation(n: usize, generator: &mut dyn RngCore) -> Vec<u32> {
    let mut order: Vec<u32> = (0..n as u32).collect();
    for last in (1..n).rev() {
        // The product's upper half is in 0..=last, uniform but for a share of n / 2^64.
        let product = u128::from(generator.next_u64()) * (last as u128 + 1);
        order.swap(last, (product >> 64) as usize);
    }
    order
}
