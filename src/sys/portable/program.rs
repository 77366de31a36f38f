pub(crate) fn contains(_: usize, _: usize) -> bool {
    true
}
pub(crate) fn build_id() -> &'static str {
    ""
}
