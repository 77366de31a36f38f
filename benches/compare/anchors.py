"""One workload on CPython's multiprocessing: `anchors.py WORKLOAD PROCESSES COUNT SIZE`.

Prints what one operation took, in seconds. Whatever is needed before is started and warm when the
clock starts, as it is on the other side.
"""

import collections
import multiprocessing
import os
import signal
import statistics
import sys
import tempfile
import time


def nothing():
    pass


def square(x):
    return x * x


def start_join(method, count):
    """The median start and end of a process that does nothing."""
    context = multiprocessing.get_context(method)

    def once():
        begin = time.perf_counter()
        child = context.Process(target=nothing)
        child.start()
        child.join()
        return time.perf_counter() - begin

    once()
    return statistics.median(once() for _ in range(count))


def pool_map(pool, count):
    squares = pool.map(square, range(count))
    assert squares[-1] == (count - 1) ** 2


def pool_imap(pool, count):
    assert sum(1 for _ in pool.imap(square, range(count))) == count


def pool_submit(pool, count):
    pending = [pool.apply_async(square, (x,)) for x in range(count)]
    assert pending[-1].get() == (count - 1) ** 2
    for result in pending:
        result.wait()


def pool_apply(pool, count):
    for x in range(count):
        pool.apply(square, (x,))


def echo(payload):
    return payload


def payload_one(pool, count, size):
    payload = bytes(size)
    for _ in range(count):
        payload = pool.apply(echo, (payload,))
    assert len(payload) == size


def payload_several(pool, count, size):
    payload = bytes(size)
    under_way = collections.deque()
    for _ in range(count):
        if len(under_way) == 8:
            under_way.popleft().get()
        under_way.append(pool.apply_async(echo, (payload,)))
    for result in under_way:
        assert len(result.get()) == size


def spin(mark):
    with open(mark + ".new", "w") as file:
        file.write(str(os.getpid()))
    os.rename(mark + ".new", mark)
    while True:
        pass


def killed(pool, until):
    """Kills a worker that works for ever: until its processor is free, or the next answer."""
    with tempfile.TemporaryDirectory() as directory:
        mark = os.path.join(directory, "mark")
        pool.apply_async(spin, (mark,))
        while not os.path.exists(mark):
            time.sleep(0.001)
        with open(mark) as file:
            pid = int(file.read())
        begin = time.perf_counter()
        os.kill(pid, signal.SIGKILL)
        if until == "freed":
            try:
                while not open(f"/proc/{pid}/stat").read().rpartition(") ")[2].startswith("Z"):
                    pass
            except OSError:
                pass
        else:
            pool.apply(nothing)
        return time.perf_counter() - begin


def elsewhere():
    # On another processor than the parent, as all who are compared.
    if os.cpu_count() > 1:
        os.sched_setaffinity(0, {1})


def connection_echo(connection):
    elsewhere()
    try:
        while True:
            connection.send_bytes(connection.recv_bytes())
    except EOFError:
        pass


def connection_take(connection, count):
    elsewhere()
    connection.send_bytes(b"r")
    for _ in range(count):
        connection.recv_bytes()
    connection.send_bytes(b"d")


def connection_peer(target, *args):
    here, there = multiprocessing.Pipe()
    # The copy that a forked child has of our end would keep its own from ending.
    process = multiprocessing.get_context("spawn").Process(target=target, args=(there, *args))
    process.start()
    there.close()
    return here, process


def connection_trips(count, size):
    here, process = connection_peer(connection_echo)
    message = bytes(size)
    here.send_bytes(message)
    here.recv_bytes()
    begin = time.perf_counter()
    for _ in range(count):
        here.send_bytes(message)
        here.recv_bytes()
    taken = time.perf_counter() - begin
    here.close()
    process.join()
    return taken / count


def connection_one_way(count, size):
    here, process = connection_peer(connection_take, count)
    message = bytes(size)
    here.recv_bytes()
    begin = time.perf_counter()
    for _ in range(count):
        here.send_bytes(message)
    here.recv_bytes()
    taken = time.perf_counter() - begin
    process.join()
    return taken / count


def lock_loop(lock, count):
    for _ in range(count):
        lock.acquire()
        lock.release()


def lock_uncontended(count, _):
    lock = multiprocessing.Lock()
    lock_loop(lock, 1000)
    begin = time.perf_counter()
    lock_loop(lock, count)
    return (time.perf_counter() - begin) / count


def lock_contend(lock, connection, count):
    elsewhere()
    connection.send_bytes(b"r")
    connection.recv_bytes()
    lock_loop(lock, count)
    connection.send_bytes(b"d")


def lock_contended(count, _):
    here, there = multiprocessing.Pipe()
    context = multiprocessing.get_context("spawn")
    lock = context.Lock()
    process = context.Process(target=lock_contend, args=(lock, there, count))
    process.start()
    here.recv_bytes()
    begin = time.perf_counter()
    here.send_bytes(b"g")
    lock_loop(lock, count)
    here.recv_bytes()
    taken = time.perf_counter() - begin
    process.join()
    return taken / (2 * count)


def queue_put(queue, connection, item, count):
    if os.cpu_count() > 1:
        os.sched_setaffinity(0, range(1, os.cpu_count()))
    connection.send_bytes(b"r")
    connection.recv_bytes()
    for number in range(count):
        queue.put(number if item is None else item)
    connection.send_bytes(b"d")


def queue_get(queue, connection, size, count):
    os.sched_setaffinity(0, {0})
    connection.send_bytes(b"r")
    connection.recv_bytes()
    for _ in range(count):
        item = queue.get()
        if size:
            assert len(item) == size and not any(item[::4096])
    connection.send_bytes(b"d")


def queue_items(producers, count, size):
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    members = []

    def enlist(target, what, count):
        here, there = multiprocessing.Pipe()
        process = context.Process(target=target, args=(queue, there, what, count))
        process.start()
        members.append((here, process))

    enlist(queue_get, size, count)
    for _ in range(producers):
        enlist(queue_put, bytes(size) if size else None, count // producers)
    for here, _ in members:
        here.recv_bytes()
    begin = time.perf_counter()
    for here, _ in members:
        here.send_bytes(b"g")
    for here, _ in members:
        here.recv_bytes()
    taken = time.perf_counter() - begin
    for _, process in members:
        process.join()
    return taken / count


def main(workload, processes, count, size):
    if workload.startswith("start_join_"):
        print(start_join(workload.removeprefix("start_join_"), count))
        return
    if workload.startswith("kill_"):
        with multiprocessing.Pool(processes) as pool:
            pool.apply(nothing)
            print(killed(pool, workload.removeprefix("kill_")))
        return
    run = globals()[workload]
    if workload.startswith(("connection_", "lock_")):
        print(run(count, size))
        return
    if workload.startswith("queue_"):
        print(run(processes, count, size))
        return
    args = (size,) if workload.startswith("payload_") else ()
    with multiprocessing.Pool(processes) as pool:
        pool.map(square, range(1000))
        begin = time.perf_counter()
        run(pool, count, *args)
        print((time.perf_counter() - begin) / count)


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:5]))
