//! The innermost loops: multiplication of a strided matrix with panels of columns, for each instruction set.
//!
//! `C (m × n) += A (m × k) · B (k × n)` is cut into tiles of a few rows and two vectors of columns. A tile's sums stay
//! in registers; elements of `A` are broadcast from where they lie, so `A` needs no packing whatever its strides, and
//! the rows of a convolution's input serve as they are. `k` is a list of runs, each contiguous in `B` and evenly
//! spaced in `A`.

use std::any::TypeId;
use std::sync::LazyLock;

use crate::storage::Element;

/// Rows of the largest tile.
const ROWS: usize = 14;

/// Where a run of `k` starts: its offsets in `A` and in a panel of `B`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Run {
    pub(crate) a: usize,
    pub(crate) b: usize,
}

/// The left operand: element `(m, k)` of a run at `run.a + m · row + k · col`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Left<'a, T> {
    pub(crate) data: &'a [T],
    pub(crate) row: usize,
    pub(crate) col: usize,
}

/// The right operand: element `k` of a run in column `j` of panel `p` at `p · panel + run.b + k · row + j`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Right<'a, T> {
    pub(crate) data: &'a [T],
    pub(crate) panel: usize,
    pub(crate) row: usize,
}

/// The instruction sets with kernels of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Isa {
    /// Whatever the compiler makes of plain loops.
    Portable,
    /// AVX2 with FMA.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// AVX-512F.
    #[cfg(target_arch = "x86_64")]
    Avx512,
}

/// The best set that this processor has.
pub(crate) static ISA: LazyLock<Isa> = LazyLock::new(|| {
    #[cfg(target_arch = "x86_64")]
    {
        if is_x86_feature_detected!("avx512f") {
            return Isa::Avx512;
        }
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            return Isa::Avx2;
        }
    }
    Isa::Portable
});

impl Isa {
    /// Columns of a panel of `B`.
    pub(crate) fn panel<T: Element>(self) -> usize {
        match self {
            Isa::Portable => 2 * PORTABLE_LANES,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 if is_f32::<T>() => 16,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 if is_f32::<T>() => 32,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 | Isa::Avx512 => 2 * PORTABLE_LANES,
        }
    }
}

fn is_f32<T: Element>() -> bool {
    TypeId::of::<T>() == TypeId::of::<f32>()
}

/// `C (m × n) = A · B`, or `C += A · B`; row `i` of `C` starts at `i · ldc`.
///
/// Every panel of `B` must hold a full panel of columns in each row, or `n` must be a multiple of half a panel.
pub(crate) fn multiply<T: Element>(
    (m, n): (usize, usize),
    (runs, run_len): (&[Run], usize),
    a: Left<'_, T>,
    b: Right<'_, T>,
    c: (&mut [T], usize),
    accumulate: bool,
) {
    multiply_with(*ISA, (m, n), (runs, run_len), a, b, c, accumulate);
}

/// [`multiply`] on an instruction set that this processor must have.
fn multiply_with<T: Element>(
    isa: Isa,
    (m, n): (usize, usize),
    (runs, run_len): (&[Run], usize),
    a: Left<'_, T>,
    b: Right<'_, T>,
    (c, ldc): (&mut [T], usize),
    accumulate: bool,
) {
    assert!(isa <= *ISA);
    if m == 0 || n == 0 {
        return;
    }
    if runs.is_empty() || run_len == 0 {
        if !accumulate {
            c.chunks_mut(ldc).take(m).for_each(|row| row[..n].fill(T::ZERO));
        }
        return;
    }
    let width = isa.panel::<T>();
    let last = |f: fn(&Run) -> usize| runs.iter().map(f).max().unwrap_or(0);
    let columns = (n - 1) / width * b.panel + ((n - 1) % width / (width / 2) + 1) * (width / 2);
    assert!(last(|run| run.a) + (m - 1) * a.row + (run_len - 1) * a.col < a.data.len());
    assert!(columns + last(|run| run.b) + (run_len - 1) * b.row <= b.data.len());
    assert!((m - 1) * ldc + n <= c.len());
    let problem = Problem {
        m,
        n,
        run_len,
        a: a.data.as_ptr(),
        a_row: a.row,
        a_col: a.col,
        b: b.data.as_ptr(),
        b_panel: b.panel,
        b_row: b.row,
        c: c.as_mut_ptr(),
        ldc,
    };
    // As many runs at a time as keep a panel of `B` in the second-level cache, and of a long run as much as keeps it in
    // the first.
    let step = (PANEL_ELEMENTS / width / run_len).max(1);
    let parts = run_len.div_ceil(DEPTH);
    let part = run_len.div_ceil(parts);
    for (i, runs) in runs.chunks(step).enumerate() {
        for start in (0..run_len).step_by(part) {
            // SAFETY: the assertions above bound every index that the kernels form, `c` is exclusive, and the
            // instruction set was detected.
            unsafe {
                let of_run = Problem {
                    run_len: part.min(run_len - start),
                    a: problem.a.add(start * a.col),
                    b: problem.b.add(start * b.row),
                    ..problem
                };
                of_run.run(isa, runs, accumulate || i > 0 || start > 0);
            }
        }
    }
}

/// Rows of a panel that the first-level cache holds beside the rest.
const DEPTH: usize = 256;

/// Elements of a panel that the second-level cache holds beside the rest.
const PANEL_ELEMENTS: usize = 64 * 1024;

#[derive(Clone, Copy)]
struct Problem<T> {
    m: usize,
    n: usize,
    run_len: usize,
    a: *const T,
    a_row: usize,
    a_col: usize,
    b: *const T,
    b_panel: usize,
    b_row: usize,
    c: *mut T,
    ldc: usize,
}

impl<T: Element> Problem<T> {
    unsafe fn run(self, isa: Isa, runs: &[Run], accumulate: bool) {
        // SAFETY: the caller vouches for the pointers; the casts are between equal types, as `is_f32` says.
        unsafe {
            match isa {
                #[cfg(target_arch = "x86_64")]
                Isa::Avx512 if is_f32::<T>() => x86::avx512(self.cast(), runs, accumulate),
                #[cfg(target_arch = "x86_64")]
                Isa::Avx2 if is_f32::<T>() => x86::avx2(self.cast(), runs, accumulate),
                _ => self.blocks::<[T; PORTABLE_LANES], 4>(runs, accumulate),
            }
        }
    }

    fn cast<U>(self) -> Problem<U> {
        let Self { m, n, run_len, a, a_row, a_col, b, b_panel, b_row, c, ldc } = self;
        Problem { m, n, run_len, a: a.cast(), a_row, a_col, b: b.cast(), b_panel, b_row, c: c.cast(), ldc }
    }

    /// All tiles, panel by panel, so that a panel stays in the cache while the rows go by.
    #[inline(always)]
    unsafe fn blocks<V: Vector<T>, const MR: usize>(self, runs: &[Run], accumulate: bool) {
        let width = 2 * V::LANES;
        for (panel, j) in (0..self.n).step_by(width).enumerate() {
            let columns = width.min(self.n - j);
            let mut i = 0;
            while i < self.m {
                // SAFETY: rows `i..i + rows` and columns `j..j + columns` lie inside of the matrices.
                unsafe {
                    let b = self.b.add(panel * self.b_panel);
                    let rows = self.m - i;
                    i += match (rows, columns > V::LANES) {
                        (r, true) if r >= MR => self.tile::<V, MR, 2>(runs, i, j, columns, b, accumulate),
                        (8.., true) => self.tile::<V, 8, 2>(runs, i, j, columns, b, accumulate),
                        (4.., true) => self.tile::<V, 4, 2>(runs, i, j, columns, b, accumulate),
                        (2.., true) => self.tile::<V, 2, 2>(runs, i, j, columns, b, accumulate),
                        (_, true) => self.tile::<V, 1, 2>(runs, i, j, columns, b, accumulate),
                        (r, false) if r >= MR => self.tile::<V, MR, 1>(runs, i, j, columns, b, accumulate),
                        (4.., false) => self.tile::<V, 4, 1>(runs, i, j, columns, b, accumulate),
                        (_, false) => self.tile::<V, 1, 1>(runs, i, j, columns, b, accumulate),
                    };
                }
            }
        }
    }

    /// One tile of `MR` rows and `NV` vectors of columns, of which `columns` elements are stored.
    #[inline(always)]
    unsafe fn tile<V: Vector<T>, const MR: usize, const NV: usize>(
        self,
        runs: &[Run],
        i: usize,
        j: usize,
        columns: usize,
        b: *const T,
        accumulate: bool,
    ) -> usize {
        // SAFETY: as for `blocks`; a tile that is not full goes through a buffer of its own.
        unsafe {
            let mut sums = [[V::zero(); NV]; MR];
            if accumulate {
                // What is added to at the end comes into the cache in the meantime.
                for r in 0..MR {
                    for v in 0..NV {
                        V::prefetch(self.c.wrapping_add((i + r) * self.ldc + j + v * V::LANES));
                    }
                }
            }
            for run in runs {
                let mut a = self.a.add(run.a + i * self.a_row);
                let mut b = b.add(run.b);
                for _ in 0..self.run_len {
                    let mut right = [V::zero(); NV];
                    for v in 0..NV {
                        right[v] = V::load(b.add(v * V::LANES));
                    }
                    for r in 0..MR {
                        let left = V::splat(*a.add(r * self.a_row));
                        for v in 0..NV {
                            sums[r][v] = left.mul_add(right[v], sums[r][v]);
                        }
                    }
                    a = a.add(self.a_col);
                    b = b.add(self.b_row);
                }
            }
            let c = self.c.add(i * self.ldc + j);
            if columns == NV * V::LANES {
                for r in 0..MR {
                    for v in 0..NV {
                        let c = c.add(r * self.ldc + v * V::LANES);
                        let sum = if accumulate { sums[r][v].add(V::load(c)) } else { sums[r][v] };
                        sum.store(c);
                    }
                }
            } else {
                for r in 0..MR {
                    let mut row = [T::ZERO; 2 * MAX_LANES];
                    for v in 0..NV {
                        sums[r][v].store(row.as_mut_ptr().add(v * V::LANES));
                    }
                    for (x, sum) in row[..columns].iter().enumerate() {
                        let c = c.add(r * self.ldc + x);
                        *c = if accumulate { *c + *sum } else { *sum };
                    }
                }
            }
            MR
        }
    }
}

const MAX_LANES: usize = 16;

/// A register of elements.
trait Vector<T>: Copy {
    const LANES: usize;
    unsafe fn zero() -> Self;
    unsafe fn splat(value: T) -> Self;
    unsafe fn load(from: *const T) -> Self;
    unsafe fn store(self, to: *mut T);
    /// Brings the cache line of `at`, any address, into the cache.
    fn prefetch(_at: *const T) {}
    unsafe fn add(self, other: Self) -> Self;
    /// `self · factor + summand`.
    unsafe fn mul_add(self, factor: Self, summand: Self) -> Self;
}

const PORTABLE_LANES: usize = 8;

impl<T: Element> Vector<T> for [T; PORTABLE_LANES] {
    const LANES: usize = PORTABLE_LANES;

    #[inline(always)]
    unsafe fn zero() -> Self {
        [T::ZERO; PORTABLE_LANES]
    }

    #[inline(always)]
    unsafe fn splat(value: T) -> Self {
        [value; PORTABLE_LANES]
    }

    #[inline(always)]
    unsafe fn load(from: *const T) -> Self {
        // SAFETY: the caller vouches for as many elements, at the alignment of an element.
        unsafe { from.cast::<Self>().read_unaligned() }
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut T) {
        // SAFETY: as for `load`.
        unsafe { to.cast::<Self>().write_unaligned(self) }
    }

    #[inline(always)]
    unsafe fn add(mut self, other: Self) -> Self {
        for i in 0..PORTABLE_LANES {
            self[i] += other[i];
        }
        self
    }

    #[inline(always)]
    unsafe fn mul_add(self, factor: Self, mut summand: Self) -> Self {
        for i in 0..PORTABLE_LANES {
            summand[i] += self[i] * factor[i];
        }
        summand
    }
}

/// Evaluates an expression that is compiled for the widest vectors of this processor.
///
/// Whatever is inlined into the expression is compiled anew for each instruction set; what is not is compiled for any
/// processor. So it should be loops over slices, and functions that it calls `#[inline(always)]`.
macro_rules! vectorised {
    ($work:expr) => {
        $crate::kernel::wide({
            // Without this the compiler shares one copy between the instruction sets, which is for any processor.
            #[inline(always)]
            || $work
        })
    };
}
pub(crate) use vectorised;

/// Runs `f`, which must be inlined into this function: [`vectorised`] sees to that.
#[inline(always)]
pub(crate) fn wide<R>(f: impl FnOnce() -> R) -> R {
    match *ISA {
        Isa::Portable => f(),
        // SAFETY: the instruction set was detected.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => unsafe { x86::with_avx2(f) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 => unsafe { x86::with_avx512(f) },
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::{
        __m256, __m512, _MM_HINT_T0, _mm_prefetch, _mm256_add_ps, _mm256_fmadd_ps, _mm256_loadu_ps,
        _mm256_set1_ps, _mm256_setzero_ps, _mm256_storeu_ps, _mm512_add_ps, _mm512_fmadd_ps, _mm512_loadu_ps,
        _mm512_set1_ps, _mm512_setzero_ps, _mm512_storeu_ps,
    };

    use super::{Problem, ROWS, Run, Vector};

    #[target_feature(enable = "avx512f")]
    pub(super) unsafe fn avx512(problem: Problem<f32>, runs: &[Run], accumulate: bool) {
        // SAFETY: the caller vouches for the problem.
        unsafe { problem.blocks::<__m512, ROWS>(runs, accumulate) }
    }

    #[target_feature(enable = "avx2,fma")]
    pub(super) unsafe fn avx2(problem: Problem<f32>, runs: &[Run], accumulate: bool) {
        // SAFETY: as above; six rows fill the sixteen registers.
        unsafe { problem.blocks::<__m256, 6>(runs, accumulate) }
    }

    #[target_feature(enable = "avx512f")]
    pub(super) fn with_avx512<R>(f: impl FnOnce() -> R) -> R {
        f()
    }

    #[target_feature(enable = "avx2,fma")]
    pub(super) fn with_avx2<R>(f: impl FnOnce() -> R) -> R {
        f()
    }

    /// The operations of a register by their intrinsics.
    macro_rules! vector {
        ($register:ty, $lanes:literal, $zero:ident, $splat:ident, $load:ident, $store:ident, $add:ident, $fma:ident) => {
            // SAFETY of all: only functions that enable the instruction set use this type as a vector.
            impl Vector<f32> for $register {
                const LANES: usize = $lanes;

                #[inline(always)]
                unsafe fn zero() -> Self {
                    // SAFETY: see above.
                    unsafe { $zero() }
                }

                #[inline(always)]
                unsafe fn splat(value: f32) -> Self {
                    // SAFETY: see above.
                    unsafe { $splat(value) }
                }

                #[inline(always)]
                unsafe fn load(from: *const f32) -> Self {
                    // SAFETY: see above; the caller vouches for the elements.
                    unsafe { $load(from) }
                }

                #[inline(always)]
                unsafe fn store(self, to: *mut f32) {
                    // SAFETY: see above; the caller vouches for the elements.
                    unsafe { $store(to, self) }
                }

                #[inline(always)]
                fn prefetch(at: *const f32) {
                    // SAFETY: a prefetch reads nothing that a program could notice, from any address.
                    unsafe { _mm_prefetch::<_MM_HINT_T0>(at.cast()) }
                }

                #[inline(always)]
                unsafe fn add(self, other: Self) -> Self {
                    // SAFETY: see above.
                    unsafe { $add(self, other) }
                }

                #[inline(always)]
                unsafe fn mul_add(self, factor: Self, summand: Self) -> Self {
                    // SAFETY: see above.
                    unsafe { $fma(self, factor, summand) }
                }
            }
        };
    }

    vector!(
        __m512,
        16,
        _mm512_setzero_ps,
        _mm512_set1_ps,
        _mm512_loadu_ps,
        _mm512_storeu_ps,
        _mm512_add_ps,
        _mm512_fmadd_ps
    );
    vector!(
        __m256,
        8,
        _mm256_setzero_ps,
        _mm256_set1_ps,
        _mm256_loadu_ps,
        _mm256_storeu_ps,
        _mm256_add_ps,
        _mm256_fmadd_ps
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check<T: Element>(isa: Isa, (m, n, k): (usize, usize, usize), turned: bool, tolerance: f64) {
        let value = |i: usize| T::from_f64(((i * 7919) % 101) as f64 / 50.0 - 1.0);
        let width = isa.panel::<T>();
        // Two runs of `k` with a gap between them in `A`.
        let (row, col) = if turned { (1, m) } else { (2 * k + 3, 1) };
        let gap = if turned { k * m + 5 } else { k + 1 };
        let a: Vec<T> = (0..m * (2 * k + 3) + 2 * k * m + 5).map(value).collect();
        let b: Vec<T> = (0..2 * k * n.next_multiple_of(width)).map(|i| value(i + 3)).collect();
        let runs = [Run { a: 0, b: 0 }, Run { a: gap, b: k * width }];
        let ldc = n + 2;
        for accumulate in [false, true] {
            let mut c: Vec<T> = (0..m * ldc).map(|i| value(i + 11)).collect();
            let before = c.clone();
            let left = Left { data: &a, row, col };
            let right = Right { data: &b, panel: 2 * k * width, row: width };
            multiply_with(isa, (m, n), (&runs, k), left, right, (&mut c, ldc), accumulate);
            for (i, j) in (0..m).flat_map(|i| (0..ldc).map(move |j| (i, j))) {
                let mut expected = if accumulate || j >= n { before[i * ldc + j].to_f64() } else { 0.0 };
                for (run, l) in (0..2).flat_map(|run| (0..k).map(move |l| (run, l))).filter(|_| j < n) {
                    let b = b[(j / width * 2 * k + run * k + l) * width + j % width];
                    expected += a[run * gap + i * row + l * col].to_f64() * b.to_f64();
                }
                let error = (c[i * ldc + j].to_f64() - expected).abs();
                assert!(error < tolerance, "{isa:?}, {m}x{k}x{n}, ({i}, {j}): off by {error}");
            }
        }
    }

    #[test]
    fn every_instruction_set_agrees_with_plain_sums() {
        let sets = [
            Isa::Portable,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512,
        ];
        for isa in sets.into_iter().filter(|isa| *isa <= *ISA) {
            for m in [1, 2, 3, 6, 7, 14, 15, 29] {
                for (n, k) in [(1, 1), (8, 5), (16, 3), (17, 9), (32, 4), (40, 7), (64, 2), (70, 1)] {
                    for turned in [false, true] {
                        check::<f32>(isa, (m, n, k), turned, 1e-4);
                        check::<f64>(isa, (m, n, k), turned, 1e-12);
                    }
                }
            }
        }
    }

    #[test]
    fn nan_and_infinity_pass_also_beside_zeros() {
        let b = vec![0f32; ISA.panel::<f32>()];
        for bad in [f32::NAN, f32::INFINITY] {
            let (a, mut c) = ([bad], [1f32]);
            let left = Left { data: &a, row: 1, col: 1 };
            let right = Right { data: &b, panel: b.len(), row: b.len() };
            multiply((1, 1), (&[Run { a: 0, b: 0 }], 1), left, right, (&mut c, 1), false);
            assert!(c[0].is_nan());
        }
    }
}
