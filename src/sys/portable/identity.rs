/// No other process has anything of ours.
pub(crate) fn me() -> u64 {
    u64::from(std::process::id()).max(1)
}

pub(crate) fn is_dead(_: u64) -> bool {
    false
}

pub(crate) fn pid_namespace() -> u64 {
    0
}
