"""Virtual environments of the peers, made when they are missing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

PEER_PACKAGES = {
    "flink": ["apache-flink==2.3.0"],
    "polars": ["polars"],
    "duckdb": ["duckdb"],
    "bytewax": ["bytewax==0.21.1"],
    "pathway": ["pathway"],
    "pyspark": ["pyspark>=4"],
}


def default_cache() -> str:
    """Return where environments and inputs stay between runs."""
    return os.path.join(os.environ.get("XDG_CACHE_HOME", os.path.expanduser("~/.cache")), "engine-bench")


def peer_python(cache: Path, peer: str) -> str:
    """Return the interpreter of the peer's environment, made if it is missing."""
    venv = cache / f"venv-{peer}"
    python = venv / "bin" / "python"
    if not (venv / ".ready").exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(venv)], check=True)
        install = [str(python), "-m", "pip", "install", "--quiet", "wheel", "setuptools<80"]
        subprocess.run(install, check=True)
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", *PEER_PACKAGES[peer]], check=True)
        (venv / ".ready").touch()
    return str(python)
