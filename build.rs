//! Names the face that is built: `multiprocess` where processes can be started, which is on Linux with addresses
//! of 64 bits, as long as offsets in shared memory are.

fn main() {
    println!("cargo::rustc-check-cfg=cfg(multiprocess)");
    println!("cargo::rerun-if-changed=build.rs");
    let linux = std::env::var("CARGO_CFG_TARGET_OS").is_ok_and(|os| os == "linux");
    let long = std::env::var("CARGO_CFG_TARGET_POINTER_WIDTH").is_ok_and(|bits| bits == "64");
    let portable = std::env::var("CARGO_CFG_TOKIO_MULTIPROCESS_PORTABLE").is_ok();
    if linux && long && !portable {
        println!("cargo::rustc-cfg=multiprocess");
    }
}
