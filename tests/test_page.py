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


def large(seed: int = 1) -> Any:
    net = MLP([784, 60, 50, 12, 10], seed=seed)
    return net.trace(np.random.default_rng(0).random(784), 3)


def deep() -> Any:
    return MLP([6, *[8] * 14, 3], activation="relu").trace(np.ones(6), 1)


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
        assert path["value"] == pytest.approx(np.prod([f["value"] for f in path["factors"]]))


def test_a_large_network_is_cut_to_what_matters() -> None:
    trace = large()
    d = data_of(page(trace))
    assert not d["full"] and [len(u) for u in d["units"]] == [UNITS] * 5 and d["path_count"] == 50 * 12 * 10
    through = abs(trace.a[2][0] * (trace.weights[2] @ trace.delta[2][0]))
    on_paths = {path["units"][2] for path in d["paths"]}
    others = sorted(set(range(50)) - on_paths, key=lambda k: -through[k])[: UNITS - len(on_paths)]
    assert d["units"][2] == sorted([*on_paths, *others])


def test_the_largest_of_all_paths_are_shown_of_the_weight_with_the_largest_gradient() -> None:
    for seed in range(8):
        trace = large(seed)
        d = data_of(page(trace))
        i, o = np.unravel_index(abs(trace.dW[0]).argmax(), trace.dW[0].shape)
        W, gain, delta = ([array.astype(np.float64) for array in arrays] for arrays in (trace.weights, trace.gain, trace.delta))
        every = np.einsum("j,jk,km->jkm", W[1][o] * gain[1][0], W[2] * gain[2][0], W[3] * delta[3][0])
        every *= trace.a[0][0, i] * gain[0][0, o]
        largest = np.argsort(-abs(every), axis=None)[: len(d["paths"])]
        paths = np.transpose(np.unravel_index(largest, every.shape)).tolist()
        assert len(paths) == 8 and [path["units"] for path in d["paths"]] == [[i, o, *path] for path in paths]
        np.testing.assert_allclose([path["value"] for path in d["paths"]], every.ravel()[largest])
        assert all(unit in units for path in d["paths"] for unit, units in zip(path["units"], d["units"], strict=True))


COSTS = {  # of one output
    "cross_entropy": lambda a, y: -y * np.log(a),
    "binary_cross_entropy": lambda a, y: -(y * np.log(a) + (1 - y) * np.log(1 - a)),
    "squared_error": lambda a, y: (a - y) ** 2 / 2,
    "absolute_error": lambda a, y: abs(a - y),
    "huber": lambda a, y: (a - y) ** 2 / 2 if abs(a - y) <= 1 else abs(a - y) - 0.5,
}


def with_loss(loss: str) -> Any:
    """The second of two examples, whose outputs are on either side of huber's bend."""
    net = MLP([3, 4, 2], loss=loss, seed=3, dtype="float64")
    y = np.array([[0, 1], [1, 0]]) * (1.0 if loss.endswith("cross_entropy") else 3.0)
    return net.trace(np.random.default_rng(0).standard_normal((2, 3)), y)


@pytest.mark.parametrize("loss", COSTS)
def test_the_terms_of_the_loss(loss: str) -> None:
    trace = with_loss(loss)
    d = data_of(page(trace, 1))
    expected = [COSTS[loss](a, y) for a, y in zip(trace.a[-1][1], trace.y[1], strict=True)]
    np.testing.assert_allclose(d["costs"], expected)
    assert d["scale"] * sum(expected) == pytest.approx(d["loss"]) == pytest.approx(trace.losses[1])


def test_what_cannot_be_drawn_is_refused_in_one_sentence(tmp_path: Path) -> None:
    net = MLP([3, 4, 4, 2], activation="identity", loss="squared_error")
    for l, message in ((1, "z of layer 2 is not finite"), (0, "z of layer 1 is not finite")):
        net.weights[2][:] = net.weights[l][:] = 1e25
        with pytest.raises(ValueError, match=message + ", and the page draws finite numbers only; print the trace"):
            net.trace(np.ones(3), [0.0, 0.0]).to_html(tmp_path / "out.html")
    net = MLP([3, 2], loss="squared_error")
    net.weights[0][:] = 1e20
    with pytest.raises(ValueError, match="the loss is not finite"):
        page(net.trace(np.ones(3), [0.0, 0.0]))
    net = MLP([3, 4, 2], activation="identity", loss="squared_error")
    net.weights[0][:], net.weights[1][:] = 0, 3e38
    with pytest.raises(ValueError, match="delta of layer 0 is not finite"):
        page(net.trace(np.ones(3), [9.0, 9.0]))
    for example in (4, -2, "0"):
        with pytest.raises(IndexError, match=f"there is 1 example, counted from 0; got {example!r}"):
            small().to_html(tmp_path / "out.html", example=example)
    assert list(tmp_path.iterdir()) == []


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


def opened(
    browser: Any, trace: Any, folder: Path, width: int = 1280, height: int = 900, example: int = 0
) -> tuple[Any, list[str]]:
    trace.to_html(folder / "out.html", example)
    tab = browser.new_page(viewport={"width": width, "height": height})
    tab.set_default_timeout(120_000)  # a busy machine is no failure
    said: list[str] = []
    tab.on("console", lambda message: said.append(message.text))
    tab.on("pageerror", lambda error: said.append(str(error)))
    tab.on("request", lambda request: said.append(request.url) if not request.url.startswith("file:") else None)
    tab.goto((folder / "out.html").as_uri())
    return tab, said


def press(tab: Any, key: str, times: int = 1) -> None:
    for _ in range(times):
        tab.keyboard.press(key)


def rows(tab: Any, table: int = 0) -> list[list[float]]:
    return [numbers(row) for row in tab.locator("#body table").nth(table).locator("tr").all_inner_texts()[1:]]


def numbers(text: str) -> list[float]:
    return [float(x) for x in re.findall(r"-?\d+\.?\d*(?:e[+-]\d+)?", text)]


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("make", [small, large])
def test_every_step_can_be_clicked_and_read(browser: Any, make: Any, width: int, tmp_path: Path) -> None:
    trace = make()
    tab, said = opened(browser, trace, tmp_path, width)
    titles, layers = [], len(trace.weights)
    while True:
        step = tab.evaluate("""() => ({
            title: document.getElementById("title").innerText, text: document.body.innerText,
            width: document.documentElement.scrollWidth, equation: document.querySelectorAll(".equation").length,
            fonts: [...document.querySelectorAll("svg")].map(s => 11 * s.getScreenCTM().a),
            lines: document.querySelectorAll(".edge.on, .edge.path").length,
            last: document.getElementById("next").ariaDisabled === "true",
        })""")
        titles.append(step["title"])
        assert "NaN" not in step["text"] and "undefined" not in step["text"]
        assert step["width"] <= width and min(step["fonts"]) >= 9.5  # pixels
        assert step["lines"] > 0 or "loss" in titles[-1] or "starts" in titles[-1]
        assert step["equation"] > 0
        if step["last"]:
            break
        tab.click("#next")
    assert len(titles) == len(set(titles)) == 3 * layers + 4
    assert titles[0] == "Forward pass, layer 0" and titles[layers].startswith("The loss compares the output a with y")
    assert [t.split(",")[1].split(":")[0] for t in titles[-2:]] == [" case 1", " case 2"]
    boxes = [tab.locator("figure").nth(k).bounding_box() for k in (0, 1)]
    assert (boxes[0]["y"] == boxes[1]["y"]) == (width == 1280)  # side by side where there is room
    assert said == []
    tab.close()


def test_it_is_dark_where_all_is_dark(browser: Any, tmp_path: Path) -> None:
    tab, said = opened(browser, small(), tmp_path)
    press(tab, "End")
    colours = """[
        ["body", "color"], [".soft", "color"], [".mark", "color"], [".edge.plus.on", "stroke"], [".edge.minus.on", "stroke"],
        ["#now", "backgroundColor"],
    ].map(([of, name]) => getComputedStyle(document.querySelector(of))[name])"""
    for scheme in ("light", "dark"):
        tab.emulate_media(color_scheme=scheme)
        press(tab, "Home")
        text, soft, mark, plus, minus, ground = (np.array(numbers(c)[:3]) for c in tab.evaluate(colours))
        assert (text.sum() > ground.sum()) == (scheme == "dark") and abs(text - ground).sum() > 500
        assert min(abs(colour - ground).sum() for colour in (soft, mark, plus, minus)) > 200
        assert all(np.linalg.norm(mark - sign) > 100 for sign in (plus, minus))  # what is marked looks like neither sign
    assert said == []
    tab.close()


def test_the_equations_hold_and_follow_the_chosen_unit(browser: Any, tmp_path: Path) -> None:
    trace = small()
    tab, said = opened(browser, trace, tmp_path)
    tab.click("#forward [data-unit='1,2']")
    assert tab.inner_text(".mark") == f"{trace.a[1][0, 2]:.4g}"
    terms = rows(tab)
    assert len(terms) == 3 and all(v == pytest.approx(a * w, rel=2e-3) for _, a, w, v in terms)
    assert sum(row[3] for row in terms) + trace.biases[0][2] == pytest.approx(trace.z[0][0, 2], rel=2e-3)
    for _ in range(5):
        tab.click("#next")
    assert tab.inner_text("#title").startswith("Backward pass, hidden layer 1")
    tab.click("#reversed [data-unit='2,0']")
    assert tab.inner_text(".mark") == f"{trace.delta[1][0, 0]:.4g}"
    tab.hover("#reversed [data-unit='2,1']")
    assert f"delta = {trace.delta[1][0, 1]:.4g}" in tab.inner_text("#hover")
    tab.click("#last")
    total = trace.dW[0].ravel()[abs(trace.dW[0]).argmax()]
    assert tab.inner_text("#body .equation").endswith(f"= the sum over all 6 paths = {total:.4g}")
    table = rows(tab)
    assert len(table) == 6 and sum(row[-1] for row in table) == pytest.approx(total, rel=1e-2)
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


def test_keys_of_the_browser_stay_its_own_and_the_focus_stays_on_a_button(browser: Any, tmp_path: Path) -> None:
    tab, said = opened(browser, small(), tmp_path)
    press(tab, "ArrowRight")
    for key in ("ArrowLeft", "ArrowRight", "Home", "End"):
        for modifier in ("altKey", "ctrlKey", "metaKey"):
            event = f"new KeyboardEvent('keydown', {{key: '{key}', {modifier}: true, bubbles: true, cancelable: true}})"
            assert tab.evaluate(f"document.body.dispatchEvent({event})")  # false if it was prevented
    assert tab.inner_text("#place") == "step 2 of 13"
    for button, place in (("next", "step 13 of 13"), ("back", "step 1 of 13")):
        tab.focus(f"#{button}")
        press(tab, "Enter", 14)
        assert tab.inner_text("#place") == place and tab.evaluate("document.activeElement.id") == button
        assert tab.get_attribute(f"#{button}", "aria-disabled") == "true"
    assert said == []
    tab.close()


@pytest.mark.parametrize("loss", COSTS)
def test_the_loss_is_written_out(browser: Any, loss: str, tmp_path: Path) -> None:
    trace = with_loss(loss)
    tab, said = opened(browser, trace, tmp_path, example=1)
    press(tab, "ArrowRight", 2)
    formula, values = tab.locator("#body .equation").all_inner_texts()
    formulas = {
        "cross_entropy": "C = -Σk yk ln ak", "binary_cross_entropy": "C = -Σk (yk ln ak + (1 - yk) ln(1 - ak))",
        "squared_error": "C = ½ Σk (ak - yk)²", "absolute_error": "C = Σk |ak - yk|", "huber": "C = Σk h(ak - yk)",
    }  # fmt: skip
    assert formula.replace("\N{MINUS SIGN}", "-").startswith(formulas[loss])
    C, scale, again, value = numbers(values)
    assert C == again == pytest.approx(2 * trace.losses[1], rel=1e-3) and scale == 0.5
    assert value == pytest.approx(trace.losses[1], rel=1e-3)
    for unit, a, y, cost in rows(tab):
        assert (a, y) == (float(f"{trace.a[-1][1, int(unit)]:.4g}"), trace.y[1, int(unit)])
        assert cost == pytest.approx(COSTS[loss](a, y), rel=2e-3)
    assert len(rows(tab)) == 2 and sum(row[-1] for row in rows(tab)) == pytest.approx(C, rel=1e-3) and said == []
    tab.close()


def test_softmax_is_written_out(browser: Any, tmp_path: Path) -> None:
    trace = small()
    tab, said = opened(browser, trace, tmp_path)
    press(tab, "ArrowRight", 2)
    tab.click("#forward [data-unit='3,1']")
    z, powers = trace.z[-1][0], np.exp(trace.z[-1][0] - trace.z[-1][0].max())
    assert f"= {powers[1]:.4g} / {powers.sum():.4g} = {trace.a[-1][0, 1]:.4g}" in tab.inner_text("#body")
    table = rows(tab, 1)
    assert sorted(table) == [[k, float(f"{z[k]:.4g}"), float(f"{powers[k]:.4g}")] for k in (0, 1)] and said == []
    tab.close()


def test_paths_and_the_weight_of_a_product_are_marked_in_both_networks_above_all_other_lines(
    browser: Any, tmp_path: Path
) -> None:
    trace = small()
    tab, said = opened(browser, trace, tmp_path)
    marked = """[...document.querySelectorAll('svg')].map(svg => {
        const edges = [...svg.querySelectorAll('.edge')], marked = edges.filter(e => e.classList.contains('path'));
        return [marked.map(e => e.dataset.edge).sort(), marked.every(e => edges.indexOf(e) >= edges.length - marked.length),
                svg.querySelectorAll('.unit.path').length];
    })"""
    press(tab, "End")
    forward, reversed_ = tab.evaluate(marked)
    assert forward == reversed_ and forward[1:] == [True, 1 + 1 + 3 + 2] and len(forward[0]) == 1 + 3 + 6
    press(tab, "ArrowLeft")
    forward, reversed_ = tab.evaluate(marked)
    assert forward == reversed_ and forward[1:] == [True, 4] and len(forward[0]) == 3
    for l in range(3):
        press(tab, "ArrowLeft")
        _, i, o = numbers(tab.inner_text("#body sub >> nth=0").replace(",", " "))
        assert tab.evaluate(marked) == [[[f"{l},{i:.0f},{o:.0f}"], True, 0]] * 2
    assert said == []
    tab.close()


def test_units_are_numbered_and_the_last_column_is_the_output(browser: Any, tmp_path: Path) -> None:
    trace = large()
    tab, said = opened(browser, trace, tmp_path)
    units = data_of(page(trace))["units"]
    for network, name in (("forward", "a"), ("reversed", "δ")):
        for c, of in enumerate(units):
            texts = [tab.locator(f"#{network} [data-unit='{c},{k}'] text").all_text_contents() for k in range(len(of))]
            assert [int(number) for _, number in texts] == of
        assert f"{name}, output" in tab.locator(f"#{network} svg > text").all_text_contents()
    assert said == []
    tab.close()


def test_a_unit_of_another_layer_leads_to_its_step(browser: Any, tmp_path: Path) -> None:
    trace = small()
    tab, said = opened(browser, trace, tmp_path)
    dx = trace.weights[0] @ trace.delta[0][0]
    for unit, title, value in (
        ("#forward [data-unit='2,1']", "Forward pass, layer 1", trace.a[2][0, 1]),
        ("#reversed [data-unit='1,2']", "Backward pass, hidden layer 0", trace.delta[0][0, 2]),
        ("#reversed [data-unit='3,0']", "Backward pass, output layer", trace.delta[2][0, 0]),
        ("#reversed [data-unit='0,1']", "What comes out of the reversed network", dx[1]),
        ("#forward [data-unit='0,1']", "The product of both passes, layer 0", trace.a[0][0, 1] * trace.delta[0][0, 2]),
        ("#reversed [data-unit='1,3']", "The product of both passes, layer 0", trace.a[0][0, 1] * trace.delta[0][0, 3]),
    ):
        tab.click(unit)
        assert tab.inner_text("#title").startswith(title) and tab.inner_text(".mark") == f"{value:.4g}"
    assert said == []
    tab.close()


@pytest.mark.parametrize(("width", "height"), [(390, 844), (1280, 720)])
def test_buttons_and_values_stay_in_sight(browser: Any, width: int, height: int, tmp_path: Path) -> None:
    tab, said = opened(browser, large(), tmp_path, width, height)
    inside = """id => { const box = document.getElementById(id).getBoundingClientRect();
                       return box.top >= 0 && box.bottom <= innerHeight && box.height > 0; }"""
    figures = "[...document.querySelectorAll('figure')].map(f => f.getBoundingClientRect().top + scrollY)"
    before = tab.evaluate(figures)
    for unit in ("#forward [data-unit='1,0']", "#forward [data-unit='4,9']", "#reversed [data-unit='0,9']"):
        tab.hover(unit)
        assert tab.inner_text("#hover") == tab.get_attribute(unit, "data-say")
        assert tab.evaluate(inside, "hover") and tab.evaluate(inside, "next")
        assert tab.evaluate(figures) == before  # nothing moves under the pointer
    tab.evaluate("scrollTo(0, 0)")
    while not tab.inner_text("#title").startswith("What comes out"):
        press(tab, "ArrowRight")
        if tab.inner_text("#title").startswith("Backward"):  # its network comes first where they do not fit side by side
            forward, reversed_ = tab.evaluate(figures)
            assert reversed_ < height and (reversed_ < forward or width > 800)
    assert said == []
    tab.close()


@pytest.mark.parametrize("width", [390, 1280])
def test_the_chosen_unit_is_scrolled_into_its_pane(browser: Any, width: int, tmp_path: Path) -> None:
    tab, said = opened(browser, deep(), tmp_path, width)
    shown = """[...document.querySelectorAll('.unit.chosen')].map(u => {
        const unit = u.getBoundingClientRect(), pane = u.closest('figure').getBoundingClientRect();
        return unit.left >= pane.left && unit.right <= pane.right; })"""
    seen = []
    for _ in range(49):
        seen += tab.evaluate(shown)
        press(tab, "ArrowRight")
    assert len(seen) == 15 + 15 + 1 + 2 * 15 and all(seen) and said == []
    tab.close()


def test_numbers_fit_their_shapes(browser: Any, tmp_path: Path) -> None:
    net = MLP([784, 60, 50, 40, 30, 20, 10], activation="tanh", seed=1)
    net.theta *= 0.02
    tab, said = opened(browser, net.trace(np.random.default_rng(0).random(784), 3), tmp_path)
    values = tab.evaluate("""[...document.querySelectorAll('.unit')].map(u => {
        const text = u.querySelector('.value'), inner = text.getBBox(), outer = u.querySelector('.shape').getBBox();
        return [text.textContent, inner.x >= outer.x + 1 && inner.x + inner.width <= outer.x + outer.width - 1]; })""")
    assert max(len(text) for text, _ in values) >= 6 and all(fits for _, fits in values) and said == []
    tab.close()
