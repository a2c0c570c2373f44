"""A content-addressed cache of builds, safe against kill -9 and against other processes.

An entry is a folder named by the hash of everything that the build depends on. It is built in a
temporary folder on the same file system, written through to the disk, and then renamed: an entry is
there whole or not at all. A manifest with the size and the sha256 of every file is checked each
time the entry is used; an entry that fails is built again.

One lock file per key (``flock``, released by the kernel when its holder dies) makes processes that
want the same entry build it once. Whoever holds a key's lock owns that key's temporary folders, so
those found under a free lock were left behind by dead processes, and are removed.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

__all__ = ["BuildCache", "CacheError", "cache_directory", "get_or_build", "keep_only"]

_FORMAT = "1"  # in every key: changing the layout leaves old entries alone
_MANIFEST = ".manifest.json"
_LOW_DISK = 1 << 20  # bytes; a build that fails with less than this left has failed for that
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)


class CacheError(OSError):
    """The cache folder cannot be used; the text says why and what to set."""


def cache_directory() -> Path:
    """Return the cache folder: ``TILEWRIGHT_CACHE``, else the user's cache folder.

    It need not exist. ``XDG_CACHE_HOME/tilewright`` and ``~/.cache/tilewright`` are the user's.

    Raises
    ------
    CacheError
        There is no home folder and neither variable is set.
    """
    if own := os.environ.get("TILEWRIGHT_CACHE"):
        return Path(own).expanduser().absolute()
    xdg = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(xdg):  # the specification says to ignore relative ones
        return Path(xdg) / "tilewright"
    try:
        return Path.home() / ".cache" / "tilewright"
    except RuntimeError:
        raise CacheError("there is no home folder: set TILEWRIGHT_CACHE to a folder") from None


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    """Write a file's or a folder's content through to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _files(folder: Path) -> Iterator[Path]:
    """Every file below a folder, in order, without the manifest."""
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path != folder / _MANIFEST:
            yield path


def _seal(folder: Path) -> None:
    """Write the manifest of a folder, and the whole folder through to the disk."""
    manifest = {}
    for path in _files(folder):
        _sync(path)
        name = path.relative_to(folder).as_posix()
        manifest[name] = {"size": path.stat().st_size, "sha256": _sha256(path)}
    (folder / _MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")
    _sync(folder / _MANIFEST)
    for path in [*folder.rglob("*"), folder]:
        if path.is_dir():
            _sync(path)


def _is_whole(folder: Path) -> bool:
    """Whether a folder has a manifest and every file is as it says."""
    try:
        manifest = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))
        return all(
            (folder / name).stat().st_size == entry["size"] and _sha256(folder / name) == entry["sha256"]
            for name, entry in manifest.items()
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


@dataclass(frozen=True)
class BuildCache:
    """Builds by key under one folder.

    Parameters
    ----------
    root : Path
        The cache folder; made when it is first written to.
    """

    root: Path

    def key(self, key_parts: Iterable[str], label: str = "") -> str:
        """Return the name of an entry: the label and a hash of the parts."""
        text = json.dumps([_FORMAT, *key_parts])
        digest = hashlib.sha256(text.encode()).hexdigest()[:32]
        return f"{label}-{digest}" if label else digest

    def get_or_build(self, key_parts: Iterable[str], build: Callable[[Path], None], *, label: str = "") -> Path:
        """Return the folder of a build, making it first where it is absent or corrupt.

        Parameters
        ----------
        key_parts : iterable of str
            Everything that the result depends on: sources' hashes, options, fingerprints.
        build : callable
            Fills the empty folder that it is given. That folder is renamed afterwards, so nothing
            in it may hold its own path.
        label : str
            Put before the hash in the folder's name, for people.

        Raises
        ------
        CacheError
            The cache cannot be written, or its disk is full.
        Exception
            What `build` raises; nothing is kept then.
        """
        key = self.key(key_parts, label)
        entry = self._folder("entries") / key
        if _is_whole(entry):  # needs no lock and no right to write: entries never change
            return entry
        with self._lock(key):
            if not _is_whole(entry):  # else another process has built it while this one waited
                self._remove_leftovers(key)
                self._build(entry, build)
        return entry

    def size(self) -> int:
        """Return the bytes of all files in the cache."""
        total = 0
        for path in self.root.rglob("*"):
            with contextlib.suppress(OSError):  # another process may remove it meanwhile
                total += path.lstat().st_size if not path.is_dir() else 0
        return total

    def check_writable(self) -> None:
        """Write and remove a small file.

        Raises
        ------
        CacheError
            That fails.
        """
        with self._written():
            self._folder("tmp").mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self._folder("tmp")) as file:
                file.write(b"tilewright")

    def _folder(self, name: str) -> Path:
        return self.root / "builds" / name

    @contextlib.contextmanager
    def _written(self) -> Iterator[None]:
        """Turn an OSError of our own file handling into a `CacheError`."""
        try:
            yield
        except OSError as error:
            if error.errno in _NO_SPACE:
                raise self._full() from error
            raise CacheError(
                f"the cache folder {self.root} cannot be written ({error.strerror}): "
                "set TILEWRIGHT_CACHE to a folder that can"
            ) from error

    def _is_full(self) -> bool:
        try:
            return shutil.disk_usage(self.root).free < _LOW_DISK
        except OSError:
            return False

    def _full(self) -> CacheError:
        return CacheError(
            f"the disk of the cache folder {self.root} is full: free some space, or set "
            "TILEWRIGHT_CACHE to a folder on another disk"
        )

    @contextlib.contextmanager
    def _lock(self, key: str) -> Iterator[None]:
        """Hold a key's lock, waiting for it."""
        with self._open_lock(key) as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _open_lock(self, key: str) -> IO[str]:
        with self._written():
            self._folder("locks").mkdir(parents=True, exist_ok=True)
            # Lock files stay: removing one while a process waits on it would make two holders.
            return (self._folder("locks") / f"{key}.lock").open("a")

    def _remove_leftovers(self, held: str) -> None:
        """Remove the temporary folders of dead processes; `held` is the key locked by us."""
        self._remove_key(held)
        for key in {path.name.rpartition(".")[0] for path in self._folder("tmp").glob("*.*")}:
            if key == held:
                continue
            with self._open_lock(key) as file, contextlib.suppress(BlockingIOError):
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                self._remove_key(key)

    def _build(self, entry: Path, build: Callable[[Path], None]) -> None:
        """Build into a temporary folder and put it in the entry's place. The lock is held."""
        try:
            with self._written():
                entry.parent.mkdir(parents=True, exist_ok=True)
                temporary = self._temporary(entry.name)
            self._run(build, temporary)
            with self._written():
                _seal(temporary)
                if entry.exists():
                    # Corrupt. Moved before it is removed, so that the entry is never half there.
                    os.rename(entry, self._temporary(entry.name))
                os.rename(temporary, entry)
                _sync(entry.parent)
        finally:
            self._remove_key(entry.name)

    def _temporary(self, key: str) -> Path:
        """Make an empty folder that belongs to a key."""
        self._folder("tmp").mkdir(parents=True, exist_ok=True)
        return Path(tempfile.mkdtemp(prefix=f"{key}.", dir=self._folder("tmp")))

    def _run(self, build: Callable[[Path], None], folder: Path) -> None:
        """Run a build; where it fails for want of space, say that and not what it says."""
        try:
            build(folder)
        except Exception as error:
            if self._is_full() or (isinstance(error, OSError) and error.errno in _NO_SPACE):
                raise self._full() from error
            raise

    def _remove_key(self, key: str) -> None:
        """Remove what is left of one key's temporary folders. The lock is held."""
        for path in self._folder("tmp").glob(f"{key}.*"):
            shutil.rmtree(path, ignore_errors=True)


def get_or_build(key_parts: Iterable[str], build: Callable[[Path], None], *, label: str = "") -> Path:
    """Return a build's folder from the user's cache; see `BuildCache.get_or_build`."""
    return BuildCache(cache_directory()).get_or_build(key_parts, build, label=label)


def keep_only(folder: Path, *names: str) -> None:
    """Remove what was only needed to build an entry: the cache is checked at each use, so it stays small."""
    for path in sorted(folder.rglob("*"), reverse=True):
        if path.is_dir():
            path.rmdir()
        elif path.name not in names:
            path.unlink()
