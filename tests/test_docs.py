"""The documents tell the truth: their Python is run, block after block, and prints what they say it prints."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

DOCS = Path(__file__).parent.parent / "docs"


def module(name: str) -> Any:
    """docs/NAME.py."""
    spec = importlib.util.spec_from_file_location(name, DOCS / f"{name}.py")
    assert spec and spec.loader
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


@pytest.mark.parametrize("document", ["lesson.md", "inside.md", "index.md"])
def test_what_is_printed_is_what_the_document_says(document: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (DOCS / document).read_text(encoding="utf-8")
    assert len(re.findall(r"```text\n", text)) >= 5
    if document == "index.md":
        for package in ("matplotlib", "onnxruntime", "pyarrow", "scipy", "sklearn"):
            pytest.importorskip(package)
        monkeypatch.setenv("MPLBACKEND", "svg")
    monkeypatch.chdir(tmp_path)
    without_accountant = "dp_accounting" in text and importlib.util.find_spec("dp_accounting") is None
    check = module("checked").check
    check(text.partition("```python\nfrom dp_accounting")[0] if without_accountant else text)
    for picture in re.findall(r"!\[.*?\]\((.*?)\)", text):
        assert (tmp_path / picture).exists(), f"{picture} is not of a run: python docs/pictures.py"
    if without_accountant:
        pytest.skip("all but the accountant, which is not installed (the extra private)")


@pytest.mark.parametrize(
    ("right", "wrong"), [("loss 0.8", "loss 0.9"), ("```text\nloss 0.8\n```\n", ""), ("loss 0.8\n", "loss 0.8\n\n")]
)
def test_a_document_that_says_something_else_is_found_out(right: str, wrong: str) -> None:
    text = "Some text.\n```python\nx = 0.8\nprint('loss', x)\n```\n```text\nloss 0.8\n```\n"
    check = module("checked").check
    check(text)
    with pytest.raises(AssertionError, match=r"what is printed(.|\n)*loss 0\.8"):
        check(text.replace(right, wrong))


@pytest.mark.parametrize("number", ["true", "false"])
def test_the_guide_is_built_of_a_lesson_whose_numbers_are_true(number: str, tmp_path: Path) -> None:
    pytest.importorskip("mkdocs")
    for name in ("mkdocs.yml", "docs"):
        copy = shutil.copytree if (DOCS.parent / name).is_dir() else shutil.copy
        copy(DOCS.parent / name, tmp_path / name)
    lesson = tmp_path / "docs" / "lesson.md"
    if number == "false":
        before = lesson.read_text(encoding="utf-8")
        after = re.sub(r"(```text\n[^`]*?\d)(\d)", lambda m: m[1] + str((int(m[2]) + 1) % 10), before, count=1)
        assert after != before
        lesson.write_text(after, encoding="utf-8")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, timeout=300, env=os.environ | {"PYTHONPATH": str(DOCS.parent)}
    )
    assert (done.returncode == 0) == (number == "true"), done.stderr
    assert (number == "true") == (tmp_path / "site" / "lesson" / "index.html").exists()
    assert number == "true" or ("lesson.md: what is printed is" in done.stderr and "Traceback" not in done.stderr)


def test_links_lead_somewhere() -> None:
    for document in (*DOCS.glob("*.md"), DOCS.parent / "README.md"):
        prose = re.sub(r"```.*?```", "", document.read_text(encoding="utf-8"), flags=re.S)
        for link in re.findall(r"\]\(([^)#]+)\)", prose):
            assert "://" in link or (document.parent / link).exists(), f"{document.name}: {link}"


def test_the_notebook_is_the_lesson() -> None:
    lesson = (DOCS / "lesson.md").read_text(encoding="utf-8")
    committed = (DOCS / "lesson.ipynb").read_text(encoding="utf-8")
    assert committed == module("notebook").notebook(lesson), "run: python docs/notebook.py"
    cells = json.loads(committed)["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    assert [c + "\n" for c in code] == re.findall(r"```python\n(.*?)```", lesson, re.S)
    assert "The reversed network" in "".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
