use tokio_multiprocess::{Array, Value};

fn main() {
    Value::with_lock("notalock", 5).unwrap();
    Array::with_lock("notalock", 0..10).unwrap();
}
