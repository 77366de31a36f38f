//! What becomes of items that wait in a process whose `main` ends. Each scenario is a `main` of its own.

#![cfg_attr(not(target_os = "linux"), allow(unused))]
#![allow(unsafe_code)]

#[cfg(target_os = "linux")]
mod support;

#[cfg(not(target_os = "linux"))]
fn main() {}

#[cfg(target_os = "linux")]
fn main() {
    linux::main();
}

#[cfg(target_os = "linux")]
mod linux {
    use std::process::{Command, Stdio};
    use std::time::Duration;

    use mp::Queue;
    use tokio_multiprocess as mp;

    use crate::support::process::{methods, runtime};
    use crate::support::scenario::{self, Scenario};

    const SCENARIOS: &[Scenario] = &[
        Scenario { name: "a_main_that_returns_waits", run: returns, check: three_got_all },
        Scenario { name: "a_main_that_exits_waits", run: exits, check: got_all_and_exited },
        Scenario { name: "a_main_without_a_runtime_waits", run: without_runtime, check: three_got_all },
        Scenario { name: "who_has_the_queue_late_is_waited_for", run: late, check: one_got_all },
        Scenario { name: "queues_are_moved_side_by_side", run: crossed, check: one_got_all },
        Scenario { name: "a_main_whose_queue_nobody_has_ends", run: alone, check: ended },
        Scenario { name: "a_main_that_is_not_to_wait_ends", run: abandons, check: ended },
    ];

    pub(crate) fn main() {
        scenario::main(SCENARIOS, Stdio::null);
    }

    const ITEMS: u8 = 40;

    fn put_all(queue: &Queue<Vec<u8>>) {
        for number in 0..ITEMS {
            queue.try_put(vec![number; 100_000]).unwrap();
        }
    }

    async fn get_all(queue: &Queue<Vec<u8>>) {
        for number in 0..ITEMS {
            assert_eq!(queue.get().await.unwrap(), vec![number; 100_000]);
        }
    }

    async fn gets(queue: Queue<Vec<u8>>) {
        get_all(&queue).await;
        println!("got all");
    }

    fn check(program: &mut Command, times: usize, code: i32) {
        let output = program.output().unwrap();
        assert_eq!(output.status.code(), Some(code), "{output:?}");
        assert_eq!(String::from_utf8_lossy(&output.stdout), "got all\n".repeat(times), "{output:?}");
    }

    fn three_got_all(program: &mut Command) {
        check(program, 3, 0);
    }

    fn one_got_all(program: &mut Command) {
        check(program, 1, 0);
    }

    fn ended(program: &mut Command) {
        check(program, 0, 0);
    }

    fn returns() {
        runtime().block_on(async {
            for context in methods() {
                let queue = Queue::new(0).unwrap();
                drop(context.process(gets, (queue.clone(),)).start().await.unwrap());
                put_all(&queue);
            }
        });
    }

    fn exits() {
        runtime().block_on(async {
            let queue = Queue::new(0).unwrap();
            drop(mp::Process::builder(gets, (queue.clone(),)).start().await.unwrap());
            put_all(&queue);
            mp::exit(3);
        });
    }

    fn got_all_and_exited(program: &mut Command) {
        check(program, 1, 3);
    }

    fn without_runtime() {
        let runtime = runtime();
        for context in methods() {
            let queue = Queue::new(0).unwrap();
            drop(runtime.block_on(context.process(gets, (queue.clone(),)).start()).unwrap());
            put_all(&queue);
        }
        // A task that nobody polls any more is no reason not to be moved.
        let queue = Queue::new(0).unwrap();
        runtime.block_on(async { put_all(&queue) });
        std::mem::forget(runtime);
    }

    fn late() {
        async fn gets_late(queues: Queue<Queue<Vec<u8>>>) {
            // Longer than anybody is waited for who may not come.
            tokio::time::sleep(Duration::from_millis(1_500)).await;
            gets(queues.get().await.unwrap()).await;
        }
        runtime().block_on(async {
            let (queue, queues) = (Queue::new(0).unwrap(), Queue::new(0).unwrap());
            drop(mp::Process::builder(gets_late, (queues.clone(),)).start().await.unwrap());
            put_all(&queue);
            queues.put(queue).await.unwrap();
        });
    }

    fn crossed() {
        async fn gets_both(first: Queue<Vec<u8>>, second: Queue<Vec<u8>>) {
            get_all(&first).await;
            get_all(&second).await;
            get_all(&first).await;
            println!("got all");
        }
        let runtime = runtime();
        runtime.block_on(async {
            let (first, second) = (Queue::new(0).unwrap(), Queue::new(0).unwrap());
            let args = (first.clone(), second.clone());
            drop(mp::Process::builder(gets_both, args).start().await.unwrap());
            [&first, &second, &first].into_iter().for_each(put_all);
        });
        // What waits is moved by the end of this process alone.
        std::mem::forget(runtime);
    }

    fn alone() {
        put_all(&Queue::new(0).unwrap());
    }

    fn abandons() {
        async fn has_it(_queue: Queue<Vec<u8>>) {
            std::future::pending().await
        }
        runtime().block_on(async {
            let queue = Queue::new(0).unwrap();
            queue.cancel_join_feeder().unwrap();
            let child = mp::Process::builder(has_it, (queue.clone(),)).daemon(true);
            drop(child.start().await.unwrap());
            put_all(&queue);
        });
    }
}
