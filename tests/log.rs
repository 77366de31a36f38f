//! What this package says: to a logger of its own, and to `tracing`.

#![cfg(target_os = "linux")]

mod support;

use std::fmt::Write as _;
use std::sync::{Arc, Mutex};

use mp::LogLevel;
use support::process::{Call, Meeting};
use support::{run, run_each};
use tokio_multiprocess as mp;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};

// conformance: _TestLogging.test_enable_logging
#[test]
fn the_logger_has_a_level() {
    run(60, async {
        let logger = mp::get_logger();
        assert_eq!(logger.level(), LogLevel::Off);
        for level in [LogLevel::Warn, LogLevel::Info, LogLevel::Off] {
            logger.set_level(level);
            assert_eq!(mp::get_logger().level(), level);
        }
        assert!(LogLevel::Off < LogLevel::Warn && LogLevel::Warn < LogLevel::Info);
        // It says nothing of a start then.
        mp::Process::builder(|| (), ()).start().await.unwrap().join().await.unwrap();
    });
}

// conformance: _TestLogging.test_level
#[test]
fn a_child_has_its_parents_level() {
    fn tells(address: String) {
        Call::to(&address).say(mp::get_logger().level());
    }
    run_each(60, async |context| {
        let meeting = Meeting::new();
        for level in [LogLevel::Warn, LogLevel::Off] {
            mp::get_logger().set_level(level);
            let child = context.process(tells, (meeting.address(),)).start().await.unwrap();
            assert_eq!(meeting.word().await, level.to_string());
            child.join().await.unwrap();
        }
    });
}

/// Keeps what is said at the level of warnings.
#[derive(Clone, Default)]
struct Warnings(Arc<Mutex<String>>);

impl Subscriber for Warnings {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() <= Level::WARN
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        struct Fields<'a>(&'a mut String);
        impl Visit for Fields<'_> {
            fn record_debug(&mut self, _: &Field, value: &dyn std::fmt::Debug) {
                writeln!(self.0, "{value:?}").unwrap();
            }
        }
        event.record(&mut Fields(&mut self.0.lock().unwrap()));
    }

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

// conformance: _TestPool.test_resource_warning
#[test]
fn a_running_pool_that_is_dropped_is_warned_of() {
    run_each(60, async |context| {
        for in_process in [false, true] {
            let build = || {
                let builder = mp::Pool::builder().context(context.clone()).processes(1);
                let builder = if in_process { builder.in_process() } else { builder };
                builder.build()
            };
            let warnings = Warnings::default();
            let (running, closed, terminated) =
                (build().await.unwrap(), build().await.unwrap(), build().await.unwrap());
            closed.close();
            closed.join().await.unwrap();
            terminated.terminate().await.unwrap();
            tracing::subscriber::with_default(warnings.clone(), || {
                drop(running.clone());
                drop((closed, terminated));
                assert_eq!(*warnings.0.lock().unwrap(), "");
                drop(running);
            });
            let said = warnings.0.lock().unwrap();
            assert_eq!(*said, "a running pool was dropped: it was neither closed nor terminated\n");
        }
    });
}
