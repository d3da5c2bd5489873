//! From candle's storage to slices and back.

use std::ops::Deref;

use candle_core::{CpuStorage, Layout, Result, Storage, Tensor, WithDType, bail};

/// The scalar types that the CPU kernels are written for.
pub(crate) trait Element: WithDType {
    const ZERO: Self;
    const ONE: Self;
}

impl Element for f32 {
    const ZERO: Self = 0.0;
    const ONE: Self = 1.0;
}

impl Element for f64 {
    const ZERO: Self = 0.0;
    const ONE: Self = 1.0;
}

/// Runs `$body` with `$t` as the scalar type of `$dtype`.
macro_rules! dispatch {
    ($dtype:expr, $op:literal, $t:ident => $body:expr) => {
        match $dtype {
            candle_core::DType::F32 => {
                type $t = f32;
                $body
            }
            candle_core::DType::F64 => {
                type $t = f64;
                $body
            }
            dtype => Err(candle_core::Error::UnsupportedDTypeForOp(dtype, $op).bt()),
        }
    };
}
pub(crate) use dispatch;

/// The elements of a contiguous tensor in the forward pass of a custom operation.
pub(crate) fn slice<'a, T: Element>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [T]> {
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(&T::cpu_storage_as_slice(storage)?[start..end]),
        None => bail!("expected a contiguous tensor, got {layout:?}"),
    }
}

/// Read access to the elements of a contiguous CPU tensor.
pub(crate) struct Reader<'a, G> {
    guard: G,
    layout: &'a Layout,
}

/// Locks a tensor's storage for reading.
pub(crate) fn reader(tensor: &Tensor) -> Reader<'_, impl Deref<Target = Storage> + '_> {
    let (guard, layout) = tensor.storage_and_layout();
    Reader { guard, layout }
}

impl<G: Deref<Target = Storage>> Reader<'_, G> {
    pub(crate) fn slice<T: Element>(&self) -> Result<&[T]> {
        match &*self.guard {
            Storage::Cpu(storage) => slice(storage, self.layout),
            _ => bail!("expected a tensor on the cpu"),
        }
    }
}
