use super::RawFd;

pub(crate) fn install(_: RawFd) {}
pub(crate) fn guard_thread() -> std::io::Result<()> {
    Ok(())
}
