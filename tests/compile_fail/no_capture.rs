use tokio_multiprocess as mp;

#[tokio::main(flavor = "current_thread")]
async fn main() -> mp::Result<()> {
    let factor = 6;
    assert_eq!(mp::spawn(|x: u64, factor: u64| x * factor, (7, factor)).await?.await?, 42);
    Ok(())
}
