//! Memory that a thread keeps between tasks.

use std::any::Any;
use std::cell::RefCell;

thread_local! {
    static KEPT: RefCell<Vec<Box<dyn Any>>> = const { RefCell::new(Vec::new()) };
}

/// Runs `f` with this thread's `S`, as its last user left it, or a new one.
pub(crate) fn with_scratch<S: Default + 'static, R>(f: impl FnOnce(&mut S) -> R) -> R {
    let kept = KEPT.with_borrow_mut(|kept| {
        let place = kept.iter().position(|scratch| scratch.is::<S>());
        place.map(|place| kept.swap_remove(place))
    });
    // While it is out, a task that this thread takes on in between gets another.
    let mut scratch: Box<S> = kept.and_then(|scratch| scratch.downcast().ok()).unwrap_or_default();
    let result = f(&mut scratch);
    KEPT.with_borrow_mut(|kept| kept.push(scratch));
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_gets_its_scratch_back_unless_it_is_in_use() {
        with_scratch(|outer: &mut Vec<u8>| {
            outer.push(1);
            with_scratch(|inner: &mut Vec<u8>| assert!(inner.is_empty()));
            with_scratch(|other: &mut Vec<f32>| assert!(other.is_empty()));
        });
        let lens = [(); 2].map(|()| with_scratch(|scratch: &mut Vec<u8>| std::mem::take(scratch).len()));
        assert_eq!(lens.iter().max(), Some(&1));
    }
}
