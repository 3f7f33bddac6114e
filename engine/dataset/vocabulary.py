"""Constants of the DataSet API: sort orders, aggregations and, from the old Python API, column types as values."""

from __future__ import annotations

import enum
from typing import Final

from engine.connectors.file_sinks import WriteMode

__all__ = [
    "BOOL",
    "BYTES",
    "FLOAT",
    "INT",
    "STRING",
    "Aggregation",
    "Aggregations",
    "JoinHint",
    "Max",
    "Min",
    "Order",
    "Sum",
    "WriteMode",
]

STRING: Final = "type"
INT: Final = 1
FLOAT: Final = 1.0
BOOL: Final = True
BYTES: Final = b"type"


class Order(enum.Enum):
    NONE = 0
    ASCENDING = 1
    DESCENDING = 2
    ANY = 3


class Aggregation(enum.Enum):
    SUM = "sum"
    MIN = "min"
    MAX = "max"


Aggregations = Aggregation
Sum: Final = Aggregation.SUM
Min: Final = Aggregation.MIN
Max: Final = Aggregation.MAX


class JoinHint(enum.Enum):
    """How a join is done; Flink's names. Sort-merge is accepted and done as a hash join."""

    OPTIMIZER_CHOOSES = 0
    BROADCAST_HASH_FIRST = 1
    BROADCAST_HASH_SECOND = 2
    REPARTITION_HASH_FIRST = 3
    REPARTITION_HASH_SECOND = 4
    REPARTITION_SORT_MERGE = 5
