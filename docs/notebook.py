"""docs/lesson.md as a notebook:  python docs/notebook.py  writes docs/lesson.ipynb.  Python blocks become cells of code."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent


def notebook(text: str) -> str:
    cells: list[dict[str, Any]] = []
    for prose, code in re.findall(r"(.*?)(?:```python\n(.*?)```|\Z)", text, re.S):
        prose = re.sub(r"```text\n.*?```\n*", "", prose, flags=re.S).strip()  # running it prints the same
        if prose:
            cells.append({"cell_type": "markdown", "metadata": {}, "source": prose.splitlines(keepends=True)})
        if code:
            source = code.strip().splitlines(keepends=True)
            cells.append({"cell_type": "code", "execution_count": None, "metadata": {}, "outputs": [], "source": source})
    for number, cell in enumerate(cells):
        cell["id"] = f"cell-{number}"
    kernel = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
    return (
        json.dumps({"cells": cells, "metadata": kernel, "nbformat": 4, "nbformat_minor": 5}, indent=1, ensure_ascii=False)
        + "\n"
    )


if __name__ == "__main__":
    text = (HERE / "lesson.md").read_text(encoding="utf-8")
    (HERE / "lesson.ipynb").write_text(notebook(text), encoding="utf-8")
