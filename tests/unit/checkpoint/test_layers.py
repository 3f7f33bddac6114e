"""What an increment builds on."""

from __future__ import annotations

import pytest

from engine.checkpoint.layers import LAYERS_MAX, LayerStack, base_of_delta
from engine.protocol.checkpoint import NO_CHECKPOINT, FileHandle, KeyedLayer, KeyedStateHandle


def stack(*sizes: int, path: str = "f") -> LayerStack:
    """Layer n was written by checkpoint 10 + n."""
    layers = [KeyedLayer(FileHandle(path, n, 0), {0: (0, n, 0)}, i > 0) for i, n in enumerate(sizes)]
    return LayerStack(tuple(layers), tuple(range(10, 10 + len(sizes))))


def changes(*united: int):
    """So many entries have changed since the barrier of each layer."""

    def num_changed(barrier: int, at_most: int) -> int | None:
        number = united[barrier - 10] if barrier >= 10 else None
        return number if number is not None and number <= at_most else None

    return num_changed


def depth(found: LayerStack | None) -> int:
    return 0 if found is None else len(found.layers)


def test_what_is_not_there_or_small_is_written_whole():
    assert base_of_delta(None, 1000, changes()) is None
    assert base_of_delta(LayerStack((), ()), 1000, changes()) is None
    assert base_of_delta(stack(1000, path=""), 1000, changes(1)) is None
    assert base_of_delta(stack(1000, 10), 1000, lambda barrier, at_most: None) is None


def test_deltas_of_other_keys_lie_on_top_of_each_other():
    assert depth(base_of_delta(stack(100_000, 1000, 1000), 100_000, changes(3000, 2000, 1000))) == 3
    assert depth(base_of_delta(stack(100_000, 40_000, 20_000), 100_000, changes(60_000, 30_000, 1000))) == 0


def test_a_delta_of_the_same_keys_takes_the_place_of_the_former_ones():
    assert depth(base_of_delta(stack(100_000, 1000), 100_000, changes(1100, 1000))) == 1
    assert depth(base_of_delta(stack(100_000, 9000, 1000, 1000), 100_000, changes(10_000, 1100, 1000, 1000))) == 2


def test_too_many_deltas_become_one_if_it_is_not_too_large():
    many = stack(*[100_000] + [1000] * (LAYERS_MAX - 1))
    others = [500 * n for n in range(LAYERS_MAX, 1, -1)]
    assert depth(base_of_delta(many, 100_000, changes(20_000, *others))) == 1
    assert depth(base_of_delta(many, 100_000, changes(30_000, *others))) == 0


@pytest.mark.parametrize("num_layers", [1, 4, LAYERS_MAX])
def test_of_restored_layers_nothing_but_the_last_can_be_built_on(num_layers):
    layers = stack(*[100_000] + [1000] * (num_layers - 1)).layers
    restored = LayerStack.restored(KeyedStateHandle("part", 0, 1, layers), 10)
    assert restored.barriers == (*[NO_CHECKPOINT] * (num_layers - 1), 10)
    found = base_of_delta(restored, 100_000, changes(1000))
    assert depth(found) == (num_layers if num_layers < LAYERS_MAX else 0)
    if found is not None:
        on_top = found.with_layer(layers[-1], 11)
        assert depth(base_of_delta(on_top, 100_000, changes(1100, 1000))) == num_layers
