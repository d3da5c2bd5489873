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

/// Runs `$body` for the blocks of `$n` elements, compiled apart for full ones, where `$FULL` is true: a load that may
/// be short keeps the compiler from holding any lanes in registers.
macro_rules! for_blocks {
    ($n:expr, ($start:ident, $end:ident, $FULL:ident) => $body:block) => {
        for ($start, $end) in $crate::lanes::blocks($n) {
            if $end - $start == $crate::lanes::LANES {
                const $FULL: bool = true;
                $body
            } else {
                const $FULL: bool = false;
                $body
            }
        }
    };
}
pub(crate) use for_blocks;

/// `LANES` elements if the block is full, else up to as many, filled up with zeros.
#[inline(always)]
pub(crate) fn get<const FULL: bool, T: Element>(x: &[T]) -> Lanes<T> {
    if !FULL {
        return load(x);
    }
    let mut lanes = [T::ZERO; LANES];
    lanes.copy_from_slice(&x[..LANES]);
    lanes
}

/// Writes all lanes if the block is full, else as many as `to` has room for.
#[inline(always)]
pub(crate) fn put<const FULL: bool, T: Element>(to: &mut [T], lanes: &Lanes<T>) {
    if FULL { to[..LANES].copy_from_slice(lanes) } else { store(to, lanes) }
}

/// Up to `LANES` elements, filled up with zeros.
#[inline(always)]
fn load<T: Element>(x: &[T]) -> Lanes<T> {
    match x.first_chunk() {
        Some(lanes) => *lanes,
        None => load_part(x),
    }
}

/// Writes as many lanes as `to` has room for.
#[inline(always)]
fn store<T: Element>(to: &mut [T], lanes: &Lanes<T>) {
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
