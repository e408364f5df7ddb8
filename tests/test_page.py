"""The page of both passes: self-contained, its numbers those of the trace, and in a real browser every step of it.

The browser is driven by Playwright (python -m pip install playwright): the executable that BPGPU_TEST_BROWSER names, or
Playwright's own (python -m playwright install chromium), or Chromium or Chrome where the system has one.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bpgpu
from bpgpu import MLP
from bpgpu.cli import main
from bpgpu.page import UNITS, page


def small(**options: Any) -> Any:
    net = MLP([3, 4, 3, 2], **{"activation": "tanh", "seed": 1, "dtype": "float64"} | options)
    return net.trace(np.random.default_rng(0).standard_normal(3), 1)


def large() -> Any:
    net = MLP([784, 60, 50, 12, 10], seed=1)
    return net.trace(np.random.default_rng(0).random(784), 3)


def data_of(html: str) -> Any:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', html, re.S)
    assert found
    return json.loads(found[1])


def test_it_needs_nothing_from_elsewhere() -> None:
    html = page(large())
    assert not re.search(r"https?:|//[a-z]|\bsrc=|@import|url\(|<link|fetch\(|XMLHttp|import\(", html)
    assert html.count("<script") == 2 and len(html) < 100_000


@pytest.mark.parametrize("loss", ["cross_entropy", "squared_error"])
def test_a_small_network_is_there_in_full(loss: str) -> None:
    trace = small(loss=loss)
    d = data_of(page(trace))
    assert d["full"] and d["sizes"] == [3, 4, 3, 2] and [len(u) for u in d["units"]] == [3, 4, 3, 2]
    for l in range(3):
        np.testing.assert_allclose(d["W"][l], trace.weights[l])
        np.testing.assert_allclose(d["z"][l], trace.z[l][0])
        np.testing.assert_allclose(d["delta"][l], trace.delta[l][0])
    np.testing.assert_allclose(d["dx"], trace.weights[0] @ trace.delta[0][0])
    # case 2: all paths of the weight add up to its dC/dw; case 1: each is a product
    assert d["path_count"] == 6 and len(d["paths"]) == 6
    i, o = d["paths"][0]["units"][:2]
    assert d["total"] == pytest.approx(trace.dW[0][i, o]) and d["total"] == pytest.approx(sum(p["value"] for p in d["paths"]))
    assert abs(d["total"]) == pytest.approx(abs(trace.dW[0]).max())
    for path in d["paths"]:
        assert path["value"] == pytest.approx(path["a"] * np.prod([f["value"] for f in path["factors"]]))


def test_a_large_network_is_cut_to_what_matters() -> None:
    trace = large()
    d = data_of(page(trace))
    assert not d["full"] and [len(u) for u in d["units"]] == [UNITS] * 5 and d["path_count"] == 50 * 12 * 10
    through = abs(trace.a[1][0] * (trace.weights[1] @ trace.delta[1][0]))
    assert set(through[d["units"][1]]) == set(np.sort(through)[-UNITS:])
    sizes = [abs(p["value"]) for p in d["paths"]]
    assert sizes == sorted(sizes, reverse=True) and len({tuple(p["units"]) for p in d["paths"]}) == len(sizes)


@pytest.mark.parametrize("layers", [[2, 2], [1, 1, 2]])
def test_the_smallest_networks(layers: list[int]) -> None:
    d = data_of(page(MLP(layers).trace(np.ones(layers[0]), 1)))
    assert d["total"] == pytest.approx(sum(p["value"] for p in d["paths"]))


def test_from_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["trace", "--html", "out.html"]) == 2
    assert "there is no model bpgpu-model.safetensors; train one first: bpgpu train" in capsys.readouterr().err
    net = MLP([784, 20, 10])
    net.save("bpgpu-model.safetensors")
    assert main(["trace", "--html", "out.html", "--example", "7"]) == 0
    data = bpgpu.mnist10k()
    assert data.X_test is not None and data.y_test is not None
    trace = net.trace(data.X_test[7], data.y_test[7])
    assert Path("out.html").read_text(encoding="utf-8") == page(trace)
    assert capsys.readouterr().out == "saved out.html\n"
    assert main(["trace", "--example", "7"]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"{trace}\n\ndC/dw[0][") and out.count("delta[1][") >= 4
    for arguments, message in (
        (["--example", "2000"], "--example is 2000; expected 0 to 1999"),
        (["--html", "no/out.html"], "--html no/out.html: there is no directory no"),
    ):
        assert main(["trace", *arguments]) == 2
        assert message in capsys.readouterr().err


# -- in a browser -----------------------------------------------------------------------------------------------------------


FLAGS = "--no-sandbox --disable-gpu --disable-background-networking --disable-component-update --disable-sync --no-first-run"


@pytest.fixture(scope="module")
def playwright() -> Iterator[Any]:
    if not os.environ.get("BPGPU_TEST_BROWSER"):
        pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        yield playwright


def launch(playwright: Any) -> Any:
    named = os.environ.get("BPGPU_TEST_BROWSER")
    known = [playwright.chromium.executable_path, *map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))]
    found = named or next((path for path in known if path and os.path.exists(path)), None)
    if not found:
        pytest.skip("no browser to test in: python -m playwright install chromium, or BPGPU_TEST_BROWSER=executable")
    return playwright.chromium.launch(executable_path=found, args=FLAGS.split())


@pytest.fixture(scope="module")
def browser(playwright: Any) -> Iterator[Any]:
    chromium = launch(playwright)
    yield chromium
    chromium.close()


def test_a_browser_that_is_named_has_to_work(playwright: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from playwright.sync_api import Error

    monkeypatch.setenv("BPGPU_TEST_BROWSER", "/no/such/browser")
    with pytest.raises(Error, match="/no/such/browser"):
        launch(playwright)


def opened(browser: Any, trace: Any, folder: Path, width: int = 1280, scheme: str = "light") -> tuple[Any, list[str]]:
    trace.to_html(folder / "out.html")
    tab = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    said: list[str] = []
    tab.on("console", lambda message: said.append(message.text))
    tab.on("pageerror", lambda error: said.append(str(error)))
    tab.on("request", lambda request: said.append(request.url) if not request.url.startswith("file:") else None)
    tab.goto((folder / "out.html").as_uri())
    return tab, said


def numbers(text: str) -> list[float]:
    return [float(x) for x in re.findall(r"-?\d+\.?\d*(?:e[+-]\d+)?", text)]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("make", [small, large])
def test_every_step_can_be_clicked_and_read(browser: Any, make: Any, width: int, scheme: str, tmp_path: Path) -> None:
    trace = make()
    tab, said = opened(browser, trace, tmp_path, width, scheme)
    titles, layers = [], len(trace.weights)
    while True:
        titles.append(tab.inner_text("#title"))
        assert "NaN" not in tab.inner_text("body") and "undefined" not in tab.inner_text("body")
        assert tab.evaluate("document.documentElement.scrollWidth") <= width
        fonts = "[...document.querySelectorAll('svg')].map(s => 11 * s.getBoundingClientRect().width / s.viewBox.baseVal.width)"
        assert min(tab.evaluate(fonts)) >= 9.5  # pixels
        assert tab.locator(".edge.on, .edge.path").count() > 0 or "loss" in titles[-1] or "starts" in titles[-1]
        if tab.is_disabled("#next"):
            break
        tab.click("#next")
    assert len(titles) == len(set(titles)) == 3 * layers + 4
    assert titles[0] == "Forward pass, layer 0" and titles[layers] == "The loss compares the output with y"
    assert [t.split(",")[1].split(":")[0] for t in titles[-2:]] == [" case 1", " case 2"]
    colours = tab.evaluate("[getComputedStyle(document.body).color, getComputedStyle(document.body).backgroundColor]")
    dark, light = sorted(colours, key=lambda c: sum(numbers(c)[:3]))
    assert sum(numbers(light)[:3]) - sum(numbers(dark)[:3]) > 500 and (colours[0] == light) == (scheme == "dark")
    boxes = [tab.locator("figure").nth(k).bounding_box() for k in (0, 1)]
    assert (boxes[0]["y"] == boxes[1]["y"]) == (width == 1280)  # side by side where there is room
    assert said == []
    tab.close()


def test_the_equations_hold_and_follow_the_chosen_unit(browser: Any, tmp_path: Path) -> None:
    trace = small()
    tab, said = opened(browser, trace, tmp_path)
    tab.click("#forward [data-unit='1,2']")
    assert tab.inner_text(".mark") == f"{trace.a[1][0, 2]:.4g}"
    rows = [numbers(row) for row in tab.locator("#body tr").all_inner_texts()[1:]]
    assert len(rows) == 3 and all(v == pytest.approx(a * w, rel=2e-3) for _, a, w, v in rows)
    assert sum(row[3] for row in rows) + trace.biases[0][2] == pytest.approx(trace.z[0][0, 2], rel=2e-3)
    for _ in range(5):
        tab.click("#next")
    assert tab.inner_text("#title").startswith("Backward pass, hidden layer 1")
    tab.click("#reversed [data-unit='2,0']")
    assert tab.inner_text(".mark") == f"{trace.delta[1][0, 0]:.4g}"
    tab.hover("#reversed [data-unit='2,1']")
    assert f"delta = {trace.delta[1][0, 1]:.4g}" in tab.inner_text("#hover")
    tab.click("#last")
    table = [numbers(row) for row in tab.locator("#body tr").all_inner_texts()[1:]]
    assert sum(row[-1] for row in table) == pytest.approx(
        abs(trace.dW[0]).max() * np.sign(numbers(tab.inner_text(".mark"))[0]), rel=1e-2
    )
    assert tab.locator("#forward .edge.path").count() >= 3 and said == []
    tab.close()


def test_the_keyboard_is_enough(browser: Any, tmp_path: Path) -> None:
    tab, said = opened(browser, small(), tmp_path)
    places = [tab.inner_text("#place")]
    for key in ("ArrowRight", "ArrowRight", "ArrowLeft", "End", "ArrowRight", "Home", "ArrowLeft"):
        tab.keyboard.press(key)
        places.append(tab.inner_text("#place"))
    assert places == [f"step {k} of 13" for k in (1, 2, 3, 2, 13, 13, 1, 1)]
    for _ in range(40):  # Tab reaches the units; focus tells their values, Enter chooses them
        tab.keyboard.press("Tab")
        if tab.evaluate("document.activeElement.dataset.unit") == "1,3":
            break
    assert tab.inner_text("#hover").startswith("layer 0, unit 3: z = ")
    tab.keyboard.press("Enter")
    assert "z0,3" in tab.inner_text("#body").replace("\n", "") and said == []
    tab.close()
