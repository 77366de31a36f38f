//! Queues in bad luck: processes that are killed, stop or end at the wrong time, limits that are reached.

#![cfg(target_os = "linux")]
#![allow(unsafe_code, reason = "to fork among libtest's threads has to be vouched for")]

mod support;

use std::io::{Read, Write};
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use mp::{GetError, PutErrorKind, Queue};
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, Uid, setuid};
use serde::{Deserialize, Serialize};
use support::limits::limited;
use support::process::{Call, Meeting, Stat};
use support::{current_thread, eventually, guard, guard_with, kill_9, multi_thread, run, run_each};
use tokio::task::yield_now;
use tokio_multiprocess as mp;

/// Long enough for whatever happens, and short enough for a test.
const SOON: Duration = Duration::from_secs(20);

fn signal(pid: i32, signal: Signal) {
    kill(Pid::from_raw(pid), signal).unwrap();
}

/// Says that it begins, and then gets or puts until it cannot.
async fn blocks(queue: Queue<u64>, puts: bool, address: String) -> mp::Result<()> {
    Call::to(&address).say("begins");
    loop {
        if puts {
            queue.put(1).await?;
        } else {
            queue.get().await?;
        }
    }
}

/// Starts one that blocks, and waits until it does.
async fn blocked(context: &mp::Context, queue: &Queue<u64>, puts: bool) -> mp::Process {
    let meeting = Meeting::new();
    let args = (queue.clone(), puts, meeting.address());
    let child = context.process(blocks, args).start().await.unwrap();
    assert_eq!(meeting.word().await, "begins");
    let pid = child.pid();
    eventually("it sleeps", || Stat::of(pid).unwrap().state == 'S' && queue.is_full() == puts).await;
    child
}

#[test]
fn who_is_killed_while_it_waits_leaves_nothing() {
    run_each(60, async |context| {
        let queue = Queue::new(2).unwrap();
        let consumers = [blocked(&context, &queue, false).await, blocked(&context, &queue, false).await];
        kill_9(consumers[0].pid());
        for _ in 0..20 {
            queue.put_timeout(1, SOON).await.unwrap();
        }
        kill_9(consumers[1].pid());
        for consumer in &consumers {
            consumer.join().await.unwrap();
        }
        while queue.try_get().is_ok() {}
        let producers = [blocked(&context, &queue, true).await, blocked(&context, &queue, true).await];
        kill_9(producers[0].pid());
        for _ in 0..20 {
            assert_eq!(queue.get_timeout(SOON).await.unwrap(), 1);
        }
        kill_9(producers[1].pid());
        for producer in &producers {
            producer.join().await.unwrap();
        }
        while queue.try_get().is_ok() {}
        assert!(queue.is_empty());
        queue.put(3).await.unwrap();
        queue.put(4).await.unwrap();
        assert!(queue.is_full());
        assert_eq!((queue.get().await.unwrap(), queue.get().await.unwrap()), (3, 4));
    });
}

/// Those that are not stopped go on.
#[test]
fn who_is_stopped_while_it_waits_holds_up_nobody() {
    run_each(60, async |context| {
        for puts in [false, true] {
            let queue = Queue::new(2).unwrap();
            let stopped = blocked(&context, &queue, puts).await;
            signal(stopped.pid(), Signal::SIGSTOP);
            let goes_on = blocked(&context, &queue, puts).await;
            for _ in 0..10 {
                if puts {
                    queue.get_timeout(SOON).await.unwrap();
                } else {
                    queue.put_timeout(1, SOON).await.unwrap();
                }
            }
            for child in [stopped, goes_on] {
                kill_9(child.pid());
                child.join().await.unwrap();
            }
        }
    });
}

/// More than has room, and then what was asked for.
async fn ends_with_a_backlog(queue: Queue<Vec<u8>>, abandons: bool, address: String) -> mp::Result<()> {
    if abandons {
        queue.cancel_join_feeder()?;
    }
    for number in 0..40 {
        queue.put(vec![number; 100_000]).await?;
    }
    Call::to(&address).say("all put");
    Ok(())
}

#[test]
fn the_end_of_a_process_waits_until_all_is_moved() {
    run_each(60, async |context| {
        let (queue, meeting) = (Queue::new(0).unwrap(), Meeting::new());
        let args = (queue.clone(), false, meeting.address());
        let child = context.process(ends_with_a_backlog, args).start().await.unwrap();
        assert_eq!(meeting.word().await, "all put");
        for number in 0..40 {
            assert!(number > 25 || child.exit_code().is_none(), "{number}");
            assert_eq!(queue.get_timeout(SOON).await.unwrap(), vec![number; 100_000]);
        }
        assert!(child.join().await.unwrap().success());
        assert!(queue.is_empty());
    });
}

/// Others get what was put, whatever became of the runtime on which it was.
#[test]
fn what_waits_is_moved_while_who_put_it_is_busy() {
    async fn busy(queue: Queue<Vec<u8>>, address: String) -> mp::Result<()> {
        ends_with_a_backlog(queue, false, address.clone()).await?;
        // Neither is this task polled, nor its runtime.
        Call::to(&address).hear();
        Ok(())
    }
    run_each(60, async |context| {
        let (queue, meeting) = (Queue::new(0).unwrap(), Meeting::new());
        let child = context.process(busy, (queue.clone(), meeting.address())).start().await.unwrap();
        assert_eq!(meeting.word().await, "all put");
        let call = meeting.accept().await;
        for number in 0..40 {
            assert_eq!(queue.get_timeout(SOON).await.unwrap(), vec![number; 100_000]);
        }
        drop(call);
        assert!(child.join().await.unwrap().success());
    });
    for ends in [false, true] {
        let _guard = guard(60);
        let queue = Queue::new(0).unwrap();
        let mut runtime = Some(current_thread());
        runtime.as_ref().unwrap().block_on(async {
            for number in 0..40 {
                queue.put(vec![number; 100_000]).await.unwrap();
            }
        });
        // From now on nobody drives it.
        runtime.take_if(|_| ends);
        current_thread().block_on(async {
            for number in 0..40 {
                assert_eq!(queue.get_timeout(SOON).await.unwrap(), vec![number; 100_000]);
            }
        });
    }
}

#[test]
fn the_end_of_a_process_does_not_wait_if_it_is_not_to() {
    run_each(60, async |context| {
        let (queue, meeting) = (Queue::new(0).unwrap(), Meeting::new());
        let args = (queue.clone(), true, meeting.address());
        let child = context.process(ends_with_a_backlog, args).start().await.unwrap();
        assert_eq!(meeting.word().await, "all put");
        assert!(child.join().await.unwrap().success());
        // What was moved is there, in order, and nothing is missed that is not.
        let mut got = 0;
        while let Ok(item) = queue.try_get() {
            assert_eq!(item, vec![got; 100_000]);
            got += 1;
        }
        assert!((9..40).contains(&got), "{got}");
        assert!(queue.is_empty());
        queue.put(vec![1]).await.unwrap();
        assert_eq!(queue.get().await.unwrap(), [1]);
    });
}

#[test]
fn the_end_of_a_process_does_not_wait_if_nobody_else_has_the_queue() {
    async fn alone(address: String) -> mp::Result<()> {
        ends_with_a_backlog(Queue::new(0)?, false, address).await
    }
    run_each(60, async |context| {
        let meeting = Meeting::new();
        let child = context.process(alone, (meeting.address(),)).start().await.unwrap();
        assert_eq!(meeting.word().await, "all put");
        assert!(child.join().await.unwrap().success());
    });
}

#[test]
fn the_backlog_of_who_is_killed_is_gone_and_its_slots_are_not() {
    async fn fills(queue: Queue<Vec<u8>>, address: String) -> mp::Result<()> {
        let _permit = queue.reserve().await?;
        for number in 0..39 {
            queue.put(vec![number; 100_000]).await?;
        }
        let mut call = Call::to(&address);
        call.say("all put");
        call.hear();
        Ok(())
    }
    run_each(60, async |context| {
        let (queue, meeting) = (Queue::new(40).unwrap(), Meeting::new());
        let child = context.process(fills, (queue.clone(), meeting.address())).start().await.unwrap();
        let mut call = meeting.accept().await;
        assert_eq!(call.hear().await.unwrap(), "all put");
        assert_eq!((queue.len(), queue.is_full()), (39, true));
        // It waits for the slots of a backlog.
        let (put, ()) = tokio::join!(queue.put(vec![100]), async { kill_9(child.pid()) });
        put.unwrap();
        child.join().await.unwrap();
        let moved = queue.len() as u8 - 1;
        assert!((9..39).contains(&moved), "{moved}");
        for number in 0..moved {
            assert_eq!(queue.try_get().unwrap(), vec![number; 100_000]);
        }
        assert_eq!(queue.try_get().unwrap(), [100]);
        assert!(queue.try_get().unwrap_err().is_empty());
        for _ in 0..40 {
            queue.try_put(vec![1]).unwrap();
        }
        assert!(queue.try_put(vec![1]).unwrap_err().is_full());
    });
}

static STATIC: LazyLock<Queue<Vec<u8>>> = LazyLock::new(|| Queue::new(60).unwrap());

/// What a copy of this process holds is nothing of what this one does.
#[test]
fn a_copy_of_this_process_has_the_queue_and_not_what_waits_here() {
    async fn copy(address: String) -> mp::Result<()> {
        // Not behind what waits in the other.
        assert_eq!(STATIC.len(), 41);
        STATIC.flush().await.unwrap();
        assert_eq!(STATIC.get().await?, [0; 100_000]);
        STATIC.put(vec![200]).await?;
        Call::to(&address).say("put");
        Ok(())
    }
    let _guard = guard_with(60, &STATIC);
    // SAFETY: what runs in the child takes no lock that another thread may hold.
    let context = unsafe { mp::Context::fork_with_threads() };
    multi_thread().block_on(async {
        let meeting = Meeting::new();
        let permit = STATIC.reserve().await.unwrap();
        for number in 0..40 {
            STATIC.put(vec![number; 100_000]).await.unwrap();
        }
        permit.send(vec![40; 100_000]).unwrap();
        let permit = STATIC.reserve().await.unwrap();
        let child = context.process(copy, (meeting.address(),)).start().await.unwrap();
        assert_eq!(meeting.word().await, "put");
        let mut got = Vec::new();
        for _ in 0..41 {
            got.push(STATIC.get_timeout(SOON).await.unwrap()[0]);
        }
        assert!(child.join().await.unwrap().success());
        // Each once; the copy's own somewhere among them.
        got.retain(|number| *number != 200);
        assert_eq!(got, (1..=40).collect::<Vec<_>>());
        // The slot is still this process's.
        for _ in 0..59 {
            STATIC.try_put(vec![1]).unwrap();
        }
        assert!(STATIC.try_put(vec![1]).unwrap_err().is_full());
        permit.send(vec![2]).unwrap();
        for _ in 0..60 {
            STATIC.try_get().unwrap();
        }
        assert!(STATIC.is_empty());
    });
}

#[test]
fn items_whose_handles_do_not_fit_wait_until_they_do() {
    run(60, async {
        for count in [1, 3, 300] {
            let queue = Queue::new(0).unwrap();
            let (reads, writes) = std::io::pipe().unwrap();
            let handles: Vec<_> = (0..count).map(|_| mp::Handle::new(reads.try_clone().unwrap())).collect();
            queue.put((7u64, handles)).await.unwrap();
            queue.put((8, Vec::new())).await.unwrap();
            drop(reads);
            for more in [0, count - 1] {
                let _limited = limited(more);
                for _ in 0..3 {
                    assert!(matches!(queue.try_get(), Err(GetError::Failed(_))));
                    assert!(matches!(queue.get().await, Err(GetError::Failed(_))));
                    assert_eq!(queue.len(), 2);
                }
            }
            let (number, handles) = queue.get().await.unwrap();
            assert_eq!((number, handles.len()), (7, count as usize));
            assert_eq!(queue.get().await.unwrap().0, 8);
            let mut writes = writes;
            writes.write_all(b"through").unwrap();
            drop(writes);
            let mut text = String::new();
            let mut handles = handles.into_iter().map(|handle| handle.into_inner().unwrap());
            handles.next().unwrap().read_to_string(&mut text).unwrap();
            assert_eq!(text, "through");
        }
    });
}

/// Also while there is none for who moves it to sleep with, and of several queues.
#[test]
fn what_waits_outlasts_a_want_of_descriptors() {
    run(60, async {
        let queues = [(); 2].map(|()| Queue::new(0).unwrap());
        for lasts in [true, false] {
            let starved = limited(0);
            for queue in &queues {
                (0..20u8).for_each(|number| queue.try_put(vec![number; 200_000]).unwrap());
            }
            let starved = lasts.then_some(starved);
            for queue in &queues {
                for number in 0..20 {
                    let begin = Instant::now();
                    let item = loop {
                        match queue.try_get() {
                            Err(GetError::Empty) if begin.elapsed() < SOON => yield_now().await,
                            item => break item.unwrap(),
                        }
                    };
                    assert_eq!(item, vec![number; 200_000]);
                }
                assert!(queue.is_empty());
            }
            drop(starved);
        }
    });
}

/// Then it is moved on the runtime of who puts.
#[test]
fn what_waits_is_moved_though_there_is_no_thread_to_be_had() {
    async fn puts(queue: Queue<Vec<u8>>, answers: Queue<u8>) -> mp::Result<()> {
        setrlimit(Resource::RLIMIT_NPROC, 0, 0).unwrap();
        // The limit is not one for root.
        if Uid::effective().is_root() {
            setuid(Uid::from_raw(65_534)).unwrap();
        }
        assert!(std::thread::Builder::new().spawn(|| {}).is_err());
        for number in 0..40 {
            queue.put(vec![number; 100_000]).await?;
        }
        assert_eq!(answers.get().await?, 40);
        Ok(())
    }
    run_each(60, async |context| {
        let (queue, answers) = (Queue::new(0).unwrap(), Queue::new(0).unwrap());
        let child = context.process(puts, (queue.clone(), answers.clone())).start().await.unwrap();
        for number in 0..40 {
            assert_eq!(queue.get_timeout(SOON).await.unwrap(), vec![number; 100_000]);
        }
        answers.put(40).await.unwrap();
        assert!(child.join().await.unwrap().success());
    });
}

/// Whoever takes and puts is killed again and again: nothing is torn, doubled, or out of order.
#[test]
fn who_is_killed_in_the_middle_tears_nothing() {
    async fn produces(queue: Queue<(u64, Vec<u64>)>, next: mp::RawValue<u64>) -> mp::Result<()> {
        loop {
            let number = next.get();
            queue.put((number, vec![number; (number % 500) as usize])).await?;
            next.set(number + 1);
        }
    }
    const KILLS: u64 = 15;
    run(60, async {
        let mut random = support::Random::new();
        let queue = Queue::new(8).unwrap();
        let next = mp::RawValue::new(0u64).unwrap();
        let context = mp::Context::new(mp::StartMethod::ForkServer);
        let (mut last, mut doubled) = (None, 0);
        for _ in 0..KILLS {
            let child = context.process(produces, (queue.clone(), next.clone())).start().await.unwrap();
            let until = Instant::now() + Duration::from_millis(5 + random.below(20));
            let mut take = |(number, item): (u64, Vec<u64>)| {
                assert_eq!(item, vec![number; (number % 500) as usize]);
                match last {
                    // It was put, and killed before it had noted that.
                    Some(before) if before == number => doubled += 1,
                    Some(before) => assert_eq!(number, before + 1),
                    None => assert_eq!(number, 0),
                }
                last = Some(number);
            };
            while Instant::now() < until {
                take(queue.get_timeout(SOON).await.unwrap());
            }
            kill_9(child.pid());
            child.join().await.unwrap();
            loop {
                match queue.try_get() {
                    Ok(item) => take(item),
                    Err(GetError::Empty) => break,
                    Err(error) => panic!("{error}"),
                }
            }
        }
        assert!(doubled <= KILLS);
        assert_eq!(queue.len(), 0);
    });
}

/// An item of so many bytes.
#[derive(Serialize, Deserialize)]
struct Bulk(#[serde(with = "serde_bytes")] Vec<u8>);

/// How much memory the machine has given to shared memory, in bytes.
fn shared_memory() -> u64 {
    let all = std::fs::read_to_string("/proc/meminfo").unwrap();
    let line = all.lines().find_map(|line| line.strip_prefix("Shmem:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
}

/// `TOKIO_MULTIPROCESS_LARGE_ITEM` says how large, in MiB; else it is larger than the length of any frame.
#[test]
fn an_item_of_any_size_goes_through_and_its_memory_is_free_again() {
    /// What is where says where it belongs.
    fn pattern() -> Vec<u8> {
        (0..65_521u32).map(|at| ((at * at) >> 3) as u8).collect()
    }
    async fn check(there: Queue<Bulk>, back: Queue<u64>) -> mp::Result<()> {
        let pattern = pattern();
        while let Ok(Bulk(item)) = there.get().await {
            let whole = item.chunks(pattern.len()).all(|piece| *piece == pattern[..piece.len()]);
            back.put(if whole { item.len() as u64 } else { 0 }).await?;
        }
        Ok(())
    }
    let size = std::env::var("TOKIO_MULTIPROCESS_LARGE_ITEM").map_or(300, |size| size.parse().unwrap());
    let size: usize = size << 20;
    run(300, async {
        let (there, back) = (Queue::new(16).unwrap(), Queue::new(16).unwrap());
        let child = mp::Process::builder(check, (there.clone(), back.clone())).start().await.unwrap();
        let pattern = pattern();
        let mut item = pattern.repeat(size.div_ceil(pattern.len()));
        item.truncate(size);
        let before = shared_memory();
        there.put(Bulk(item)).await.unwrap();
        assert_eq!(back.get_timeout(SOON * 10).await.unwrap(), size as u64);
        // What a queue keeps for the next item, and what others on this machine do meanwhile.
        eventually("its memory is free", || shared_memory() < before + size as u64 / 2).await;
        there.put(Bulk(vec![0; 1])).await.unwrap();
        assert_eq!(back.get_timeout(SOON).await.unwrap(), 1);
        there.shutdown().unwrap();
        assert!(child.join().await.unwrap().success());
    });
}

/// Who has closed or shut it down while items wait here for room: they are moved all the same.
#[test]
fn what_waits_is_moved_though_the_queue_was_closed_or_shut_down() {
    async fn gets(queue: Queue<Vec<u8>>) -> mp::Result<()> {
        for number in 0..40 {
            assert_eq!(queue.get().await?, vec![number; 100_000]);
        }
        Ok(())
    }
    run_each(60, async |context| {
        for closes in [true, false] {
            let queue = Queue::new(0).unwrap();
            for number in 0..40 {
                queue.put(vec![number; 100_000]).await.unwrap();
            }
            if closes {
                queue.close();
            } else {
                queue.shutdown().unwrap();
            }
            let kind = queue.try_put(vec![1]).unwrap_err().kind;
            assert!(matches!(kind, PutErrorKind::Closed | PutErrorKind::ShutDown));
            let child = context.process(gets, (queue.clone(),)).start().await.unwrap();
            if closes {
                queue.join_feeder().await.unwrap();
            }
            assert!(child.join().await.unwrap().success());
            assert!(queue.is_empty());
        }
    });
}
