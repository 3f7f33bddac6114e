"""TypeInformation: what a stream's records are, in PyFlink's names (``Types.STRING()``, ``Types.TUPLE([...])``).

A type is a hint for speed and printing, not a gate: records are plain Python objects and are not converted.
``to_arrow`` gives the Arrow type of a column for the vectorised path, or None when the type has no columnar form.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = [
    "BasicArrayTypeInfo",
    "BasicType",
    "BasicTypeInfo",
    "ListTypeInfo",
    "MapTypeInfo",
    "ObjectArrayTypeInfo",
    "PickledBytesTypeInfo",
    "PrimitiveArrayTypeInfo",
    "RowTypeInfo",
    "SqlTimeTypeInfo",
    "TupleTypeInfo",
    "TypeInformation",
    "Types",
]


class TypeInformation:
    """Base of all types. Compared by value."""

    def to_arrow(self) -> pa.DataType | None:
        """Return the Arrow type of one value, or None if it has no columnar form."""
        return None

    def arrow_fields(self) -> list[pa.Field] | None:
        """Return the columns of a batch of such records (one named ``f0`` for scalars), or None."""
        import pyarrow as pa

        own = self.to_arrow()
        return None if own is None else [pa.field("f0", own)]

    def _identity(self) -> tuple[Any, ...]:
        return ()

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and self._identity() == other._identity()  # type: ignore[attr-defined]

    def __hash__(self) -> int:
        return hash((type(self), str(self._identity())))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(map(str, self._identity()))})"


class BasicType(enum.Enum):
    STRING = "String"
    BYTE = "Byte"
    BOOLEAN = "Boolean"
    SHORT = "Short"
    INT = "Integer"
    LONG = "Long"
    FLOAT = "Float"
    DOUBLE = "Double"
    CHAR = "Character"
    BIG_INT = "BigInteger"
    BIG_DEC = "BigDecimal"
    INSTANT = "Instant"


class BasicTypeInfo(TypeInformation):
    def __init__(self, basic_type: BasicType) -> None:
        self.basic_type = basic_type

    def to_arrow(self) -> pa.DataType | None:
        import pyarrow as pa

        return {
            BasicType.STRING: pa.string(),
            BasicType.BYTE: pa.int8(),
            BasicType.BOOLEAN: pa.bool_(),
            BasicType.SHORT: pa.int16(),
            BasicType.INT: pa.int32(),
            BasicType.LONG: pa.int64(),
            BasicType.FLOAT: pa.float32(),
            BasicType.DOUBLE: pa.float64(),
            BasicType.CHAR: pa.string(),
        }.get(self.basic_type)

    def _identity(self) -> tuple[Any, ...]:
        return (self.basic_type.value,)

    def __repr__(self) -> str:
        return self.basic_type.value


class PickledBytesTypeInfo(TypeInformation):
    """Any Python object: an untyped stream."""


class SqlTimeTypeInfo(TypeInformation):
    def __init__(self, kind: str) -> None:
        self.kind = kind

    def to_arrow(self) -> pa.DataType | None:
        import pyarrow as pa

        return {"DATE": pa.date32(), "TIME": pa.time64("us"), "TIMESTAMP": pa.timestamp("us")}[self.kind]

    def _identity(self) -> tuple[Any, ...]:
        return (self.kind,)


class _ElementTypeInfo(TypeInformation):
    def __init__(self, element_type: TypeInformation) -> None:
        self.element_type = element_type

    def to_arrow(self) -> pa.DataType | None:
        import pyarrow as pa

        element = self.element_type.to_arrow()
        return None if element is None else pa.list_(element)

    def _identity(self) -> tuple[Any, ...]:
        return (self.element_type,)


class PrimitiveArrayTypeInfo(_ElementTypeInfo):
    pass


class BasicArrayTypeInfo(_ElementTypeInfo):
    pass


class ObjectArrayTypeInfo(_ElementTypeInfo):
    pass


class ListTypeInfo(_ElementTypeInfo):
    pass


class MapTypeInfo(TypeInformation):
    def __init__(self, key_type_info: TypeInformation, value_type_info: TypeInformation) -> None:
        self.key_type_info = key_type_info
        self.value_type_info = value_type_info

    def to_arrow(self) -> pa.DataType | None:
        import pyarrow as pa

        key, value = self.key_type_info.to_arrow(), self.value_type_info.to_arrow()
        return None if key is None or value is None else pa.map_(key, value)

    def _identity(self) -> tuple[Any, ...]:
        return (self.key_type_info, self.value_type_info)


class TupleTypeInfo(TypeInformation):
    """Records are Python tuples (or Rows) of these fields; columns are named f0, f1…"""

    def __init__(self, field_types: list[TypeInformation]) -> None:
        self._field_types = list(field_types)

    def get_field_types(self) -> list[TypeInformation]:
        return self._field_types

    def get_field_names(self) -> list[str]:
        return [f"f{i}" for i in range(len(self._field_types))]

    def arrow_fields(self) -> list[pa.Field] | None:
        import pyarrow as pa

        types = [field_type.to_arrow() for field_type in self._field_types]
        if any(own is None for own in types):
            return None
        return [pa.field(name, own) for name, own in zip(self.get_field_names(), types, strict=True)]

    def to_arrow(self) -> pa.DataType | None:
        import pyarrow as pa

        fields = self.arrow_fields()
        return None if fields is None else pa.struct(fields)

    def _identity(self) -> tuple[Any, ...]:
        return tuple(self._field_types)


class RowTypeInfo(TupleTypeInfo):
    """Records are ``Row``s with these fields, named or f0, f1…"""

    def __init__(self, field_types: list[TypeInformation], field_names: list[str] | None = None) -> None:
        super().__init__(field_types)
        if field_names is not None and len(field_names) != len(field_types):
            raise ValueError(f"{len(field_names)} field names for {len(field_types)} field types.")
        self._field_names = field_names

    def get_field_names(self) -> list[str]:
        return self._field_names or super().get_field_names()

    def get_field_index(self, field_name: str) -> int:
        return self.get_field_names().index(field_name)

    def _identity(self) -> tuple[Any, ...]:
        return (*self._field_types, tuple(self.get_field_names()))


class Types:
    """Factory of type information; every name is PyFlink's."""

    _PICKLED: ClassVar = PickledBytesTypeInfo()

    @staticmethod
    def STRING() -> TypeInformation:
        return BasicTypeInfo(BasicType.STRING)

    @staticmethod
    def BYTE() -> TypeInformation:
        return BasicTypeInfo(BasicType.BYTE)

    @staticmethod
    def BOOLEAN() -> TypeInformation:
        return BasicTypeInfo(BasicType.BOOLEAN)

    @staticmethod
    def SHORT() -> TypeInformation:
        return BasicTypeInfo(BasicType.SHORT)

    @staticmethod
    def INT() -> TypeInformation:
        return BasicTypeInfo(BasicType.INT)

    @staticmethod
    def LONG() -> TypeInformation:
        return BasicTypeInfo(BasicType.LONG)

    @staticmethod
    def FLOAT() -> TypeInformation:
        return BasicTypeInfo(BasicType.FLOAT)

    @staticmethod
    def DOUBLE() -> TypeInformation:
        return BasicTypeInfo(BasicType.DOUBLE)

    @staticmethod
    def CHAR() -> TypeInformation:
        return BasicTypeInfo(BasicType.CHAR)

    @staticmethod
    def BIG_INT() -> TypeInformation:
        return BasicTypeInfo(BasicType.BIG_INT)

    @staticmethod
    def BIG_DEC() -> TypeInformation:
        return BasicTypeInfo(BasicType.BIG_DEC)

    @staticmethod
    def INSTANT() -> TypeInformation:
        return BasicTypeInfo(BasicType.INSTANT)

    @staticmethod
    def SQL_DATE() -> TypeInformation:
        return SqlTimeTypeInfo("DATE")

    @staticmethod
    def SQL_TIME() -> TypeInformation:
        return SqlTimeTypeInfo("TIME")

    @staticmethod
    def SQL_TIMESTAMP() -> TypeInformation:
        return SqlTimeTypeInfo("TIMESTAMP")

    @staticmethod
    def PICKLED_BYTE_ARRAY() -> TypeInformation:
        return Types._PICKLED

    @staticmethod
    def ROW(field_types: list[TypeInformation]) -> TypeInformation:
        return RowTypeInfo(field_types)

    @staticmethod
    def ROW_NAMED(field_names: list[str], field_types: list[TypeInformation]) -> TypeInformation:
        return RowTypeInfo(field_types, field_names)

    @staticmethod
    def TUPLE(field_types: list[TypeInformation]) -> TypeInformation:
        return TupleTypeInfo(field_types)

    @staticmethod
    def PRIMITIVE_ARRAY(element_type: TypeInformation) -> TypeInformation:
        return PrimitiveArrayTypeInfo(element_type)

    @staticmethod
    def BASIC_ARRAY(element_type: TypeInformation) -> TypeInformation:
        return BasicArrayTypeInfo(element_type)

    @staticmethod
    def OBJECT_ARRAY(element_type: TypeInformation) -> TypeInformation:
        return ObjectArrayTypeInfo(element_type)

    @staticmethod
    def MAP(key_type_info: TypeInformation, value_type_info: TypeInformation) -> TypeInformation:
        return MapTypeInfo(key_type_info, value_type_info)

    @staticmethod
    def LIST(element_type_info: TypeInformation) -> TypeInformation:
        return ListTypeInfo(element_type_info)
