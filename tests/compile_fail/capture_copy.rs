use tokio_multiprocess as mp;

fn main() {
    let factor = 6;
    let _ = mp::Process::builder(move |x: u64| assert_eq!(x * factor, 42), (7,));
}
