"""Deterministic Zipf text: ``python -m tests.bench.text OUT BYTES`` (5–15 words a line, 100 000 different words)."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np

VOCABULARY = 100_000


def vocabulary() -> np.ndarray:
    """Return distinct lower-case words of 3 to 9 letters."""
    rng = np.random.default_rng(7)
    words: dict[str, None] = {}
    while len(words) < VOCABULARY:
        letters = rng.integers(ord("a"), ord("z") + 1, (VOCABULARY, 9), dtype=np.uint8)
        lengths = rng.integers(3, 10, VOCABULARY)
        for row, length in zip(letters, lengths, strict=True):
            words[row[:length].tobytes().decode()] = None
    return np.array(list(words)[:VOCABULARY], dtype=object)


def write_text(path: str, num_bytes: int, seed: int = 1) -> int:
    """Write at least ``num_bytes`` of text; return the number of words."""
    rng = np.random.default_rng(seed)
    words = vocabulary()
    rank = np.arange(1, VOCABULARY + 1)
    cumulative = np.cumsum(1.0 / rank)
    cumulative /= cumulative[-1]
    written = num_words = 0
    lines = min(20_000, num_bytes // 70 + 1)  # a line has some 70 bytes: a small text is not much larger than asked for
    with open(path, "w", encoding="ascii", buffering=1 << 22) as out:
        while written < num_bytes:
            lengths = rng.integers(5, 16, lines)
            picked = words[np.searchsorted(cumulative, rng.random(int(lengths.sum())), side="right")].tolist()
            ends = np.cumsum(lengths).tolist()
            starts = [0, *ends[:-1]]
            block = "\n".join([" ".join(picked[a:b]) for a, b in zip(starts, ends, strict=True)]) + "\n"
            out.write(block)
            written += len(block)
            num_words += len(picked)
    return num_words


def text_of(cache: Path, num_bytes: int) -> Path:
    """Return a file of at least so many bytes in ``cache``, made when it is missing."""
    cache.mkdir(parents=True, exist_ok=True)
    path = cache / f"zipf-{num_bytes}.txt"
    if not path.exists():
        write_text(f"{path}.part", num_bytes)
        os.replace(f"{path}.part", path)
    return path


if __name__ == "__main__":
    print(write_text(sys.argv[1], int(float(sys.argv[2]))), "words")
