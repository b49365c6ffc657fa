//! Runs each model (`make loom`).
#![cfg(loom)]

use concurrency::models;

macro_rules! models {
    ($($name:ident),+ $(,)?) => {$(
        #[test]
        fn $name() {
            let executions = models::$name();
            println!("{}: {executions} executions", stringify!($name));
        }
    )+};
}

models!(
    every_request_gets_the_slot,
    a_request_that_gives_up_leaves_the_slot_to_the_next,
    a_raised_limit_reaches_the_request_that_waits,
    one_of_two_simultaneous_events_is_logged,
    the_last_tokens_of_a_budget_are_for_one_retry,
    a_pause_is_known_to_every_thread_until_it_is_over,
);
