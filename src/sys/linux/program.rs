//! The main program as it lies in memory: its segments and its build id.

use std::ffi::{c_int, c_void};
use std::sync::OnceLock;

#[derive(Debug, Default)]
struct Program {
    /// Start and end of each loaded segment that is readable.
    readable: Vec<(usize, usize)>,
    build: Vec<u8>,
}

fn program() -> &'static Program {
    static PROGRAM: OnceLock<Program> = OnceLock::new();
    PROGRAM.get_or_init(|| {
        let mut program = Program::default();
        // SAFETY: the callback is called during this call only, with the pointer given here.
        unsafe { libc::dl_iterate_phdr(Some(first_object), (&raw mut program).cast()) };
        program
    })
}

/// The dynamic linker lists the main program first; a non-zero return ends the list.
unsafe extern "C" fn first_object(info: *mut libc::dl_phdr_info, _: usize, data: *mut c_void) -> c_int {
    // SAFETY: `data` is the `Program` that `program` lends, `info` is valid during the callback.
    let (program, info) = unsafe { (&mut *data.cast::<Program>(), &*info) };
    // SAFETY: the linker says where the headers are and how many.
    let headers = unsafe { std::slice::from_raw_parts(info.dlpi_phdr, usize::from(info.dlpi_phnum)) };
    let at = |header: &libc::Elf64_Phdr| (info.dlpi_addr as usize).wrapping_add(header.p_vaddr as usize);
    for header in headers {
        let len = header.p_memsz as usize;
        match header.p_type {
            libc::PT_LOAD if header.p_flags & libc::PF_R != 0 => {
                program.readable.push((at(header), at(header) + len));
            }
            libc::PT_NOTE if program.build.is_empty() => {
                // SAFETY: a note segment is part of a readable loaded one.
                let notes = unsafe { std::slice::from_raw_parts(at(header) as *const u8, len) };
                program.build = gnu_build_id(notes).unwrap_or_default().to_vec();
            }
            _ => {}
        }
    }
    if program.build.is_empty() {
        program.build = fingerprint(headers, at);
    }
    1
}

/// Notes are (name length, description length, type) and both texts, padded to four bytes.
fn gnu_build_id(mut notes: &[u8]) -> Option<&[u8]> {
    const NT_GNU_BUILD_ID: u32 = 3;
    let word =
        |bytes: &[u8], n: usize| u32::from_ne_bytes(bytes[n * 4..][..4].try_into().expect("four bytes"));
    while notes.len() >= 12 {
        let (name, desc, kind) = (word(notes, 0) as usize, word(notes, 1) as usize, word(notes, 2));
        let from = 12 + name.next_multiple_of(4);
        let to = from.checked_add(desc)?;
        if kind == NT_GNU_BUILD_ID && notes.get(12..12 + name)? == b"GNU\0" {
            return notes.get(from..to);
        }
        notes = notes.get(from + desc.next_multiple_of(4)..)?;
    }
    None
}

/// Where the linker was told to leave the build id out: the layout of the program and samples of
/// its code, which no relocation changes. Cheap even for a program of hundreds of megabytes.
fn fingerprint(headers: &[libc::Elf64_Phdr], at: impl Fn(&libc::Elf64_Phdr) -> usize) -> Vec<u8> {
    use sha2::{Digest, Sha256};
    const SAMPLES: usize = 512;
    const BYTES: usize = 64;
    let mut hash = Sha256::new();
    for header in headers {
        for number in [header.p_type as u64, header.p_vaddr, header.p_filesz, header.p_memsz] {
            hash.update(number.to_le_bytes());
        }
        let len = header.p_filesz as usize;
        if header.p_type == libc::PT_LOAD && header.p_flags & libc::PF_X != 0 && len > BYTES {
            // SAFETY: an executable loaded segment is readable here (or its samples would fault:
            // execute-only code exists on no Linux that Rust's std runs on) and is never unmapped.
            let code = unsafe { std::slice::from_raw_parts(at(header) as *const u8, len) };
            for sample in 0..SAMPLES {
                hash.update(&code[(len - BYTES) / SAMPLES * sample..][..BYTES]);
            }
        }
    }
    hash.finalize()[..20].to_vec()
}

/// Whether a range of addresses is readable memory of the main program.
pub(crate) fn contains(address: usize, len: usize) -> bool {
    let Some(end) = address.checked_add(len) else { return false };
    program().readable.iter().any(|&(from, to)| from <= address && end <= to)
}

/// What tells this build from others, in hexadecimal.
pub(crate) fn build_id() -> &'static str {
    static HEX: OnceLock<String> = OnceLock::new();
    HEX.get_or_init(|| program().build.iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    static HERE: u8 = 1;

    #[test]
    fn the_program_holds_its_statics_and_not_the_heap() {
        assert!(contains(&raw const HERE as usize, 1));
        let boxed = Box::new(1u8);
        assert!(!contains(&raw const *boxed as usize, 1));
        assert!(!contains(usize::MAX, 2));
        assert!(build_id().len() >= 16);
    }

    #[test]
    fn notes_that_are_cut_off_are_no_build_id() {
        let mut notes = Vec::new();
        for word in [4u32, 8, 3] {
            notes.extend(word.to_ne_bytes());
        }
        notes.extend(b"GNU\0ABCDEFGH");
        assert_eq!(gnu_build_id(&notes), Some(&b"ABCDEFGH"[..]));
        for len in 0..notes.len() {
            assert_eq!(gnu_build_id(&notes[..len]), None);
        }
    }
}
