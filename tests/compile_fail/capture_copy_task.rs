use tokio_multiprocess as mp;

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let factor = 6;
    let _ = mp::spawn(move |x: u64| x * factor, (7,)).await;
}
