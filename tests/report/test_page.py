"""The page in Chromium: what a reader sees and does."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hf_pdyn.report.page import page
from hf_pdyn.report.reading import read_runs
from hf_pdyn.run_dir import run_json
from tests.report.runs import cut_off, diverge, make_run, start, write_state

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
pytest.importorskip("vl_convert")

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
NAME = "<script>alert(1)<"
LAYER = "h.0.<script>alert(2)</script>"
pytestmark = [
    pytest.mark.browser,
    pytest.mark.xdist_group("report"),
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: apt-get install chromium"),
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three runs: one with markup in every name, one that differs in a setting, one that is damaged."""
    folder = tmp_path_factory.mktemp("runs")
    small: dict[str, Any] = {"records": 4, "samples": 20}
    first = make_run(folder / NAME, layers=(LAYER, "h.1.attn"), **small)
    second = make_run(folder / "second", seed=1, learning_rate=0.5, finished=False, **small)
    third = make_run(folder / "third", seed=2, **small)
    cut_off(third / "trainer_state.json")
    path = folder / "report.html"
    path.write_text(page(read_runs([first, second, third])))
    return path


class Reader:
    """A page that is open, and everything that went wrong on it."""

    def __init__(self, browser: Any, path: Path, width: int = 1280, scheme: str = "light") -> None:
        self.tab = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        self.wrong: list[str] = []
        self.requests: list[str] = []
        self.tab.on("console", lambda message: self.wrong.append(f"{message.type}: {message.text}"))
        self.tab.on("pageerror", lambda error: self.wrong.append(str(error)))
        self.tab.on("dialog", lambda dialog: (self.wrong.append("a dialog"), dialog.dismiss()))
        self.tab.on("request", lambda request: self.requests.append(request.url))
        self.tab.goto(path.as_uri())
        self.settle()

    def settle(self) -> None:
        self.tab.wait_for_selector("html[data-state=ready]", timeout=60_000)

    def ink(self, key: str) -> int:
        """How many pixels of a chart are not its background."""
        return self.tab.evaluate(
            """key => {
                const canvas = document.querySelector(`[data-key="${key}"] canvas`);
                if (!canvas || !canvas.width) return 0;
                const copy = new OffscreenCanvas(canvas.width, canvas.height);
                const context = copy.getContext("2d", { willReadFrequently: true });
                context.drawImage(canvas, 0, 0);
                const { data } = context.getImageData(0, 0, canvas.width, canvas.height);
                let count = 0;
                for (let i = 0; i < data.length; i += 4)
                    if ([0, 1, 2, 3].some((j) => data[i + j] !== data[j])) count++;
                return count;
            }""",
            key,
        )

    def shown(self) -> list[str]:
        found: list[str] = self.tab.eval_on_selector_all(
            "figure.chart", "figures => figures.filter((f) => f.offsetParent).map((f) => f.dataset.key)"
        )
        return found


@pytest.fixture(scope="module")
def opened(browser: Any, report: Path) -> Iterator[Reader]:
    opened = Reader(browser, report)
    yield opened
    opened.tab.close()


@pytest.fixture
def reader(opened: Reader) -> Iterator[Reader]:
    """The page as it is at first; drawing it anew for every test would take a minute."""
    yield opened
    opened.tab.get_by_role("button", name="All", exact=True).click()
    for name in ("run", "part"):
        opened.tab.select_option(f"#layers [data-choose={name}]", index=0)
    opened.settle()
    assert opened.wrong == []
    assert [url for url in opened.requests if not url.startswith(("file:", "blob:", "data:"))] == []
    assert sum(url.startswith("file:") for url in opened.requests) == 1  # the page itself


def test_a_partial_record_is_drawn_hollow_and_is_no_tile(browser: Any, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text(page(read_runs([make_run(tmp_path / "run", remainder=1)])))
    reader = Reader(browser, path)
    tiles = reader.tab.inner_text("#runs .tiles")
    assert "7.5" not in tiles and "covers 1 step only" in reader.tab.inner_text("#runs")
    assert "Hollow" in reader.tab.inner_text("[data-key=gradients] figcaption")
    assert reader.ink("gradients") > 300 and reader.wrong == []
    reader.tab.close()


def test_a_page_shows_what_names_it_cannot_write(browser: Any, tmp_path: Path) -> None:
    names = ("a\ud800b", "c\u2028d")
    directory = tmp_path / "run\udcff"
    write_state(directory, [{"step": step, "loss": 1.0, **dict.fromkeys(names, step)} for step in (1, 2)])
    path = tmp_path / "report.html"
    path.write_bytes(page(read_runs([directory])).encode())
    reader = Reader(browser, path)
    assert [key for key in reader.shown() if key.startswith("other")] == ["other-00-a_b", "other-01-c_d"]
    assert all(reader.ink(key) > 300 for key in reader.shown()) and reader.wrong == []
    reader.tab.close()


def test_words_come_before_cards_and_cards_before_tables(browser: Any, tmp_path: Path) -> None:
    paths = [make_run(tmp_path / name, seed=seed, records=4) for seed, name in enumerate(("run", "base"))]
    path = tmp_path / "report.html"
    runs = read_runs(paths)
    path.write_text(page(runs, runs[1]))
    reader = Reader(browser, path)
    tops = [
        reader.tab.locator(selector).first.bounding_box()["y"]
        for selector in (".words > p", ".words .findings, .words .numbers", ".words .numbers", "#shares table", "#runs")
    ]
    assert tops == sorted(tops) and tops[2] < 900
    assert "that of base is" in reader.tab.inner_text(".numbers")
    assert reader.tab.locator(".words h3").all_inner_texts() == ["run", "base"] and reader.wrong == []
    assert "Zhang et al., Eq. 31" in reader.tab.inner_text("#balance .symbols")
    reader.tab.close()


def test_lines_over_epochs_and_smoothed(reader: Reader) -> None:
    before, exponent = reader.ink("gradients"), reader.ink("p")
    reader.tab.select_option("#smoothing", "0.05")
    reader.settle()
    assert reader.ink("gradients") > before and reader.ink("p") == exponent  # steps stay as they are
    reader.tab.select_option("#smoothing", "0")
    reader.settle()
    assert reader.ink("gradients") == before
    reader.tab.select_option("#over", "epoch")
    reader.settle()
    assert reader.ink("p") != exponent and reader.ink("decisions") > 300
    reader.tab.select_option("#over", "step")
    reader.settle()
    assert reader.ink("p") == exponent


def test_heat_maps_of_two_runs_stand_side_by_side(reader: Reader) -> None:
    reader.tab.select_option("#layers [data-choose=beside]", "second")
    reader.settle()
    boxes = [reader.tab.locator(f"[data-key=layers-weight-grad_norm-run{run}]").bounding_box() for run in (0, 1)]
    assert boxes[0]["y"] == boxes[1]["y"] and boxes[0]["x"] < boxes[1]["x"]
    assert "second" in reader.tab.inner_text("[data-key=layers-weight-grad_norm-run1] figcaption")
    reader.tab.select_option("#layers [data-choose=beside]", "")
    reader.settle()
    assert "layers-weight-grad_norm-run1" not in reader.shown()


@pytest.mark.parametrize("width", [390, 1280])
def test_the_legend_stays_in_sight(browser: Any, report: Path, width: int) -> None:
    opened = Reader(browser, report, width)
    for section in ("learning", "decay", "configuration"):
        opened.tab.evaluate("key => document.getElementById(key).scrollIntoView({ behavior: 'instant' })", section)
        opened.tab.wait_for_timeout(100)
        box = opened.tab.locator(".toggles").bounding_box()
        assert box["y"] >= 40 and box["y"] + box["height"] < 900, section
    opened.tab.close()


def test_a_table_that_goes_on_says_so(browser: Any, report: Path) -> None:
    opened = Reader(browser, report, 390)
    table = opened.tab.locator("#runs .scroll")
    hint = opened.tab.locator("#runs .more")
    assert "more columns" in hint.inner_text() and "right" in table.get_attribute("class").split()
    table.evaluate("e => e.scrollTo(e.scrollWidth, 0)")
    opened.tab.wait_for_function("() => !document.querySelector('#runs .scroll').classList.contains('right')")
    assert not hint.is_visible()
    opened.tab.close()


def test_every_chart_is_drawn(reader: Reader) -> None:
    keys = reader.shown()
    assert len(keys) > 20 and {"p", "gradients", "decisions", "jaccard-test"} <= set(keys)
    assert {key: reader.ink(key) > 300 for key in keys} == dict.fromkeys(keys, True)


def test_names_are_text(reader: Reader) -> None:
    assert NAME in reader.tab.inner_text("#runs")
    assert reader.tab.locator("script", has_text="alert(").count() <= 1  # the data, as JSON
    assert reader.tab.evaluate("document.querySelectorAll('main script').length") == 0
    canvas = reader.tab.locator('[data-key="layers-weight-grad_norm-run0"] canvas')
    box = canvas.bounding_box()
    canvas.hover(position={"x": box["width"] - 40, "y": 12})
    reader.tab.wait_for_selector("#vg-tooltip-element.visible")
    assert LAYER in reader.tab.inner_text("#vg-tooltip-element")


def test_a_toggle_hides_a_run_in_charts_and_tables(reader: Reader) -> None:
    before = reader.ink("loss"), reader.ink("gradients")
    box = reader.tab.locator(f'.toggles input[data-run="{NAME}"]')
    box.uncheck()
    reader.tab.wait_for_function("() => document.querySelector('tr[data-run]').hidden")
    reader.tab.wait_for_timeout(100)
    assert reader.ink("loss") < before[0] and reader.ink("gradients") < before[1]
    assert NAME not in reader.tab.inner_text("#runs table")
    box.check()
    reader.tab.wait_for_timeout(100)
    assert (reader.ink("loss"), reader.ink("gradients")) == before


def test_shares_are_a_table_whose_columns_follow_the_toggles(reader: Reader) -> None:
    def row() -> list[str]:
        texts = reader.tab.locator("table.shares tbody tr").nth(1).locator("th, td:visible").all_inner_texts()
        return [text.strip() for text in texts]

    assert row() == [
        "attention",
        *["80.0 %", "90.0 %", "50.0 %"] * 2,
        "80.0 %",
        "-",
        "-",
    ]  # the third has no log records
    box = reader.tab.locator('.toggles input[data-run="third"]')
    box.uncheck()
    assert row() == ["attention", *["80.0 %", "90.0 %", "50.0 %"] * 2]
    box.check()


def test_all_runs_can_be_hidden_and_shown(reader: Reader) -> None:
    before = reader.ink("loss")
    reader.tab.get_by_role("button", name="None", exact=True).click()
    reader.tab.wait_for_timeout(100)
    assert reader.ink("loss") < before
    reader.tab.get_by_role("button", name="All", exact=True).click()
    reader.tab.wait_for_timeout(100)
    assert reader.ink("loss") == before


def test_heat_maps_are_of_the_chosen_run_and_part(reader: Reader) -> None:
    def maps() -> list[str]:
        return [key for key in reader.shown() if key.startswith("layers-") and key.endswith(("norm-run0", "norm-run1"))]

    assert maps() == ["layers-weight-grad_norm-run0", "layers-weight-update_norm-run0"]
    reader.tab.select_option("#layers [data-choose=part]", "bias_like")
    reader.tab.select_option("#layers [data-choose=run]", "second")
    reader.settle()
    assert maps() == ["layers-bias_like-grad_norm-run1", "layers-bias_like-update_norm-run1"]
    assert all(reader.ink(key) > 300 for key in maps())


def test_allocation_curves_are_of_the_chosen_run(reader: Reader) -> None:
    def curves() -> list[str]:
        return [key for key in reader.shown() if key.startswith("allocation-")]

    names = ("balance", "lr_factor", "cosine")
    assert curves() == [f"allocation-{name}-run0" for name in names]
    reader.tab.select_option("#allocation [data-choose=run]", "third")
    reader.settle()
    assert curves() == [f"allocation-{name}-run2" for name in names]
    assert all(reader.ink(key) > 300 for key in curves())
    canvas = reader.tab.locator("[data-key=allocation-lr_factor-run2] canvas")
    box = canvas.bounding_box()
    canvas.hover(position={"x": box["width"] / 2, "y": 100})
    reader.tab.wait_for_selector("#vg-tooltip-element.visible")
    assert reader.tab.inner_text("#vg-tooltip-element").split()[::2] == ["step", "p", "c(p)"]
    reader.tab.select_option("#allocation [data-choose=run]", index=0)


def test_the_theme_can_be_changed(reader: Reader) -> None:
    background = "getComputedStyle(document.body).backgroundColor"
    light = reader.tab.evaluate(background)
    reader.tab.get_by_role("button", name="Dark theme").click()
    reader.settle()
    assert reader.tab.evaluate(background) != light
    assert reader.tab.get_attribute("#theme", "aria-pressed") == "true"
    assert reader.ink("loss") > 300
    reader.tab.get_by_role("button", name="Dark theme").click()
    reader.settle()
    assert reader.tab.evaluate(background) == light


def test_the_keyboard_reaches_the_controls(reader: Reader) -> None:
    reached = []
    reader.tab.focus(".skip")  # the first in the page
    for _ in range(60):
        reader.tab.keyboard.press("Tab")
        reached.append(
            reader.tab.evaluate(
                "() => { const e = document.activeElement; return e.dataset.run ?? e.dataset.choose ?? e.id ?? '' }"
            )
        )
        if reached[-1] == NAME:
            break
    assert "theme" in reached and NAME in reached
    reader.tab.keyboard.press("Space")
    assert not reader.tab.is_checked(f'.toggles input[data-run="{NAME}"]')


def test_charts_and_controls_have_names(reader: Reader) -> None:
    assert reader.tab.get_by_role("figure", name="Training loss").count() == 1
    labels = reader.tab.eval_on_selector_all(
        ".plot", 'plots => plots.map((p) => p.outerHTML.match(/aria-label=.([^"]*)/)?.[1])'
    )
    assert "Training loss. " in labels
    unnamed = "es => es.filter((e) => !(e.ariaLabel || e.innerText || e.labels?.length)).length"
    assert reader.tab.eval_on_selector_all("button, input, select", unnamed) == 0


def test_a_chart_is_saved_as_an_image(reader: Reader) -> None:
    with reader.tab.expect_download() as download:
        reader.tab.get_by_role("button", name="Save Training loss as PNG").click()
    assert download.value.suggested_filename == "loss.png"
    assert Path(download.value.path()).read_bytes().startswith(b"\x89PNG")


def test_differences_of_configuration_stand_out(reader: Reader) -> None:
    rows = reader.tab.locator("table.configuration tr.differs")
    assert [re.sub(r"\s+", " ", text) for text in rows.all_inner_texts()] == ["≠ learning_rate 0.001 0.5 0.001"]
    assert "optim_args" not in reader.tab.inner_text("table.configuration")
    reader.tab.uncheck("#differences")
    assert "optim_args" in reader.tab.inner_text("table.configuration")


def test_problems_of_a_run_are_on_the_page(reader: Reader) -> None:
    assert "trainer_state.json cannot be read" in reader.tab.inner_text(".card.flagged")
    assert "not finished (step 40 of 40)" in reader.tab.inner_text("#runs")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_is_wider_than_the_window(browser: Any, report: Path, width: int, scheme: str) -> None:
    opened = Reader(browser, report, width, scheme)
    assert opened.tab.evaluate("document.documentElement.scrollWidth") <= width
    assert opened.tab.get_attribute("html", "data-theme") == scheme
    wide = "(es, width) => es.filter((e) => e.getBoundingClientRect().right > width + 1).length"
    assert opened.tab.eval_on_selector_all("canvas", wide, width) == 0
    assert opened.wrong == []
    opened.tab.close()


def _nothing_but_a_loss(folder: Path) -> list[Path]:
    write_state(folder / "a", [{"step": 1, "loss": 2.0}])
    return [folder / "a"]


def _not_even_a_log(folder: Path) -> list[Path]:
    (folder / "a" / "pdyn").mkdir(parents=True)
    return [folder / "a"]


def _values_without_a_range(folder: Path) -> list[Path]:
    write_state(folder / "a", [{"step": i, "loss": 0.0, "eval_loss": 1e-300, "x": 1e300 * i} for i in range(3)])
    return [folder / "a"]


def _diverged(folder: Path) -> list[Path]:
    return [diverge(make_run(folder / "a", records=4), {-1: float("nan")}), make_run(folder / "b", records=4)]


def _many(folder: Path) -> list[Path]:
    return [make_run(folder / f"{i}", seed=i, records=3, samples=0, spectra=False, layers=("h.0",)) for i in range(50)]


@pytest.mark.parametrize("make", [_nothing_but_a_loss, _not_even_a_log, _values_without_a_range, _diverged, _many])
def test_pages_of_odd_runs(browser: Any, tmp_path: Path, make: Any) -> None:
    path = tmp_path / "report.html"
    path.write_text(page(read_runs(make(tmp_path))))
    opened = Reader(browser, path)
    assert opened.wrong == []
    assert opened.tab.locator(".failed").count() == 0
    opened.tab.close()


def test_a_setting_cannot_end_the_data(tmp_path: Path) -> None:
    """No browser: nothing but our own elements is in the source."""
    run = make_run(tmp_path / "a", records=1, info=False)
    run_json.write_start(run, 0, start(note="</script><img src=x onerror=alert(1)>"))
    source = page(read_runs([run]))
    assert "<img src=x" not in source and source.count("</script>") == 3
