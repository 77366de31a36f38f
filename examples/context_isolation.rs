//! What a child does to its memory, or to itself, stays there: under each start method, a child
//! changes a static and another one aborts, and neither is felt here.
//!
//! ```sh
//! cargo run --example context_isolation
//! ```

use std::sync::atomic::{AtomicU64, Ordering};

use tokio_multiprocess as mp;

const INITIAL: u64 = 1;
const PARENTS: u64 = 2;
const CHILDS: u64 = 3;

static STATE: AtomicU64 = AtomicU64::new(INITIAL);

/// A failed assertion is a panic, and a panic the exit code 1.
fn change(expected: u64) {
    assert_eq!(STATE.swap(CHILDS, Ordering::Relaxed), expected);
}

fn crash() {
    std::process::abort();
}

// `fork` refuses to copy a process that runs other threads, as a multi-threaded runtime does.
#[tokio::main(flavor = "current_thread")]
async fn main() -> mp::Result<()> {
    STATE.store(PARENTS, Ordering::Relaxed);
    for &method in mp::get_all_start_methods() {
        let context = mp::Context::new(method);
        // A forked child begins with a copy of its parent's statics, the others as the program
        // does.
        let inherited = if method == mp::StartMethod::Fork { PARENTS } else { INITIAL };

        let status = context.process(change, (inherited,)).start().await?.join().await?;
        assert!(status.success(), "the child saw something else: {status}");
        assert_eq!(STATE.load(Ordering::Relaxed), PARENTS);

        let crashed = context.process(crash, ()).start().await?.join().await?;
        assert!(!crashed.success());
        println!(
            "{method}: the child found {inherited} and set {CHILDS}, the parent keeps {PARENTS}; \
             another child crashed: {crashed}"
        );
    }
    Ok(())
}
