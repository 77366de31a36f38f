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

// conformance: _TestValue.test_getobj_getlock
// conformance: _TestArray.test_getobj_getlock_obj
#[test]
fn what_has_no_lock_gives_none_and_a_text_is_none() {
    let tests = trybuild::TestCases::new();
    tests.compile_fail("tests/compile_fail/unlocked_raw.rs");
    tests.compile_fail("tests/compile_fail/lock_text.rs");
}
