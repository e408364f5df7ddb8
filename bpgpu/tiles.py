"""How a product is cut for a GPU: a block's tile, and over how many blocks its chunks of k go.  No choice changes a bit."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from .kernels.machine import CHUNK


@dataclass(frozen=True)
class Tile:
    """BM x BN results a block, TM x TN of them a thread: the macros of kernels/product.cuh."""

    BM: int
    BN: int
    TM: int
    TN: int

    @property
    def threads(self) -> int:
        return self.BM // self.TM * (self.BN // self.TN)

    @property
    def macros(self) -> dict[str, int]:
        return {"BM": self.BM, "BN": self.BN, "TM": self.TM, "TN": self.TN, "THREADS": self.threads}

    def cycles(self, itemsize: int) -> int:
        """Of a multiprocessor for one k-step of a block: a model, not a measurement.

        Four schedulers issue an instruction a cycle (an fma of doubles takes two), shared memory serves half a warp's 16-byte
        loads a cycle, and a barrier each 16 k-steps costs about 64.
        """
        wide = 16 // itemsize
        warps, loads = self.threads // 32, -(-self.TM // wide) + -(-self.TN // wide)
        issue = -(-warps // 4) * (self.TM * self.TN * itemsize // 4 + loads)
        return max(issue, 2 * warps * loads) + 4


TILES = {
    "float32": (Tile(128, 128, 8, 8), Tile(64, 64, 8, 4), Tile(32, 32, 4, 2)),
    "float64": (Tile(64, 64, 8, 4), Tile(32, 32, 4, 2)),
}
TILES_OF_GRID = {  # for grid.py: of 256 threads, and of few registers, as several are in one kernel
    "float32": (Tile(64, 64, 4, 4), Tile(32, 32, 2, 2)),
    "float64": (Tile(32, 32, 2, 2),),
}
FINISH = 2000  # cycles to find out which block is the last: an estimate
BYTES = 32  # that a multiprocessor writes or reads a cycle, of the sums of chunks: an estimate


@cache
def plan(dtype: str, rows: int, cols: int, K: int, multiprocessors: int, *, of_grid: bool = False) -> tuple[Tile, int]:
    """The tile, and how many blocks share one, that take the least time for rows x cols sums of K products."""
    chunks, itemsize = -(-K // CHUNK), int(dtype[-2:]) // 8

    def cycles(choice: tuple[Tile, int]) -> int:
        tile, split = choice
        tiles, each = -(-rows // tile.BM) * -(-cols // tile.BN), -(-chunks // split)
        rounds = -(-tiles * split // multiprocessors)
        time = rounds * min(K, each * CHUNK) * tile.cycles(itemsize)
        if split > 1:
            moved = rounds * each + -(-tiles // multiprocessors) * chunks  # tiles of sums: written by all, read by the last
            time += FINISH + moved * tile.BM * tile.BN * itemsize // BYTES
        return time

    splits = sorted({-(-chunks // -(-chunks // split)) for split in range(1, min(chunks, 64) + 1)})  # no block without a chunk
    choices = TILES_OF_GRID[dtype] if of_grid else TILES[dtype]
    return min(((tile, split) for tile in choices for split in splits), key=cycles)
