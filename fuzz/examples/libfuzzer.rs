//! Runs one fuzz target under libFuzzer, whose arguments it takes. `FUZZ_TARGET` names the target: one program for
//! all is linked once. `scripts/fuzz` starts it.

#![no_main]

use std::sync::LazyLock;

use fuzz::{TARGETS, Target, is_tolerated_panic};
use libfuzzer_sys::fuzz_target;

static TARGET: LazyLock<Target> = LazyLock::new(|| {
    let name = std::env::var("FUZZ_TARGET").unwrap_or_default();
    fuzz::target(&name).unwrap_or_else(|| {
        let names: Vec<_> = TARGETS.iter().map(|target| target.name).collect();
        panic!("FUZZ_TARGET is `{name}`, not one of {}", names.join(", "))
    })
});

/// Ends the process at a panic, as libFuzzer expects, unless the target tolerates it.
fn filter_panics() {
    let end = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        if !is_tolerated_panic(panic.payload_as_str()) {
            end(panic);
        }
    }));
}

fuzz_target!(init: filter_panics(), |input| (TARGET.run)(input));
