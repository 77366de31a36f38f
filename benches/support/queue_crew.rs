//! This crate's side of what `crew` does: queues of each kind.

use std::marker::PhantomData;

use tokio_multiprocess as mp;

use crate::crew::{Crew, End, Work};
use crate::goods::Goods;

/// A kind of queue.
pub(crate) trait Line: mp::Message + Clone + Sync {
    type Item;
    fn put(&self, item: Self::Item) -> impl Future<Output = ()> + Send;
    fn get(&self) -> impl Future<Output = Self::Item> + Send;
}

impl<T: mp::Message> Line for mp::Queue<T> {
    type Item = T;

    async fn put(&self, item: T) {
        mp::Queue::put(self, item).await.expect("put");
    }

    async fn get(&self) -> T {
        mp::Queue::get(self).await.expect("an item")
    }
}

/// What was got is acknowledged at once.
impl<T: mp::Message> Line for mp::JoinableQueue<T> {
    type Item = T;

    async fn put(&self, item: T) {
        mp::Queue::put(self, item).await.expect("put");
    }

    async fn get(&self) -> T {
        let item = mp::Queue::get(self).await.expect("an item");
        self.task_done().expect("it was got");
        item
    }
}

impl<T: mp::Message> Line for mp::SimpleQueue<T> {
    type Item = T;

    async fn put(&self, item: T) {
        mp::SimpleQueue::put(self, item).await.expect("put");
    }

    async fn get(&self) -> T {
        mp::SimpleQueue::get(self).await.expect("an item")
    }
}

pub(crate) struct Puts<L, G>(L, G);

impl<L: Line<Item = G::Item>, G: Goods> End for Puts<L, G> {
    type Pass = L;

    fn open(line: L, work: Work) -> Self {
        Self(line, G::new(work.size))
    }

    async fn round(&mut self, work: Work) {
        for number in 0..work.count {
            self.0.put(self.1.item(number)).await;
        }
    }
}

pub(crate) struct Gets<L, G>(L, PhantomData<G>);

impl<L: Line<Item = G::Item>, G: Goods> End for Gets<L, G> {
    type Pass = L;

    fn open(line: L, _: Work) -> Self {
        Self(line, PhantomData)
    }

    async fn round(&mut self, work: Work) {
        for _ in 0..work.count {
            G::look(&self.0.get().await, work.size);
        }
    }
}

/// So many who put into a queue, and so many who get what is there.
pub(crate) async fn start<L, G>(line: L, puts: usize, gets: usize, work: Work) -> Crew
where
    L: Line<Item = G::Item>,
    G: Goods,
{
    Crew::start::<Puts<L, G>, Gets<L, G>>(vec![line.clone(); puts], vec![line; gets], work).await
}
