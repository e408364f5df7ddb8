"""What runs inside the loops: one operation per file, NAME.py for the CPU (Numba) beside NAME.cu for the GPU (CUDA C++).

README.md is the table of operations.  Nothing here knows of networks or imports anything of bpgpu's host side.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import nullcontext
from functools import partial
from importlib import import_module
from typing import Any

# name of a kernel: file and function that make it
_MAKERS = {
    "product": ("product", "product"),
    "thin": ("thin", "thin"),
    "pack_panels": ("panels", "pack_panels"),
    "add_chunks": ("product", "add_chunks"),
    "dense_forward": ("dense_forward", "finish"),
    "hidden_delta": ("hidden_delta", "finish"),
    "dense_gradient": ("dense_gradient", "finish"),
    "few_examples": ("dense_gradient", "few_examples"),
    "one_chunk": ("dense_gradient", "one_chunk"),
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


Key = tuple[str, ...]  # of a kernel: its name, its dtype or "", and options that name its activation, loss, rule

_found: dict[Key, int] = {}


def addresses(keys: Iterable[Key], processes: int = 1) -> dict[Key, int]:
    """Where these kernels are.  What is not on disk is compiled; if there may be several processes, the product in one of its
    own, as it takes as long as all else.
    """
    wanted = dict.fromkeys(keys)
    if new := [key for key in wanted if key not in _found]:
        from . import compiler

        absent = [key for key in new if not compiler.is_kept(_name(key))]
        products = [key for key in absent if key[0] == "product"]
        helped = processes > 1 and 0 < len(products) < len(absent)
        with compiler.elsewhere(products) if helped else nullcontext():
            _found.update((key, compiler.address(_name(key), partial(_make, key))) for key in new if key not in products)
        _found.update((key, compiler.address(_name(key), partial(_make, key))) for key in products)
    return {key: _found[key] for key in wanted}


def _name(key: Key) -> str:
    return ".".join(key)


def _make(key: Key) -> Callable[..., None]:
    """The Python function that is compiled."""
    from .machine import lanes

    name, dtype, *options = key
    file, function = _MAKERS[name]
    maker: Callable[..., Any] = getattr(import_module(f".{file}", __package__), function)
    made: Callable[..., None] = maker(lanes(dtype), *options) if dtype else maker()
    return made
