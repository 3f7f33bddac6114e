"""Starts skein's driver, the Java process that talks to YARN for us, and ends it with the command that needed it.

skein writes the application type "skein" and an overview page of its own into every application, and lets YARN try
again an application that was ended on purpose as FAILED or KILLED. A copy of its jar with four entries changed
(``skein_classes``, and the page) mends that, and sets the interval in which failed attempts count; nothing else is
touched.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from engine.core.errors import ConfigError, ExternalError
from flink_yarn.skein_classes import VERSION, class_changes

__all__ = [
    "DASHBOARD_ROUTE",
    "JAVA_OPENS",
    "QUICK_START",
    "patched_jar",
    "skein_module",
    "start_driver",
]

#: The dashboard's route among skein's proxied pages; the overview page forwards to it.
DASHBOARD_ROUTE: Final = "flink"
#: skein's templates reflect on maps; Java 17 must be told that this is fine. Older Javas ignore the variable.
JAVA_OPENS: Final = "--add-opens=java.base/java.lang=ALL-UNNAMED --add-opens=java.base/java.util=ALL-UNNAMED"
#: For both of skein's JVMs, which live for little work: what matters is how soon they are up.
QUICK_START: Final = "-XX:+UseSerialGC -XX:TieredStopAtLevel=1 -XX:-UsePerfData"
TYPE_LENGTH_MAX: Final = 20  # YARN cuts at this
_PAGE: Final = "overview.mustache.html"
#: A mustache template of skein's; until our page is registered it asks again each second.
_PAGE_TEXT: Final = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>{{appName}}</title>
{{^pages}}<meta http-equiv="refresh" content="1">{{/pages}}
{{#pages}}<meta http-equiv="refresh" content="0; url=pages/{{getValue}}">{{/pages}}
</head>
<body>
{{^pages}}The JobManager is starting.{{/pages}}
{{#pages}}<a href="pages/{{getValue}}">{{getKey}} of {{appId}}</a>{{/pages}}
</body>
</html>
"""


def skein_module() -> Any:
    """Import skein; Python 3.12 and later need setuptools' distutils for it."""
    if sys.version_info >= (3, 12):
        import setuptools  # noqa: F401
    import skein

    return skein


# --- the jar --------------------------------------------------------------------------------------------------------


def patched_jar(original: Path, application_type: str, folder: Path, *, validity_ms: int | None = None) -> Path:
    """Return a copy of skein's jar with our type, page and ends; made once and kept in the folder.

    ``validity_ms``: failed attempts of longer ago do not count, -1 = all count; None when there is one attempt.

    The original is returned when it is another version of skein than the one we know.
    """
    wanted = application_type[:TYPE_LENGTH_MAX]
    changes = class_changes(wanted, validity_ms)
    seed = f"{original.stat().st_size} {original.stat().st_mtime_ns} {wanted} {validity_ms} {VERSION} {_PAGE_TEXT}"
    target = folder / f"skein-{hashlib.sha256(seed.encode()).hexdigest()[:16]}.jar"
    if target.is_file():
        return target
    folder.mkdir(parents=True, exist_ok=True)
    number, temporary = tempfile.mkstemp(dir=folder, prefix=".patching-")
    try:
        with (
            os.fdopen(number, "wb") as stream,
            zipfile.ZipFile(original) as source,
            zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as sink,
        ):
            for info in source.infolist():
                data = source.read(info)
                if info.filename in changes:
                    data = changes[info.filename](data)
                elif info.filename == _PAGE:
                    data = _PAGE_TEXT.encode()
                sink.writestr(info, data, zipfile.ZIP_DEFLATED)
        os.replace(temporary, target)
    except ValueError:
        os.unlink(temporary)
        return original
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    return target


# --- the process ----------------------------------------------------------------------------------------------------


def _cache_folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(base) / "engine" / "skein"


def _check_tools(environ: Mapping[str, str]) -> None:
    if shutil.which("yarn") is None:
        home = environ.get("HADOOP_HOME") or environ.get("HADOOP_YARN_HOME") or ""
        bin_folder = os.path.join(home, "bin") if home else ""
        if not bin_folder or not os.access(os.path.join(bin_folder, "yarn"), os.X_OK):
            raise ConfigError(
                "There is no command `yarn` on PATH; it is needed to find Hadoop's classes. Install a Hadoop client "
                "and put its bin folder on PATH, or set HADOOP_HOME."
            )
        os.environ["PATH"] = f"{bin_folder}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    java_home = environ.get("JAVA_HOME")
    java = os.path.join(java_home, "bin", "java") if java_home else shutil.which("java")
    if not java or not os.access(java, os.X_OK):
        raise ConfigError(f"There is no Java ({java or 'java'}); Hadoop's client needs it. Set JAVA_HOME.")


@contextlib.contextmanager
def start_driver(application_type: str, *, validity_ms: int | None = None) -> Iterator[Any]:
    """Yield a ``skein.Client`` whose private driver lives as long as the block, and no longer than this process.

    Nothing is written to the user's home: the driver's certificates are made for it alone.

    Raises: ConfigError when Hadoop's client or Java is missing, ExternalError when the driver does not start.
    """
    _check_tools(os.environ)
    skein = skein_module()
    import skein.core as core

    original = Path(core._SKEIN_JAR)
    core._SKEIN_JAR = str(patched_jar(original, application_type, _cache_folder(), validity_ms=validity_ms))
    log = tempfile.NamedTemporaryFile(prefix="flink-skein-", suffix=".log", delete=False)
    log.close()
    client = None
    try:
        try:
            client = skein.Client(
                security=skein.Security.new_credentials(),
                log=log.name,
                java_options=["-Xmx256m", *QUICK_START.split()],
            )
        except (skein.exceptions.SkeinError, OSError, subprocess.SubprocessError) as error:
            with open(log.name, encoding="utf-8", errors="replace") as stream:
                tail = "".join(stream.readlines()[-8:]).rstrip()
            raise ExternalError(f"skein's driver, which talks to YARN, did not start: {error}\n{tail}") from None
        yield client
    finally:
        core._SKEIN_JAR = str(original)
        if client is not None:
            client.close()
        with contextlib.suppress(OSError):
            os.unlink(log.name)
