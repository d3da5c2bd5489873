//! Where the many short passes of a training step run.

/// Runs `work` on a thread of rayon's pool, and waits for it.
///
/// A parallel pass that begins on any other thread wakes one of the pool and puts its own to sleep, and a training step
/// has hundreds of passes. On a thread of the pool a pass begins at once. `work` must not wait for other work in the
/// pool, which may have this thread alone.
///
/// ```
/// assert_eq!(ssl_nn::on_worker(|| 6 * 7), 42);
/// ```
pub fn on_worker<R: Send>(work: impl FnOnce() -> R + Send) -> R {
    rayon::scope(|_| work())
}
