//! ipc-channel's side of what `crew` does: the two ends of a channel, each in the process of a member.

use std::marker::PhantomData;

use ipc_channel::ipc::{
    self, IpcBytesReceiver, IpcBytesSender, IpcOneShotServer, IpcReceiver, IpcSender, IpcSharedMemory,
};
use serde::{Deserialize, Serialize};
use tokio_multiprocess as mp;

use crate::crew::{Crew, End, Work};
use crate::goods::{BYTE, Goods, look};

/// A kind of channel.
pub(crate) trait Channel: 'static {
    type Sender: mp::Message + Clone;
    type Receiver: mp::Message;
    type Goods: Send;
    fn pair() -> (Self::Sender, Self::Receiver);
    fn goods(size: usize) -> Self::Goods;
    fn send(sender: &Self::Sender, goods: &Self::Goods, number: u32);
    fn receive(receiver: &Self::Receiver, size: usize);
}

/// One of values.
pub(crate) struct Values<G>(PhantomData<G>);

impl<G: Goods> Channel for Values<G> {
    type Sender = IpcSender<G::Item>;
    type Receiver = IpcReceiver<G::Item>;
    type Goods = G;

    fn pair() -> (Self::Sender, Self::Receiver) {
        ipc::channel().expect("a channel")
    }

    fn goods(size: usize) -> G {
        G::new(size)
    }

    fn send(sender: &Self::Sender, goods: &G, number: u32) {
        sender.send(goods.item(number)).expect("sent");
    }

    fn receive(receiver: &Self::Receiver, size: usize) {
        G::look(&receiver.recv().expect("an item"), size);
    }
}

/// One of nothing but bytes.
pub(crate) struct Raw;

impl Channel for Raw {
    type Sender = IpcBytesSender;
    type Receiver = IpcBytesReceiver;
    type Goods = Vec<u8>;

    fn pair() -> (IpcBytesSender, IpcBytesReceiver) {
        ipc::bytes_channel().expect("a channel")
    }

    fn goods(size: usize) -> Vec<u8> {
        vec![BYTE; size]
    }

    fn send(sender: &IpcBytesSender, bytes: &Vec<u8>, _: u32) {
        sender.send(bytes).expect("sent");
    }

    fn receive(receiver: &IpcBytesReceiver, size: usize) {
        look(&receiver.recv().expect("bytes"), size);
    }
}

/// What it has for large bytes, made anew each time.
pub(crate) struct NewMemory(Vec<u8>);

impl Goods for NewMemory {
    type Item = IpcSharedMemory;

    fn new(size: usize) -> Self {
        Self(vec![BYTE; size])
    }

    fn item(&self, _: u32) -> IpcSharedMemory {
        IpcSharedMemory::from_bytes(&self.0)
    }

    fn look(item: &IpcSharedMemory, size: usize) {
        look(item, size);
    }
}

/// The same each time.
pub(crate) struct OneMemory(IpcSharedMemory);

impl Goods for OneMemory {
    type Item = IpcSharedMemory;

    fn new(size: usize) -> Self {
        Self(IpcSharedMemory::from_byte(BYTE, size))
    }

    fn item(&self, _: u32) -> IpcSharedMemory {
        self.0.clone()
    }

    fn look(item: &IpcSharedMemory, size: usize) {
        look(item, size);
    }
}

/// An end for whoever comes and asks for it by this name: it passes through channels of its own kind alone.
#[derive(Serialize, Deserialize)]
#[serde(bound = "")]
pub(crate) struct Offer<T>(String, PhantomData<T>);

impl<T: mp::Message> Offer<T> {
    fn new(end: T) -> Self {
        let (server, name) = IpcOneShotServer::<IpcSender<T>>::new().expect("a server");
        std::thread::spawn(move || {
            let (_, to) = server.accept().expect("who asks");
            to.send(end).expect("sent");
        });
        Self(name, PhantomData)
    }

    fn take(self) -> T {
        let (to, from) = ipc::channel().expect("a channel");
        IpcSender::connect(self.0).expect("who offers").send(to).expect("sent");
        from.recv().expect("the end")
    }
}

pub(crate) struct Sends<C: Channel>(C::Sender, C::Goods);

impl<C: Channel> End for Sends<C> {
    type Pass = Offer<C::Sender>;

    fn open(offer: Self::Pass, work: Work) -> Self {
        Self(offer.take(), C::goods(work.size))
    }

    async fn round(&mut self, work: Work) {
        (0..work.count).for_each(|number| C::send(&self.0, &self.1, number));
    }
}

pub(crate) struct Receives<C: Channel>(C::Receiver);

impl<C: Channel> End for Receives<C> {
    type Pass = Offer<C::Receiver>;

    fn open(offer: Self::Pass, _: Work) -> Self {
        Self(offer.take())
    }

    async fn round(&mut self, work: Work) {
        (0..work.count).for_each(|_| C::receive(&self.0, work.size));
    }
}

/// Some who send, and one who receives.
pub(crate) async fn start<C: Channel>(senders: usize, work: Work) -> Crew {
    let (sender, receiver) = C::pair();
    let offers = (0..senders).map(|_| Offer::new(sender.clone())).collect();
    Crew::start::<Sends<C>, Receives<C>>(offers, vec![Offer::new(receiver)], work).await
}
