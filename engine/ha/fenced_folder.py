"""The files of one cluster behind a fence that is names of folders, for elections without ZooKeeper.

====================================  =================================================================================
``ha/of-<token>``                     all that is written down, below the token that was granted last
``ha/of-<token>/tree-<n>``            the values; of several the one with the greatest number counts
``ha/of-<token>/tree-<n>/.made``      so that no tree is ever empty, and none can replace another
====================================  =================================================================================

**The fence is a name.** A grant renames ``of-<token before>`` to ``of-<new token>``, which one contender alone can do;
a write renames a finished file into ``of-<own token>/tree-<n>``. A write that begins later with an earlier token finds
no folder, whenever that is, and nobody can hold up others, wherever it is paused or killed.

**A tree belongs to one leader.** The kernel looks up the folder of a write first, then waits for locks that all users
of the file system share, so a write that was begun before a grant can land behind it (measured: 171 ms behind it at the
worst, and one of ten grants had such a write, beside six processes that did nothing but rename). It lands in the tree
of its own leader: each new leader makes one more, of links to the files of the one before, and nobody reads the old one
once the new one is there. Whoever wrote finds its name gone afterwards and says that it is not known what became of it.

What was written before the grant is in the new tree, as that is made behind it. A contender that is deposed while it
makes its tree cannot put it into place, with one exception: the same late landing. Trees are numbered for that. If one
lands before its successor has put its own tree with that number there, the successor goes on from that one, which has
all that its own would have; if it comes later, there is a tree with that number, and it is refused.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import threading
from collections.abc import Callable
from typing import Final, TypeVar, final

from engine.core.errors import CorruptStateError, ExternalError
from engine.core.ids import FencingToken
from engine.ha.contracts import LeadershipLostError

__all__ = ["NOBODY", "FencedFolder", "entries"]

T = TypeVar("T")

NOBODY: Final = "nobody"  #: in place of the last token when none was ever granted
_OF: Final = "of-"
_TREE: Final = "tree-"
_MADE: Final = ".made"
_ENDED: Final = ".ended"
_LOOKS: Final = 10


@final
class FencedFolder:
    """A path below ``tree(token)`` exists as long as that token is the last."""

    def __init__(self, storage_dir: str) -> None:
        self.uri = storage_dir
        self.root = os.path.join(storage_dir.removeprefix("file://"), "ha")
        self.contenders = os.path.join(self.root, "contenders")
        self._removal: threading.Thread | None = None

    def make(self) -> None:
        """Make the folders, as a whole; does nothing when they are there."""
        new = f"{self.root}.new-{FencingToken.generate()}"
        os.makedirs(os.path.join(new, "contenders"))
        os.mkdir(os.path.join(new, _OF + NOBODY))
        _make_tree(os.path.join(new, _OF + NOBODY, f"{_TREE}0"))
        try:
            os.rename(new, self.root)
        except OSError as error:
            shutil.rmtree(new, ignore_errors=True)
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise

    def last_token(self) -> str | None:
        """Return the token that was granted last, ``NOBODY`` when none ever was, None when there is no cluster."""
        for _ in range(_LOOKS):
            names = entries(self.root)
            for name in names:
                if name.startswith(_OF):
                    return name.removeprefix(_OF)
            if not names or _ENDED in names:
                break
            # Nobody promises that a listing has one name or the other of what is renamed meanwhile.
        return None

    def tree(self, token: str) -> str:
        """Return the path of the values. Raises FileNotFoundError when another token was granted."""
        top = self._of(token)
        return os.path.join(top, f"{_TREE}{_newest(top)}")

    def look(self, find: Callable[[str], T]) -> T | None:
        """Return what ``find`` finds in the newest tree; None when there is no cluster."""
        while (token := self.last_token()) is not None:
            with contextlib.suppress(FileNotFoundError):
                tree = self.tree(token)
                found = find(tree)
                if os.path.isdir(tree):
                    return found
            # Another token was granted while we looked, or its tree was made.
        return None

    def lost(self) -> LeadershipLostError:
        if self.last_token() is None:
            return LeadershipLostError("This JobManager does not lead any more: its cluster has ended.")
        return LeadershipLostError("This JobManager does not lead any more: another one was elected.")

    # --- of the leader ---------------------------------------------------------------------------------------------

    def grant(self, before: str, token: FencingToken) -> bool:
        """Return whether it was granted: another token than ``before`` may have been meanwhile."""
        try:
            os.rename(self._of(before), self._of(token))
            _sync_folder(self.root)
            self._renew(token)
        except FileNotFoundError:
            return False
        return True

    def replace(self, token: FencingToken, name: str, content: bytes) -> None:
        """Write ``tree(token)/<name>`` as a whole, durably.

        Raises: LeadershipLostError, and then nothing was changed; ExternalError when another token was granted just
        then, and it is not known whether the new leader sees what was written.
        """
        partial = os.path.join(self.root, f".partial-{FencingToken.generate()}")
        try:
            with open(partial, "xb") as stream:
                stream.write(content)
                stream.flush()
                os.fsync(stream.fileno())
            folder = self.tree(token)
            *parents, last = name.split("/")
            for part in parents:  # never the tree itself
                folder = os.path.join(folder, part)
                with contextlib.suppress(FileExistsError):
                    os.mkdir(folder)
            os.replace(partial, os.path.join(folder, last))
            _sync_folder(folder)
        except FileNotFoundError:
            raise self.lost() from None
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.remove(partial)
        self._check_not_overtaken(token, name)

    def remove(self, token: FencingToken, name: str) -> None:
        """Remove ``tree(token)/<name>`` and all below, and folders above it that are empty then. Raises as replace."""
        trash = os.path.join(self.root, f".trash-{FencingToken.generate()}")
        try:
            top = self.tree(token)
            path = os.path.join(top, *name.split("/"))
            try:
                os.rename(path, trash)
            except FileNotFoundError:
                if not os.path.isdir(top):
                    raise
            with contextlib.suppress(OSError):  # folders that something is left in
                while (path := os.path.dirname(path)) != top:
                    os.rmdir(path)
        except FileNotFoundError:
            raise self.lost() from None
        shutil.rmtree(trash, ignore_errors=True)
        self._check_not_overtaken(token, name)

    def end(self, token: FencingToken) -> None:
        """From here on nobody leads, and nobody can be granted anything in this folder. Raises LeadershipLostError."""
        if self._removal is not None:
            self._removal.join()  # two that remove the same folders would leave some
        try:
            os.rename(self._of(token), os.path.join(self.root, _ENDED))
        except FileNotFoundError:
            raise self.lost() from None

    # --- in here -----------------------------------------------------------------------------------------------------

    def _of(self, token: str) -> str:
        return os.path.join(self.root, _OF + token)

    def _check_not_overtaken(self, token: FencingToken, name: str) -> None:
        if not os.path.isdir(self._of(token)):
            raise ExternalError(
                f"This JobManager lost the leadership while it wrote {name} in {self.root}: it is not known whether "
                "the next leader sees that."
            )

    def _renew(self, token: FencingToken) -> None:
        """Give this leader a tree of its own. Raises FileNotFoundError when another token was granted."""
        top = self._of(token)
        made = False
        while not made:
            newest = _newest(top)
            new = os.path.join(self.root, f".trash-{FencingToken.generate()}")  # what it is if we are killed here
            _make_tree(new)
            _link_all(os.path.join(top, f"{_TREE}{newest}"), new)
            try:
                os.rename(new, os.path.join(top, f"{_TREE}{newest + 1}"))
                made = True
            except FileNotFoundError:
                shutil.rmtree(new, ignore_errors=True)
                raise
            except OSError as error:
                shutil.rmtree(new, ignore_errors=True)
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
                # That of one before us has landed late: ours begins with it.
        _sync_folder(top)
        old = [name for name in os.listdir(top) if name.startswith(_TREE) and int(name.removeprefix(_TREE)) <= newest]
        trash = [os.path.join(self.root, f".trash-{FencingToken.generate()}") for _ in old]
        for name, path in zip(old, trash, strict=True):
            os.rename(os.path.join(top, name), path)  # at once, for those who read in it
        # Nobody waits for the rest; when we are killed here, the next one that joins removes it.
        self._removal = threading.Thread(target=_remove_all, args=(trash,), name="ha-remove", daemon=True)
        self._removal.start()


def entries(path: str) -> list[str]:
    """Return the names in a folder, none when there is no such folder."""
    try:
        return os.listdir(path)
    except (FileNotFoundError, NotADirectoryError):
        return []


def _sync_folder(path: str) -> None:
    with contextlib.suppress(FileNotFoundError):  # deleted meanwhile, so nothing needs to last
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _remove_all(paths: list[str]) -> None:
    for path in paths:
        shutil.rmtree(path, ignore_errors=True)


def _newest(top: str) -> int:
    numbers = [int(name.removeprefix(_TREE)) for name in os.listdir(top) if name.startswith(_TREE)]
    if not numbers:
        raise CorruptStateError(f"{top} has no folder {_TREE}<number>: it was written by another version.")
    return max(numbers)


def _make_tree(path: str) -> None:
    os.mkdir(path)
    with open(os.path.join(path, _MADE), "xb"):
        pass


def _link_all(source: str, target: str) -> None:
    """Link the files of a tree, durably. What its leader removes or replaces meanwhile may be there or not."""
    with contextlib.suppress(FileNotFoundError), os.scandir(source) as found:
        for entry in found:
            new = os.path.join(target, entry.name)
            if entry.is_dir(follow_symlinks=False):
                os.mkdir(new)
                _link_all(entry.path, new)
            elif entry.name != _MADE:
                with contextlib.suppress(FileNotFoundError):
                    try:
                        os.link(entry.path, new)
                    except FileNotFoundError:
                        raise
                    except OSError:  # a file system without links
                        shutil.copyfile(entry.path, new)
    _sync_folder(target)
