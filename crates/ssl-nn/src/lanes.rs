//! Sixteen neighbouring elements, which the compiler keeps in registers.

use crate::storage::Element;

/// Elements that are worked on together.
pub(crate) const LANES: usize = 16;

/// One element for each lane.
pub(crate) type Lanes<T> = [T; LANES];

/// Starts and ends of the blocks of lanes in `n` elements; the last may be shorter.
pub(crate) fn blocks(n: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..n).step_by(LANES).map(move |start| (start, n.min(start + LANES)))
}

/// Up to `LANES` elements, filled up with zeros.
#[inline(always)]
pub(crate) fn load<T: Element>(x: &[T]) -> Lanes<T> {
    match x.first_chunk() {
        Some(lanes) => *lanes,
        None => load_part(x),
    }
}

/// Writes as many lanes as `to` has room for.
#[inline(always)]
pub(crate) fn store<T: Element>(to: &mut [T], lanes: &Lanes<T>) {
    match to.first_chunk_mut() {
        Some(full) => *full = *lanes,
        None => store_part(to, lanes),
    }
}

// Apart from the full blocks, or the compiler joins both into one copy of unknown length.
#[cold]
#[inline(never)]
fn load_part<T: Element>(x: &[T]) -> Lanes<T> {
    let mut lanes = [T::ZERO; LANES];
    lanes[..x.len()].copy_from_slice(x);
    lanes
}

#[cold]
#[inline(never)]
fn store_part<T: Element>(to: &mut [T], lanes: &Lanes<T>) {
    to.copy_from_slice(&lanes[..to.len()]);
}
