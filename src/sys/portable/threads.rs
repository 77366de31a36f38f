use std::io;
use std::thread::JoinHandle;

pub(crate) fn spawn<T: Send + 'static>(
    name: &str,
    run: impl FnOnce() -> T + Send + 'static,
) -> io::Result<JoinHandle<T>> {
    std::thread::Builder::new().name(name.to_owned()).spawn(run)
}
pub(crate) fn adopt_current() {}
pub(crate) fn hold_starts() -> impl Drop {
    static NOTHING: std::sync::Mutex<()> = std::sync::Mutex::new(());
    NOTHING.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}
pub(crate) fn foreign() -> io::Result<usize> {
    Ok(0)
}
