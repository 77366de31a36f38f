use tokio_multiprocess::{RawArray, RawValue};

fn main() {
    let value = RawValue::new(5).unwrap();
    value.get_lock();
    value.get_obj();
    let array = RawArray::from_items(0..10).unwrap();
    array.get_lock();
    array.get_obj();
}
