"""The documents tell the truth: their Python is run, block after block, and prints what they say it prints."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import re
from pathlib import Path
from typing import Any

import pytest

DOCS = Path(__file__).parent.parent / "docs"


@pytest.mark.parametrize("document", ["lesson.md", "inside.md", "index.md"])
def test_what_is_printed_is_what_the_document_says(document: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (DOCS / document).read_text(encoding="utf-8")
    blocks = re.findall(r"```(python|text)\n(.*?)```", text, re.S)
    assert sum(kind == "text" for kind, _ in blocks) >= 5
    if document == "index.md":
        for package in ("matplotlib", "onnxruntime", "pyarrow", "scipy", "sklearn"):
            pytest.importorskip(package)
        monkeypatch.setenv("MPLBACKEND", "svg")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    printed = ""
    for kind, block in blocks:
        if "dp_accounting" in block and importlib.util.find_spec("dp_accounting") is None:
            break  # the last block, for which the extra `private` has to be there
        if kind == "python":
            assert printed == "", f"{document} does not say what is printed: {printed}"
            output = io.StringIO()
            with contextlib.redirect_stdout(output):
                exec(block, names)
            printed = output.getvalue()
        else:
            assert printed == block
            printed = ""
    assert printed == ""
    for picture in re.findall(r"!\[.*?\]\((.*?)\)", text):
        assert (tmp_path / picture).exists(), f"{picture} is not of a run: python docs/pictures.py"


def test_links_lead_somewhere() -> None:
    for document in (*DOCS.glob("*.md"), DOCS.parent / "README.md"):
        prose = re.sub(r"```.*?```", "", document.read_text(encoding="utf-8"), flags=re.S)
        for link in re.findall(r"\]\(([^)#]+)\)", prose):
            assert "://" in link or (document.parent / link).exists(), f"{document.name}: {link}"


def test_the_notebook_is_the_lesson() -> None:
    spec = importlib.util.spec_from_file_location("notebook", DOCS / "notebook.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    lesson = (DOCS / "lesson.md").read_text(encoding="utf-8")
    committed = (DOCS / "lesson.ipynb").read_text(encoding="utf-8")
    assert committed == module.notebook(lesson), "run: python docs/notebook.py"
    cells = json.loads(committed)["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    assert [c + "\n" for c in code] == re.findall(r"```python\n(.*?)```", lesson, re.S)
    assert "The reversed network" in "".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
