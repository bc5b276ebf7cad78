//! Locks and atomics of what is tested in chosen orders of its threads: with `--cfg shuttle` each step at one of them is a point where
//! [Shuttle](https://docs.rs/shuttle) may have another thread go on (`scripts/orders`).

pub use std::sync::Arc;

#[cfg(not(shuttle))]
pub use parking_lot::{Mutex, RwLock, RwLockUpgradableReadGuard, RwLockWriteGuard};
#[cfg(shuttle)]
pub use shuttle_parking_lot::{Mutex, RwLock, RwLockUpgradableReadGuard, RwLockWriteGuard};

pub mod atomic {
    //! Atomics.

    #[cfg(shuttle)]
    pub use shuttle::sync::atomic::*;
    #[cfg(not(shuttle))]
    pub use std::sync::atomic::*;
}
