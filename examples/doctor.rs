//! Prints what this machine gives the crate, and what it does without the rest.
//!
//! ```sh
//! cargo run --example doctor
//! TOKIO_MULTIPROCESS_WITHOUT=pidfd cargo run --example doctor
//! ```

fn main() {
    print!("{}", tokio_multiprocess::doctor());
}
