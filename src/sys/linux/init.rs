//! The hook by which a child is recognised before `main`.
//!
//! The dynamic linker calls each address in `.init_array` when a program starts; one of them is
//! this module's. In a child it runs the child and never comes back, so `main` is not entered.

use std::ffi::{CStr, c_char, c_int};

/// The variable that tells a child what it is. Taken away before anything else runs.
pub(crate) const VARIABLE: &str = "TOKIO_MULTIPROCESS_CHILD";

type InitFn = extern "C" fn(c_int, *const *const c_char, *const *const c_char);

#[cfg(feature = "init-hook")]
#[used]
#[unsafe(link_section = ".init_array")]
static HOOK: InitFn = hook;

#[cfg(feature = "init-hook")]
extern "C" fn hook(argc: c_int, argv: *const *const c_char, envp: *const *const c_char) {
    let Some(order) = order() else { return };
    // The one arrow that points upwards: the linker wants the address while it links.
    crate::bootstrap::from_hook(&order, || run_entries_after(&HOOK, argc, argv, envp));
}

/// What stands in the variable. Ignored in set-user-id programs: their environment is not theirs.
pub(crate) fn order() -> Option<String> {
    let name = std::ffi::CString::new(VARIABLE).expect("a constant without zero bytes");
    unsafe extern "C" {
        /// Both glibc and musl have it; the libc crate does not say so.
        fn secure_getenv(name: *const c_char) -> *mut c_char;
    }
    // SAFETY: the name ends with a zero byte; the text is copied before anything could change it.
    unsafe {
        let value = secure_getenv(name.as_ptr());
        (!value.is_null()).then(|| CStr::from_ptr(value).to_string_lossy().into_owned())
    }
}

/// Calls the entries that the linker would call after `own`: other crates' constructors, such as
/// the ones that collect the names registry.
#[cfg(feature = "init-hook")]
fn run_entries_after(
    own: &'static InitFn,
    argc: c_int,
    argv: *const *const c_char,
    envp: *const *const c_char,
) {
    unsafe extern "C" {
        static __init_array_end: [Option<InitFn>; 0];
    }
    let end = (&raw const __init_array_end).cast::<Option<InitFn>>();
    let mut entry = (own as *const InitFn).cast::<Option<InitFn>>();
    loop {
        // SAFETY: `own` lies in the array whose end the linker names, so stepping up to that end
        // stays inside of it.
        entry = unsafe { entry.add(1) };
        if entry >= end {
            break;
        }
        // SAFETY: inside of the array, whose slots are null or functions of this signature.
        if let Some(call) = unsafe { *entry } {
            call(argc, argv, envp);
        }
    }
}
