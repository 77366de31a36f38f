//! A function's identity across `exec`: how far its entry lies from a base in the same image.
//!
//! Every process of a family runs the same file, so what lies at a distance from [`BASE`] in one
//! lies there in all, wherever the kernel has put the image. What travels is the distance of an
//! [`Entry`], a constant made for each function. Entries carry a mark: a distance that does not
//! lead to a marked entry of the main program is an error and never a jump into the unknown.

use std::any::TypeId;

/// What an entry starts with. Nothing else in an image does.
const MARK: [u64; 2] = [0x6d70_7e5a_91c3_44d1, 0xb75f_02e8_3d96_ac1b];

/// The fixed point that distances are measured from.
///
/// It is an entry itself, so that it lies in the same segment as the others.
static BASE: Entry<()> = Entry::new((), no_name, TypeId::of::<()>);

fn no_name() -> &'static str {
    ""
}

/// The constant that stands for one function: how to call it, its name, its type.
///
/// `C` is the kind of code. It is part of the identity: an entry is found only as what it is.
#[repr(C)]
#[derive(Debug)]
pub(crate) struct Entry<C: 'static> {
    mark: [u64; 2],
    kind: fn() -> TypeId,
    pub(crate) code: C,
    pub(crate) name: fn() -> &'static str,
    pub(crate) type_id: fn() -> TypeId,
}

impl<C: Copy + 'static> Entry<C> {
    pub(crate) const fn new(code: C, name: fn() -> &'static str, type_id: fn() -> TypeId) -> Self {
        Self { mark: MARK, kind: TypeId::of::<C>, code, name, type_id }
    }

    /// How far this entry lies from the base.
    pub(crate) fn distance(&'static self) -> i64 {
        let base = &raw const BASE as usize;
        (self as *const Self as usize).wrapping_sub(base) as i64
    }

    /// The entry at a distance that a process of the same build measured.
    ///
    /// `readable` says whether a range of addresses is part of the main program.
    pub(crate) fn at(distance: i64, readable: impl Fn(usize, usize) -> bool) -> Option<&'static Self> {
        let address = (&raw const BASE as usize).wrapping_add(distance as usize);
        let fits = address.is_multiple_of(align_of::<Self>()) && readable(address, size_of::<Self>());
        if !fits {
            return None;
        }
        let entry = address as *const Self;
        // SAFETY: the range is mapped, readable, aligned and part of the main program, which is
        // never unmapped; `mark` and `kind` are the first fields in both of the `repr(C)` layouts
        // that could stand here. The kind is called only behind a mark, which only entries carry.
        let known = unsafe { (*entry).mark == MARK && ((*entry).kind)() == TypeId::of::<C>() };
        // SAFETY: the mark says that an entry begins here, its kind that it is an `Entry<C>`.
        known.then(|| unsafe { &*entry })
    }

    /// Whether two entries stand for the same function.
    pub(crate) fn same(&self, other: &Self) -> bool {
        (self.type_id)() == (other.type_id)()
    }
}

/// Makes the only value of a function's type again.
///
/// Only `function` calls this, for an `F` whose value its caller was given here or, in another
/// process of the same build, there: [`Entry`]s are made of values alone. `Copy` and `'static`
/// keep tokens that mean something (a lock's proof, a brand) from being made out of nothing.
pub(crate) fn recreate<F: Copy + Send + 'static>() -> F {
    const {
        assert!(
            size_of::<F>() == 0,
            "a function for another process cannot capture variables: pass the value as an \
             argument instead, as in `pool.apply(|x: u64, k: u64| x * k, (x, k))`"
        );
    }
    // SAFETY: `F` has no bytes, so any aligned address holds one; it is inhabited, since a value was
    // handed over where the entry was made; and it is `Copy`, so there may be another.
    unsafe { std::ptr::NonNull::<F>::dangling().read() }
}

#[cfg(test)]
mod tests {
    use super::*;

    static ONE: Entry<fn() -> u8> = Entry::new(|| 1, no_name, TypeId::of::<u8>);

    #[test]
    fn an_entry_is_found_by_its_distance_and_only_as_what_it_is() {
        let found = Entry::<fn() -> u8>::at(ONE.distance(), |_, _| true).unwrap();
        assert_eq!((found.code)(), 1);
        assert!(Entry::<fn() -> u16>::at(ONE.distance(), |_, _| true).is_none());
        assert!(Entry::<fn() -> u8>::at(ONE.distance() + 8, |_, _| true).is_none());
        assert!(Entry::<fn() -> u8>::at(ONE.distance() + 1, |_, _| true).is_none());
        assert!(Entry::<fn() -> u8>::at(ONE.distance(), |_, _| false).is_none());
    }
}
