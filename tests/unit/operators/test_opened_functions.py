"""Which functions with an ``open`` may keep state: all that could get hold of the context, no others."""

from __future__ import annotations

import pytest

from engine.operators.functions import MapFunction
from engine.operators.opened_functions import keeps_state


class Identity(MapFunction):
    def map(self, value):
        return value


class Ready(Identity):
    def open(self, runtime_context):
        self.factor = 2


class Counting(Identity):
    def open(self, context):
        self.counter = context.get_metrics_group().counter("seen")
        self.at = context.get_index_of_this_subtask() if self.counter else 0


class Looping(Identity):
    def open(self, context):
        self.names = [str(number) for number in range(3)]
        for name in self.names:
            context.get_job_parameter(name, "")


class OfABase(Ready):
    pass


class Asking(Identity):
    def open(self, context):
        self.state = context.get_state(None)


class Keeping(Identity):
    def open(self, context):
        self.context = context


class Handing(Identity):
    def open(self, context):
        print(context)


class Above(Ready):
    def open(self, context):
        super().open(context)


class Inside(Identity):
    def open(self, context):
        self.later = lambda: context.get_state(None)


class Unnamed(Identity):
    def open(self, *arguments):
        self.arguments = arguments


class Locals(Identity):
    def open(self, context):
        self.all = locals()


class Renamed(Identity):
    def open(self, context):
        other = context
        self.state = other.get_state(None)


class Optional(Identity):
    def open(self, context, more=None):
        self.more = more


class Bound(Identity):
    def open(self, context):
        self.give = context.get_state


class OfAnother(Identity):
    open = print


def test_functions_without_an_open_keep_none():
    assert not keeps_state(Identity())
    assert not keeps_state(lambda value: value)


@pytest.mark.parametrize("kind", [Ready, Counting, Looping, OfABase])
def test_who_asks_for_nothing_that_keeps_keeps_none(kind):
    assert not keeps_state(kind())


@pytest.mark.parametrize(
    "kind", [Asking, Keeping, Handing, Above, Inside, Unnamed, Locals, Renamed, Optional, Bound, OfAnother]
)
def test_who_could_get_hold_of_state_may_keep_it(kind):
    assert keeps_state(kind())


def test_an_open_of_the_object_itself_counts():
    function = Ready()
    function.open = lambda context: context.get_state(None)
    assert keeps_state(function)
