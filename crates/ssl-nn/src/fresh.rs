//! Output buffers that are cleared part by part, by the task that fills the part.
//!
//! `vec![0; n]` clears everything at once on one thread, and by the time a task computes its part, that has left the
//! cache again. Here clearing a part brings it into the cache of the core that needs it.

use std::mem::MaybeUninit;
use std::sync::atomic::{AtomicUsize, Ordering};

use rayon::prelude::*;

use crate::storage::Element;

/// Room for `n` elements, handed out in parts.
pub(crate) struct Fresh<T> {
    data: Vec<T>,
    len: usize,
    /// Elements that have been cleared.
    cleared: AtomicUsize,
}

impl<T: Element> Fresh<T> {
    pub(crate) fn new(len: usize) -> Self {
        Self { data: Vec::with_capacity(len), len, cleared: AtomicUsize::new(0) }
    }

    /// All of it in parts of `size` elements, the last perhaps shorter.
    pub(crate) fn par_parts(&mut self, size: usize) -> impl IndexedParallelIterator<Item = Part<'_, T>> {
        let (cleared, room) = (&self.cleared, &mut self.data.spare_capacity_mut()[..self.len]);
        room.par_chunks_mut(size.max(1)).map(move |room| Part { room, cleared })
    }

    /// All of it in parts that end where `ends` says.
    pub(crate) fn parts_at(&mut self, ends: impl Iterator<Item = usize>) -> Vec<Part<'_, T>> {
        let (cleared, mut room) = (&self.cleared, &mut self.data.spare_capacity_mut()[..self.len]);
        let mut start = 0;
        let parts = ends.map(|end| {
            let (part, rest) = std::mem::take(&mut room).split_at_mut(end - start);
            (room, start) = (rest, end);
            Part { room: part, cleared }
        });
        parts.collect()
    }

    /// The vector, once every part has been cleared.
    pub(crate) fn into_vec(mut self) -> Vec<T> {
        assert_eq!(*self.cleared.get_mut(), self.len, "a part of a buffer was left out");
        // SAFETY: a part counts its elements when it initialises them, which it can do once, and parts handed out
        // together do not overlap; so all of the first `len` elements, which the capacity holds, are initialised.
        unsafe { self.data.set_len(self.len) };
        self.data
    }
}

/// A part of a buffer, not yet initialised.
pub(crate) struct Part<'a, T> {
    room: &'a mut [MaybeUninit<T>],
    cleared: &'a AtomicUsize,
}

impl<'a, T: Element> Part<'a, T> {
    /// The part, all zeros.
    pub(crate) fn clear(self) -> &'a mut [T] {
        self.room.fill(MaybeUninit::new(T::ZERO));
        self.cleared.fetch_add(self.room.len(), Ordering::Relaxed);
        // SAFETY: every element was initialised above, and `MaybeUninit<T>` has the layout of `T`.
        unsafe { &mut *(std::ptr::from_mut(self.room) as *mut [T]) }
    }
}

/// `n` elements of which `fill` gets a chunk at a time, with its number.
pub(crate) fn filled<T: Element>(
    n: usize,
    chunk: usize,
    fill: impl Fn(usize, &mut [T]) + Sync + Send,
) -> Vec<T> {
    filled_with(n, chunk, || (), |(), i, part| fill(i, part))
}

/// [`filled`] with something that each task keeps from one chunk to the next.
pub(crate) fn filled_with<T: Element, S>(
    n: usize,
    chunk: usize,
    state: impl Fn() -> S + Sync + Send,
    fill: impl Fn(&mut S, usize, &mut [T]) + Sync + Send,
) -> Vec<T> {
    let mut fresh = Fresh::new(n);
    fresh.par_parts(chunk).enumerate().for_each_init(state, |state, (i, part)| fill(state, i, part.clear()));
    fresh.into_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_zeros_and_stay_in_order() {
        let mut fresh = Fresh::<f32>::new(10);
        fresh.par_parts(4).enumerate().for_each(|(i, part)| {
            let part = part.clear();
            assert!(part.iter().all(|v| *v == 0.0));
            part[0] = i as f32;
        });
        assert_eq!(fresh.into_vec(), [0., 0., 0., 0., 1., 0., 0., 0., 2., 0.]);
        let mut fresh = Fresh::<f32>::new(5);
        let lens: Vec<usize> =
            fresh.parts_at([2, 2, 5].into_iter()).into_iter().map(|p| p.clear().len()).collect();
        assert_eq!((lens, fresh.into_vec().len()), (vec![2, 0, 3], 5));
        assert!(Fresh::<f64>::new(0).into_vec().is_empty());
    }

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
