"""Kernels compiled on first use and kept on disk.

A kernel is a Python function of integers (addresses, sizes) that Numba compiles for this machine; what is kept is plain
object code, so a process that finds it does not even import Numba.  The key of a kept kernel is its name, the text of every
file in this folder, the CPU with its features, and the versions of Numba and llvmlite: an edited file, another machine or
an upgrade can only miss.
"""

from __future__ import annotations

import gc
import hashlib
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import llvmlite.binding as llvm

from . import disk
from .interrupt import whole
from .machine import target


@cache
def _fingerprint() -> str:
    digest = hashlib.sha256()
    for part in (*target(), version("numba"), version("llvmlite"), sys.version):
        digest.update(part.encode() + b"\0")
    for file in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(file.name.encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()[:32]


LONGEST = 60  # seconds that the other process may take

_announced = False


def _announce() -> None:
    global _announced
    if not _announced:
        _announced = True
        where = f"kept in {folder}" if (folder := disk.cache_folder()) else "not kept: no writable cache folder"
        print(f"bpgpu: compiling CPU kernels for this machine (some seconds, once; {where})", file=sys.stderr, flush=True)


def _compile(function: Callable[..., None]) -> tuple[str, bytes]:
    """Symbol and object code of a Python function whose parameters are all integers."""
    from numba.core import compiler, types
    from numba.core.compiler_lock import global_compiler_lock
    from numba.core.registry import cpu_target

    flags = compiler.Flags()
    flags.no_cpython_wrapper = flags.no_cfunc_wrapper = True
    flags.error_model = "numpy"
    count = function.__code__.co_argcount
    with global_compiler_lock:
        result: Any = compiler.compile_extra(
            cpu_target.typing_context, cpu_target.target_context, function, (types.intp,) * count, types.void, flags, {}
        )
        symbol = result.fndesc.mangled_name
        result.library.get_pointer_to_function(symbol)
        return symbol, result.library._get_compiled_object()


_engines: list[Any] = []  # one for each kernel, so that their symbols cannot meet; they own the machine code


def _load(symbol: str, code: bytes) -> int:
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    machine = llvm.Target.from_default_triple().create_target_machine(jit=True)
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), machine)
    engine.add_object_file(llvm.ObjectFileRef.from_data(code))
    engine.finalize_object()
    _engines.append(engine)
    return int(engine.get_function_address(symbol))


def address(name: str, make: Callable[[], Callable[..., None]]) -> int:
    """The address of the kernel called `name`; make() gives the Python function if it has to be compiled."""

    def compiled() -> bytes:
        _announce()
        collecting = gc.isenabled()
        gc.disable()  # it would go over all of Numba's objects time and again
        try:
            symbol, code = _compile(make())
        finally:
            if collecting:
                gc.enable()
        return symbol.encode() + b"\0" + code

    with whole():  # Python cannot raise Ctrl-C in the functions that LLVM calls back: it would be lost
        symbol, _, code = disk.kept(_key(name), compiled).partition(b"\0")
    return _load(symbol.decode(), code)


def _key(name: str) -> str:
    return f"{_fingerprint()} {name}"


def is_kept(name: str) -> bool:
    return disk.is_kept(_key(name))


@contextmanager
def elsewhere(keys: list[tuple[str, ...]]) -> Iterator[None]:
    """While the block runs another process compiles these kernels, and keeps them.  Where there is none, because nothing can
    be kept or Python is embedded in another program, nothing is lost: whoever asks for them then compiles them.
    """
    code = f"""
import sys
sys.path[:] = {sys.path!r}
import signal
signal.signal(signal.SIGINT, signal.SIG_IGN)
from {__package__} import addresses
addresses({keys!r})
"""
    helper = None
    with whole():  # Ctrl-C leaves no process behind
        if disk.cache_folder() is not None and Path(sys.executable or "").name.lower().startswith("python"):
            with suppress(OSError):
                flags: list[str] = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]  # as -I
                helper = subprocess.Popen(
                    [sys.executable, *flags, "-c", code], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL, creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),
                )  # fmt: skip
        try:
            yield
        finally:
            if helper is not None:
                try:
                    helper.wait(LONGEST)
                except subprocess.TimeoutExpired:  # then this process does it
                    helper.kill()
                    helper.wait()
