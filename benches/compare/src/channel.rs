//! ipc-channel's side of what `peer` does: a process at the other end of two channels.


use ipc_channel::ipc::{self, IpcOneShotServer, IpcReceiver, IpcSender};
use serde::{Deserialize, Serialize};
use tokio_multiprocess as mp;

use crate::peer::Work;
use crate::support::share;

type Message = Vec<u8>;

#[derive(Serialize, Deserialize)]
struct Ends {
    to: IpcSender<Message>,
    from: IpcReceiver<Message>,
}

pub(crate) struct Channel {
    process: mp::Process,
    ends: Ends,
}

fn peer(name: String, work: Work) {
    let Ends { to, from } = connect(name);
    match work {
        Work::Echo { .. } => {
            while let Ok(message) = from.recv() {
                to.send(message).expect("sent");
            }
        }
        Work::Take { size, count } => {
            while let Ok(go) = from.recv() {
                to.send(go).expect("sent");
                for _ in 0..count {
                    let message = from.recv().expect("a message");
                    assert_eq!((message.len(), message[0]), (size, 7));
                }
                to.send(vec![1]).expect("sent");
            }
        }
    }
}

/// Makes both channels, and hands the other ends over.
fn connect(name: String) -> Ends {
    let ((to, there), (here, from)) = (ipc::channel().expect("a channel"), ipc::channel().expect("a channel"));
    let rendezvous = IpcSender::connect(name).expect("the one who waits");
    rendezvous.send(Ends { to: here, from: there }).expect("sent");
    Ends { to, from }
}

impl Channel {
    pub(crate) async fn start(work: Work) -> Self {
        let (server, name) = IpcOneShotServer::<Ends>::new().expect("a server");
        let process = mp::Process::builder(peer, (name, work)).start().await.expect("a child");
        let (_, ends) = server.accept().expect("both ends");
        Self { process, ends }
    }

    /// What one takes, in seconds; the same for the others.
    pub(crate) fn round_trips(&self, count: u32) -> f64 {
        let message = vec![7; 64];
        let trip = || {
            self.ends.to.send(message.clone()).expect("sent");
            self.ends.from.recv().expect("the same");
        };
        trip();
        share(count, || (0..count).for_each(|_| trip()))
    }

    pub(crate) fn send(&self, size: usize, count: u32) -> f64 {
        let message = vec![7; size];
        self.ends.to.send(vec![1]).expect("sent");
        self.ends.from.recv().expect("that it is ready");
        share(count, || {
            for _ in 0..count {
                self.ends.to.send(message.clone()).expect("sent");
            }
            self.ends.from.recv().expect("that all has arrived");
        })
    }

    pub(crate) async fn stop(self) {
        drop(self.ends);
        self.process.join().await.expect("its end");
    }
}
