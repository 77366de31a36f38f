//! ipc-channel's side of what `peer` does: a process at the other end of two channels.

use ipc_channel::ipc::{self, IpcBytesReceiver, IpcBytesSender, IpcOneShotServer, IpcReceiver, IpcSender};
use serde::{Deserialize, Serialize};
use tokio_multiprocess as mp;

use crate::peer::{SIZE, VALUE, Value, Work};
use crate::support::{KeptOn, share};

/// Of channels of bytes, and one of values.
#[derive(Serialize, Deserialize)]
struct Ends {
    to: IpcBytesSender,
    from: IpcBytesReceiver,
    values: IpcSender<Value>,
}

pub(crate) struct Channel {
    process: mp::Process,
    ends: Ends,
}

/// Makes the channels, and hands the other ends over.
fn connect(name: String) -> (Ends, IpcReceiver<Value>) {
    let (to, there) = ipc::bytes_channel().expect("a channel");
    let (here, from) = ipc::bytes_channel().expect("a channel");
    let (values, taken) = ipc::channel().expect("a channel");
    let rendezvous = IpcSender::connect(name).expect("the one who waits");
    rendezvous.send(Ends { to: here, from: there, values: values.clone() }).expect("sent");
    (Ends { to, from, values }, taken)
}

fn peer(name: String, work: Work) {
    let _elsewhere = KeptOn::processor(1);
    let (Ends { to, from, values }, taken) = connect(name);
    drop(values);
    match work {
        Work::Echo => {
            while let Ok(bytes) = from.recv() {
                to.send(&bytes).expect("sent");
            }
        }
        Work::Bytes { size, count } => {
            while from.recv().is_ok() {
                to.send(&[1]).expect("sent");
                for _ in 0..count {
                    assert_eq!(from.recv().expect("bytes").len(), size);
                }
                to.send(&[1]).expect("sent");
            }
        }
        Work::Values { count } => {
            while from.recv().is_ok() {
                to.send(&[1]).expect("sent");
                for _ in 0..count {
                    assert_eq!(taken.recv().expect("a value"), VALUE);
                }
                to.send(&[1]).expect("sent");
            }
        }
    }
}

impl Channel {
    pub(crate) async fn start(work: Work) -> Self {
        let (server, name) = IpcOneShotServer::<Ends>::new().expect("a server");
        let process = mp::Process::builder(peer, (name, work)).start().await.expect("a child");
        let (_, ends) = server.accept().expect("the ends");
        Self { process, ends }
    }

    /// What one takes, in seconds; the same for the others.
    pub(crate) fn round_trips(&self, count: u32) -> f64 {
        let Ends { to, from, .. } = &self.ends;
        let trip = || {
            to.send(&[7; SIZE]).expect("sent");
            assert_eq!(from.recv().expect("the same").len(), SIZE);
        };
        trip();
        share(count, || (0..count).for_each(|_| trip()))
    }

    pub(crate) fn send_bytes(&self, size: usize, count: u32) -> f64 {
        let bytes = vec![7; size];
        self.one_way(count, || self.ends.to.send(&bytes).expect("sent"))
    }

    pub(crate) fn send(&self, count: u32) -> f64 {
        self.one_way(count, || self.ends.values.send(VALUE).expect("sent"))
    }

    fn one_way(&self, count: u32, send: impl Fn()) -> f64 {
        self.ends.to.send(&[1]).expect("sent");
        self.ends.from.recv().expect("that it is ready");
        share(count, || {
            (0..count).for_each(|_| send());
            self.ends.from.recv().expect("that all has arrived");
        })
    }

    pub(crate) async fn stop(self) {
        drop(self.ends);
        self.process.join().await.expect("its end");
    }
}
