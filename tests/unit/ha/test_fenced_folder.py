"""Writes and trees that the kernel has begun before another contender is granted leadership, and that land behind it.

A late landing is made as the kernel makes it: the folder is looked up (a descriptor), others act, then the name is
renamed in that folder.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from engine.core.errors import CorruptStateError, ExternalError
from engine.core.ids import FencingToken
from engine.ha.contracts import LeadershipLostError
from engine.ha.fenced_folder import NOBODY, FencedFolder
from tests.testing.patience import until

ONE, TWO, THREE = (FencingToken(letter * 32) for letter in "abc")


@pytest.fixture
def folder(tmp_path: Path) -> FencedFolder:
    folder = FencedFolder(f"file://{tmp_path}")
    folder.make()
    assert folder.grant(NOBODY, ONE)
    folder.replace(ONE, "x/.value", b"first")
    folder.replace(ONE, "x/y/.value", b"below")
    return folder


def value(folder: FencedFolder, name: str = "x/.value") -> bytes | None:
    def read(tree: str) -> bytes | None:
        path = Path(tree, name)
        return path.read_bytes() if path.exists() else None

    return folder.look(read)


def trees(folder: FencedFolder, token: FencingToken) -> list[str]:
    return sorted(os.listdir(os.path.dirname(folder.tree(token))))


class Late:
    """Lets others act between the lookup of a rename's folder and the rename, for the first one that ``concerns``."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, concerns: Callable[[str], bool]) -> None:
        self.then: list[Callable[[str], object]] = []
        self._concerns = concerns
        self._rename = os.rename
        monkeypatch.setattr(os, "rename", self._late)
        monkeypatch.setattr(os, "replace", self._late)

    def _late(self, source: str, target: str) -> None:
        if not self.then or not (self._concerns(target) or self._concerns(source)):
            self._rename(source, target)
            return
        act = self.then.pop(0)
        from_fd, to_fd = (os.open(os.path.dirname(path), os.O_RDONLY) for path in (source, target))
        try:
            act(source)
            self._rename(os.path.basename(source), os.path.basename(target), src_dir_fd=from_fd, dst_dir_fd=to_fd)
        finally:
            os.close(from_fd)
            os.close(to_fd)


def test_each_leader_has_a_tree_of_its_own_with_all_that_was_written(folder):
    assert folder.grant(ONE, TWO)
    assert (value(folder), value(folder, "x/y/.value")) == (b"first", b"below")
    assert len(trees(folder, TWO)) == 1
    with pytest.raises(LeadershipLostError):
        folder.replace(ONE, "x/.value", b"late")
    with pytest.raises(LeadershipLostError):
        folder.remove(ONE, "x")
    assert not folder.grant(ONE, THREE)
    folder.replace(TWO, "x/.value", b"second")
    assert value(folder) == b"second"
    until(lambda: not [name for name in os.listdir(folder.root) if name.startswith(".")], "nothing else is left")


def test_a_write_that_lands_behind_a_grant_is_not_seen_and_not_said_to_be_done(folder, monkeypatch):
    late = Late(monkeypatch, lambda path: path.endswith("x/.value"))
    seen: list[bytes | None] = []

    def others(_: str) -> None:
        assert folder.grant(ONE, TWO)
        folder.replace(TWO, "x/.value", b"second")
        seen.append(value(folder))

    late.then.append(others)
    with pytest.raises((ExternalError, LeadershipLostError)):
        folder.replace(ONE, "x/.value", b"late")
    assert seen == [b"second"]
    assert value(folder) == b"second"


def test_a_write_that_lands_while_the_next_tree_is_made_is_not_said_to_be_refused(folder, monkeypatch):
    """It is in the new tree: a leader that was told otherwise would delete the files that it points to."""
    late = Late(monkeypatch, lambda path: path.endswith("x/.value"))
    late.then.append(lambda _: os.rename(folder._of(ONE), folder._of(TWO)))
    with pytest.raises(ExternalError, match="not known"):
        folder.replace(ONE, "x/.value", b"late")
    folder._renew(TWO)
    assert value(folder) == b"late"


def test_a_deletion_that_lands_behind_a_grant_deletes_nothing(folder, monkeypatch):
    late = Late(monkeypatch, lambda path: path.endswith("/x"))
    late.then.append(lambda _: folder.grant(ONE, TWO))
    with pytest.raises((ExternalError, LeadershipLostError)):
        folder.remove(ONE, "x")
    assert (value(folder), value(folder, "x/y/.value")) == (b"first", b"below")


def test_a_contender_that_is_deposed_while_it_makes_its_tree_leads_nobody(folder, monkeypatch):
    late = Late(monkeypatch, lambda path: os.path.basename(path).startswith("tree-"))

    def others(_: str) -> None:
        assert folder.grant(TWO, THREE)
        folder.replace(THREE, "x/.value", b"third")

    late.then.append(others)
    assert not folder.grant(ONE, TWO)
    assert value(folder) == b"third"
    assert folder.last_token() == THREE


def test_a_tree_of_one_who_was_deposed_that_lands_first_is_gone_on_from(folder, monkeypatch):
    """Two has been overtaken by three, which has looked for the newest tree; then two's lands, then three's."""
    late = Late(monkeypatch, lambda path: os.path.basename(path).startswith("tree-"))
    top = folder._of(THREE)

    def others(tree_of_two: str) -> None:
        late.then.append(lambda _: os.rename(tree_of_two, os.path.join(top, "tree-2")))
        assert folder.grant(TWO, THREE)
        assert trees(folder, THREE) == ["tree-3"]
        folder.replace(THREE, "x/.value", b"third")

    late.then.append(others)
    assert not folder.grant(ONE, TWO)
    assert value(folder) == b"third"


def test_what_another_version_wrote_is_said_so(folder):
    os.rename(folder.tree(ONE), os.path.join(folder._of(ONE), "x"))
    with pytest.raises(CorruptStateError, match="another version"):
        value(folder)
