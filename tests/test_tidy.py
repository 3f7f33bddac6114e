"""The house rules as tests: layers, sizes, banned calls, docstrings. A rule that hurts is changed here, in the open."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCES = sorted([*ROOT.glob("engine/**/*.py"), *ROOT.glob("flink_yarn/**/*.py")])

LAYERS = (  # Lowest first. A module may import its own layer and those before it.
    "engine.core",
    "engine.formats",
    "engine.time",
    "engine.state",
    "engine.protocol",
    "engine.checkpoint",
    "engine.operators",
    "engine.connectors",
    "engine.graph",
    "engine.ha",
    "engine.rpc",
    "engine.runtime.exchange",
    "engine.runtime.taskmanager",
    "engine.runtime.jobmanager",
    "engine.rest",
    "engine.process_setup",
    "engine.jobmanager_process",
    "engine.cluster",
    "engine.client",
    "engine.common",
    "engine.datastream",
    "engine.dataset",
    "engine.lib",
    "engine.table",
    "flink_yarn",
)
LINES_MAX = 700
FUNCTION_LINES_MAX = 80

#: Left of rpc nothing opens sockets, starts threads or reads the wall clock, but for these shells behind contracts.
PURE_LAYERS = LAYERS[: LAYERS.index("engine.rpc")]
SHELLS = {
    "engine.core.clock",
    "engine.core.fs",
    "engine.core.user_code",
    "engine.core.ids",
    "engine.connectors.simple",
    "engine.connectors.socket",
    "engine.connectors.file_chunks",
    "engine.connectors.file_splits",
    "engine.connectors.function_source",
    "engine.connectors.file_commits",
    "engine.connectors.collect",
    "engine.state.rocksdb_files",
    "engine.ha.memory",
    "engine.ha.files",
    "engine.ha.fenced_folder",
    "engine.ha.job_store",
    "engine.ha.zookeeper",
    "engine.ha.zookeeper_client",
}
BANNED = re.compile(
    r"\b(time\.(time|sleep|monotonic|perf_counter)(_ns)?\(|datetime\.now\(|import (threading|socket|grpc|subprocess)\b"
    r"|from (threading|socket|grpc|subprocess) import|random\.(random|randint|choice|shuffle)\()"
)


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def layer_of(module: str) -> int | None:
    """Return the index in LAYERS of ``module``, or None for others; the longest prefix wins."""
    found = None
    for index, prefix in enumerate(LAYERS):
        if module == prefix or module.startswith(prefix + "."):
            found = index
    return found


def imports_of(path: Path) -> set[str]:
    """Return the absolute names of the modules that the file imports, at any nesting level."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path))):
        match node:
            case ast.Import(names=names):
                found |= {alias.name for alias in names}
            case ast.ImportFrom(module=str(module), level=0, names=names):
                found |= {module} | {f"{module}.{alias.name}" for alias in names}
            case ast.ImportFrom(level=level) if level > 0:
                raise AssertionError(f"{path}:{node.lineno}: relative import")
    return found


def upward_imports(path: Path) -> list[str]:
    own = layer_of(module_of(path))
    if own is None:
        return []
    offences = []
    for target in sorted(imports_of(path)):
        other = layer_of(target)
        if other is not None and other > own:
            offences.append(f"{path.relative_to(ROOT)} → {target}")
    return offences


def test_there_are_sources_to_check():
    assert len(SOURCES) > 50


def test_every_import_points_downward():
    assert [line for path in SOURCES for line in upward_imports(path)] == []


def test_the_layer_check_sees_an_upward_import(tmp_path, monkeypatch):
    monkeypatch.setattr("tests.test_tidy.ROOT", tmp_path)
    path = tmp_path / "engine" / "core" / "x.py"
    path.parent.mkdir(parents=True)
    path.write_text("from engine.rpc import endpoint\n")
    assert upward_imports(path) == ["engine/core/x.py → engine.rpc", "engine/core/x.py → engine.rpc.endpoint"]


def test_engine_never_imports_flink_yarn():
    engine = [path for path in SOURCES if path.relative_to(ROOT).parts[0] == "engine"]
    assert [str(p) for p in engine if any(name.split(".")[0] == "flink_yarn" for name in imports_of(p))] == []


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_a_module_is_short_and_says_what_it_is(path):
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= LINES_MAX, "split it by concept"
    tree = ast.parse(text)
    assert ast.get_docstring(tree), "begin with a docstring: what it is, what it is not"
    long_functions = [
        f"{node.name}: {node.end_lineno - node.lineno + 1} lines"
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.end_lineno is not None
        and node.end_lineno - node.lineno + 1 > FUNCTION_LINES_MAX
    ]
    assert long_functions == []


def test_pure_layers_touch_no_clock_thread_or_socket():
    offences = []
    for path in SOURCES:
        module = module_of(path)
        layer = layer_of(module)
        if layer is None or layer >= len(PURE_LAYERS) or module in SHELLS:
            continue
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            if BANNED.search(line) and "#:" not in line:
                offences.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()}")
    assert offences == []


def test_no_file_is_named_for_its_kind():
    banned = {"utils.py", "util.py", "helpers.py", "common.py", "misc.py", "constants.py", "types.py", "interfaces.py"}
    facades = {"engine/common/types.py", "engine/dataset/constants.py"}  # names of Flink's Python APIs
    found = {str(path.relative_to(ROOT)) for path in SOURCES if path.name in banned}
    assert found - facades == set()


def test_the_repository_names_no_machine_path():
    pattern = re.compile(r"/work/(main|tmp|shared)|/root/")
    kinds = {".py", ".sh", ".md", ".cfg", ".yml", ".yaml", ".xml", ".toml"}
    texts = [path for path in ROOT.glob("**/*") if path.suffix in kinds]
    own = Path(__file__).resolve()
    found = [
        str(path.relative_to(ROOT))
        for path in texts
        if not {".venv", "build", ".git", "node_modules"} & set(path.relative_to(ROOT).parts)
        and path.resolve() != own
        and pattern.search(path.read_text(encoding="utf-8", errors="replace"))
    ]
    assert found == []
