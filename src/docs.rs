//! Guides: longer than a reference should be, each with examples that run.

#[doc = include_str!("../docs/pool/README.md")]
#[doc = include_str!("../docs/pool/memory.md")]
#[doc = include_str!("../docs/pool/kill.md")]
#[doc = include_str!("../docs/pool/state.md")]
#[doc = include_str!("../docs/pool/streams.md")]
#[doc = include_str!("../docs/pool/large-data.md")]
#[doc = include_str!("../docs/pool/evidence.md")]
#[doc = include_str!("../docs/pool/output.md")]
#[doc = include_str!("../docs/pool/fairness.md")]
#[doc = include_str!("../docs/pool/size.md")]
#[doc = include_str!("../docs/pool/insight.md")]
#[doc = include_str!("../docs/pool/testing.md")]
#[doc = include_str!("../docs/pool/doctor.md")]
pub mod pool {}

#[doc = include_str!("../docs/queue/README.md")]
pub mod queue {}
