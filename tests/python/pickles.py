"""Pickles of known values, and a look at pickles that came from elsewhere.

    pickles.py                   prints "name protocol hex" for each value and protocol
    pickles.py check             reads "name hex" lines; tells which differ from its own value
    pickles.py again             reads hex lines; prints each value's pickle in every protocol
"""

import argparse
import collections
import datetime
import decimal
import multiprocessing.managers
import pickle
import signal
import sys

signal.alarm(60)

row = [1, 2]

ALL = {
    "none": None,
    "true": True,
    "false": False,
    "ints": [0, -1, 255, 256, 65535, 65536, 2**31 - 1, 2**31, -(2**31), -(2**31) - 1],
    "ints64": [2**63 - 1, -(2**63), 2**63, -(2**63) - 1, 2**64 - 1, 2**64],
    "ints128": [2**127 - 1, -(2**127), 2**128 - 1],
    "int_huge": -(3**1400),
    "floats": [0.0, -0.0, 1.5, -1e308, 5e-324, float("inf"), float("-inf")],
    "text": ["", "plain", "gr\u00fc\u00df \u20ac \U0001d11e", "back\\slash \\u0041\nline\r\0\x1a"],
    "text_long": "x" * 300,
    "bytes": [b"", b"ab\n\\", bytes(range(256))],
    "bytearray": [bytearray(), bytearray(b"ab\xff"), bytearray(9)],
    "tuples": [(), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4)],
    "list_long": list(range(1100)),
    "dict_mixed": {1: "a", "b": 2, (1, None): 2.5, None: [], b"k": True},
    "sets": [set(), {7}, frozenset(), frozenset({"f"})],
    "shared": [row, row, (row, row)],
    "global": [len, collections.OrderedDict, ValueError],
    "exception": ValueError("no", 3),
    "ordered_dict": collections.OrderedDict([("z", 1), ("a", 2)]),
    "default_dict": collections.defaultdict(list, {1: 2}),
    "namespace": argparse.Namespace(x=1, y="b"),
    "date": datetime.date(2020, 1, 2),
    "decimal": decimal.Decimal("1.50"),
    "complex": 1 + 2j,
    "token": multiprocessing.managers.Token("list", ("h", 5), "7f"),
}


class Words(list):
    pass


class Keyed:
    def __new__(cls, a, k):
        self = object.__new__(cls)
        self.a = a
        return self

    def __getnewargs_ex__(self):
        return (self.a,), {"k": 2}

    def __eq__(self, other):
        return type(other) is Keyed and other.a == self.a


# What protocol 1 and older spell by way of `copyreg`, and 3 and older by way of `functools.partial`.
SINCE_2 = {"list_subclass": Words(["w"])}
SINCE_4 = {"new_with_keywords": Keyed(1, k=2)}


def values(protocol):
    chosen = dict(ALL)
    if protocol >= 2:
        chosen.update(SINCE_2)
    if protocol >= 4:
        chosen.update(SINCE_4)
    return chosen


def same(a, b):
    if isinstance(a, BaseException):
        return type(a) is type(b) and a.args == b.args
    if isinstance(a, multiprocessing.managers.Token):
        return type(a) is type(b) and repr(a) == repr(b)
    return type(a) is type(b) and a == b and (not isinstance(a, list) or list(map(repr, a)) == list(map(repr, b)))


if sys.argv[1:] == ["check"]:
    known = values(5)
    for line in sys.stdin:
        name, data = line.split()
        value = pickle.loads(bytes.fromhex(data))
        if not same(known.pop(name), value):
            print("differs:", name, repr(value)[:200])
    if known:
        print("missing:", *known)
elif sys.argv[1:] == ["again"]:
    for line in sys.stdin:
        value = pickle.loads(bytes.fromhex(line))
        print(*(pickle.dumps(value, protocol).hex() for protocol in range(6)))
else:
    for protocol in range(6):
        for name, value in values(protocol).items():
            print(name, protocol, pickle.dumps(value, protocol).hex())
