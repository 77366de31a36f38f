use tokio_multiprocess as mp;

fn greet(name: &'static str) {
    println!("hello {name}");
}

fn main() {
    let _ = mp::Process::builder(greet, ("bob",));
}
