//! Names the face that is built: `multiprocess` where processes can be started.

fn main() {
    println!("cargo::rustc-check-cfg=cfg(multiprocess)");
    println!("cargo::rerun-if-changed=build.rs");
    let linux = std::env::var("CARGO_CFG_TARGET_OS").is_ok_and(|os| os == "linux");
    let portable = std::env::var("CARGO_CFG_TOKIO_MULTIPROCESS_PORTABLE").is_ok();
    if linux && !portable {
        println!("cargo::rustc-cfg=multiprocess");
    }
}
