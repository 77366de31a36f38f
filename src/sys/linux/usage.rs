//! How much memory processes hold.

use std::io;

/// The anonymous memory of this process that is in core or swapped out, in bytes.
pub(crate) fn own_anonymous() -> io::Result<u64> {
    anonymous(&std::fs::read_to_string("/proc/self/status")?)
}

/// Reads it from a process's status; one that has ended and was not reaped holds nothing.
fn anonymous(status: &str) -> io::Result<u64> {
    let mut kilobytes = 0;
    for line in status.lines() {
        let Some((name, value)) = line.split_once(':') else { continue };
        if matches!(name, "RssAnon" | "VmSwap") {
            let number = value.trim().strip_suffix(" kB").and_then(|number| number.parse::<u64>().ok());
            kilobytes += number.ok_or(io::ErrorKind::InvalidData)?;
        }
    }
    Ok(kilobytes << 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_to_counts() {
        const LEN: usize = 64 << 20;
        let before = own_anonymous().unwrap();
        let held = vec![1_u8; LEN];
        let after = own_anonymous().unwrap();
        assert!(after >= before + LEN as u64 / 2, "{before} to {after}");
        drop(held);
    }

    #[test]
    fn a_status_in_no_known_shape_is_an_error() {
        assert_eq!(anonymous("RssAnon:\t 12 kB\nVmSwap:\t 4 kB\n").unwrap(), 16 << 10);
        assert_eq!(anonymous("State:\tZ (zombie)\n").unwrap(), 0);
        assert!(anonymous("RssAnon:\t12 pages\n").is_err());
    }
}
