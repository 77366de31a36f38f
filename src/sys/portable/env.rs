use std::ffi::{CString, OsStr, OsString};

pub(crate) fn environment() -> Vec<CString> {
    Vec::new()
}
pub(crate) fn c_string(text: &OsStr) -> std::io::Result<CString> {
    Ok(CString::new(text.as_encoded_bytes())?)
}
pub(crate) fn replace_environment(_: &[(OsString, OsString)]) {}
pub(crate) fn unset_env(_: &OsStr) {}
