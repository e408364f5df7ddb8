"""The Python of a document is run, block after block, and prints what the document says that it prints.

The tests do this to every document, and mkdocs, of which this file is a hook, to the lesson.
"""

from __future__ import annotations

import contextlib
import io
import re
from typing import Any


def check(text: str) -> None:
    """AssertionError: it prints something else."""
    names: dict[str, Any] = {}
    printed = ""
    for kind, block in re.findall(r"```(python|text)\n(.*?)```", text, re.S):
        if kind == "text":
            assert printed == block, f"what is printed is\n{printed}and the document says\n{block}"
            printed = ""
        else:
            assert printed == "", f"the document does not say what is printed: {printed}"
            with contextlib.redirect_stdout(output := io.StringIO()):
                exec(block, names)
            printed = output.getvalue()
    assert printed == "", f"the document does not say what is printed: {printed}"


def on_page_markdown(markdown: str, page: Any, **others: Any) -> None:
    from mkdocs.exceptions import PluginError

    if page.file.src_uri == "lesson.md":
        try:
            check(markdown)
        except AssertionError as wrong:
            raise PluginError(f"lesson.md: {wrong}") from wrong
