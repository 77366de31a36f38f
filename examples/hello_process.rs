//! A first child process: it says who it is, and the parent waits for it.
//!
//! ```sh
//! cargo run --example hello_process
//! ```

use tokio_multiprocess as mp;

fn greet(name: String) {
    introduce();
    println!("hello, {name}");
}

fn introduce() {
    let me = mp::current_process();
    match mp::parent_process() {
        Some(parent) => {
            println!("{} is process {}, started by {}", me.name(), me.pid(), parent.pid())
        }
        None => println!("{} is process {}", me.name(), me.pid()),
    }
}

#[tokio::main]
async fn main() -> mp::Result<()> {
    introduce();
    let child = mp::Process::builder(greet, ("bob".to_owned(),)).name("greeter").start().await?;
    let status = child.join().await?;
    println!("{} ended: {status}", child.name());
    Ok(())
}
