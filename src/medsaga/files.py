"""Writing files whole or not at all, whether a place can be written to, and fingerprints of content."""

from __future__ import annotations

import codecs
import contextlib
import csv
import errno
import hashlib
import io
import json
import os
import re
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from medsaga.errors import InputError, MedsagaError

_TEMPORARY = re.compile(r"\.[0-9a-f]{8}\.|\.tmp[0-9A-Za-z]{6}$")
"""Our own names, and those under which safetensors itself writes, beside the name that it was given."""
READABLE = "medsaga.readable"
"""An error handler for writing UTF-8: bytes of a name that are no UTF-8 become ``\\xff``, so that the text is valid."""
_STARTING = (".medsaga-", ".starting")
"""How the name of a folder begins and ends in which another is made."""
_ABANDONED_SECONDS = 3600.0
"""So old is no such folder that somebody still works on: that takes a moment."""
_KEPT_OF_A_NAME = 24
_USUAL_NAME_MAX = 255
_TRIAL_BYTES = 4096


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary name beside ``path``; what was written there takes ``path``'s place at the end.

    The temporary name ends as ``path``'s own name does, so that a writer which chooses its format by the suffix
    works, and is short, so that the longest name that a file system takes can be written. When the block raises, the
    temporary file goes and ``path`` stays as it was. The data reach the disk before the name changes, so that a crash
    leaves the old file or the new one.

    Raises:
        OSError: also where torch or safetensors call a full disk something else.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{secrets.token_hex(4)}.{path.name[-_KEPT_OF_A_NAME:]}")
    try:
        yield temporary
        with temporary.open("rb+") as handle:
            os.fsync(handle.fileno())
        temporary.replace(path)
    except Exception as error:
        if (number := _error_number(error)) is None:
            raise
        raise OSError(number, os.strerror(number), str(path), number) from error
    finally:
        temporary.unlink(missing_ok=True)


def _error_number(error: Exception) -> int | None:
    """Return what the system has said to a library: torch has it in the context of its error, safetensors in words."""
    if isinstance(error, OSError | MedsagaError):
        return None
    if isinstance(error, RuntimeError) and isinstance(error.__context__, OSError):
        return error.__context__.errno
    found = re.search(r"\(os error (\d+)\)$", str(error))
    return int(found[1]) if found else None


@contextlib.contextmanager
def making_folder(path: Path, what: str, do: str) -> Iterator[Path]:
    """Yield an empty folder that becomes ``path`` at the end, with all that was put into it.

    When the block raises, it goes. One that a killed process has left goes when the next is made beside it.

    Args:
        path: the folder to be.
        what: it is, as ``a run folder``.
        do: what the user can do where it exists.

    Raises:
        InputError: somebody else has made ``path`` since; it stays as it is.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(path.parent)
    prefix, suffix = _STARTING
    with tempfile.TemporaryDirectory(suffix, prefix, path.parent, ignore_cleanup_errors=True) as around:
        # The folder around it is for its owner alone; this one has the usual permissions.
        folder = Path(around) / "new"
        folder.mkdir()
        yield folder
        try:
            folder.rename(path)
        except OSError:
            require_new(path, what, do)
            raise


def _remove_abandoned(beside: Path) -> None:
    prefix, suffix = _STARTING
    # That another process removes the same one, or that nobody may look there, is no reason not to start.
    with contextlib.suppress(OSError):
        for path in beside.iterdir():
            ours = path.name.startswith(prefix) and path.name.endswith(suffix)
            if ours and time.time() - path.stat().st_mtime > _ABANDONED_SECONDS:
                shutil.rmtree(path, ignore_errors=True)


def locked(path: Path) -> IO[bytes] | None:
    """Return a file that nobody else has locked; None where a process has, until all who hold it have ended."""
    file = path.open("ab")
    try:
        import fcntl
    except ImportError:  # Windows: what other processes do is not seen
        return file
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        file.close()
        return None
    except OSError:  # a file system without locks, as some clusters have
        return file
    return file


@contextlib.contextmanager
def holding(path: Path) -> Iterator[bool]:
    """Hold a lock file, and say whether that is possible: not while another process does, but when it was killed.

    The file goes at the end.
    """
    lock = locked(path)
    if lock is None:
        yield False
        return
    with lock:
        # Whoever held it before has removed the file at the end: the next process would lock another one.
        here = path.stat() if path.exists() else None
        if here is None or not os.path.samestat(os.fstat(lock.fileno()), here):
            yield False
            return
        try:
            yield True
        finally:
            if os.name == "nt":  # which keeps open files
                lock.close()
            with contextlib.suppress(OSError):
                path.unlink()


@contextlib.contextmanager
def one_at_a_time(folder: Path) -> Iterator[None]:
    """Keep the other processes that ask for it out of the block, where the system can lock a folder."""
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def remove_temporary(folder: Path) -> None:
    """Remove what a process that was killed has left of files which it was writing into a folder."""
    for path in folder.iterdir():
        if _TEMPORARY.match(path.name):
            path.unlink()


def write_text(path: Path, text: str) -> None:
    """Write ``text`` as UTF-8, whole or not at all; see `READABLE` for what is no UTF-8."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors=READABLE, newline="\n")


def require_writable(folder: Path, do: str = "Choose another --out, or make room for it.") -> None:
    """Check, before any work is done, that files can be written into a folder, which need not exist yet.

    A file is written for a moment, without a name where the system can do that: permissions alone do not tell of a
    disk that is full or mounted read-only.

    Args:
        folder: where the files will lie.
        do: what the user can do where that is impossible.

    Raises:
        InputError: a part of its path is a file, a name is too long, or nothing can be written there.
    """
    inside = next((each for each in (folder, *folder.parents) if os.path.lexists(each)), Path())
    if not inside.is_dir():
        found = f"{inside}, which is a {'file' if inside.exists() else 'link to nothing'}"
        raise InputError(folder, expected="a folder, existing or new", found=found, do=do)
    limit = longest_name(inside)
    try:
        if any(len(os.fsencode(name)) > limit for name in folder.relative_to(inside).parts):
            raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
        with contextlib.suppress(FileNotFoundError):
            folder.lstat()
        with tempfile.TemporaryFile(dir=inside) as trial:
            trial.write(bytes(_TRIAL_BYTES))
            trial.flush()
    except OSError as error:
        raise InputError(
            folder,
            expected="a folder that files can be written to",
            found=(error.strerror or str(error)).lower(),
            do=do,
        ) from None


def require_new(path: Path, what: str, do: str = "Choose another --out.") -> None:
    """Check that nothing of a name exists, and that it can be made.

    Args:
        path: the file or folder to be.
        what: it is, as ``a run folder``.
        do: what the user can do where it exists.

    Raises:
        InputError: it exists, or cannot be written.
    """
    if os.path.lexists(path):
        raise InputError(path, expected=f"{what} that does not exist yet", found="one that does", do=do)
    require_writable(path)


def require_room(folder: Path, needed: int, what: str, do: str = "Make room, or choose another --out.") -> None:
    """Check that so many bytes fit on the disk of a folder, which need not exist yet.

    Raises:
        InputError: they do not.
    """
    free = shutil.disk_usage(_existing(folder)).free
    if free < needed:
        expected, found = (f"{number / 2**20:,.0f} MiB" for number in (needed, free))
        raise InputError(folder, expected=f"{expected} of free disk for {what}", found=found, do=do)


def require_name(path: Path) -> None:
    """Check that the name of a file is not too long for the file system that it is meant for.

    Raises:
        InputError: it is.
    """
    length, limit = len(os.fsencode(path.name)), longest_name(path.parent)
    if length > limit:
        expected, do = f"a name of at most {limit} bytes", "Choose a shorter name."
        raise InputError(path, expected=expected, found=f"{length} bytes", do=do)


def longest_name(folder: Path) -> int:
    """Return how many bytes a name in a folder may have; the folder need not exist."""
    try:
        return os.pathconf(_existing(folder), "PC_NAME_MAX")
    except (AttributeError, OSError, ValueError):  # Windows has no such call
        return _USUAL_NAME_MAX


def ignores_case(folder: Path) -> bool:
    """Return whether two names that differ in case alone are one file in an existing folder."""
    trial = folder / f".{secrets.token_hex(4)}.medsaga"
    trial.touch()
    try:
        return trial.with_name(trial.name.upper()).exists()
    finally:
        trial.unlink()


def shortened(name: str, most: int) -> str:
    """Return a name of at most ``most`` bytes: itself, or its beginning and eight digits that tell it from others."""
    encoded = os.fsencode(name)
    if len(encoded) <= most:
        return name
    digest = hashlib.sha256(encoded).hexdigest()[:8]
    # What is left of a character that the cut divides goes too.
    return f"{encoded[: most - len(digest) - 1].decode('utf-8', 'ignore')}~{digest}"


def write_csv(path: Path, rows: Iterable[Iterable[object]]) -> None:
    """Write rows, the first of them the header, as CSV in UTF-8, whole or not at all."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    write_text(path, text.getvalue())


def write_json(path: Path, document: Any) -> None:
    """Write a JSON document, whole or not at all. NaN is not JSON: say null instead."""
    write_text(path, json.dumps(document, indent=2, allow_nan=False) + "\n")


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file's content, in hexadecimal."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def read_json(path: Path) -> Any:
    """Read a JSON document.

    Raises:
        InputError: the file is missing or is no JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, ValueError) as error:
        found = "no such file" if isinstance(error, FileNotFoundError) else str(error)
        raise InputError(path, expected="a JSON document", found=found, do="Restore the file.") from None


def _existing(folder: Path) -> Path:
    return next(each for each in (folder, *folder.absolute().parents) if os.path.isdir(each))  # noqa: PTH112 - no errors


def _readable(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeEncodeError)
    wrong = (ord(character) for character in error.object[error.start : error.end])
    return "".join(f"\\x{n - 0xDC00:02x}" if 0xDC80 <= n <= 0xDCFF else f"\\u{n:04x}" for n in wrong), error.end


codecs.register_error(READABLE, _readable)
