//! Items, as they travel.

use std::cell::Cell;

use crate::reduction::{self, CodecError, Departures, Incoming, Message, MessagePack, Peer};
use crate::ring::many::{self, HEAD};
use crate::sys::Fd;

/// An item that is on its way into a queue.
#[derive(Debug)]
pub(super) struct Item {
    /// What goes into the ring.
    frame: Vec<u8>,
    departures: Departures,
}

thread_local! {
    /// Memory that the items of a thread are written to and read from, one after the other.
    static SCRATCH: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// How much of it is kept.
const KEPT: usize = 64 << 10;

fn scratch() -> Vec<u8> {
    SCRATCH.take()
}

fn keep(mut scratch: Vec<u8>) {
    if scratch.capacity() <= KEPT {
        scratch.clear();
        SCRATCH.set(scratch);
    }
}

impl Item {
    pub(super) fn encode<T: Message>(value: &T) -> Result<Self, CodecError> {
        let mut frame = scratch();
        frame.resize(HEAD, 0);
        // What panics in here loses the scratch memory, and nothing else.
        match reduction::encode_uncommitted::<MessagePack, T>(value, &mut frame, Peer::AnyBuild) {
            Ok((_attachments, departures)) => {
                many::seal(&mut frame, 0);
                Ok(Self { frame, departures })
            }
            Err(error) => {
                keep(frame);
                Err(error)
            }
        }
    }

    pub(super) fn frame(&self) -> &[u8] {
        &self.frame
    }

    /// It was put into the ring: what moves with it is gone from here.
    pub(super) fn commit(&mut self) {
        std::mem::take(&mut self.departures).commit();
        keep(std::mem::take(&mut self.frame));
    }

    /// It waits in this process: what moves with it is gone from here, too.
    pub(super) fn waiting(&mut self) -> Self {
        std::mem::take(&mut self.departures).commit();
        Self { frame: std::mem::take(&mut self.frame), departures: Departures::default() }
    }
}

/// Has the bytes of an item written somewhere, and reads it.
pub(super) struct Reader(Vec<u8>);

impl Reader {
    pub(super) fn new() -> Self {
        Self(scratch())
    }

    pub(super) fn room(&mut self) -> &mut Vec<u8> {
        &mut self.0
    }

    pub(super) fn decode<T: Message>(self, attachments: Vec<Fd>) -> Result<T, CodecError> {
        let incoming = Incoming { bytes: &self.0, attachments };
        let value = reduction::decode_from::<MessagePack, T>(incoming, Peer::AnyBuild);
        keep(self.0);
        value
    }
}
