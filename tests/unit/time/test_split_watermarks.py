"""The watermark of several splits against an obvious model: a list of what each split last said."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import given, settings
from hypothesis import strategies as st

from engine.time.split_watermarks import SplitWatermarks
from engine.time.windows import TIME_MAX_MS, TIME_MIN_MS


@dataclass
class Said:
    watermark: int = TIME_MIN_MS
    idle: bool = False


class Model:
    """Looks at everything anew after each step."""

    def __init__(self):
        self.splits: dict[str, Said] = {}
        self.watermark = TIME_MIN_MS

    def do(self, step):
        match step:
            case "add", split:
                self.splits.setdefault(split, Said())
            case "remove", split:
                self.splits.pop(split, None)
            case "advance", split, watermark if split in self.splits:
                self.splits[split].watermark = max(self.splits[split].watermark, watermark)
            case "idle", split, idle if split in self.splits:
                self.splits[split].idle = idle
        active = [said.watermark for said in self.splits.values() if not said.idle]
        if active and min(active) > self.watermark:
            self.watermark = min(active)
        self.is_idle = bool(self.splits) and not active
        self.begun = [said.watermark for said in self.splits.values() if said.watermark > TIME_MIN_MS and not said.idle]


def do(splits: SplitWatermarks, step) -> None:
    match step:
        case "add", split:
            splits.add(split)
        case "remove", split:
            splits.remove(split)
        case "advance", split, watermark if split in splits.watermark_of:
            splits.advance(split, watermark)
        case "idle", split, idle if split in splits.watermark_of:
            splits.set_idle(split, idle)


SPLITS = st.sampled_from("abcd")
TIMES = st.integers(-20, 20) | st.sampled_from([TIME_MIN_MS, TIME_MIN_MS + 1, TIME_MAX_MS - 1, TIME_MAX_MS])
STEPS = st.lists(
    st.tuples(st.just("add"), SPLITS)
    | st.tuples(st.just("remove"), SPLITS)
    | st.tuples(st.just("advance"), SPLITS, TIMES)
    | st.tuples(st.just("idle"), SPLITS, st.booleans()),
    max_size=40,
)


@settings(deadline=None, max_examples=500)
@given(STEPS)
def test_the_watermark_is_the_lowest_of_the_active_splits_and_never_goes_back(steps):
    splits, model = SplitWatermarks(), Model()
    for step in steps:
        do(splits, step)
        model.do(step)
        assert (splits.watermark_ms, splits.is_idle, len(splits)) == (model.watermark, model.is_idle, len(model.splits))
        assert splits.lowest_begun_ms() == min(model.begun, default=None)
        for limit in (-5, 5):
            assert splits.ahead_of(limit) == {s for s, said in model.splits.items() if said.watermark > limit}


def test_a_split_that_is_assigned_holds_the_watermark_until_it_has_one():
    splits = SplitWatermarks()
    splits.add("a")
    splits.advance("a", 10)
    splits.add("b")
    splits.advance("a", 50)
    assert splits.watermark_ms == 10
    splits.advance("b", 30)
    assert splits.watermark_ms == 30


def test_a_split_that_has_ended_or_is_idle_holds_nobody():
    splits = SplitWatermarks()
    for split, watermark in (("a", 10), ("b", 20), ("c", 30)):
        splits.add(split)
        splits.advance(split, watermark)
    splits.remove("a")
    assert splits.watermark_ms == 20
    splits.set_idle("b", True)
    assert (splits.watermark_ms, splits.is_idle) == (30, False)
    splits.remove("c")
    assert (splits.watermark_ms, splits.is_idle) == (30, True)
    splits.set_idle("b", False)
    splits.advance("b", 25)
    assert (splits.watermark_ms, splits.is_idle) == (30, False)
