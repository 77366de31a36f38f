//! How a worker meets the faults that were planned for it.

use std::io::{self, Write as _};
use std::time::Duration;

use super::{Outcome, Worker};
use crate::pool::wire::Tag;
use crate::sys::socket::Mode;
use crate::sys::{self, AsFd};
use crate::testing::Fault;

impl Worker {
    /// What comes before the task.
    ///
    /// # Errors
    /// When the worker is to end; a process gets no further than that.
    pub(super) fn suffer(&mut self, fault: Fault) -> io::Result<()> {
        match fault {
            Fault::DieBefore => return Err(self.die()),
            Fault::DieDuring(after) if self.own_process => die_after(after)?,
            Fault::Stall if self.own_process => sys::signal::raise(sys::signal::STOP),
            Fault::Stall | Fault::Hang => return Err(self.end.until_given_up()),
            Fault::Flood(bytes) => flood(bytes),
            Fault::Slow(delay) => std::thread::sleep(delay),
            Fault::DieDuring(_) | Fault::DieInReply | Fault::DieAfterReply | Fault::Garble => {}
        }
        Ok(())
    }

    /// The answer, or what comes in its place.
    ///
    /// # Errors
    /// As [`suffer`](Self::suffer), and those of an answer.
    pub(super) fn answer_under(
        &mut self,
        fault: Fault,
        tag: Tag,
        outcome: Outcome,
        more: bool,
    ) -> io::Result<()> {
        match fault {
            Fault::DieDuring(_) => Err(self.die()),
            Fault::DieInReply => {
                let (_, body) = self.write_down(outcome)?;
                body.send_parcel(self.end.socket.as_fd(), tag, Mode::Wait)?;
                Err(self.die())
            }
            Fault::DieAfterReply => {
                self.answer(tag, outcome, false)?;
                Err(self.die())
            }
            Fault::Garble => {
                self.end.garble()?;
                Err(self.end.until_given_up())
            }
            Fault::DieBefore | Fault::Stall | Fault::Hang | Fault::Flood(_) | Fault::Slow(_) => {
                self.answer(tag, outcome, more)
            }
        }
    }

    /// Ends a process as nothing else does; a thread ends by what this gives.
    fn die(&self) -> io::Error {
        if self.own_process {
            sys::signal::raise(sys::signal::KILL);
        }
        io::ErrorKind::ConnectionAborted.into()
    }
}

fn die_after(time: Duration) -> io::Result<()> {
    let die = move || {
        std::thread::sleep(time);
        sys::signal::raise(sys::signal::KILL);
    };
    std::thread::Builder::new().name("mp-fault".to_owned()).spawn(die).map(drop)
}

fn flood(bytes: usize) {
    const LINE: &[u8] = b"a flood of words that nobody asked for, written by a fault on purpose\n";
    let mut text = LINE.repeat(bytes.div_ceil(LINE.len()));
    text.truncate(bytes);
    // Whoever reads it may have gone.
    let _ = io::stderr().write_all(&text);
}
