"""Recorded steps as one launch: the blocks of a grid run them and wait for each other, as the CPU's threads do.

A graph starts each of a step's launches by itself.  Here up to MOST_STEPS steps of a program are one cooperative launch of
kernels/team.cu, and between two stages there is a barrier.  The operations, their order of sums and so the bits are those of
cuda.py.

    MLP(layers, backend=GridBackend(get_backend("cuda").device))

It has not been timed on a GPU, so get_backend does not give it (nor do copies of a network, which open their backend by its
name), and it is for precision="exact": the others' products are a library's launches.  bench.gpu compares both.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np

from .backend import Array
from .cuda import CUDABackend, Device, Dimensions
from .kernels import records
from .kernels.cuda_source import Kernel, team_source
from .launching import Record, StagedProgram, new_record
from .tiles import Tile, plan

THREADS = 256  # of every block
MOST_STEPS = 1024  # of a launch
MOST_PIECES = 1 << 30  # of a stage: team.cu counts them in 32 bits


@dataclass
class Work:
    """What would be a launch of its own."""

    kernel: Kernel
    grid: Dimensions
    records: Sequence[Record]  # but that of the step, whose number team.cu knows

    @property
    def pieces(self) -> int:
        return self.grid[0] * self.grid[1]


class GridProgram(StagedProgram[Work]):
    """Works in stages, and, when it is ready, the table of them on the device."""

    def __init__(self, backend: GridBackend) -> None:
        super().__init__()
        self._backend = backend
        self._alive: list[Any] = []  # arrays that the kernels reach by address
        self._table: Array = None
        self._function: Any = None
        self._blocks = 0

    def add(self, work: Work, alive: Any) -> None:
        if self.joining:
            self.stages[-1].append(work)
        else:
            self.stages.append([work])
        self._alive.append(alive)

    def ready(self) -> None:
        if self._table is not None or not self.stages:
            return
        kernels = list(dict.fromkeys(work.kernel for stage in self.stages for work in stage))
        self._function, self._blocks = self._backend.team(tuple(kernels))
        works = np.zeros(sum(map(len, self.stages)), records.WORK)
        its, first, place = [], 0, works.nbytes
        for stage in self.stages:
            end = 0
            for i, work in enumerate(stage, first):
                end += work.pieces
                works[i] = kernels.index(work.kernel), *work.grid[:2], end, first + len(stage), place
                its += [record.tobytes() for record in work.records]
                place += sum(record.nbytes for record in work.records)
            if end > MOST_PIECES:
                raise ValueError(f"a stage of {end} pieces; a grid has at most {MOST_PIECES}: use smaller batches")
            first += len(stage)
        self._blocks = min(self._blocks, int(works["end"].max()))  # more would only wait
        words = np.frombuffer(works.tobytes() + b"".join(its), np.int64)
        self._table, self._arrivals = self._backend.placed(words), self._backend.placed(np.zeros(1, np.int64))
        self._job = new_record(
            records.TEAM_OF_BLOCKS, table=self._backend.address(self._table), works=len(works), words=len(words),
            arrivals=self._backend.address(self._arrivals),
        )  # fmt: skip

    def _run(self, first_step: int, steps: int) -> None:
        self.ready()
        if self._table is None:
            return
        with self._backend.lock:
            for start in range(first_step, first_step + steps, MOST_STEPS):
                job = self._job.copy()
                job["first_step"], job["last_step"] = start, min(start + MOST_STEPS, first_step + steps)
                grid, block = (self._blocks, 1, 1), (THREADS, 1, 1)
                self._backend.device.launch(self._function, grid, block, (job,), cooperative=True)


class GridBackend(CUDABackend):
    """CUDABackend whose programs are cooperative launches."""

    def __init__(self, device: Device) -> None:
        super().__init__(device)
        self._teams: dict[tuple[Kernel, ...], tuple[Any, int]] = {}

    @property
    def _recording(self) -> GridProgram | None:
        recorder = self.recorder
        return recorder if isinstance(recorder, GridProgram) else None

    def _new_program(self) -> GridProgram:  # type: ignore[override]
        return GridProgram(self)

    def together(self) -> AbstractContextManager[None]:
        program = self._recording
        return nullcontext() if program is None else program.together()

    def team(self, kernels: tuple[Kernel, ...]) -> tuple[Any, int]:
        """team.cu with these kernels, compiled, and how many blocks of it run at once."""
        if kernels not in self._teams:
            function = self.device.compile(team_source(kernels), ["team"])["team"]
            self._teams[kernels] = function, self.device.multiprocessors * self.device.resident(function, THREADS)
        return self._teams[kernels]

    def plan(self, dtype: str, rows: int, cols: int, K: int) -> tuple[Tile, int]:
        return plan(dtype, rows, cols, K, self.device.multiprocessors, of_grid=True)

    def _threads(self, name: str, job: Record) -> int:
        return THREADS

    def _workspace(self, partials: int, tiles: int) -> tuple[Array, Array] | None:
        if self._recording is None or not self._recording.joining:
            return super()._workspace(partials, tiles)
        # products of one stage are computed at the same time
        return self._new_workspace(partials, tiles) if self._fits(partials, tiles) else None

    def _issue(self, kernel: Kernel, grid: Dimensions, arguments: tuple[Record, ...], alive: Any) -> None:
        program = self._recording
        if program is None:
            super()._issue(kernel, grid, arguments, alive)
        else:
            program.add(Work(kernel, grid, [a for a in arguments if a.dtype != records.STEP]), alive)
