//! A program of 200 MB, with as many addresses to relocate at its start as such programs have:
//! see `once.rs`.

#[path = "../by_hand.rs"]
#[allow(dead_code, reason = "one of its parts is used here")]
mod by_hand;
#[path = "../once.rs"]
#[allow(dead_code, reason = "one of its parts is used here")]
mod once;
#[path = "../../../support/mod.rs"]
mod support;

// What nobody refers to, and the linker keeps all the same.
std::arch::global_asm!(
    ".pushsection .rodata.padding,\"aR\",@progbits",
    "padding: .fill 200000000, 1, 0x5a",
    ".popsection",
    ".pushsection .data.rel.ro.padding,\"awR\",@progbits",
    ".balign 8",
    ".rept 250000",
    ".quad padding",
    ".endr",
    ".popsection",
);

fn main() {
    by_hand::enter();
    once::enter();
    println!("a program to be started by `compare`");
}
