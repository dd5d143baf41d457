"""A full disk as one error that says which disk and how full, whether Python, torch or safetensors ran into it."""

from __future__ import annotations

import errno
import shutil
import tempfile
from pathlib import Path
from urllib.parse import unquote, urlparse

from rlhf_lib.errors import DiskFull

# safetensors says the first; torch says the second, of any file that it couldn't write to the end
_PHRASES = ("No space left on device", "Disk quota exceeded")
_TORCH = ("PytorchStreamWriter failed", "file write failed", "unexpected pos")
_SCANT = 0.02  # of a disk: with less than that free torch's words are taken to mean it


def disk_full(error: BaseException | None, *places: Path | str) -> DiskFull | None:
    """The error that names the folder and its free space, if a full disk caused this one; else None.

    `places`: folders or file:// addresses that were written to, for errors that don't name their file.
    """
    while error is not None and not isinstance(error, DiskFull):
        told = str(error)
        full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
        full = full or any(phrase in told for phrase in _PHRASES)
        name = error.filename2 or error.filename if isinstance(error, OSError) else None
        folders = [_existing(place) for place in ([name] if name else [*places, tempfile.gettempdir()])]
        scarcest = min(folders, key=_share)
        if full or (any(phrase in told for phrase in _TORCH) and _share(scarcest) < _SCANT):
            usage = shutil.disk_usage(scarcest)
            return DiskFull(
                f"the disk of {scarcest} is full: {readable_size(usage.free)} of {readable_size(usage.total)} free. "
                "Free some space and run the same command again (or prefect flow-run retry): PPO resumes from its last "
                "checkpoint, and finished stages are reused"
            )
        error = error.__cause__ or error.__context__
    return None


def _existing(place: Path | str) -> Path:
    """The folder, or the nearest existing one above it."""
    text = str(place)
    path = Path(unquote(urlparse(text).path) if text.startswith("file:") else text).absolute()
    return next(folder for folder in (path, *path.parents) if folder.is_dir())


def _share(folder: Path) -> float:
    usage = shutil.disk_usage(folder)
    return usage.free / max(usage.total, 1)


def readable_size(count: float) -> str:
    if count >= 1e8:
        return f"{count / 1e9:.3g} GB"
    return f"{count / 1e6:.3g} MB" if count >= 1e5 or not count else f"{count / 1e3:.3g} kB"
