"""Archives of tensors and plain data, written whole and read without running anything."""

from __future__ import annotations

import contextlib
import os
import reprlib
import time
import uuid
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from pyro_vmonf._version import __version__
from pyro_vmonf.files.packing import packed

FORMAT = 2
STALE = 24 * 60 * 60  # seconds after which a temporary file has lost its writer


def check_writable(path: str | os.PathLike[str]) -> None:
    """Refuse a path that nothing could be written to.

    Raises:
        ValueError: if its folder does not exist or cannot be written to, or it is a folder itself.
    """
    path = Path(path)
    folder = path.absolute().parent
    if path.is_dir() or not folder.is_dir() or not os.access(folder, os.W_OK):
        raise ValueError(
            f"{path} cannot be written: expected a file's name in a folder that exists and can be "
            "written to"
        )


def write(content: dict[str, Any], path: str | os.PathLike[str]) -> None:
    """Write tensors and plain data; the file that was there stays until the new one is whole.

    The file names its format, and the version of the library.

    Threads and processes can write to the same path: one of them is the last, and its file is
    whole. The remains of a writer that was killed are removed after a day.

    Raises:
        OSError: if it cannot be written, because the disk is full for example. What was there
            before is then still there.
    """
    check_writable(path)
    path = Path(path)
    _sweep(path)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
    try:
        with open(temporary, "xb") as file:
            torch.save(packed({"format": FORMAT, "version": __version__, **content}), file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as a RuntimeError
        raise OSError(
            f"{path} could not be written; the former file is untouched ({error})"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)
    if hasattr(os, "O_DIRECTORY"):  # the new name is on the disk as well
        folder = os.open(path.absolute().parent, os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _sweep(path: Path) -> None:
    """Remove the temporary files of a path that are older than a day."""
    with os.scandir(path.absolute().parent) as entries:
        for entry in entries:
            if entry.name.startswith(f".{path.name}.") and entry.name.endswith(".part"):
                with contextlib.suppress(OSError):  # another writer has removed it
                    if time.time() - entry.stat().st_mtime > STALE:
                        os.unlink(entry.path)


def read(path: str | os.PathLike[str], kind: str) -> dict[str, Any]:
    """Return what :func:`write` wrote, with tensors on the CPU.

    Arguments:
        path: the file.
        kind: what its ``kind`` has to be.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is damaged, of another kind or format, or would unpack to more than it
            should.
    """
    name = os.fspath(path)
    with open(path, "rb") as file:  # once: the name may soon be of another file
        try:
            size = os.fstat(file.fileno()).st_size
            _check_archive(file, size)
            file.seek(0)
            content = torch.load(file, map_location="cpu", weights_only=True)
            _check_tensors(content, size)
        except Exception as error:  # a damaged file can fail anywhere in the reader
            reason = str(error).strip().partition("\n")[0][:300]
            raise ValueError(
                f"{name} cannot be read as a {kind} of pyro_vmonf: {reason}"
            ) from error
    found = content.get("kind") if isinstance(content, dict) else type(content).__name__
    if not isinstance(content, dict) or found != kind:
        raise ValueError(
            f"{name} cannot be read as a {kind} of pyro_vmonf: it holds {reprlib.repr(found)}"
        )
    if content.get("format") != FORMAT:
        made = [reprlib.repr(content.get(key)) for key in ("format", "version")]
        raise ValueError(
            f"{name} has format {made[0]} (pyro_vmonf {made[1]}); this version reads format "
            f"{FORMAT}"
        )
    return content


def _check_archive(file: BinaryIO, size: int) -> None:
    """Refuse an archive that is compressed, declares more than its own size, or has changed."""
    with zipfile.ZipFile(file) as archive:
        for entry in archive.infolist():
            if entry.compress_type != zipfile.ZIP_STORED or entry.file_size > size:
                raise ValueError(f"its part {entry.filename} declares {entry.file_size} bytes")
        total = sum(entry.file_size for entry in archive.infolist())
        if total > size:
            raise ValueError(f"its parts declare {total} bytes, and it has {size}")
        damaged = archive.testzip()  # torch itself does not look at the checksums
        if damaged is not None:
            raise ValueError(f"the checksum of its part {damaged} is wrong")


def tensors_in(content: Any) -> Iterator[Tensor]:
    """Go through the tensors in dictionaries, lists and tuples; each of these is entered once."""
    waiting, seen = [content], set()
    while waiting:
        value = waiting.pop()
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (dict, list, tuple)) and id(value) not in seen:
            seen.add(id(value))
            waiting.extend(value.values() if isinstance(value, dict) else value)


def _check_tensors(content: Any, size: int) -> None:
    """Refuse tensors that are larger than what is stored: strides of zero cost a file nothing."""
    total = sum(tensor.numel() * tensor.element_size() for tensor in tensors_in(content))
    if total > 4 * size:  # tied parameters have several names
        raise ValueError(f"its tensors declare {total} bytes, and it has {size}")
