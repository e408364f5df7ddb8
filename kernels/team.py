"""How several threads run one program of kernels, and wait for each other.

A program is a list of entries: kernel, job, and how many items of work it has.  Entries that do not depend on each other
make a stage.  A thread takes the next item of the running stage with one atomic addition, and whoever finishes the last item
starts the next stage:

    for step in first .. last:  for stage in program:  for entry, item in stage:  kernel(job, scratch, step, item)

Entries that need nothing but the same item of entries before, as the layers of a small network do whose items are rows of the
batch, go along: the thread that did the item of the first one does it of the others, and nobody waits.

So whole steps, or a whole epoch, are one call without Python in between, and nobody is waited for but a thread that holds an
item: where another process has taken a CPU away, the others do its share.  The ticket that threads add to holds the number of
the running stage (counted through all programs) and of its next item, so a thread that comes late cannot take one twice.
Either has some 32 bits.  Numbers of stages begin again at 0 after 2^31 of them, hours of the smallest networks: they are
compared for being the same alone, and no thread is late by so many.
There are two tickets, for the first and the second half of the items: half of the threads begin with either, so that a thread
mostly finds in its cache what it wrote in the stage, or the step, before; then it helps with the other half.

A thread without work spins for some microseconds, then naps within a program, and sleeps on a lock of its own when there is
none.  The locks are CPython's own (PyThread_acquire_lock_timed and friends): they exist, and do not need the interpreter, on
every platform.
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

BUSY_SPINS, IDLE_SPINS = 100_000, 60_000  # some 150 and 100 microseconds: Python between two steps takes less
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


ITEM_BITS = 32  # of a ticket; the bits above number the stages
ITEM_MASK, STAGE_MASK = (1 << ITEM_BITS) - 1, (1 << (63 - ITEM_BITS)) - 1
TICKETS, DONE, ITEMS, RUNNING, OPEN, QUIT = (
    offset(TEAM, field) for field in ("first_ticket", "done", "items", "running", "program", "quit")
)
LINE = offset(TEAM, "second_ticket") - TICKETS
ASLEEP = offset(MEMBER, "asleep")
MEMBER_SIZE, ENTRY_SIZE = MEMBER.itemsize, ENTRY.itemsize


@njit
def start(team: int, number: int, entry: int, step: int) -> None:
    """Open the stage that begins at `entry` for work; its number goes out before its items, the tickets last.

    The first ticket comes last of all: it always has items, so that the stage cannot end, and the next one begin, before.
    """
    shared = record(TEAM, team)
    shared.entry, shared.step = entry, step
    atomic_exchange(team + RUNNING, number)
    atomic_exchange(team + ITEMS, record(ENTRY, entry).all_items)
    atomic_exchange(team + TICKETS + LINE, number << ITEM_BITS)
    atomic_exchange(team + TICKETS, number << ITEM_BITS)


@njit
def advance(team: int, number: int) -> None:
    """Stage `number` is done: start the next one, or end the program."""
    following = (number + 1) & STAGE_MASK
    shared = record(TEAM, team)
    plan = record(PROGRAM, shared.program)
    entry, step = shared.entry + record(ENTRY, shared.entry).together * ENTRY_SIZE, shared.step
    if entry == plan.entries + plan.length * ENTRY_SIZE:
        entry, step = plan.entries, step + 1
    atomic_exchange(team + DONE, 0)
    if step < plan.last_step:
        start(team, following, entry, step)
    else:
        atomic_exchange(team + ITEMS, 0)
        atomic_exchange(team + TICKETS, following << ITEM_BITS)
        atomic_exchange(team + TICKETS + LINE, following << ITEM_BITS)
        atomic_exchange(team + RUNNING, following)
        atomic_exchange(team + OPEN, 0)  # last: the leader may open the next program from here on


@njit
def work(team: int, rank: int, scratch: int) -> int:
    """Do items as long as there are some, of the thread's own half first; gives the number of the stage that has none left."""
    shared = record(TEAM, team)
    own = half = rank % 2
    empty = -1  # the stage of whose own half nothing is left
    while True:
        ticket = atomic_add(team + TICKETS + half * LINE, 1)
        number: int = ticket >> ITEM_BITS
        items = atomic_load(team + ITEMS)
        if atomic_load(team + RUNNING) != number:
            return number
        middle = (items + 1) // 2
        item = half * middle + (ticket & ITEM_MASK)
        if item < (middle if half == 0 else items):
            # an item that is taken keeps its stage, and the program, from ending: all of it may be read
            entry = shared.entry
            while item >= record(ENTRY, entry).items:
                item -= record(ENTRY, entry).items
                entry += ENTRY_SIZE
            item += record(ENTRY, entry).first
            for _ in range(record(ENTRY, entry).along + 1):
                call(record(ENTRY, entry).kernel, (record(ENTRY, entry).job, scratch, shared.step, item))
                entry += ENTRY_SIZE
            if atomic_add(team + DONE, 1) + 1 == items:
                advance(team, number)
            half = own
        elif half == own:
            empty, half = number, 1 - own
        elif empty == number:
            return number
        else:  # the next stage has begun meanwhile
            half = own


@njit
def scratch_of(team: int, rank: int) -> int:
    address: int = record(MEMBER, record(TEAM, team).members + rank * MEMBER_SIZE).scratch
    return address


def leader() -> Callable[..., None]:
    def lead(program: int, team: int) -> None:
        """What the calling thread does: open the program, wake who sleeps, and work until it has ended."""
        shared, plan = record(TEAM, team), record(PROGRAM, program)
        shared.program = program
        start(team, (atomic_load(team + RUNNING) + 1) & STAGE_MASK, plan.entries, plan.first_step)
        for rank in range(1, shared.size):
            member = shared.members + rank * MEMBER_SIZE
            if atomic_exchange(member + ASLEEP, 0) == 1:
                call_lock(shared.release, record(MEMBER, member).lock, 0)
        scratch = scratch_of(team, 0)
        number, spins = work(team, 0, scratch), 0
        while atomic_load(team + OPEN) != 0:
            spins += 1
            if atomic_load(team + RUNNING) != number:
                number, spins = work(team, 0, scratch), 0
            elif spins > BUSY_SPINS:
                call_lock(shared.acquire, shared.never, NAP)

    return lead


def follower() -> Callable[..., None]:
    def follow(team: int, rank: int) -> None:
        """What every other thread does for all its life: work when there is some, sleep when there is none, until `quit`."""
        shared, scratch = record(TEAM, team), scratch_of(team, rank)
        member = shared.members + rank * MEMBER_SIZE
        number, spins = 0, 0
        while atomic_load(team + QUIT) == 0:
            spins += 1
            if atomic_load(team + RUNNING) != number:
                number, spins = work(team, rank, scratch), 0
            elif atomic_load(team + ITEMS) > 0:  # the others hold the last items of a stage
                if spins > BUSY_SPINS:
                    call_lock(shared.acquire, shared.never, NAP)
            elif spins > IDLE_SPINS:
                atomic_exchange(member + ASLEEP, 1)
                if atomic_load(team + RUNNING) == number or atomic_exchange(member + ASLEEP, 0) == 0:
                    call_lock(shared.acquire, record(MEMBER, member).lock, -1)
                spins = 0

    return follow
