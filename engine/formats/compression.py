"""Compressed files by suffix: gz, bz2, xz, zst, deflate. They are read whole: none of them can be entered midway."""

from __future__ import annotations

from collections.abc import Callable
from typing import IO, Any, Final

from engine.core.errors import InputError

__all__ = ["compression_of", "decompressed", "read_errors"]

_CODEC_BY_SUFFIX: Final = {
    ".gz": "gzip",
    ".gzip": "gzip",
    ".bz2": "bz2",
    ".xz": "xz",
    ".zst": "zstd",
    ".zstd": "zstd",
    ".deflate": "deflate",
}


def compression_of(path: str) -> str | None:
    """Return the codec that a file's suffix names, or None."""
    lowered = path.lower()
    return next((codec for suffix, codec in _CODEC_BY_SUFFIX.items() if lowered.endswith(suffix)), None)


def decompressed(stream: IO[bytes], codec: str, path: str) -> IO[bytes]:
    """Return a stream of the decompressed bytes; several streams one after the other count as one.

    Reading it raises one of ``read_errors()`` when the data is broken.
    """
    match codec:
        case "gzip":
            import gzip

            return gzip.GzipFile(fileobj=stream)  # type: ignore[return-value]
        case "bz2":
            import bz2

            return bz2.BZ2File(stream)  # type: ignore[return-value]
        case "xz":
            import lzma

            return lzma.LZMAFile(stream)  # type: ignore[return-value]
        case "zstd":
            return _zstd(stream, path)
        case "deflate":
            return _Deflated(stream)  # type: ignore[return-value]
    raise AssertionError(codec)


def read_errors() -> tuple[type[Exception], ...]:
    """Return what broken or cut off data raises when it is read."""
    import lzma
    import zlib

    return (OSError, EOFError, lzma.LZMAError, zlib.error)


def _zstd(stream: IO[bytes], path: str) -> Any:
    import pyarrow as pa

    if not pa.Codec.is_available("zstd"):
        raise InputError(f"{path}: this pyarrow cannot read zst; install one from PyPI, or recompress the file as gz.")
    return pa.CompressedInputStream(pa.PythonFile(stream, mode="r"), "zstd")


class _Deflated:
    """Raw zlib data as a stream, as Hadoop's ``.deflate`` files are."""

    def __init__(self, stream: IO[bytes]) -> None:
        import zlib

        self._stream = stream
        self._decompressor = zlib.decompressobj()
        self._new: Callable[[], Any] = zlib.decompressobj

    def read(self, size: int) -> bytes:
        while True:
            pending = self._decompressor.unconsumed_tail or self._decompressor.unused_data
            if self._decompressor.eof:
                if not pending and not (pending := self._stream.read(1 << 16)):
                    return b""
                self._decompressor = self._new()
            elif not pending and not (pending := self._stream.read(1 << 16)):
                raise EOFError("the data ends before its end marker")
            out = self._decompressor.decompress(pending, size)
            if out:
                return out

    def close(self) -> None:
        self._stream.close()
