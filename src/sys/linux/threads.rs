//! The threads of this crate, told apart from those of the program.

use std::io;
use std::sync::Mutex;
use std::thread::JoinHandle;
use std::time::Duration;

use super::per_process::PerProcess;
use super::process::{gettid, threads};

static OWN: PerProcess<Mutex<Vec<i32>>> = PerProcess::new(Mutex::default);

/// Starts a thread that a fork may leave behind: it holds no lock across a wait that a child needs.
pub(crate) fn spawn<T: Send + 'static>(
    name: &str,
    run: impl FnOnce() -> T + Send + 'static,
) -> io::Result<JoinHandle<T>> {
    // Locked until the thread is known, else a fork would count it as foreign.
    let mut own = own();
    let (registered, seen) = std::sync::mpsc::channel();
    let handle = std::thread::Builder::new().name(name.to_owned()).spawn(move || {
        let tid = gettid();
        let _ = registered.send(tid);
        let _registered = Registered(tid);
        run()
    })?;
    own.extend(seen.recv());
    Ok(handle)
}

/// Keeps threads of this crate from being started while the process is copied: std holds a lock
/// while one begins or ends, and in the copy it would be held for ever.
pub(crate) fn hold_starts() -> impl Drop {
    own()
}

/// Takes a thread off the list at its end, also by a panic: its number may go to a foreign one.
struct Registered(i32);

impl Drop for Registered {
    fn drop(&mut self) {
        own().retain(|known| *known != self.0);
    }
}

/// Counts the calling thread among this crate's from now on.
pub(crate) fn adopt_current() {
    own().push(gettid());
}

fn own() -> std::sync::MutexGuard<'static, Vec<i32>> {
    OWN.get().lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// How many threads run beside this one that are not this crate's.
pub(crate) fn foreign() -> io::Result<usize> {
    let mut looks = 0;
    loop {
        let own = own().clone();
        let me = gettid();
        let count = threads()?.into_iter().filter(|tid| *tid != me && !own.contains(tid)).count();
        looks += 1;
        if count == 0 || looks == LOOKS {
            return Ok(count);
        }
        // One that is just ending is off the list, and its kernel's thread is there for some microseconds yet.
        std::thread::sleep(Duration::from_millis(1));
    }
}

const LOOKS: u32 = 20;

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;
    use crate::sys::fd::poll_readable;
    use crate::sys::process::{Exit, Fork, exit_now, fork, pidfd_open, try_wait};

    #[test]
    fn a_thread_of_ours_that_has_just_ended_is_nobody_elses() {
        // A copy has no other threads.
        match fork().unwrap() {
            Fork::Child => {
                adopt_current();
                let ends_unseen = |_| {
                    drop(spawn("ends", || {}).unwrap());
                    // Until it is off the list, and not until it has gone.
                    while own().len() > 1 {
                        std::thread::yield_now();
                    }
                    foreign().unwrap() == 0
                };
                exit_now(if (0..500).all(ends_unseen) { 0 } else { 1 })
            }
            Fork::Parent { pid } => {
                let child = pidfd_open(pid).unwrap();
                poll_readable(child.as_fd(), None).unwrap();
                assert_eq!(try_wait(child.as_fd()).unwrap().unwrap(), Exit::Code(0));
            }
        }
    }
}
