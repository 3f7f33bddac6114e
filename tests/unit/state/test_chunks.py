"""Pickles of state: classes that travel by value, and what is in a chunk without reading its values."""

from __future__ import annotations

import gc

import cloudpickle

from engine.state.chunks import StateChunk, dump_chunk, dump_keyed, load_chunk, read_headers


def order_class(version):
    class Order:
        def __init__(self, amount):
            self.amount = amount

        def describe(self):
            return f"{version} {self.amount}"

    return Order


def test_old_state_gets_the_code_of_the_new_program():
    old = order_class("old")
    chunk = dump_chunk([old(5)], "state")
    del old
    gc.collect()
    new = order_class("new")
    cloudpickle.dumps(new)  # as when the function that uses it came to the task
    (order,) = load_chunk(chunk)
    assert type(order) is new
    assert order.describe() == "new 5"


def test_a_class_that_the_program_has_no_more_comes_along_with_its_values():
    old = order_class("lone")
    old.__name__ = old.__qualname__ = "LoneOrder"
    chunk = dump_chunk([old(5)], "state")
    del old
    gc.collect()
    (order,) = load_chunk(chunk)
    assert order.describe() == "lone 5"


def test_headers_tell_what_is_in_a_chunk_without_reading_a_value():
    states = {
        "a": StateChunk("list", False, [(None, [1, "x"], [[1], [2]]), ("w", [2.5], [[3]])]),
        "b": StateChunk("value", True, [], [(None, [1, 2])]),
    }
    headers = read_headers(dump_keyed(states, "Operator 'X'"))
    assert [(h.kind, h.has_ttl, h.num_entries, h.num_removed) for h in headers.values()] == [
        ("list", False, 3, 0),
        ("value", True, 0, 2),
    ]
    assert headers["a"].key_kinds == ("number", "str")
