"""What has been compiled once is kept on disk.

A file is written whole under a temporary name, then renamed, and carries its own checksum.
"""

from __future__ import annotations

import hashlib
import os
import sys
import tempfile
import threading
from collections.abc import Callable
from functools import cache
from pathlib import Path


def _candidate_folders() -> list[Path]:
    if chosen := os.environ.get("BPGPU_CACHE_DIR"):
        return [Path(chosen)]
    if sys.platform == "win32":
        user = Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local"))
    elif sys.platform == "darwin":
        user = Path.home() / "Library" / "Caches"
    else:
        user = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    owner = os.getuid() if hasattr(os, "getuid") else "user"
    return [user / "bpgpu", Path(tempfile.gettempdir()) / f"bpgpu-{owner}"]


@cache
def cache_folder() -> Path | None:
    """The first folder that is ours alone and can be written, or None: then every process compiles for itself."""
    for folder in _candidate_folders():
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if hasattr(os, "getuid") and folder.stat().st_uid != os.getuid():
                continue
            with tempfile.TemporaryFile(dir=folder):
                return folder
        except (OSError, RuntimeError):
            continue
    return None


def _file(folder: Path, key: str) -> Path:
    return folder / f"{hashlib.sha256(key.encode()).hexdigest()[:40]}.kernel"


def is_kept(key: str) -> bool:
    folder = cache_folder()
    return folder is not None and _file(folder, key).exists()


def kept(key: str, make: Callable[[], bytes]) -> bytes:
    """What make() gives, called only if no process has kept it under this key, which names all that it depends on."""
    folder = cache_folder()
    if folder is None:
        return make()
    content = _read(file := _file(folder, key))
    if content is None:
        _write(file, content := make())
    return content


def _read(file: Path) -> bytes | None:
    """What was kept, or None if it is absent or not whole."""
    try:
        content = file.read_bytes()
    except OSError:
        return None
    return content[32:] if hashlib.sha256(content[32:]).digest() == content[:32] else None


def _write(file: Path, content: bytes) -> None:
    temporary = file.with_suffix(f".{os.getpid()}-{threading.get_ident()}")
    try:
        temporary.write_bytes(hashlib.sha256(content).digest() + content)
        os.replace(temporary, file)
    except OSError:  # a full or read-only disk costs the next process a compilation, nothing else
        temporary.unlink(missing_ok=True)
