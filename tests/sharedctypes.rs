//! Values and arrays in shared memory, under each start method.

#![cfg(target_os = "linux")]
#![allow(unsafe_code, reason = "to fork among libtest's threads has to be vouched for")]

mod support;

use std::sync::Mutex;
use std::time::Duration;

use bytemuck::{Pod, Zeroable};
use futures::poll;
use support::{eventually, guard, run, run_each};
use tokio_multiprocess as mp;
use tokio_multiprocess::{Array, Lock, RawArray, RawValue, Value};

#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Pod, Zeroable)]
struct Record {
    x: i32,
    y: i32,
    z: f64,
}

type Cells = (RawValue<i32>, RawValue<f64>, RawValue<i16>, RawValue<i64>, RawValue<u8>);

// conformance: _TestValue.test_rawvalue
#[test]
fn cells_have_what_the_other_process_has_written() {
    run_each(120, |context| async move {
        let cells: Cells = (
            RawValue::new(0).unwrap(),
            RawValue::new(3.25).unwrap(),
            RawValue::new(-3).unwrap(),
            RawValue::new(1 << 33).unwrap(),
            RawValue::new(b'c').unwrap(),
        );
        let values = |(a, b, c, d, e): &Cells| (a.get(), b.get(), c.get(), d.get(), e.get());
        assert_eq!(values(&cells), (0, 3.25, -3, 1 << 33, b'c'));
        let target = |(a, b, c, d, e): Cells| {
            a.set(a.get() - 234);
            b.set(-5.5);
            c.set(1021);
            d.set((1 << 34) + 1);
            e.set(b'b');
        };
        let child = context.process(target, (cells.clone(),)).start().await.unwrap();
        assert!(child.join().await.unwrap().success());
        assert_eq!(values(&cells), (-234, -5.5, 1021, (1 << 34) + 1, b'b'));
    });
}

// conformance: _TestArray.test_rawarray
#[test]
fn arrays_are_indexed_sliced_and_changed_by_another_process() {
    run_each(120, |context| async move {
        let mut here = vec![680, 626, 934, 821, 150, 233, 548, 982, 714, 831];
        let array = RawArray::from_slice(&here).unwrap();
        assert_eq!((array.len(), array.get(3)), (10, 821));
        assert_eq!(array.read(2..7), here[2..7]);
        assert_eq!(
            (array.read(..=1), array.read(9..), array.read(5..5)),
            (vec![680, 626], vec![831], vec![])
        );
        array.write(4, &[1, 2, 3, 4]);
        here[4..8].copy_from_slice(&[1, 2, 3, 4]);
        assert_eq!(array.to_vec(), here);

        let sums = |array: RawArray<i32>| {
            (1..array.len()).for_each(|i| array.set(i, array.get(i - 1) + array.get(i)));
        };
        let child = context.process(sums, (array.clone(),)).start().await.unwrap();
        assert!(child.join().await.unwrap().success());
        (1..here.len()).for_each(|i| here[i] += here[i - 1]);
        assert_eq!(array.to_vec(), here);
    });
}

// conformance: _TestArray.test_array_from_size
#[test]
fn an_array_of_a_size_is_zero_also_where_one_was_before() {
    let _guard = guard(60);
    for _ in 0..3 {
        let array = RawArray::<i32>::new(10).unwrap();
        assert_eq!(array.to_vec(), [0; 10]);
        array.write(0, &[0, 1, 2, 3, 4, 5, 6, 7, 8, 9]);
        assert_eq!(array.to_vec(), [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]);
    }
    assert!(RawArray::<u64>::new(0).unwrap().is_empty());
    assert!(RawArray::<u64>::new(usize::MAX).is_err());
}

// conformance: _TestSharedCTypes.test_sharedctypes
#[test]
fn numbers_records_arrays_and_strings_are_doubled_by_a_child() {
    run_each(120, |context| async move {
        let x = RawValue::new(7i32).unwrap();
        let y = RawValue::new(1.0 / 3.0).unwrap();
        let long = RawValue::new(1i64 << 33).unwrap();
        let record = RawValue::new(Record { x: 3, y: 2, ..Record::default() }).unwrap();
        let array = RawArray::from_items((0..10).map(f64::from)).unwrap();
        let string = RawArray::<u8>::new(20).unwrap();
        string.set_value(b"hello").unwrap();

        let target = |x: RawValue<i32>,
                      y: RawValue<f64>,
                      long: RawValue<i64>,
                      record: RawValue<Record>,
                      array: RawArray<f64>,
                      string: RawArray<u8>| {
            x.set(x.get() * 2);
            y.set(y.get() * 2.0);
            long.set(long.get() * 2);
            let Record { x, y, z } = record.get();
            record.set(Record { x: x * 2, y: y * 2, z: z * 2.0 });
            (0..array.len()).for_each(|i| array.set(i, array.get(i) * 2.0));
            string.set_value(&string.value().repeat(2)).unwrap();
        };
        let args = (x.clone(), y.clone(), long.clone(), record.clone(), array.clone(), string.clone());
        let child = context.process(target, args).start().await.unwrap();
        assert!(child.join().await.unwrap().success());
        assert_eq!((x.get(), y.get(), long.get()), (14, 2.0 / 3.0, 1 << 34));
        assert_eq!(record.get(), Record { x: 6, y: 4, z: 0.0 });
        assert_eq!(array.to_vec(), (0..10).map(|i| f64::from(i) * 2.0).collect::<Vec<_>>());
        assert_eq!(string.value(), b"hellohello");
    });
}

// conformance: _TestSharedCTypes.test_copy
#[test]
fn a_copy_keeps_what_the_original_loses() {
    let _guard = guard(60);
    let record = RawValue::new(Record { x: 2, y: 5, z: 1.5 }).unwrap();
    let copied = mp::copy(&record).unwrap();
    record.set(Record::default());
    assert_eq!(copied.get(), Record { x: 2, y: 5, z: 1.5 });
    let array = RawArray::from_items([1u8, 2, 3]).unwrap();
    let copied = mp::copy(&array).unwrap();
    array.fill(9);
    assert_eq!((array.to_vec(), copied.to_vec()), (vec![9; 3], vec![1, 2, 3]));
}

#[test]
fn strings_end_with_a_zero_or_with_the_array() {
    let _guard = guard(60);
    let string = RawArray::<u8>::new(4).unwrap();
    assert_eq!(string.value(), b"");
    string.set_value(b"full").unwrap();
    assert_eq!(string.value(), b"full");
    string.set_value(b"ab").unwrap();
    assert_eq!((string.value(), string.to_vec()), (b"ab".to_vec(), b"ab\0l".to_vec()));
    let error = string.set_value(b"longer").unwrap_err();
    assert!(matches!(error, mp::Error::InvalidArgument(_)), "{error}");
    assert_eq!(string.value(), b"ab");
}

#[test]
fn indices_outside_panic_as_those_of_slices() {
    let _guard = guard(60);
    let array = RawArray::from_items([1u32, 2]).unwrap();
    let panics = |f: &dyn Fn()| std::panic::catch_unwind(std::panic::AssertUnwindSafe(f)).is_err();
    assert!(panics(&|| _ = array.get(2)));
    assert!(panics(&|| array.set(usize::MAX, 1)));
    assert!(panics(&|| _ = array.read(1..3)));
    #[allow(clippy::reversed_empty_ranges, reason = "that is what is tried")]
    let reversed = 2..1;
    assert!(panics(&|| _ = array.read(reversed.clone())));
    assert!(panics(&|| array.write(1, &[3, 4])));
    assert!(panics(&|| _ = array.fetch_add(2, 1)));
    assert_eq!(array.to_vec(), [1, 2]);
}

/// Neighbours within a word among them.
#[test]
fn counting_together_loses_nothing() {
    const EACH: u32 = 20_000;
    run_each(120, |context| async move {
        let total = RawValue::new(0u64).unwrap();
        let counts = RawArray::<u16>::new(4).unwrap();
        let count = |total: RawValue<u64>, counts: RawArray<u16>| {
            for i in 0..EACH {
                total.fetch_add(1);
                counts.fetch_add(i as usize % 3, 1);
            }
        };
        let mut children = Vec::new();
        for _ in 0..2 {
            let args = (total.clone(), counts.clone());
            children.push(context.process(count, args).start().await.unwrap());
        }
        count(total.clone(), counts.clone());
        for child in children {
            assert!(child.join().await.unwrap().success());
        }
        assert_eq!(total.get(), u64::from(EACH) * 3);
        assert_eq!(counts.to_vec().iter().map(|&n| u32::from(n)).sum::<u32>(), EACH * 3);
        assert_eq!(counts.get(3), 0);
    });
}

#[test]
fn each_step_gives_what_was_there() {
    let _guard = guard(60);
    let n = RawValue::new(250u8).unwrap();
    assert_eq!((n.fetch_add(10), n.fetch_sub(5), n.get()), (250, 4, 255));
    assert_eq!((n.fetch_min(7), n.fetch_max(9), n.swap(1)), (255, 7, 9));
    assert_eq!((n.compare_exchange(2, 3), n.compare_exchange(1, 3)), (Err(1), Ok(1)));
    assert_eq!((n.fetch_update(|_| None), n.fetch_update(|n| n.checked_mul(2)), n.get()), (Err(3), Ok(3), 6));
    let n = RawValue::new(-1i16).unwrap();
    assert_eq!((n.fetch_max(i16::MIN), n.fetch_sub(i16::MAX), n.get()), (-1, -1, i16::MIN));
}

/// A writer that is killed in its middle leaves no half of a word, and the memory to the others.
#[test]
fn who_dies_while_writing_leaves_whole_words() {
    run_each(120, |context| async move {
        let array = RawArray::<u64>::new(1000).unwrap();
        let started = RawValue::new(0u8).unwrap();
        let scribble = |array: RawArray<u64>, started: RawValue<u8>| {
            for byte in (1..=255u8).cycle() {
                array.fill(u64::from_ne_bytes([byte; 8]));
                started.set(1);
            }
        };
        let child = context.process(scribble, (array.clone(), started.clone())).start().await.unwrap();
        eventually("the child writes", || started.get() == 1).await;
        let whole = |item: u64| item.to_ne_bytes() == [item as u8; 8];
        for _ in 0..1000 {
            assert!(array.to_vec().into_iter().all(whole));
        }
        child.kill().unwrap();
        child.join().await.unwrap();
        assert!(array.to_vec().into_iter().all(whole));
        array.fill(7);
        assert_eq!(array.to_vec(), [7; 1000]);
    });
}

// conformance: _TestHeap.test_free_from_gc
#[test]
fn objects_come_and_go_in_many_threads_and_none_is_left() {
    let _guard = guard(120);
    let descriptors = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    let before = descriptors();
    // Dropped in the middle of making others, and by who has not made them.
    struct Pair(
        RawArray<u8>,
        RawValue<u64>,
        #[expect(dead_code, reason = "it is dropped")] Option<Box<Pair>>,
    );
    impl Drop for Pair {
        fn drop(&mut self) {
            let fresh = RawValue::new(self.1.get()).unwrap();
            assert_eq!(fresh.get() as usize, self.0.len());
        }
    }
    let (send, receive) = std::sync::mpsc::channel();
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let send = send.clone();
            scope.spawn(move || {
                let mut last = None;
                for i in 1..=1250 {
                    let len = (i * 37 + thread) % 5000;
                    let array = RawArray::new(len).unwrap();
                    let pair = Pair(array, RawValue::new(len as u64).unwrap(), last.take());
                    if i % 10 == 0 {
                        send.send(pair).unwrap();
                    } else {
                        last = Some(Box::new(pair));
                    }
                }
            });
        }
        drop(send);
        receive.into_iter().for_each(drop);
    });
    assert_eq!(descriptors(), before);
}

/// It lives as long as somebody holds it, be it only a message.
#[test]
fn an_object_outlives_who_made_it() {
    run(120, async {
        let (mut here, mut there) = mp::pipe().unwrap();
        here.send(&RawArray::from_items([1u16, 2, 3]).unwrap()).await.unwrap();
        let array: RawArray<u16> = there.recv().await.unwrap();
        assert_eq!(array.to_vec(), [1, 2, 3]);
        let task = mp::spawn(|| RawValue::new(std::process::id()).unwrap(), ()).await.unwrap();
        let value = task.await.unwrap();
        assert!(value.get() != std::process::id() && value.get() > 0);
    });
}

/// What arrives for another type is an error of the message, and the connection goes on.
#[test]
fn an_object_of_another_size_is_refused() {
    run(120, async {
        let (mut here, mut there) = mp::pipe().unwrap();
        here.send(&RawValue::new(1u32).unwrap()).await.unwrap();
        let error = there.recv::<RawValue<u64>>().await.unwrap_err();
        assert!(error.to_string().contains("an item has 4 bytes there, and 8 here"), "{error}");
        here.send(&1).await.unwrap();
        assert_eq!(there.recv::<i32>().await.unwrap(), 1);
        let bytes = outside_of_a_message(&RawValue::new(1u32).unwrap());
        assert!(bytes.is_err());
    });
}

/// Outside of a message there is nothing to send it by.
fn outside_of_a_message(value: &RawValue<u32>) -> Result<Vec<u8>, rmp_serde::encode::Error> {
    rmp_serde::to_vec(value)
}

/// Where the descriptors that were not transferred are gone.
#[test]
fn what_a_static_holds_is_the_same_in_a_forked_child_which_can_send_it_on() {
    static SHARED: Mutex<Option<(RawValue<u32>, RawArray<u8>)>> = Mutex::new(None);
    run(120, async {
        // SAFETY: the child takes no lock that another thread may hold.
        let fork = unsafe { mp::Context::fork_with_threads() };
        let (n, array) = (RawValue::new(1).unwrap(), RawArray::from_items([1, 2, 3]).unwrap());
        *SHARED.lock().unwrap() = Some((n.clone(), array.clone()));
        let target = || {
            let (n, array) = SHARED.lock().unwrap().clone().unwrap();
            n.fetch_add(1);
            array.set(0, 9);
            (n, array)
        };
        let child = fork.spawn(target, ()).await.unwrap();
        SHARED.lock().unwrap().take();
        let (n_again, array_again) = child.await.unwrap();
        assert_eq!((n.get(), array.to_vec()), (2, vec![9, 2, 3]));
        n_again.set(5);
        assert_eq!((n.get(), array_again.to_vec()), (5, vec![9, 2, 3]));
    });
}

/// Neither the objects nor their locks are anything less to those who keep them.
#[test]
fn forked_children_drop_what_they_have_inherited() {
    type Shared = (Value<u64>, Array<u8>, RawArray<u64>);
    static SHARED: Mutex<Option<Shared>> = Mutex::new(None);
    run(120, async {
        // SAFETY: the child takes no lock that another thread may hold.
        let fork = unsafe { mp::Context::fork_with_threads() };
        let ours = (Value::new(1).unwrap(), Array::new(3).unwrap(), RawArray::new(3).unwrap());
        let guard = ours.1.lock().await.unwrap();
        *SHARED.lock().unwrap() = Some(ours.clone());
        let target = async || {
            let (value, array, raw) = SHARED.lock().unwrap().take().unwrap();
            *value.lock().await.unwrap() += 1;
            raw.fetch_add(1, 1);
            array.try_lock().unwrap().is_none()
        };
        for _ in 0..3 {
            assert!(fork.spawn(target, ()).await.unwrap().await.unwrap());
        }
        SHARED.lock().unwrap().take();
        assert!(ours.1.try_lock().unwrap().is_none());
        drop(guard);
        assert_eq!(*ours.1.try_lock().unwrap().unwrap(), [0; 3]);
        assert_eq!((*ours.0.lock().await.unwrap(), ours.2.to_vec()), (4, vec![0, 3, 0]));
    });
}

type Values = (Value<i32>, Value<f64>, Value<i16>, Value<i64>, Value<u8>);

// conformance: _TestValue.test_value
#[test]
fn values_have_what_the_other_process_has_written() {
    run_each(120, |context| async move {
        let values: Values = (
            Value::new(0).unwrap(),
            Value::new(3.25).unwrap(),
            Value::new(-3).unwrap(),
            Value::new(1 << 33).unwrap(),
            Value::new(b'c').unwrap(),
        );
        let all = |(a, b, c, d, e): Values| async move {
            let (a, b, c) = (a.lock().await.unwrap(), b.lock().await.unwrap(), c.lock().await.unwrap());
            (*a, *b, *c, *d.lock().await.unwrap(), *e.lock().await.unwrap())
        };
        assert_eq!(all(values.clone()).await, (0, 3.25, -3, 1 << 33, b'c'));
        let target = async |(a, b, c, d, e): Values| {
            *a.lock().await.unwrap() -= 234;
            *b.lock().await.unwrap() = -5.5;
            *c.lock().await.unwrap() = 1021;
            *d.lock().await.unwrap() = (1 << 34) + 1;
            *e.try_lock().unwrap().unwrap() = b'b';
        };
        let child = context.process(target, (values.clone(),)).start().await.unwrap();
        assert!(child.join().await.unwrap().success());
        assert_eq!(all(values).await, (-234, -5.5, 1021, (1 << 34) + 1, b'b'));
    });
}

// conformance: _TestValue.test_getobj_getlock
// conformance: _TestArray.test_getobj_getlock_obj
#[test]
fn the_supplied_lock_is_the_one_that_keeps_out() {
    run(120, async {
        let lock = Lock::new().unwrap();
        let value = Value::with_lock(&lock, 5).unwrap();
        let array = Array::with_lock(&lock, 0..10).unwrap();
        let others = (Value::new(5).unwrap(), Array::from_items(0..10).unwrap());
        assert_eq!((value.get_obj().get(), array.get_obj().to_vec()), (5, (0..10).collect()));

        let guard = lock.acquire().await.unwrap();
        assert!(value.get_lock().locked() && array.get_lock().locked());
        assert!(value.try_lock().unwrap().is_none() && array.try_lock().unwrap().is_none());
        assert!(array.lock_timeout(Duration::from_millis(10)).await.unwrap().is_none());
        assert!(others.0.try_lock().unwrap().is_some() && others.1.try_lock().unwrap().is_some());
        drop(guard);

        let guard = value.lock().await.unwrap();
        assert!(lock.locked() && array.try_lock().unwrap().is_none());
        assert!(lock.try_acquire().unwrap().is_none());
        drop(guard);
        assert!(!lock.locked());
    });
}

/// As one message, as several, and without their locks.
#[test]
fn what_was_sent_has_the_same_lock_and_the_same_value() {
    run(120, async {
        let (mut here, mut there) = mp::pipe().unwrap();
        let lock = Lock::new().unwrap();
        let apart = Value::with_lock(&lock, 1u64).unwrap();
        let beside = Array::from_items([1u8, 2, 3]).unwrap();
        let raw = mp::synchronized(beside.get_obj()).unwrap();
        here.send(&(&apart, &beside, &raw, beside.get_obj(), apart.get_obj())).await.unwrap();
        type Arrived = (Value<u64>, Array<u8>, Array<u8>, RawArray<u8>, RawValue<u64>);
        let (apart2, beside2, raw2, bare_array, bare_value): Arrived = there.recv().await.unwrap();

        let mut guard = apart2.lock().await.unwrap();
        assert!(lock.locked());
        *guard = 7;
        drop(guard);
        assert_eq!((apart.get_obj().get(), bare_value.get()), (7, 7));
        let mut guard = beside2.lock().await.unwrap();
        assert!(beside.try_lock().unwrap().is_none());
        guard[1] = 9;
        drop(guard);
        for array in [beside.get_obj(), raw.get_obj(), raw2.get_obj(), &bare_array] {
            assert_eq!(array.to_vec(), [1, 9, 3]);
        }
        // The lock of the same object that was made later is another.
        let _guard = raw2.lock().await.unwrap();
        assert!(raw.try_lock().unwrap().is_none() && beside.try_lock().unwrap().is_some());

        here.send(&lock).await.unwrap();
        assert!(there.recv::<Value<u64>>().await.is_err());
        here.send(&beside).await.unwrap();
        let error = there.recv::<Array<u32>>().await.unwrap_err();
        assert!(error.to_string().contains("an item has 1 bytes there, and 4 here"), "{error}");
    });
}

// conformance: _TestArray.test_array
#[test]
fn locked_arrays_are_slices_and_changed_by_another_process() {
    run_each(120, |context| async move {
        let mut here = vec![680, 626, 934, 821, 150, 233, 548, 982, 714, 831];
        let array = Array::from_slice(&here).unwrap();
        let mut guard = array.lock().await.unwrap();
        assert_eq!((array.len(), guard.len(), guard[3], &guard[2..7]), (10, 10, 821, &here[2..7]));
        guard[4..8].copy_from_slice(&[1, 2, 3, 4]);
        here[4..8].copy_from_slice(&[1, 2, 3, 4]);
        assert_eq!(*guard, here);
        drop(guard);
        assert_eq!(array.get_obj().to_vec(), here);

        let sums = async |array: Array<i32>| {
            let mut array = array.lock().await.unwrap();
            (1..array.len()).for_each(|i| array[i] += array[i - 1]);
        };
        let child = context.process(sums, (array.clone(),)).start().await.unwrap();
        assert!(child.join().await.unwrap().success());
        (1..here.len()).for_each(|i| here[i] += here[i - 1]);
        assert_eq!(*array.lock().await.unwrap(), here);
        assert_eq!(*Array::<u64>::new(3).unwrap().lock().await.unwrap(), [0; 3]);
    });
}

// conformance: _TestSharedCTypes.test_synchronize
#[test]
fn what_is_synchronized_is_doubled_by_a_child() {
    run_each(120, |context| async move {
        let raw = (
            RawValue::new(7i32).unwrap(),
            RawValue::new(Record { x: 3, y: 2, ..Record::default() }).unwrap(),
            RawArray::from_items((0..10).map(f64::from)).unwrap(),
            RawArray::<u8>::new(20).unwrap(),
        );
        raw.3.set_value(b"hello").unwrap();
        let lock = Lock::new().unwrap();
        let x = mp::synchronized(&raw.0).unwrap();
        let record = mp::synchronized_with_lock(&raw.1, &lock).unwrap();
        let array = mp::synchronized_with_lock(&raw.2, &lock).unwrap();
        let string = mp::synchronized(&raw.3).unwrap();

        let target = async |x: Value<i32>, record: Value<Record>, array: Array<f64>, string: Array<u8>| {
            *x.lock().await.unwrap() *= 2;
            let mut guard = record.lock().await.unwrap();
            guard.x *= 2;
            guard.y *= 2;
            guard.z *= 2.0;
            drop(guard);
            array.lock().await.unwrap().iter_mut().for_each(|item| *item *= 2.0);
            let _guard = string.get_lock().acquire().await.unwrap();
            let string = string.get_obj();
            string.set_value(&string.value().repeat(2)).unwrap();
        };
        let args = (x.clone(), record.clone(), array.clone(), string.clone());
        let child = context.process(target, args).start().await.unwrap();
        assert!(child.join().await.unwrap().success());
        assert_eq!(*x.lock().await.unwrap(), 14);
        assert_eq!(*record.lock().await.unwrap(), Record { x: 6, y: 4, z: 0.0 });
        assert_eq!(raw.2.to_vec(), (0..10).map(|i| f64::from(i) * 2.0).collect::<Vec<_>>());
        assert_eq!(raw.3.value(), b"hellohello");
    });
}

#[test]
fn adding_under_the_lock_loses_nothing() {
    const EACH: u64 = 2000;
    run_each(120, |context| async move {
        let record = Value::new([0u64; 3]).unwrap();
        let add = async |record: Value<[u64; 3]>| {
            for _ in 0..EACH {
                record.lock().await.unwrap().iter_mut().for_each(|n| *n += 1);
            }
        };
        let mut children = Vec::new();
        for _ in 0..2 {
            children.push(context.process(add, (record.clone(),)).start().await.unwrap());
        }
        let tasks = [tokio::spawn(add(record.clone())), tokio::spawn(add(record.clone()))];
        for task in tasks {
            task.await.unwrap();
        }
        for child in children {
            assert!(child.join().await.unwrap().success());
        }
        assert_eq!(*record.lock().await.unwrap(), [EACH * 4; 3]);
    });
}

#[test]
fn what_is_not_changed_is_not_written_and_a_panic_changes_nothing() {
    run(120, async {
        let value = Value::new(1).unwrap();
        let guard = value.lock().await.unwrap();
        value.get_obj().set(2);
        assert_eq!(*guard, 1);
        drop(guard);
        assert_eq!(value.get_obj().get(), 2);

        let panicking = value.clone();
        let task = tokio::spawn(async move {
            let mut guard = panicking.lock().await.unwrap();
            *guard = 3;
            panic!("in the middle");
        });
        assert!(task.await.unwrap_err().is_panic());
        assert_eq!(*value.lock().await.unwrap(), 2);

        // Who cleans up after a panic changes what it says.
        struct Cleanup(Value<i32>);
        impl Drop for Cleanup {
            fn drop(&mut self) {
                *self.0.try_lock().unwrap().unwrap() = 4;
            }
        }
        let cleanup = Cleanup(value.clone());
        let task = tokio::spawn(async move {
            let _cleanup = cleanup;
            panic!("to be cleaned up");
        });
        assert!(task.await.unwrap_err().is_panic());
        assert_eq!(*value.lock().await.unwrap(), 4);
    });
}

/// A future that is dropped while it waits has neither the lock nor a copy.
#[test]
fn a_lock_that_is_waited_for_in_vain_is_nobodys() {
    run(120, async {
        let value = Value::new(1).unwrap();
        let guard = value.lock().await.unwrap();
        let mut waiting = Box::pin(value.lock());
        assert!(poll!(&mut waiting).is_pending());
        drop(waiting);
        drop(guard);
        assert_eq!(*value.try_lock().unwrap().unwrap(), 1);
    });
}

/// The copy of a guard in a foreign fork of its process holds nothing, and commits nothing.
#[test]
fn a_forked_copy_of_a_guard_commits_nothing() {
    run(120, async {
        let value = Value::new(1).unwrap();
        let mut guard = value.lock().await.unwrap();
        *guard = 2;
        // SAFETY: the child does nothing but to drop the guard, and ends.
        match unsafe { nix::unistd::fork() }.unwrap() {
            nix::unistd::ForkResult::Child => {
                drop(guard);
                // SAFETY: ends the process at once.
                unsafe { nix::libc::_exit(0) }
            }
            nix::unistd::ForkResult::Parent { child } => {
                nix::sys::wait::waitpid(child, None).unwrap();
            }
        }
        assert_eq!(value.get_obj().get(), 1);
        assert!(value.try_lock().unwrap().is_none());
        drop(guard);
        assert_eq!(*value.lock().await.unwrap(), 2);
    });
}

/// Whenever it is killed, all is of one commit, and the next one goes on from there.
#[test]
fn who_is_killed_while_committing_leaves_nothing_half_written() {
    const KILLS: usize = 12;
    run_each(300, |context| async move {
        let array = Array::<u64>::new(20_000).unwrap();
        let work = async |array: Array<u64>, commits: RawValue<u64>| {
            loop {
                let mut guard = array.lock().await.unwrap();
                let next = guard[0] + 1;
                guard.fill(next);
                drop(guard);
                commits.fetch_add(1);
            }
        };
        let mut last = 0;
        let mut died_holding = 0;
        for _ in 0..KILLS {
            let commits = RawValue::new(0).unwrap();
            let child = context.process(work, (array.clone(), commits.clone())).start().await.unwrap();
            eventually("it commits", || commits.get() > 20).await;
            child.kill().unwrap();
            child.join().await.unwrap();
            let guard = array.lock_timeout(support::PATIENCE).await.unwrap().expect("the dead hold nothing");
            assert!(guard.iter().all(|&item| item == guard[0]), "half written: {:?}", &guard[..3]);
            assert!(guard[0] >= last + commits.get());
            died_holding += usize::from(guard.previous_owner_died());
            guard.acknowledge();
            assert!(!guard.previous_owner_died());
            last = guard[0];
        }
        assert!(died_holding > 0, "none of {KILLS} was killed while it held the lock");
    });
}
