"""The page in a real browser: it fits a desktop and a phone, asks for nothing, and shows markup as text.

Needs Chromium (Debian: apt install chromium). Without it these tests are skipped; with MINDLAB_NEEDS_BROWSER=1,
as .ci/run sets it, they fail instead.
"""

import os
import shutil
from dataclasses import dataclass
from functools import partial

import numpy as np
import pytest

from mindlab import report
from mindlab.evaluation.slices import masks, measure_slices
from tests.handmade import make_news, make_run, random_impressions

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
SIZES = {"desktop": (1280, 900), "phone": (390, 844)}
MARKUP = '<img src="http://127.0.0.1:9/x.png" onerror="document.title=1"><b>Storm</b> &amp; <script>document.title=2</script>'
IMPRESSIONS = random_impressions(np.random.default_rng(0), n=400, n_users=60)

pytestmark = pytest.mark.skipif(
    not CHROMIUM and os.environ.get("MINDLAB_NEEDS_BROWSER") != "1", reason="no Chromium on this machine"
)


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    # What Chromium would ask its maker for by itself is switched off, so that what is seen is the page's.
    flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=flags)
        yield found
        found.close()


@dataclass
class Seen:
    """What a page asked for beside itself, what went wrong in it, and where things stand in it."""

    requests: list[str]
    errors: list[str]
    title: str
    text: str
    too_wide: list[str]  # what reaches beyond the window, unless it scrolls by itself
    flat: list[str]  # sections and pictures without any area
    picture: bytes


# An element that sticks out is fine inside one that scrolls or cuts; the page itself must not scroll sideways.
TOO_WIDE = """() => [...document.querySelectorAll('body *')].filter(e => {
    for (let p = e; p && p !== document.body; p = p.parentElement)
        if (p !== e && ['auto', 'scroll', 'hidden'].includes(getComputedStyle(p).overflowX)) return false;
    const box = e.getBoundingClientRect();
    return box.width > 0 && (box.right > innerWidth + 1 || box.left < -1);
}).map(e => e.outerHTML.slice(0, 120)).concat(
    document.documentElement.scrollWidth > innerWidth ? ['the page scrolls sideways'] : [])"""
FLAT = """() => [...document.querySelectorAll('section, section > figure, svg[role=img]')].filter(e => {
    const box = e.getBoundingClientRect();
    return box.width < 1 || box.height < 1;
}).map(e => e.outerHTML.slice(0, 120))"""


@pytest.fixture
def look(browser):
    """Return a function that opens a file in a window of a size and says what it saw."""

    def look(path, size):
        width, height = SIZES[size]
        context = browser.new_context(viewport={"width": width, "height": height})
        page = context.new_page()
        requests, errors = [], []
        page.on("request", lambda request: requests.append(request.url))
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", lambda message: errors.append(message.text))
        page.goto(path.as_uri())
        for details in page.query_selector_all("details"):
            details.evaluate("e => e.open = true")
        page.wait_for_load_state("networkidle")
        seen = Seen(
            [url for url in requests if url != path.as_uri()],
            errors,
            page.title(),
            page.inner_text("body"),
            page.evaluate(TOO_WIDE),
            page.evaluate(FLAT),
            page.screenshot(full_page=True, path=path.with_name(f"{size}.png")),
        )
        context.close()
        return seen

    return look


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """A page with every section, and markup wherever a text from outside is shown."""
    out = tmp_path_factory.mktemp("page")
    tuned = "smollm2-next_click-lora " + MARKUP
    make = partial(make_run, impressions=IMPRESSIONS)
    llm = {"params": 134_515_008, "ms_per_impression": 900.0}
    runs = [
        make(out / "popularity", 0.2, 1),
        make(out / "smollm2-next_click-base", 0.5, 2, **llm),
        make(out / "tuned", 1.0, 3, name=tuned, request={"format": "pointwise"}, **llm),
        make(out / "popularity-streaming", 0.7, 4, track="streaming"),
        make(out / "oracle", 4.0, 5),
    ]
    board = report.leaderboard(
        runs,
        pairs=[(tuned, "smollm2-next_click-base")],
        context={"title": MARKUP, "data": MARKUP, "synthetic": True, "command": MARKUP, "notes": [MARKUP]},
    )
    train = random_impressions(np.random.default_rng(1), n=20, n_users=10)
    slices = measure_slices(
        board["evaluations"], masks(IMPRESSIONS, train, make_news([f"title {i}" for i in range(40)]))
    )
    losses = [{"current_steps": step, "loss": 3 / step} for step in range(1, 41)]
    tutorial = {MARKUP: {"accuracy": 0.9, "precision": None, "recall": 0.0, "n": 5000}}
    return report.write_leaderboard(out, board, losses, tutorial, slices)


@pytest.mark.parametrize("size", SIZES)
def test_the_page_fits_the_window_and_asks_for_nothing(look, page, size):
    seen = look(page, size)
    assert seen.requests == []
    assert seen.errors == []
    assert seen.too_wide == []
    assert seen.flat == []
    assert len(seen.picture) > 50_000  # a picture of text and plots, not of an empty page
    assert "Head to head" in seen.text
    assert "For whom, and for which news" in seen.text
    assert "Does P(Yes) mean what it says?" in seen.text


@pytest.mark.parametrize("size", SIZES)
def test_markup_is_shown_as_text(look, page, size):
    seen = look(page, size)
    assert seen.title == MARKUP
    assert seen.text.count(MARKUP) >= 5  # title, data, command, note, the tutorial's row


@pytest.mark.parametrize("size", SIZES)
def test_what_a_bad_page_does_is_noticed(look, tmp_path, size):
    bad = tmp_path / "bad.html"
    bad.write_text(
        f"<title>bad</title><section></section><p style='width: 2000px'>wide</p>{MARKUP}"
        "<script>throw Error('broken')</script>"
    )
    seen = look(bad, size)
    assert seen.requests == ["http://127.0.0.1:9/x.png"]
    assert any("broken" in error for error in seen.errors)
    assert "the page scrolls sideways" in seen.too_wide
    assert seen.flat == ["<section></section>"]
    assert seen.title != "bad"
    assert MARKUP not in seen.text
