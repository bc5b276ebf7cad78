//! A value that is shared while it is read, and copied by who changes it while others have it.

use std::{
    ops::{Deref, DerefMut},
    sync::Arc,
};

/// A shared value of which nobody sees another's changes.
#[derive(Debug, PartialEq, Eq)]
pub struct CopyOnWrite<T>(Arc<T>);

impl<T> CopyOnWrite<T> {
    /// Takes a value.
    pub fn new(value: T) -> Self {
        CopyOnWrite(Arc::new(value))
    }
}

impl<T> Clone for CopyOnWrite<T> {
    fn clone(&self) -> Self {
        CopyOnWrite(self.0.clone())
    }
}

impl<T> Deref for CopyOnWrite<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

impl<T: Clone> DerefMut for CopyOnWrite<T> {
    fn deref_mut(&mut self) -> &mut T {
        Arc::make_mut(&mut self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_is_not_seen_by_who_had_the_value_before() {
        let mut one = CopyOnWrite::new(vec![1]);
        let other = one.clone();
        one.push(2);
        assert_eq!((&*one, &*other), (&vec![1, 2], &vec![1]));
    }
}
