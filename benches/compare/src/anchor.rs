//! CPython's side.

use std::process::Command;

/// What one operation of a workload takes in CPython, in seconds.
pub(crate) fn anchor(workload: &str, processes: usize, count: usize, size: usize) -> f64 {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/anchors.py");
    let output = Command::new("python3")
        .args([script, workload, &processes.to_string(), &count.to_string(), &size.to_string()])
        .output()
        .expect("python3 runs");
    let seconds = String::from_utf8_lossy(&output.stdout).trim().parse();
    let complaint = String::from_utf8_lossy(&output.stderr);
    seconds.unwrap_or_else(|error| panic!("{workload} in CPython: {error}\n{complaint}"))
}
