pub(crate) const ABRT: i32 = 6;
pub(crate) const INT: i32 = 2;
pub(crate) const KILL: i32 = 9;
pub(crate) const STOP: i32 = 19;
pub(crate) const CONT: i32 = 18;
pub(crate) const TERM: i32 = 15;

pub(crate) fn is_fault(_: i32) -> bool {
    false
}
pub(crate) fn name(signal: i32) -> String {
    format!("signal {signal}")
}
pub(crate) fn raise(_: i32) {}
pub(crate) fn reset_signals() {}
pub(crate) fn ignore_group_signals() {}
pub(crate) fn ignore_interrupt() {}
pub(crate) fn default_interrupt() {}
pub(crate) fn default_sigpipe_ignored() {}
