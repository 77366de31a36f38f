use tokio_multiprocess as mp;

fn main() {
    let text = String::from("captured");
    let _ = mp::Process::builder(move |times: usize| println!("{}", text.repeat(times)), (2,));
}
