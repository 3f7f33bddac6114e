"""CompletedCheckpoint ⇄ the bytes of its ``_metadata`` file. Pure; files are ``storage``'s.

Layout: magic, version (4 bytes), sizes of the two parts (8 + 8), CRC-32 of both (4), big-endian; then the structure as
JSON and the binary values that it points into. Nothing is unpickled: a savepoint may come from anywhere, and outlives
releases. Classes and fields are stored by name; a reader ignores no field, and gives absent ones their default.

Paths of files in the checkpoint's folder begin with ``./``, those beside it with ``../``, so that both can be moved.
"""

from __future__ import annotations

import dataclasses
import enum
import json
import struct
import zlib
from typing import Any, Final

from engine.checkpoint.model import CompletedCheckpoint, OperatorLayout, SubtaskState, VertexState
from engine.core.errors import CorruptStateError
from engine.protocol.checkpoint import (
    CheckpointKind,
    FileHandle,
    InFlightHandle,
    KeyedLayer,
    KeyedStateHandle,
    ListStateHandle,
    OperatorStateHandles,
)

__all__ = ["METADATA_FILE", "decode_metadata", "encode_metadata"]

METADATA_FILE: Final = "_metadata"
VERSION: Final = 1

_MAGIC: Final = b"PYFLINKC"
_HEADER: Final = struct.Struct(">8sIQQI")
_CLASSES: Final[dict[str, type]] = {
    kind.__name__: kind
    for kind in (
        CompletedCheckpoint,
        VertexState,
        SubtaskState,
        OperatorLayout,
        OperatorStateHandles,
        KeyedStateHandle,
        KeyedLayer,
        ListStateHandle,
        InFlightHandle,
        FileHandle,
    )
}
_ENUMS: Final[dict[str, type[enum.Enum]]] = {CheckpointKind.__name__: CheckpointKind}


def encode_metadata(checkpoint: CompletedCheckpoint) -> bytes:
    """Return the file's content; paths become relative to ``checkpoint.folder``."""
    blobs = bytearray()
    structure = _encode(dataclasses.replace(checkpoint, folder=""), checkpoint.folder.rstrip("/"), blobs)
    text = json.dumps(structure, separators=(",", ":")).encode()
    crc = zlib.crc32(blobs, zlib.crc32(text))
    return _HEADER.pack(_MAGIC, VERSION, len(text), len(blobs), crc) + text + blobs


def decode_metadata(content: bytes, folder: str) -> CompletedCheckpoint:
    """Return the checkpoint whose metadata was found in ``folder``.

    Raises: CorruptStateError when the content is torn, damaged, or written by a later release.
    """
    folder = folder.rstrip("/")
    where = f"{folder}/{METADATA_FILE}"
    if len(content) < _HEADER.size or not content.startswith(_MAGIC):
        raise CorruptStateError(f"{where} is damaged: it does not begin as the metadata of a checkpoint does.")
    _, version, text_size, blobs_size, crc = _HEADER.unpack_from(content)
    if version > VERSION:
        raise CorruptStateError(
            f"{where} has format {version}; this release reads formats up to {VERSION}. It was written by a later one."
        )
    body = content[_HEADER.size :]
    if len(body) != text_size + blobs_size:
        raise CorruptStateError(
            f"{where} is torn: it has {len(body)} bytes after its header; expected {text_size + blobs_size}."
        )
    if zlib.crc32(body) != crc:
        raise CorruptStateError(f"{where} is damaged: its checksum is wrong.")
    try:
        checkpoint = _decode(json.loads(body[:text_size]), folder, memoryview(body)[text_size:])
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise CorruptStateError(f"{where} cannot be understood: {type(error).__name__}: {error}.") from error
    if not isinstance(checkpoint, CompletedCheckpoint):
        raise CorruptStateError(f"{where} holds no checkpoint.")
    return dataclasses.replace(checkpoint, folder=folder)


def relative_path(path: str, folder: str) -> str:
    """Return how the metadata in ``folder`` names a file."""
    if path and folder:
        if path.startswith(folder + "/"):
            return "./" + path[len(folder) + 1 :]
        parent = folder.rpartition("/")[0]
        if parent and path.startswith(parent + "/"):
            return "../" + path[len(parent) + 1 :]
    return path


def absolute_path(path: str, folder: str) -> str:
    if path.startswith("./"):
        return f"{folder}/{path[2:]}"
    if path.startswith("../"):
        return f"{folder.rpartition('/')[0]}/{path[3:]}"
    return path


def _encode(value: Any, folder: str, blobs: bytearray) -> Any:
    """Return JSON: arrays are tuples; objects have one of the keys b (bytes), d (dict), e (enum), c (class)."""
    match value:
        case None | bool() | int() | str():
            return value
        case bytes():
            blobs += value
            return {"b": [len(blobs) - len(value), len(value)]}
        case tuple():
            return [_encode(item, folder, blobs) for item in value]
        case dict():
            return {"d": [[_encode(k, folder, blobs), _encode(v, folder, blobs)] for k, v in value.items()]}
        case enum.Enum():
            return {"e": [type(value).__name__, value.name]}
    kind = type(value).__name__
    assert _CLASSES.get(kind) is type(value), f"{kind} has no place in metadata"
    if isinstance(value, FileHandle):
        value = dataclasses.replace(value, path=relative_path(value.path, folder))
    fields = {f.name: _encode(getattr(value, f.name), folder, blobs) for f in dataclasses.fields(value)}
    return {"c": kind, "f": fields}


def _decode(value: Any, folder: str, blobs: memoryview) -> Any:
    if isinstance(value, list):
        return tuple(_decode(item, folder, blobs) for item in value)
    if not isinstance(value, dict):
        return value
    if "b" in value:
        offset, size = value["b"]
        if offset < 0 or size < 0 or offset + size > len(blobs):
            raise IndexError(f"bytes {offset}+{size} of {len(blobs)}")
        return bytes(blobs[offset : offset + size])
    if "d" in value:
        return {_decode(key, folder, blobs): _decode(item, folder, blobs) for key, item in value["d"]}
    if "e" in value:
        kind, name = value["e"]
        return _ENUMS[kind][name]
    decoded = {name: _decode(item, folder, blobs) for name, item in value["f"].items()}
    if value["c"] == FileHandle.__name__:
        decoded["path"] = absolute_path(decoded["path"], folder)
    return _CLASSES[value["c"]](**decoded)
