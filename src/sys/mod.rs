//! The only room with `unsafe` code: what the kernel and the linker offer, behind safe functions.
//!
//! Nothing here knows more of Tokio than how a descriptor is registered. `linux` is the face on which
//! processes work; `portable` has just what the modules that exist everywhere need.
#![allow(unsafe_code)]

pub(crate) mod image;
#[cfg_attr(not(multiprocess), allow(dead_code, reason = "nothing is there to do without"))]
mod without;
#[cfg_attr(not(multiprocess), allow(unused_imports, reason = "as above"))]
pub(crate) use without::{Mechanism, without};

#[cfg(multiprocess)]
mod linux;
#[cfg(multiprocess)]
pub(crate) use linux::*;

#[cfg(not(multiprocess))]
#[allow(dead_code, reason = "it mirrors the other face")]
mod portable;
#[cfg(not(multiprocess))]
pub(crate) use portable::*;
