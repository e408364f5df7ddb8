"""What runs inside the loops: one operation per file, NAME.py for the CPU (Numba) beside NAME.cu for the GPU (CUDA C++).

README.md is the table of operations.  Nothing here knows of networks or imports anything of bpgpu's host side.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib import import_module
from typing import Any

# name of a kernel: file and function that make it
_MAKERS = {
    "product": ("product", "product"),
    "pack_panels": ("product", "pack_panels"),
    "add_chunks": ("product", "add_chunks"),
    "dense_forward": ("dense_forward", "finish"),
    "hidden_delta": ("hidden_delta", "finish"),
    "dense_gradient": ("dense_gradient", "finish"),
    "column_sum": ("dense_gradient", "column_sum"),
    "update": ("update", "update"),
    "output_delta": ("output_delta", "output_delta"),
    "activate": ("output_delta", "activate"),
    "total": ("output_delta", "total"),
    "gather": ("gather", "gather"),
    "dropout": ("dropout", "dropout"),
    "example_norms": ("per_example", "example_norms"),
    "clip_examples": ("per_example", "clip_examples"),
    "squares": ("clip", "squares"),
    "clip": ("clip", "clip"),
    "max_norm": ("clip", "max_norm"),
    "lead": ("team", "leader"),
    "follow": ("team", "follower"),
}


@cache
def kernel(name: str, dtype: str | None = None, *options: str) -> int:
    """The address of a kernel for this machine; options name its activation, loss, rule.  Compiled if it has to be."""

    def make() -> Callable[..., None]:
        from .machine import lanes

        file, function = _MAKERS[name]
        maker: Callable[..., Any] = getattr(import_module(f".{file}", __package__), function)
        made: Callable[..., None] = maker(lanes(dtype), *options) if dtype is not None else maker()
        return made

    from . import compiler

    return compiler.address(".".join((name, dtype or "", *options)), make)
