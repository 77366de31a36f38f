//! Items, as they travel.

use std::cell::Cell;

use super::memory::CAPACITY;
use crate::error::Result;
use crate::reduction::{self, CodecError, Departures, Incoming, Message, MessagePack, Peer};
use crate::ring::many::{self, HEAD};
use crate::ring::parcels::{Label, Parcel};
use crate::sys::Fd;

/// An item that is on its way into a queue.
///
/// Its frame is the four bytes of its head, the label of its parcel if it has handles, and what it was encoded to;
/// or, if that is large, the number of the extent in which it lies.
#[derive(Debug)]
pub(super) struct Item {
    frame: Vec<u8>,
    /// Few items have any: so it is small here.
    handles: Option<Box<Handles>>,
}

/// What goes beside an item.
#[derive(Debug)]
struct Handles {
    parcel: Parcel,
    /// What moves with it, until it was put.
    departures: Departures,
}

/// The longest frame in the ring: a quarter of it, so that no single item keeps all others out.
const LONGEST: usize = CAPACITY / 4;

/// An item has handles: its frame begins with a label.
const PARCEL: u32 = 1;
/// An item lies in an extent: its frame ends with the extent's number.
const EXTENT: u32 = 2;

thread_local! {
    /// Memory that the items of a thread are written to and read from, one after the other.
    static SCRATCH: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// How much of it is kept in any case, and at most.
const KEPT: usize = 64 << 10;
const MOST: usize = 16 << 20;

fn scratch() -> Vec<u8> {
    SCRATCH.take()
}

/// What one large item was in is kept for the next; who goes on with small ones gives it back.
fn keep(mut scratch: Vec<u8>) {
    if scratch.capacity() <= KEPT.max(4 * scratch.len()).min(MOST) {
        scratch.clear();
        SCRATCH.set(scratch);
    }
}

impl Item {
    pub(super) fn encode<T: Message>(value: &T) -> Result<Self, CodecError> {
        let mut frame = scratch();
        frame.extend([0; HEAD]);
        // What panics in here loses the scratch memory, and nothing else.
        match reduction::encode_uncommitted::<MessagePack, T>(value, &mut frame, Peer::AnyBuild) {
            Ok((attachments, departures)) => {
                let handles = Parcel::new(attachments).map(|parcel| {
                    frame.splice(HEAD..HEAD, parcel.label().to_bytes());
                    Box::new(Handles { parcel, departures })
                });
                let mut item = Self { frame, handles };
                if !item.is_large() {
                    let flags = item.flags();
                    many::seal(&mut item.frame, flags);
                }
                Ok(item)
            }
            Err(error) => {
                keep(frame);
                Err(error)
            }
        }
    }

    /// Whether it lies in an extent.
    pub(super) fn is_large(&self) -> bool {
        self.frame.len() > LONGEST
    }

    fn flags(&self) -> u32 {
        if self.handles.is_some() { PARCEL } else { 0 }
    }

    /// Where what it was encoded to begins.
    fn body_at(&self) -> usize {
        HEAD + if self.handles.is_some() { Label::LEN } else { 0 }
    }

    /// What goes into the ring if it is not large.
    pub(super) fn frame(&self) -> &[u8] {
        &self.frame
    }

    /// What goes into an extent if it is large.
    pub(super) fn body(&self) -> &[u8] {
        &self.frame[self.body_at()..]
    }

    /// What goes into the ring if it lies in that extent.
    pub(super) fn reference(&self, extent: usize) -> Vec<u8> {
        let mut frame = self.frame[..self.body_at()].to_vec();
        frame.extend((extent as u64).to_le_bytes());
        many::seal(&mut frame, EXTENT | self.flags());
        frame
    }

    /// Makes what takes system calls, ahead of any lock.
    pub(super) fn pack(&mut self) -> Result<()> {
        Ok(self.parcel().map_or(Ok(()), Parcel::pack)?)
    }

    pub(super) fn parcel(&mut self) -> Option<&mut Parcel> {
        self.handles.as_mut().map(|handles| &mut handles.parcel)
    }

    /// It was put: what moves with it is gone from here.
    pub(super) fn commit(&mut self) {
        if let Some(handles) = self.handles.take() {
            handles.departures.commit();
        }
        keep(std::mem::take(&mut self.frame));
    }

    /// It waits in this process: what moves with it is gone from here, too.
    pub(super) fn waiting(&mut self) -> Self {
        let handles = self.handles.take().map(|mut handles| {
            std::mem::take(&mut handles.departures).commit();
            handles
        });
        Self { frame: std::mem::take(&mut self.frame), handles }
    }
}

/// What a frame says.
#[derive(Clone, Copy, Debug)]
pub(super) struct Parts {
    pub(super) label: Option<Label>,
    pub(super) extent: Option<usize>,
    /// Where in what follows its head the encoded item begins.
    pub(super) body_at: usize,
}

impl Parts {
    /// `bytes` is what follows the head. `None` if it cannot be.
    pub(super) fn of(flags: u32, bytes: &[u8]) -> Option<Self> {
        let mut parts = Self { label: None, extent: None, body_at: 0 };
        if flags & PARCEL != 0 {
            parts.label = Some(Label::split(bytes)?.0);
            parts.body_at = Label::LEN;
        }
        if flags & EXTENT != 0 {
            let number = bytes[parts.body_at..].first_chunk()?;
            parts.extent = Some(usize::try_from(u64::from_le_bytes(*number)).ok()?);
        }
        Some(parts)
    }
}

/// An item as it arrives, and the memory for it.
#[derive(Debug)]
pub(super) struct Arrived {
    pub(super) bytes: Vec<u8>,
    /// Where in them the encoded item begins.
    pub(super) body_at: usize,
    pub(super) attachments: Vec<Fd>,
}

impl Arrived {
    /// Nothing yet.
    pub(super) fn new() -> Self {
        Self { bytes: scratch(), body_at: 0, attachments: Vec::new() }
    }

    pub(super) fn decode<T: Message>(self) -> Result<T, CodecError> {
        let incoming = Incoming { bytes: &self.bytes[self.body_at..], attachments: self.attachments };
        let value = reduction::decode_from::<MessagePack, T>(incoming, Peer::AnyBuild);
        keep(self.bytes);
        value
    }
}
