//! Stand-ins for modules of the programs.

pub(crate) mod clock;
pub(crate) mod sync;
