//! Start and join of a process, beside the system calls beneath: `cargo bench --bench process`.

mod support;

use std::process::{Command, Stdio};

use nix::sys::wait::waitpid;
use nix::unistd::{ForkResult, fork};
use support::{Bound, Figure, each, heading};
use tokio::runtime::{Builder, Runtime};
use tokio_multiprocess as mp;

const ROUNDS: usize = 9;
const STARTS: usize = 50;

/// Has this program's `main` return at once.
const BARE: &str = "BENCH_PROCESS_BARE";

fn main() {
    if std::env::var_os(BARE).is_some() {
        return;
    }
    let current = Builder::new_current_thread().enable_all().build().expect("a runtime");
    // Before the threads of the other runtime are there: `fork` is refused beside them.
    compare("start + join, current_thread runtime", &current, mp::get_all_start_methods());
    let multi = Builder::new_multi_thread().enable_all().build().expect("a runtime");
    compare(
        "start + join, multi_thread runtime",
        &multi,
        &[mp::StartMethod::Spawn, mp::StartMethod::ForkServer],
    );
}

fn compare(title: &str, runtime: &Runtime, methods: &[mp::StartMethod]) {
    let mut forked = Figure::new("bare fork + wait");
    let mut executed = Figure::new("bare posix_spawn of itself + wait");
    let mut ours: Vec<_> = methods
        .iter()
        .map(|method| (*method, mp::Context::new(*method), Figure::new(method.to_string())))
        .collect();
    for (_, context, _) in &ours {
        // Brings up the fork server, and whatever else only the first start needs.
        runtime.block_on(start_and_join(context));
    }
    for _ in 0..ROUNDS {
        forked.push(each(STARTS, bare_fork));
        executed.push(each(STARTS, bare_spawn));
        for (_, context, figure) in &mut ours {
            figure.push(each(STARTS, || runtime.block_on(start_and_join(context))));
        }
    }
    heading(title);
    forked.print();
    executed.print();
    for (method, _, figure) in &ours {
        match method {
            mp::StartMethod::Spawn => figure.print_against(&executed, Bound::Times(1.3)),
            mp::StartMethod::ForkServer => figure.print_against(&forked, Bound::Times(2.0)),
            _ => figure.print_against(&forked, Bound::None),
        }
    }
}

async fn start_and_join(context: &mp::Context) {
    let child = context.process(|| {}, ()).start().await.expect("a child");
    assert!(child.join().await.expect("its end").success());
}

fn bare_spawn() {
    let status = Command::new("/proc/self/exe").env(BARE, "1").stdin(Stdio::null()).status();
    assert!(status.expect("a child").success());
}

#[allow(unsafe_code, reason = "bare `fork` is what is measured")]
fn bare_fork() {
    // SAFETY: the copy does nothing but end, which is allowed in one of several threads.
    match unsafe { fork() }.expect("a child") {
        ForkResult::Parent { child } => drop(waitpid(child, None).expect("its end")),
        // SAFETY: ends the copy without running anybody's code.
        ForkResult::Child => unsafe { libc::_exit(0) },
    }
}
