use std::sync::OnceLock;

/// Nothing forks here, so what is made once is made once.
pub(crate) struct PerProcess<T: 'static> {
    value: OnceLock<T>,
    make: fn() -> T,
}

impl<T: Send + Sync> PerProcess<T> {
    pub(crate) const fn new(make: fn() -> T) -> Self {
        Self { value: OnceLock::new(), make }
    }
    pub(crate) fn get(&'static self) -> &'static T {
        self.value.get_or_init(self.make)
    }
}

pub(crate) fn process_token() -> u64 {
    1
}
