//! A worker that works for ever is killed: when its processor is free, and when the next call is
//! answered.

use std::path::{Path, PathBuf};
use std::time::Instant;

use tokio::runtime::Runtime;
use tokio_multiprocess as mp;

use crate::anchor::anchor;
use crate::by_hand::Worker;
use crate::support::{Bound, Figure, heading};

const ROUNDS: usize = 9;

pub(crate) fn compare(runtime: &Runtime, python: bool) {
    let directory = std::env::temp_dir().join(format!("compare-{}", std::process::id()));
    std::fs::create_dir(&directory).expect("a directory");
    runtime.block_on(rounds(&directory, python));
    let _ = std::fs::remove_dir_all(&directory);
}

async fn rounds(directory: &Path, python: bool) {
    let plain = mp::Pool::new(1).await.expect("a pool");
    let spare = mp::Pool::builder().processes(1).spares(1).build().await.expect("a pool");
    let mut hand = Worker::start().await;
    let [mut freed, mut replaced] = ["freed", "replaced"].map(|what| {
        ["by hand", "pool", "pool with a spare", "CPython"].map(|who| Figure::new(format!("{who}, {what}")))
    });
    for round in 0..ROUNDS {
        hand.spin().await;
        let begin = Instant::now();
        let pid = hand.pid();
        hand.kill();
        freed[0].push(until_gone(pid, begin));
        hand.end().await;
        hand = Worker::start().await;
        replaced[0].push(begin.elapsed().as_secs_f64());

        for (index, pool) in [(1, &plain), (2, &spare)] {
            pool.ready().await.expect("its workers");
            let mark = directory.join(format!("{index}-{round}"));
            let call = pool.apply(spin, (mark.clone(),)).submit();
            let pid = pid_in(&mark).await;
            let begin = Instant::now();
            call.abort();
            freed[index].push(until_gone(pid, begin));
            pool.apply(|| {}, ()).await.expect("an answer");
            replaced[index].push(begin.elapsed().as_secs_f64());
        }
        if python {
            freed[3].push(anchor("kill_freed", 1, 1, 0));
            replaced[3].push(anchor("kill_replaced", 1, 1, 0));
        }
    }
    hand.end().await;
    for (title, figures) in [("kill -> its processor is free", freed), ("kill -> the next answer", replaced)]
    {
        heading(title);
        figures[0].print();
        figures[1..].iter().take(if python { 3 } else { 2 }).for_each(|figure| {
            figure.print_against(&figures[0], Bound::None);
        });
    }
}

fn spin(mark: PathBuf) {
    let unfinished = mark.with_extension("new");
    std::fs::write(&unfinished, std::process::id().to_string()).expect("written");
    std::fs::rename(unfinished, mark).expect("renamed");
    loop {
        std::hint::spin_loop();
    }
}

/// The process that has begun.
async fn pid_in(mark: &Path) -> i32 {
    loop {
        if let Ok(pid) = std::fs::read_to_string(mark) {
            return pid.parse().expect("a number");
        }
        tokio::task::yield_now().await;
    }
}

/// How long it takes until a process is no more, or a zombie; in seconds.
fn until_gone(pid: i32, begin: Instant) -> f64 {
    let path = format!("/proc/{pid}/stat");
    let runs = |stat: String| stat.rsplit_once(')').is_some_and(|(_, state)| !state.starts_with(" Z"));
    while std::fs::read_to_string(&path).is_ok_and(runs) {
        std::hint::spin_loop();
    }
    begin.elapsed().as_secs_f64()
}
