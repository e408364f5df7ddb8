"""How several threads run one program of kernels, and wait for each other.

A program is a list of (kernel address, job address).  Every thread of the team runs the whole list; inside a kernel the
threads take items of work from a common counter, and behind each kernel they meet at a barrier:

    for step in first .. first + steps:  for kernel, job in program:  kernel(job, team, rank, step);  meet

So whole steps, or a whole epoch, are one call without Python in between.  A thread that waits spins for a few microseconds,
then sleeps: in short naps within a program, on a lock of its own when there is no program.  The locks are CPython's own
(PyThread_acquire_lock and friends), which exist and do not need the interpreter on every platform.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from .records import ENTRY, MEMBER, PROGRAM, TEAM, offset
from .vector import njit

SPINS = 20_000  # some tens of microseconds
NAP = 50  # microseconds

I64 = ir.IntType(64)
_BYTES = ir.IntType(8).as_pointer()


@intrinsic
def record(typingctx: Any, dtype: Any, address: Any) -> Any:
    """The record of a NumPy structured dtype at the address (a view: reading and writing its fields goes to memory)."""

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.inttoptr(args[1], context.get_value_type(dtype.dtype))

    return dtype.dtype(dtype, types.intp), emit


@intrinsic
def call(typingctx: Any, function: Any, arguments: Any) -> Any:
    """Call the kernel at the address `function` with a tuple of integers."""

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        numbers = [builder.extract_value(args[1], i) for i in range(len(arguments))]
        pointer = _BYTES.as_pointer()
        kind = ir.FunctionType(ir.IntType(32), [pointer, pointer, *(n.type for n in numbers)])
        unused = ir.Constant(pointer, None)
        result = cgutils.alloca_once(builder, _BYTES)
        builder.call(builder.inttoptr(args[0], kind.as_pointer()), [result, unused, *numbers])
        return context.get_dummy_value()

    return types.void(types.intp, arguments), emit


@intrinsic
def call_lock(typingctx: Any, function: Any, lock: Any, microseconds: Any) -> Any:
    """Call one of PyThread_acquire_lock_timed (microseconds >= -1) and PyThread_release_lock (the rest is ignored)."""

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        kind = ir.FunctionType(ir.IntType(32), [I64, I64, ir.IntType(32)])
        builder.call(builder.inttoptr(args[0], kind.as_pointer()), [args[1], args[2], ir.IntType(32)(0)])
        return context.get_dummy_value()

    return types.void(types.intp, types.intp, types.intp), emit


def _atomic(operation: str) -> Any:
    @intrinsic
    def atomic(typingctx: Any, address: Any, value: Any) -> Any:
        def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            pointer = builder.inttoptr(args[0], I64.as_pointer())
            return builder.atomic_rmw(operation, pointer, args[1], "seq_cst")

        return types.intp(types.intp, types.intp), emit

    return atomic


atomic_add = _atomic("add")  # both return the old value
atomic_exchange = _atomic("xchg")


@intrinsic
def atomic_load(typingctx: Any, address: Any) -> Any:
    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.load_atomic(builder.inttoptr(args[0], I64.as_pointer()), "seq_cst", 8)

    return types.intp(types.intp), emit


NEXT_ITEM, ARRIVED, MEETINGS, ORDERS = (offset(TEAM, f) for f in ("next_item", "arrived", "meetings", "orders"))
ASLEEP = offset(MEMBER, "asleep")
MEMBER_SIZE, ENTRY_SIZE = MEMBER.itemsize, ENTRY.itemsize


@njit
def scratch(team: int, rank: int) -> int:
    """The address of this thread's own SCRATCH_BYTES."""
    address: int = record(MEMBER, record(TEAM, team).members + rank * MEMBER_SIZE).scratch
    return address


@njit
def take(team: int) -> int:
    """The next item of work of the running kernel, counted from 0."""
    item: int = atomic_add(team + NEXT_ITEM, 1)
    return item


@njit
def wait_while(team: int, word: int, value: int) -> None:
    """Until the word at the address differs from value: spin, then nap."""
    spins = 0
    while atomic_load(word) == value:
        spins += 1
        if spins > SPINS:
            shared = record(TEAM, team)
            call_lock(shared.acquire, shared.never, NAP)


@njit
def meet(team: int) -> None:
    """The barrier: nobody passes before everybody has arrived; the last one resets the counter of items."""
    shared = record(TEAM, team)
    if shared.size == 1:
        shared.next_item = 0
        return
    meeting = atomic_load(team + MEETINGS)
    if atomic_add(team + ARRIVED, 1) == shared.size - 1:
        atomic_exchange(team + ARRIVED, 0)
        atomic_exchange(team + NEXT_ITEM, 0)
        atomic_add(team + MEETINGS, 1)
    else:
        wait_while(team, team + MEETINGS, meeting)


@njit
def run(program: int, team: int, rank: int) -> None:
    plan = record(PROGRAM, program)
    for step in range(plan.first_step, plan.first_step + plan.steps):
        entry = plan.entries
        for _ in range(plan.length):
            call(record(ENTRY, entry).kernel, (record(ENTRY, entry).job, team, rank, step))
            meet(team)
            entry += ENTRY_SIZE


def leader() -> Callable[..., None]:
    def lead(program: int, team: int) -> None:
        """What the calling thread does: give the order, wake who sleeps, and take part as rank 0."""
        shared = record(TEAM, team)
        shared.program = program
        atomic_add(team + ORDERS, 1)
        for rank in range(1, shared.size):
            member = shared.members + rank * MEMBER_SIZE
            if atomic_exchange(member + ASLEEP, 0) == 1:
                call_lock(shared.release, record(MEMBER, member).lock, 0)
        if program != 0:
            run(program, team, 0)

    return lead


def follower() -> Callable[..., None]:
    def follow(team: int, rank: int) -> None:
        """What every other thread does for all its life: wait for an order, take part, until the order is 0."""
        shared = record(TEAM, team)
        member = shared.members + rank * MEMBER_SIZE
        orders = 0
        while True:
            spins = 0
            while atomic_load(team + ORDERS) == orders:
                spins += 1
                if spins > SPINS:
                    atomic_exchange(member + ASLEEP, 1)
                    if atomic_load(team + ORDERS) == orders or atomic_exchange(member + ASLEEP, 0) == 0:
                        call_lock(shared.acquire, record(MEMBER, member).lock, -1)
            orders += 1
            if shared.program == 0:
                return
            run(shared.program, team, rank)

    return follow
