//! Asking the name service, which takes as long as it likes.
//!
//! So threads ask it: not Tokio's, which would stay and stand in the way of a fork. They are few, whatever
//! becomes of them, and end when nobody asks any more.

use std::collections::VecDeque;
use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::Mutex;

use tokio::sync::oneshot;

use crate::sys::per_process::PerProcess;
use crate::sys::threads;
use crate::util::lock;

/// How many look-ups run at a time. The others wait, each as long as who asks for it.
const THREADS: usize = 8;

type LookUp = Box<dyn FnOnce() + Send>;

#[derive(Default)]
struct Resolver {
    threads: usize,
    waiting: VecDeque<LookUp>,
}

static RESOLVER: PerProcess<Mutex<Resolver>> = PerProcess::new(Mutex::default);

/// The addresses of a host.
pub(super) async fn look_up(host: String, port: u16) -> io::Result<Vec<SocketAddr>> {
    ask(move || (&host[..], port).to_socket_addrs().map(Iterator::collect)).await
}

async fn ask<T: Send + 'static>(question: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    let (answer, answered) = oneshot::channel();
    let look_up = move || {
        // Nobody waits any more if it took too long.
        if !answer.is_closed() {
            let _ = answer.send(question());
        }
    };
    submit(Box::new(look_up))?;
    answered.await.map_err(io::Error::other)?
}

fn submit(look_up: LookUp) -> io::Result<()> {
    let mut resolver = lock(RESOLVER.get());
    if resolver.threads < THREADS {
        threads::spawn("mp-resolver", run)?;
        resolver.threads += 1;
    }
    resolver.waiting.push_back(look_up);
    Ok(())
}

fn run() {
    loop {
        let mut resolver = lock(RESOLVER.get());
        let Some(look_up) = resolver.waiting.pop_front() else {
            resolver.threads -= 1;
            return;
        };
        drop(resolver);
        look_up();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::mpsc;

    use futures::future::join_all;

    use super::*;

    #[tokio::test]
    async fn look_ups_that_hang_are_few_and_the_others_wait_for_their_end() {
        let (begin, begun) = mpsc::channel();
        let (end, ends) = mpsc::channel::<()>();
        let (ends, running) = (Arc::new(Mutex::new(ends)), Arc::new(AtomicUsize::new(0)));
        let mut asked: Vec<_> = (0..5 * THREADS)
            .map(|n| {
                let (begin, ends, running) = (begin.clone(), ends.clone(), running.clone());
                Box::pin(ask(move || {
                    let at_once = running.fetch_add(1, Ordering::SeqCst) + 1;
                    begin.send(n).unwrap();
                    let _ = lock(&ends).recv();
                    running.fetch_sub(1, Ordering::SeqCst);
                    Ok((n, at_once))
                }))
            })
            .collect();
        for ask in &mut asked {
            assert!(futures::poll!(ask).is_pending());
        }
        let first: Vec<_> = (0..THREADS).map(|_| begun.recv().unwrap()).collect();
        assert!(first.iter().all(|n| *n < THREADS), "{first:?}");
        // Nobody asks any more.
        drop(asked.pop());
        drop(end);
        let answers = join_all(asked).await;
        for (n, answer) in answers.into_iter().enumerate() {
            let (answered, at_once) = answer.unwrap();
            assert!(answered == n && at_once <= THREADS, "{answered} {at_once}");
        }
        assert_eq!(begun.try_iter().count(), 4 * THREADS - 1);
    }
}
