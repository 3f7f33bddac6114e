"""Vectorised words: cutting text into words and counting them without a Python object per word.

``WordTokenizer`` is what a program writes: a flat_map function that the API recognises. ``plan_word_count`` says how
``text.flat_map(WordTokenizer()).key_by(0).sum(1)`` in batch mode becomes: chunks of a file → WordCountSpec (counts what
is at hand) → hash exchange of (word, count) columns → ColumnarSumSpec. Everything else runs the tokenizer as the plain
function that it is, or as TokenizeSpec on columns. Kernels: ``operators/kernels``.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final, final

from engine.core.late_dataclass import dataclass
from engine.core.records import BATCH_ROWS_MAX, Batch, ColumnBatch, RowBatch, rows_of
from engine.operators.base import BATCH_ONLY, Operator, OperatorContext, OperatorSpec, Output
from engine.operators.compile.words import words_of
from engine.operators.failure import user_error
from engine.operators.keys import FieldKey

if TYPE_CHECKING:
    import numpy as np

__all__ = [
    "ColumnarSumSpec",
    "TokenizeSpec",
    "WordCountPlan",
    "WordCountSpec",
    "WordTable",
    "WordTokenizer",
    "plan_word_count",
    "separator_ranges",
    "text_of_words",
    "tokenizer_of",
]

#: Name of the column of whole-line chunks that ``connectors/files`` emits with ``raw_chunks``.
CHUNK_COLUMN: Final = "chunk"
_TABLE_BYTES_MIN: Final = 8 << 20
#: Words for which a new table has room; entries of its index for each.
_WORDS_MIN: Final = 1 << 11
_INDEX_PER_WORD: Final = 4


@final
@dataclass(frozen=True, slots=True)
class WordTokenizer:
    """A flat_map function: line → [(word, 1), …], or [word, …] with ``pairs=False``.

    ``separator``: None = any run of white space, as ``str.split()``; else one ASCII character, of which a run separates
    too. There are no empty words. ``lower``: ASCII letters become small; ``all_letters``: so do all that can, as
    ``str.lower()`` has it. That is slower where there are others.
    """

    separator: str | None = None
    lower: bool = False
    pairs: bool = True
    all_letters: bool = False

    def __post_init__(self) -> None:
        separator = self.separator
        if separator is not None and (len(separator) != 1 or not separator.isascii() or separator in "\r\n"):
            raise ValueError(f"Separator {separator!r}: expected one ASCII character other than a line end, or None.")
        if self.all_letters and separator is not None:
            raise ValueError("all_letters goes with words that are parted by white space only.")

    def words(self, line: str) -> list[str]:
        if self.separator is None:
            return self._small(line).split()
        words = [word for part in line.split("\n") for word in part.split(self.separator) if word]
        # Cut first: the separator may be a letter.
        return list(map(self._small, words))

    def _small(self, text: str) -> str:
        if not self.lower:
            return text
        return text.lower() if self.all_letters else _lowered(text)

    def __call__(self, line: str) -> list[Any]:
        return [(word, 1) for word in self.words(line)] if self.pairs else self.words(line)


def _lowered(text: str) -> str:
    return text.lower() if text.isascii() else text.translate(_LOWER_ASCII)


_LOWER_ASCII: Final = {upper: upper + 32 for upper in range(ord("A"), ord("Z") + 1)}


@final
@dataclass(frozen=True)
class WordCountPlan:
    """The vectorised form of a word count: ``source`` chained with ``count``, exchanged by ``key``, then ``merge``."""

    source: Any
    count: OperatorSpec
    key: FieldKey
    merge: OperatorSpec


def plan_word_count(source: Any, function: Any, key_selector: Any, field: Any) -> WordCountPlan | None:
    """Return the vectorised plan of ``source.flat_map(function).key_by(key_selector).sum(field)`` in batch, or None.

    None unless the source is a TextFileSource, the function a WordTokenizer of pairs or one like it, the key field 0
    and the sum over field 1. The caller sees to it that nothing else reads the source, the flat_map or the keyed
    stream, and that ``count`` runs at the source's parallelism and chained to it. Results are columns (f0: string,
    f1: int64).
    """
    if not hasattr(source, "raw_chunks") or key_selector != FieldKey(0) or field != 1:
        return None
    tokenizer = tokenizer_of(function)
    if tokenizer is None or not tokenizer.pairs:
        return None
    chunks = dataclasses.replace(source, raw_chunks=True)
    return WordCountPlan(chunks, WordCountSpec(tokenizer), FieldKey(0), ColumnarSumSpec())


def tokenizer_of(function: Any) -> WordTokenizer | None:
    """Return the tokenizer that a flat_map function is, or does the same as; None if there is none."""
    if isinstance(function, WordTokenizer):
        return function
    words = words_of(function)
    return None if words is None else WordTokenizer(None, words.lower, words.pairs, all_letters=words.lower)


@final
@dataclass(frozen=True)
class TokenizeSpec(OperatorSpec):
    """Lines → words, one record a word: columns (word[, 1]) as the tokenizer says."""

    tokenizer: WordTokenizer
    preload = ("engine.operators.warm_up.words",)

    def build(self) -> Operator:
        return _TokenizeOperator(self.tokenizer)

    def describe(self) -> str:
        return "vectorised"


@final
@dataclass(frozen=True)
class WordCountSpec(OperatorSpec):
    """Lines → (word, count) columns: counts of what this subtask has read, emitted at the end or when memory is
    full."""

    tokenizer: WordTokenizer
    preload = ("engine.operators.warm_up.words",)

    def build(self) -> Operator:
        return _WordCountOperator(self.tokenizer)

    def describe(self) -> str:
        return "vectorised"


@final
@dataclass(frozen=True)
class ColumnarSumSpec(OperatorSpec):
    """(string key, int64) columns or pairs → the sum of each key, when the input has ended."""

    not_checkpointed = BATCH_ONLY
    blocks = True
    preload = ("engine.operators.warm_up.words",)

    def build(self) -> Operator:
        return _ColumnarSumOperator()

    def describe(self) -> str:
        return "vectorised"


# ---------------------------------------------------------------------------------------------------------------------


@final
class WordTable:
    """Sums by word in arrays that the kernels understand; grows by doubling."""

    def __init__(self, tokenizer: WordTokenizer | None = None) -> None:
        import numpy as np

        from engine.operators import kernels

        self._kernels = kernels
        self._tokenizer = tokenizer or WordTokenizer()
        self._ranges = separator_ranges(self._tokenizer)
        self._index = np.zeros(_INDEX_PER_WORD * _WORDS_MIN, dtype=np.uint32)
        self._rows = np.zeros((_WORDS_MIN + 1, 4), dtype=np.uint64)
        self._arena = np.empty(1 << 15, dtype=np.uint8)
        self._offsets = np.zeros(_WORDS_MIN + 1, dtype=np.int32)
        self._num_words = 0

    def __len__(self) -> int:
        return self._num_words

    @property
    def num_bytes(self) -> int:
        return self._index.nbytes + self._rows.nbytes + self._arena.nbytes + self._offsets.nbytes

    @property
    def _table(self) -> tuple[Any, ...]:
        return self._index, self._rows, self._arena, self._offsets

    def count(self, data: np.ndarray[Any, Any]) -> None:
        """Count the words of a UTF-8 text (uint8)."""
        text = text_of_words(data, self._tokenizer)
        position = 0
        while True:
            position, self._num_words = self._kernels.count_words(
                data, text, position, self._ranges, self._table, self._num_words
            )
            if position >= data.size:
                return
            # At most the rest of the text is one word.
            self._grow(min(data.size - position, 1 << 30))

    def add(self, values: np.ndarray[Any, Any], begins: np.ndarray[Any, Any], addends: np.ndarray[Any, Any]) -> None:
        """Add to the words of a string column; see ``kernels.add_words``."""
        row = 0
        while True:
            row, self._num_words = self._kernels.add_words((values, begins, addends), row, self._table, self._num_words)
            if row >= addends.size:
                return
            self._grow(int(begins[row + 1] - begins[row]))

    def _grow(self, next_bytes: int) -> None:
        """Make room for a word: whichever of rows and arena is full. ``next_bytes``: its length or an upper bound."""
        import numpy as np

        words_max = self._rows.shape[0] - 1
        if self._num_words >= words_max:
            offsets = np.zeros(2 * words_max + 1, dtype=np.int32)
            offsets[: words_max + 1] = self._offsets
            rows = np.zeros((2 * words_max + 1, 4), dtype=np.uint64)
            rows[: words_max + 1] = self._rows
            self._rows, self._offsets = rows, offsets
            self._index = np.zeros(2 * self._index.size, dtype=np.uint32)
            self._kernels.enter_rows(rows, self._num_words, self._index)
            return
        size = 2 * self._arena.size
        used = int(self._offsets[self._num_words])
        if size - used < min(next_bytes, 1 << 20):
            size = used + next_bytes
        if self._arena.size > (1 << 30) and used + next_bytes > (1 << 31) - 1:
            raise MemoryError("The words of one task are larger than 2 GiB; raise the parallelism.")
        arena = np.empty(min(size, (1 << 31) - 1), dtype=np.uint8)
        arena[:used] = self._arena[:used]
        self._arena = arena

    def batches(self) -> Iterator[ColumnBatch]:
        """Yield all words with their sums as columns f0, f1, in order of first sight."""
        import pyarrow as pa

        if not self._num_words:
            return
        sums = self._rows[1 : self._num_words + 1, 3].astype("int64")
        buffers = [None, pa.py_buffer(self._offsets), pa.py_buffer(self._arena)]
        words = pa.Array.from_buffers(pa.string(), self._num_words, buffers)
        columns = pa.RecordBatch.from_arrays([words, pa.array(sums)], names=["f0", "f1"])
        for start in range(0, self._num_words, BATCH_ROWS_MAX):
            yield ColumnBatch(columns.slice(start, BATCH_ROWS_MAX))


def separator_ranges(tokenizer: WordTokenizer) -> tuple[Any, Any]:
    """Return which bytes part words and which may begin what does, as kernels take it: two ranges of bytes each, twice
    (first, number of others)."""
    import numpy as np

    if tokenizer.separator is None:
        part, may_part = (0x09, 4, 0x1C, 4), (0xC2, 0, 0xE1, 2)
    else:
        part, may_part = (0x0A, 0, ord(tokenizer.separator), 0), (0x0D, 0, 0x0D, 0)
    return tuple(map(np.uint8, part)), tuple(map(np.uint8, may_part))


def text_of_words(data: np.ndarray[Any, Any], tokenizer: WordTokenizer) -> np.ndarray[Any, Any]:
    """Return the text with each byte as a word has it: words are cut out of the one where the other says."""
    import numpy as np

    from engine.operators import kernels

    if not tokenizer.lower:
        return data
    text = np.empty_like(data)
    kernels.lower_letters(data, text)
    return text


def _texts_of(batch: Batch) -> Iterator[np.ndarray[Any, Any]]:
    """Yield the text of a batch of lines or chunks as UTF-8 bytes (uint8); lines are parted by newlines."""
    import numpy as np

    from engine.state.arrow_views import kernel_view

    if isinstance(batch, ColumnBatch) and batch.columns.schema.names == [CHUNK_COLUMN]:
        column = batch.columns.column(0)
        _, offsets_buffer, values_buffer = column.buffers()
        offsets = np.frombuffer(offsets_buffer, dtype=np.int32)[column.offset : column.offset + len(column) + 1]
        values = kernel_view(np.frombuffer(values_buffer, dtype=np.uint8))
        for start, end in itertools.pairwise(offsets):
            yield values[start:end]
        return
    text = "\n".join(rows_of(batch).rows)
    yield kernel_view(np.frombuffer(text.encode("utf-8", "surrogatepass"), dtype=np.uint8))


def _checked_texts(batch: Batch, tokenizer: WordTokenizer, operator_name: str) -> list[np.ndarray[Any, Any]]:
    try:
        texts = list(_texts_of(batch))
    except TypeError as error:
        row = next(row for row in rows_of(batch).rows if not isinstance(row, str))
        seen = TypeError(f"words are cut out of str, got a {type(row).__name__}")
        raise user_error(seen, operator_name=operator_name, record=row) from error
    return list(map(_all_small, texts)) if tokenizer.lower and tokenizer.all_letters else texts


def _all_small(text: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return the text with those letters small that are no ASCII; these are left to the kernel."""
    import numpy as np

    from engine.state.arrow_views import kernel_view

    if not (text >= 0x80).any():
        return text
    small = text.tobytes().decode("utf-8", "surrogatepass").lower().encode("utf-8", "surrogatepass")
    return kernel_view(np.frombuffer(small, dtype=np.uint8))


@final
class _TokenizeOperator(Operator):
    def __init__(self, tokenizer: WordTokenizer) -> None:
        self._tokenizer = tokenizer

    def open(self, ctx: OperatorContext, out: Output) -> None:
        super().open(ctx, out)
        from engine.operators import kernels

        self._split = kernels.split_words
        self._ranges = separator_ranges(self._tokenizer)

    def process_batch(self, input_index: int, batch: Batch) -> None:
        import numpy as np
        import pyarrow as pa

        stamps = batch.timestamps_ms
        if stamps is not None and len(batch):
            self._process_stamped(rows_of(batch))
            return
        for data in _checked_texts(batch, self._tokenizer, self.ctx.operator_name):
            values = np.empty(data.size + 16, dtype=np.uint8)
            offsets = np.empty(data.size // 2 + 2, dtype=np.int32)
            text = text_of_words(data, self._tokenizer)
            num_words = self._split(data, text, self._ranges, values, offsets)
            buffers = [None, pa.py_buffer(offsets), pa.py_buffer(values)]
            words = pa.Array.from_buffers(pa.string(), num_words, buffers)
            arrays, names = [words], ["f0"]
            if self._tokenizer.pairs:
                arrays, names = [words, pa.array(np.ones(num_words, dtype=np.int64))], ["f0", "f1"]
            columns = pa.RecordBatch.from_arrays(arrays, names=names)
            for start in range(0, num_words, BATCH_ROWS_MAX):
                part = columns.slice(start, BATCH_ROWS_MAX)
                self.out.emit(ColumnBatch(part, scalar=not self._tokenizer.pairs))

    def _process_stamped(self, batch: RowBatch) -> None:
        """Words get the event times of their lines; that is done row by row."""
        assert batch.timestamps_ms is not None
        rows: list[Any] = []
        stamps: list[int] = []
        for line, stamp in zip(batch.rows, batch.timestamps_ms, strict=True):
            words = self._tokenizer(line)
            rows += words
            stamps += [stamp] * len(words)
        self.out.emit(RowBatch(rows, stamps))


@final
class _WordCountOperator(Operator):
    def __init__(self, tokenizer: WordTokenizer) -> None:
        self._tokenizer = tokenizer

    def open(self, ctx: OperatorContext, out: Output) -> None:
        super().open(ctx, out)
        self._words = WordTable(self._tokenizer)
        self._bytes_max = max(_TABLE_BYTES_MIN, ctx.memory_bytes // 2)

    def process_batch(self, input_index: int, batch: Batch) -> None:
        for data in _checked_texts(batch, self._tokenizer, self.ctx.operator_name):
            self._words.count(data)
            if self._words.num_bytes > self._bytes_max:
                self._flush()

    def _flush(self) -> None:
        words, self._words = self._words, WordTable(self._tokenizer)
        for batch in words.batches():
            self.out.emit(batch)

    def prepare_snapshot(self, checkpoint_id: int) -> None:
        self._flush()

    def process_watermark(self, watermark_ms: int) -> None:
        self._flush()
        self.out.emit_watermark(watermark_ms)

    def finish(self) -> None:
        self._flush()


@final
class _ColumnarSumOperator(Operator):
    def open(self, ctx: OperatorContext, out: Output) -> None:
        super().open(ctx, out)
        self._words = WordTable()
        self._null_sum: int | None = None

    def process_batch(self, input_index: int, batch: Batch) -> None:
        import numpy as np
        import pyarrow as pa

        from engine.state.arrow_views import kernel_view

        words, addends = self._columns_of(batch)
        if words.null_count:
            is_null = words.is_null()
            nulls = int(np.sum(addends[is_null.to_numpy(zero_copy_only=False)]))
            self._null_sum = (self._null_sum or 0) + nulls
            addends = addends[words.is_valid().to_numpy(zero_copy_only=False)]
            words = words.drop_null()
        wide = pa.types.is_large_string(words.type)
        _, offsets_buffer, values_buffer = words.buffers()
        offsets = np.frombuffer(offsets_buffer, dtype=np.int64 if wide else np.int32)
        begins = kernel_view(offsets)[words.offset : words.offset + len(words) + 1]
        values = kernel_view(np.frombuffer(values_buffer or b"", dtype=np.uint8))
        if len(words):
            self._words.add(values, begins, kernel_view(addends))

    def _columns_of(self, batch: Batch) -> tuple[Any, Any]:
        import numpy as np
        import pyarrow as pa

        try:
            if isinstance(batch, ColumnBatch):
                words, addends = batch.columns.columns
            else:
                keys, numbers = zip(*batch.rows, strict=True)
                if not set(map(type, numbers)) <= {int, bool}:  # Arrow would cut 1.5 down to 1
                    raise TypeError("a value is no integer")
                words, addends = pa.array(keys, type=pa.string()), pa.array(numbers, type=pa.int64())
            if not (pa.types.is_string(words.type) or pa.types.is_large_string(words.type)):
                words = words.cast(pa.string())
            if addends.null_count or not pa.types.is_integer(addends.type):
                raise TypeError(f"a value is None or no integer ({addends.type})")
            return words, addends.to_numpy().astype(np.int64, copy=False)
        except (pa.ArrowException, ValueError, TypeError) as error:
            seen = TypeError(f"the vectorised sum takes pairs (str, int): {error}")
            record = rows_of(batch).rows[0]
            raise user_error(seen, operator_name=self.ctx.operator_name, record=record) from error

    def finish(self) -> None:
        words, self._words = self._words, WordTable()
        for batch in words.batches():
            self.out.emit(batch)
        if self._null_sum is not None:
            self.out.emit(RowBatch([(None, self._null_sum)]))
