"""One workload on CPython's multiprocessing: `anchors.py WORKLOAD PROCESSES COUNT`.

Prints what one operation took, in seconds. Whatever is needed before is started and warm when the
clock starts, as it is on the other side.
"""

import multiprocessing
import statistics
import sys
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


def main(workload, processes, count):
    if workload.startswith("start_join_"):
        print(start_join(workload.removeprefix("start_join_"), count))
        return
    run = globals()[workload]
    with multiprocessing.Pool(processes) as pool:
        pool.map(square, range(1000))
        begin = time.perf_counter()
        run(pool, count)
        print((time.perf_counter() - begin) / count)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
