//! What a parent and its child say on the socket between them.
//!
//! The parent writes one [`Order`] as soon as the child is born. The child answers [`Report`]s: that
//! its target is about to run, or why it cannot; the value of a one-off task; and, as its last
//! words, the code that it is about to exit with, for a parent that cannot ask the kernel.

use crate::sys::BorrowedFd;
use std::io;

use bytes::Bytes;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::authkey::{self, AuthKey};
use crate::context::StartMethod;
use crate::error::RemotePanic;
use crate::function::{FnId, TaskFailure};
use crate::reduction::packet::{self, Packed, Packet};
use crate::reduction::{Attachments, Descriptor, Incoming, Peer, decode, encode};
use crate::sys::socket::Mode;
use crate::sys::{self, Fd};

/// Everything a child needs to become the process that it is.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Order {
    pub(crate) work: Work,
    pub(crate) name: String,
    /// The numbers of its ancestors and its own among its parent's children: `1:2`.
    pub(crate) path: Vec<u32>,
    pub(crate) daemon: bool,
    pub(crate) worker: bool,
    /// Whether its memory may be dumped when it crashes, as far as its parent's may.
    pub(crate) core_files: bool,
    /// It does not begin before a debugger is attached.
    pub(crate) debugged: bool,
    pub(crate) authkey: AuthKey,
    pub(crate) method: StartMethod,
    pub(crate) parent: ParentInfo,
    /// The read end of the parent's lifeline, for a child that must not outlive it.
    pub(crate) lifeline: Option<Descriptor>,
    /// What becomes its stdout, if not its parent's.
    pub(crate) stdout: Option<Descriptor>,
    /// What becomes its stderr, if not its parent's.
    pub(crate) stderr: Option<Descriptor>,
    /// For a child of the fork server: what has changed since the server started.
    pub(crate) surroundings: Surroundings,
    pub(crate) log_level: u8,
    /// What `set_executable` chose, for the child's own children.
    pub(crate) executable: Option<std::path::PathBuf>,
    /// The parent's resource tracker, if it has one.
    pub(crate) tracker: Option<crate::resource_tracker::Inherited>,
}

/// What a child is to run.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Work {
    /// No function at all: the process starts and ends.
    Nothing,
    Target(FnId),
    Task(FnId),
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct ParentInfo {
    pub(crate) pid: i32,
    pub(crate) name: String,
    /// What is readable once it has ended.
    pub(crate) exit: Descriptor,
}

/// A process's working directory and environment, where they differ from what a child has anyway.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Surroundings {
    pub(crate) directory: Option<std::path::PathBuf>,
    pub(crate) environment: Option<Vec<(std::ffi::OsString, std::ffi::OsString)>>,
}

/// What a child says.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Report {
    /// From the fork server: this is the child's id, and its pidfd where there are any.
    Born {
        pid: i32,
        pidfd: Option<Descriptor>,
    },
    /// The target is about to run. The id of the parent's child is told once more, as the fork
    /// server may have died before it could.
    Ready {
        pid: i32,
        /// Who runs it, if that is not the child but one that the child guards.
        ward: Option<Guarded>,
    },
    /// It will not run, and why.
    Refused(String),
    /// A one-off task's value stands behind the report.
    Value,
    Failed(TaskFailure),
    Panicked(RemotePanic),
    /// The last words.
    Exiting(i32),
    /// From a guardian: its ward's memory was dumped.
    #[serde(skip)]
    CoreDumped,
    /// What the fault handler saw.
    #[serde(skip)]
    Fault {
        stack_overflow: bool,
        /// What was accessed, or where the instruction is that cannot be executed.
        address: Option<u64>,
    },
}

/// A worker behind its guardian.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Guarded {
    pub(crate) pid: i32,
    /// None where the kernel gives none.
    pub(crate) pidfd: Option<Descriptor>,
}

/// A report or order, and what stands behind it.
#[derive(Debug)]
pub(crate) struct Letter<T> {
    pub(crate) head: T,
    body: Bytes,
    attachments: Vec<Fd>,
}

impl<T> Letter<T> {
    /// The head, and the arguments or the value as they came.
    pub(crate) fn split(self) -> (T, Bytes, Vec<Fd>) {
        (self.head, self.body, self.attachments)
    }
}

/// A head and what stands behind it, to be sent as one message.
#[derive(Debug)]
pub(crate) struct Draft<'a> {
    head: Vec<u8>,
    rest: &'a [u8],
    attachments: Attachments,
    packed: Packed,
}

impl<'a> Draft<'a> {
    fn new<T: Serialize>(head: &T, rest: &'a [u8], rest_attachments: Attachments) -> io::Result<Self> {
        let mut bytes = vec![0; 2 * size_of::<u32>()];
        // The one message in which a key may travel: it stays inside of the family.
        let mut attachments =
            authkey::allow_transfer(|| encode(head, &mut bytes, Peer::AnyBuild)).map_err(io::Error::other)?;
        let len = bytes.len() - 2 * size_of::<u32>();
        bytes[..4].copy_from_slice(&(len as u32).to_le_bytes());
        bytes[4..8].copy_from_slice(&(attachments.len() as u32).to_le_bytes());
        attachments.extend(rest_attachments);
        let len = bytes.len() + rest.len();
        if len > packet::LIMIT {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "message over 1 GiB"));
        }
        let packed = Packed::new(len, &attachments)?;
        Ok(Self { head: bytes, rest, attachments, packed })
    }

    fn pack(&mut self) -> io::Result<bool> {
        self.packed.pack(&[&self.head, self.rest])
    }

    /// One that can be sent again and again; other tasks have their turns while a large one is packed.
    pub(crate) async fn packed<T: Serialize>(
        head: &T,
        rest: &'a [u8],
        rest_attachments: Attachments,
    ) -> io::Result<Self> {
        let mut draft = Self::new(head, rest, rest_attachments)?;
        while !draft.pack()? {
            tokio::task::yield_now().await;
        }
        Ok(draft)
    }

    pub(crate) fn send(&self, socket: BorrowedFd<'_>, mode: Mode) -> io::Result<()> {
        self.packed.send(socket, &[&self.head, self.rest], &self.attachments, mode)
    }
}

/// Sends a head and what stands behind it as one message, and takes its time with a large one.
pub(crate) fn send<T: Serialize>(
    socket: BorrowedFd<'_>,
    head: &T,
    rest: &[u8],
    rest_attachments: Attachments,
    mode: Mode,
) -> io::Result<()> {
    let mut draft = Draft::new(head, rest, rest_attachments)?;
    while !draft.pack()? {}
    draft.send(socket, mode)
}

/// Receives one; `None` when the other side is gone.
pub(crate) fn receive<T: DeserializeOwned + FromRaw>(
    socket: BorrowedFd<'_>,
    mode: Mode,
) -> io::Result<Option<Letter<T>>> {
    let (body, mut attachments) = match packet::receive(socket, mode)? {
        Packet::Message { body, attachments } => (body, attachments),
        Packet::Raw(bytes) => {
            let head = T::from_raw(&bytes).ok_or_else(garbled)?;
            return Ok(Some(Letter { head, body: Bytes::new(), attachments: Vec::new() }));
        }
        Packet::End => return Ok(None),
    };
    let number = |at: usize| {
        let bytes = body.get(at..at + 4).ok_or_else(garbled)?;
        Ok::<_, io::Error>(u32::from_le_bytes(bytes.try_into().expect("four bytes")) as usize)
    };
    let (len, count) = (number(0)?, number(4)?);
    let start = 8usize.checked_add(len).filter(|end| *end <= body.len()).ok_or_else(garbled)?;
    if count > attachments.len() {
        return Err(garbled());
    }
    let rest = attachments.split_off(count);
    let head = Incoming { bytes: &body[8..start], attachments };
    let head = authkey::allow_transfer(|| decode(head)).map_err(io::Error::other)?;
    Ok(Some(Letter { head, body: body.slice(start..), attachments: rest }))
}

/// What can arrive without any encoding.
pub(crate) trait FromRaw: Sized {
    fn from_raw(bytes: &[u8]) -> Option<Self>;
}

impl FromRaw for Order {
    fn from_raw(_: &[u8]) -> Option<Self> {
        None
    }
}

/// A signal handler and a guardian only call `send`, so what they say has a fixed form: see
/// `sys::fault` and `sys::guardian`.
impl FromRaw for Report {
    fn from_raw(bytes: &[u8]) -> Option<Self> {
        match bytes {
            sys::guardian::CORE_DUMPED => Some(Self::CoreDumped),
            [b'F', kind, _signal, address @ ..] => Some(Self::Fault {
                stack_overflow: *kind == 1,
                address: address.try_into().ok().filter(|_| *kind != 0).map(u64::from_le_bytes),
            }),
            _ => None,
        }
    }
}

fn garbled() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "garbled control message")
}
