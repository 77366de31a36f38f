//! What must not compile, and what the compiler then says.
//!
//! That a function captures something is seen only when code is generated for it, so the harness
//! has to build and not just check: it does if there is also a program that must run.

#![cfg(target_os = "linux")]

// conformance: TestStartMethod.test_context_check_module_types
#[test]
fn captures_and_borrowed_arguments_are_refused() {
    let tests = trybuild::TestCases::new();
    tests.pass("tests/compile_fail/no_capture.rs");
    tests.compile_fail("tests/compile_fail/capture_*.rs");
    tests.compile_fail("tests/compile_fail/borrowed_argument.rs");
    tests.compile_fail("tests/compile_fail/preload_text.rs");
}
