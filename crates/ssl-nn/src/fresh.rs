//! New vectors, filled by several threads.

use std::mem::MaybeUninit;

use rayon::prelude::*;

use crate::storage::Element;

/// `n` elements of which `fill` gets a chunk at a time, with its number.
pub(crate) fn filled<T: Element>(
    n: usize,
    chunk: usize,
    fill: impl Fn(usize, &mut [T]) + Sync + Send,
) -> Vec<T> {
    filled_with(n, chunk, || (), |(), i, part| fill(i, part))
}

/// [`filled`] with something that each thread keeps from one chunk to the next.
///
/// A chunk is cleared by the thread that fills it, so that it is in the cache of the one that needs it: a vector that
/// was cleared as a whole would pass through memory once more.
pub(crate) fn filled_with<T: Element, S>(
    n: usize,
    chunk: usize,
    state: impl Fn() -> S + Sync + Send,
    fill: impl Fn(&mut S, usize, &mut [T]) + Sync + Send,
) -> Vec<T> {
    let mut data = Vec::with_capacity(n);
    let parts = data.spare_capacity_mut()[..n].par_chunks_mut(chunk.max(1));
    parts.enumerate().for_each_init(state, |state, (i, part)| fill(state, i, cleared(part)));
    // SAFETY: the chunks are the first `n` elements of the capacity, and each of them was cleared.
    unsafe { data.set_len(n) };
    data
}

fn cleared<T: Element>(part: &mut [MaybeUninit<T>]) -> &mut [T] {
    part.fill(MaybeUninit::new(T::ZERO));
    // SAFETY: all elements were written just now, and a `MaybeUninit<T>` has the layout of `T`.
    unsafe { &mut *(part as *mut [MaybeUninit<T>] as *mut [T]) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_cover_everything_and_begin_as_zeros() {
        let x = filled(10, 4, |i, part: &mut [f32]| {
            assert!(part.iter().all(|v| *v == 0.0));
            part[0] = i as f32 + 1.0;
        });
        assert_eq!(x, [1., 0., 0., 0., 2., 0., 0., 0., 3., 0.]);
        assert!(filled(0, 4, |_, _: &mut [f64]| ()).is_empty());
    }
}
