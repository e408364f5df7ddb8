"""The CPU backend: fills in the kernels' records, and keeps the team of threads that runs them."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np

from .backend import Program
from .blocks import gradient_block, is_thin, product_block, row_width, thin_block
from .kernels import Key, addresses, records
from .kernels.machine import CHUNK, GRAIN, MAX_COLS, ROWS, ROWWISE, Lanes, lanes
from .launching import KernelBackend, StagedProgram, new_record
from .team import MOST_THREADS, TEAM, Team, address_of, aligned, thread_count

Array = np.ndarray[Any, Any]

_SMALL = 1 << 19  # multiplications of a product up to which it goes by rows, rather than that threads wait for each other
_AHEAD = 4  # blocks below each other from which on B is packed ahead of a product
_COPIED = 1 << 13  # bytes of a batch that are copied sooner than addresses are exchanged
_INPUTS = {"A", "X", "source"}  # the fields of records that may have the address of a batch
_READS = {  # what the finish of a product touches: the bytes between rows, and up to three matrices, as its job names them
    "dense_forward": ("A_row", "A", "Z"),
    "hidden_delta": ("saved_row", "saved", "dZ"),
    "dense_gradient": ("row", "parameter", "state1", "state2"),
}


def _cut_by_rows(product: Array, V: Lanes) -> int:
    """Let the blocks of a product be whole rows; gives how many blocks there are."""
    M, N = int(product["M"]), int(product["N"])
    product["row_block"] = product["item_rows"] = ROWS
    product["col_block"] = row_width(M, N, V)
    return -(-M // ROWS)


def _note_reads(product: Array, name: str, job: Array) -> None:
    for field, its in zip(("reads_row", "reads1", "reads2", "reads3"), _READS[name], strict=False):
        product[field] = job[its]


@dataclass
class Entry:
    """Some items of a kernel, from `first` on; as many entries after it as `along` says go along (kernels/team.py)."""

    kernel: Key
    job: int
    items: int
    first: int = 0
    along: int = 0


def _in_halves(stage: list[Entry]) -> list[Entry]:
    """The first halves of all entries before the second halves: half of the threads begin with either, and mostly have to do
    with the same halves of the layers.
    """
    first = [Entry(e.kernel, e.job, (e.items + 1) // 2) for e in stage]
    second = [Entry(e.kernel, e.job, e.items - f.items, f.items) for e, f in zip(stage, first, strict=True) if e.items > 1]
    return first + second


class CPUProgram(StagedProgram[Entry]):
    """Recorded kernels with their jobs, in stages; run() is one call for any number of steps."""

    def __init__(self, backend: CPUBackend) -> None:
        super().__init__()
        self._backend = backend
        self.by_rows, self._rows = False, 0  # whether entries may go along by rows; how many an item of the last stage has
        self._alive: list[Any] = []  # jobs and arrays that the kernels reach by address
        self._finishes: list[tuple[Array, Key]] = []  # products, and the kernels that finish them
        self._program: Array | None = None
        self._readers: dict[int, tuple[Array, list[tuple[Array, int]]]] = {}  # id of an array: that; addresses in it, in jobs

    def add(self, kernel: Key, job: Array, items: int, alive: tuple[Any, ...] = (), *, rows: int = 0) -> None:
        """rows: of a batch in an item, where a row of the result needs no other row of the batch."""
        entry = Entry(kernel, address_of(job), items)
        if self.joining:
            self.stages[-1].append(entry)
        elif self.by_rows and self._rows == rows > 0 and self.stages[-1][0].items == items:
            entry.items = 0
            self.stages[-1].append(entry)
            self.stages[-1][0].along += 1
        else:
            self.stages.append([entry])
        self._rows = 0 if self.joining else rows
        self._alive.append((job, alive))
        self._program = None

    def finish(self, product: Array, kernel: Key, job: Array) -> None:
        """Let a kernel finish the blocks of a product."""
        product["finish_job"] = address_of(job)
        self._finishes.append((product, kernel))

    @contextmanager
    def before(self) -> Iterator[None]:
        """What is added in a with block goes ahead of the stage that is being joined."""
        joined = [self.stages.pop()] if self.joining else []
        joining, self.joining = self.joining, False
        yield
        self.joining = joining
        self.stages += joined

    @contextmanager
    def going_by_rows(self) -> Iterator[None]:
        """What is added in a with block may go along with what was added before in it, row by row."""
        self.by_rows, self._rows = True, 0
        try:
            yield
        finally:
            self.by_rows = False

    def redirect(self, place: Array, array: Array) -> None:
        """Let the kernels read `array` where they were recorded to read `place`."""
        if id(place) not in self._readers:
            start, fields = address_of(place), (job[name] for job, _ in self._alive for name in _INPUTS & {*job.dtype.names})
            found = [(field, int(field) - start) for field in fields if start <= field < start + place.nbytes]
            self._readers[id(place)] = place, found
        address = address_of(array)
        for field, offset in self._readers[id(place)][1]:
            field[()] = address + offset

    def ready(self) -> None:
        if self._program is None:
            self._program = self._linked()

    def _run(self, first_step: int, steps: int) -> None:
        self.ready()
        assert self._program is not None
        self._program["first_step"], self._program["last_step"] = first_step, first_step + steps
        if steps > 0 and self.stages:
            self._backend.team.run(self._program)

    def _linked(self) -> Array:
        """The program as the team reads it, its kernels compiled, together, if they have to be."""
        entries = [e for stage in self.stages for e in stage]
        keys = [e.kernel for e in entries] + [key for _, key in self._finishes]
        kernels = addresses((*keys, *self._backend.kernels_of_team), processes=self._backend.threads)
        for product, key in self._finishes:
            product["finish"] = kernels[key]
        self._table = np.array([(kernels[e.kernel], e.job, e.items, e.first, e.along, 0, 0) for e in entries], records.ENTRY)
        start = 0
        for stage in self.stages:
            self._table[start]["together"], self._table[start]["all_items"] = len(stage), sum(e.items for e in stage)
            start += len(stage)
        return new_record(records.PROGRAM, entries=address_of(self._table), length=len(self._table))


class CPUBackend(KernelBackend):
    """Operations on NumPy arrays by kernels/*.py, on `threads` threads (default: what thread_count says)."""

    name = "cpu"

    def __init__(self, threads: int | None = None) -> None:
        if threads is not None and (not isinstance(threads, int) or not 1 <= threads <= MOST_THREADS):
            expected = f"a positive integer up to {MOST_THREADS}, or None for all CPUs of this process"
            raise ValueError(f"threads is {threads!r}; expected {expected}")
        super().__init__()
        self.threads = threads or thread_count()
        self._wanted = 6 * self.threads if self.threads > 1 else 1  # blocks of a product
        self._team: Team | None = None

    @property
    def kernels_of_team(self) -> tuple[Key, ...]:
        """What the team will need that is not there."""
        return TEAM[: self.threads] if self._team is None else ()

    @property
    def team(self) -> Team:
        if self._team is None or self._team.process != os.getpid():  # a forked child has no threads but its own
            self._team = Team(self.threads)
        return self._team

    def empty(self, shape: tuple[int, ...], dtype: Any) -> Array:
        """On whole cache lines: a vector that lies on two of them takes twice as long."""
        flat: Array = aligned(math.prod(shape) * np.dtype(dtype).itemsize, np.empty).view(dtype)
        return flat.reshape(shape)

    def asarray(self, array: Any) -> Array:
        return np.ascontiguousarray(array)

    def copy(self, array: Array) -> Array:
        return array.copy()

    def write(self, target: Array, source: Any) -> None:
        np.copyto(target, source)

    def to_numpy(self, array: Array) -> Array:
        return array

    def give(self, program: Program, place: Array, array: Any, *, changing: Sequence[Array] = ()) -> None:
        if place.nbytes < _COPIED:
            self.write(place, array)
            return
        assert isinstance(program, CPUProgram)
        flags, overlaps = array.flags, any(np.may_share_memory(array, other) for other in changing)
        if overlaps or not (flags.c_contiguous and flags.aligned and array.dtype == place.dtype):
            self.write(place, array)
            array = place
        program.redirect(place, array)

    def address(self, array: Array) -> int:
        if not isinstance(array, np.ndarray):
            raise TypeError(
                f"the array is a {type(array).__name__}; expected a NumPy array, as asarray of the backend gives it"
            )
        return address_of(array)

    def _new_program(self) -> CPUProgram:
        return CPUProgram(self)

    @property
    def _recording(self) -> CPUProgram | None:
        recorder = self.recorder
        return recorder if isinstance(recorder, CPUProgram) else None

    def together(self) -> AbstractContextManager[None]:
        program = self._recording
        return nullcontext() if program is None else program.together(_in_halves)

    def by_rows(self) -> AbstractContextManager[None]:
        program = self._recording
        return nullcontext() if program is None else program.going_by_rows()

    def _launch(self, name: str, dtype: str | None, options: tuple[str, ...], job: Array, items: int, *alive: Any) -> None:
        program, rows = self._recording or CPUProgram(self), ROWS if name in ROWWISE else 0
        program.add((name, dtype or "", *options), job, -(-items // GRAIN.get(name, 1)), alive, rows=rows)
        if program is not self.recorder:
            program.run()

    def _launch_product(self, name: str, dtype: str, option: str, product: Array, job: Array, *alive: Any) -> None:
        program = self._recording or CPUProgram(self)
        self._add_product(program, (name, dtype, option), product, job, alive)
        if program is not self.recorder:
            program.run()

    def _add_product(self, program: CPUProgram, finish: Key, product: Array, job: Array, alive: tuple[Any, ...]) -> None:
        (name, dtype, _), recorded = finish, program is self.recorder
        V, (M, N, K) = lanes(dtype), (int(product[size]) for size in "MNK")
        kernel = "thin" if is_thin(M, V) else "product", dtype
        if program.by_rows and self._small(M) >= M * N * K and row_width(M, N, V) <= MAX_COLS:
            blocks = _cut_by_rows(product, V)
            program.finish(product, finish, job)
            program.add(kernel, product, blocks, (job, alive), rows=ROWS)
            return
        chunks = -(-K // CHUNK)
        in_chunks = chunks if recorded and not program.joining else 1  # that could be products of their own
        if is_thin(M, V):
            rows, cols = thin_block(M, N, V, bool(product["B_transposed"]), in_chunks, self._wanted)
        else:
            rows, cols = product_block(name, M, N, K, V, self._wanted)
        product["row_block"], product["col_block"] = rows, cols
        down, across = -(-M // rows), -(-N // cols)
        # blocks below each other share what is packed of B: in one item if it is one chunk, otherwise packed ahead
        shared = -(-down // -(-self._wanted // across)) if chunks == 1 and rows > V.rows else 1
        product["item_rows"], items = shared * rows, -(-down // shared) * across
        if in_chunks > 1 and down * across < self._wanted:
            self._add_chunks(program, kernel, finish, product, items, job, alive)
            return
        program.finish(product, finish, job)
        _note_reads(product, name, job)
        if recorded and chunks > 1 and down >= _AHEAD:
            panels = self.empty((across * chunks, CHUNK * cols), dtype)
            product["panels"], alive = address_of(panels), (*alive, panels)
            with program.before():
                program.add(("pack_panels", dtype), product, len(panels), alive)
        program.add(kernel, product, items, (job, alive))

    def _small(self, rows: int) -> int:
        """Multiplications of a product of a batch of so many rows, up to which it goes by rows."""
        return _SMALL if -(-rows // ROWS) >= self.threads else _SMALL >> 4  # where threads would have nothing to do

    def _add_chunks(
        self, program: CPUProgram, kernel: Key, finish: Key, product: Array, blocks: int, job: Array, alive: tuple[Any, ...]
    ) -> None:
        """A product in two stages: the chunks of k on their own, so that there is work for all threads, then their sum."""
        dtype, (M, N, K) = finish[1], (int(product[size]) for size in "MNK")
        sums = self.empty((-(-K // CHUNK), M, N), dtype)
        B_k = sums.itemsize if product["B_transposed"] else product["B_row"]
        with program.together():  # half of the chunks of k is half of the units below
            for k, target in zip(range(0, K, CHUNK), sums, strict=True):
                of_chunk = new_record(records.UPDATE, parameter=address_of(target), row=target.strides[0])
                chunk = product.copy()
                chunk["A"], chunk["B"] = product["A"] + k * product["A_k"], product["B"] + k * B_k
                chunk["K"] = min(CHUNK, K - k)
                program.finish(chunk, ("dense_gradient", dtype, "store"), of_chunk)
                program.add(kernel, chunk, blocks, (of_chunk, sums, alive))
        whole = new_record(
            records.CHUNKS, sums=address_of(sums), sums_row=sums.strides[1], sums_chunk=sums.strides[0], chunks=len(sums),
            product=product,
        )  # fmt: skip
        by_rows = program.by_rows and N <= MAX_COLS  # longer rows are work for all threads
        if by_rows:
            blocks = _cut_by_rows(whole["product"], lanes(dtype))
        program.finish(whole["product"], finish, job)
        program.add(("add_chunks", dtype), whole, blocks, (sums, job, alive), rows=ROWS if by_rows else 0)

    def _launch_gradient(self, dtype: str, rule: str, product: Array, job: Array, sums: Array, *alive: Any) -> None:
        M, N, K = (int(product[size]) for size in "MNK")
        with self.together():
            if K > CHUNK:
                self._launch_product("dense_gradient", dtype, rule, product, job, *alive)
            else:  # it never leaves the registers
                name, rows, cols = gradient_block(M, N, K, lanes(dtype), self._wanted)
                product["item_rows"], product["col_block"], product["finish_job"] = rows, cols, address_of(job)
                _note_reads(product, "dense_gradient", job)
                self._launch(name, dtype, (rule,), product, -(-M // rows) * -(-N // cols), job, *alive)
            self._launch("column_sum", dtype, (rule,), sums, int(sums["columns"]), *alive)
