"""Words: cutting text into them, counting them, and adding up counts."""

from __future__ import annotations

from engine.operators.warm_up import cached_code

__all__ = ["warm_up", "warm_up_operators"]

#: More than a new table has room for, so that it grows.
_NUM_WORDS = 4096


def warm_up() -> None:
    cached_code.quicken()
    warm_up_operators()


def warm_up_operators() -> None:
    import numpy as np

    from engine.operators import kernels
    from engine.operators.text import WordTable, WordTokenizer, separator_ranges, text_of_words

    text = np.frombuffer(bytearray(b" ".join(b"%d" % number for number in range(_NUM_WORDS))), np.uint8)
    table = WordTable()
    table.count(text)
    for offsets in (np.int32, np.int64):
        table.add(text, np.zeros(2, offsets), np.zeros(1, np.int64))
    for _ in table.batches():
        break
    words, ends = np.empty(17, np.uint8), np.empty(2, np.int32)
    tokenizer = WordTokenizer(lower=True)
    kernels.split_words(text[:1], text_of_words(text[:1], tokenizer), separator_ranges(tokenizer), words, ends)
