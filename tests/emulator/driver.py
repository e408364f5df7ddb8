"""A library that stands for NVIDIA's driver as far as to say its version, and that there is no GPU.

With it the real CuPy and nvmath-python show what they do on a machine with another driver than they want, or without a GPU.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

_TEXT = """
extern "C" {
int cuDriverGetVersion(int* version) { *version = VERSION; return 0; }
int cuInit(unsigned) { return 100; }  // CUDA_ERROR_NO_DEVICE
}
"""


def stand_in(folder: Path, version: int) -> dict[str, str]:
    """The environment of a process that finds a driver for this version of CUDA (12020 is 12.2) and no GPU."""
    flags = ["-shared", "-fPIC", "-Wl,-soname,libcuda.so.1", f"-DVERSION={version}", "-x", "c++", "-"]
    subprocess.run(["g++", *flags, "-o", str(folder / "libcuda.so.1")], input=_TEXT, text=True, check=True)
    return {**os.environ, "LD_LIBRARY_PATH": str(folder)}
