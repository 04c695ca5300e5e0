"""Files that are written whole or not at all, and read without running anything that is in them."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path
from typing import Any

import torch


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


def write(content: Any, path: str | os.PathLike[str]) -> None:
    """Write tensors and plain data; the file that was there stays until the new one is whole.

    Raises:
        OSError: if it cannot be written, because the disk is full for example. What was there
            before is then still there.
    """
    check_writable(path)
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with open(temporary, "wb") as file:
            torch.save(content, file)
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


def read(path: str | os.PathLike[str], kind: str) -> dict[str, Any]:
    """Return what :func:`write` wrote, with tensors on the CPU.

    Arguments:
        path: the file.
        kind: what its ``kind`` has to be.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is damaged, of another kind, or would unpack to more than it should.
    """
    name = os.fspath(path)
    try:
        _check_archive(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise
    except Exception as error:  # a damaged file can fail anywhere in the reader
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(f"{name} cannot be read as a {kind} of pyro_vmonf: {reason}") from error
    found = content.get("kind") if isinstance(content, dict) else type(content).__name__
    if not isinstance(content, dict) or found != kind:
        raise ValueError(f"{name} cannot be read as a {kind} of pyro_vmonf: it holds {found!r}")
    return content


def _check_archive(path: str | os.PathLike[str]) -> None:
    """Refuse an archive that is compressed, declares more than its own size, or has changed."""
    size = os.path.getsize(path)
    with zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():
            if entry.compress_type != zipfile.ZIP_STORED or entry.file_size > size:
                raise ValueError(f"its part {entry.filename} declares {entry.file_size} bytes")
        damaged = archive.testzip()  # torch itself does not look at the checksums
        if damaged is not None:
            raise ValueError(f"the checksum of its part {damaged} is wrong")
