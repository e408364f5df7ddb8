"""The pictures of the guide, made by its own Python:  python docs/pictures.py  writes docs/*.svg."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent

if __name__ == "__main__":
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "bpgpu"  # the same bytes every time
    os.environ["SOURCE_DATE_EPOCH"] = "0"
    names: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        for block in re.findall(r"```python\n(.*?)```", (HERE / "index.md").read_text(encoding="utf-8"), re.S):
            exec(block, names)
        for picture in Path(folder).glob("*.svg"):
            shutil.copy(picture, HERE)
        os.chdir(HERE)
