//! Processes that put items into something, and processes that get them out of it.

use std::time::Instant;

use serde::{Deserialize, Serialize};
use tokio_multiprocess as mp;

use crate::support::KeptOn;

/// What one member does in a round.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Work {
    /// How many items it puts, or gets.
    pub(crate) count: u32,
    /// How many bytes are in each, if these are bytes.
    pub(crate) size: usize,
}

/// What a member has of what the items go through.
pub(crate) trait End: Send + Sized + 'static {
    /// What it gets that from.
    type Pass: mp::Message;
    fn open(pass: Self::Pass, work: Work) -> Self;
    fn round(&mut self, work: Work) -> impl Future<Output = ()> + Send;
}

/// Where a member runs.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
enum Place {
    Anywhere,
    First,
    Others,
}

async fn member<E: End>(pass: E::Pass, work: Work, place: Place, mut parent: mp::Connection) {
    let _kept = match place {
        Place::Anywhere => None,
        Place::First => Some(KeptOn::processor(0)),
        Place::Others => Some(KeptOn::others(0)),
    };
    let mut end = E::open(pass, work);
    while parent.send(&()).await.is_ok() && parent.recv::<()>().await.is_ok() {
        end.round(work).await;
        parent.send(&()).await.expect("the parent");
    }
}

/// Those who put and those who get, in processes of their own, which begin each round together.
///
/// Who is alone on its side has a processor for itself: else chance would decide whether it shares one.
pub(crate) struct Crew {
    members: Vec<(mp::Connection, mp::Process)>,
    count: u32,
}

impl Crew {
    /// `count` items go through in each round: each of those who put puts as many as each other, and
    /// those who get likewise.
    pub(crate) async fn start<P: End, G: End>(puts: Vec<P::Pass>, gets: Vec<G::Pass>, work: Work) -> Self {
        let (putting, getting) = match (puts.len(), gets.len()) {
            (_, 1) => (Place::Others, Place::First),
            (1, _) => (Place::First, Place::Others),
            _ => (Place::Anywhere, Place::Anywhere),
        };
        let share = |members: usize| Work { count: work.count / members as u32, ..work };
        let mut crew = Self { members: Vec::new(), count: work.count };
        let shares = [share(puts.len()), share(gets.len())];
        for pass in gets {
            crew.enlist::<G>(pass, shares[1], getting).await;
        }
        for pass in puts {
            crew.enlist::<P>(pass, shares[0], putting).await;
        }
        crew
    }

    async fn enlist<E: End>(&mut self, pass: E::Pass, work: Work, place: Place) {
        let (here, there) = mp::pipe().expect("a pipe");
        let args = (pass, work, place, there);
        let process = mp::Process::builder(member::<E>, args).start().await.expect("a child");
        self.members.push((here, process));
    }

    /// What one item takes, in seconds: from when all are told to begin until the last one is got.
    pub(crate) async fn round(&mut self) -> f64 {
        for (member, _) in &mut self.members {
            member.recv::<()>().await.expect("that it is ready");
        }
        let begin = Instant::now();
        for (member, _) in &mut self.members {
            member.send(&()).await.expect("the child");
        }
        for (member, _) in &mut self.members {
            member.recv::<()>().await.expect("that it is done");
        }
        begin.elapsed().as_secs_f64() / f64::from(self.count)
    }

    pub(crate) async fn stop(self) {
        for (member, process) in self.members {
            drop(member);
            process.join().await.expect("its end");
        }
    }
}
