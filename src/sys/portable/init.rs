pub(crate) const VARIABLE: &str = "TOKIO_MULTIPROCESS_CHILD";

pub(crate) fn order() -> Option<String> {
    None
}
