//! Futures of connections that are dropped before they are ready.

#![cfg(target_os = "linux")]

mod support;

use support::connection::{Dropped, drop_futures_of};
use support::guard;
use tokio_multiprocess as mp;

#[test]
fn dropped_futures_lose_double_and_tear_no_message() {
    let _guard = guard(240);
    drop_futures_of(|| mp::pipe().unwrap(), Dropped::Unsent);
}
