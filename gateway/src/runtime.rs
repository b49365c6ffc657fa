//! Clock, timers, signals and limits of the process.

pub(crate) mod clock;
pub(crate) mod fd_limit;
pub(crate) mod idle_timer;
pub(crate) mod signals;
pub(crate) mod sync;
