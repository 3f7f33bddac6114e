"""The flame graph of a vertex in a real Chromium: it adds up while it is open, and is read, zoomed and searched."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from engine.core.ids import JobID, JobVertexID
from engine.protocol.lifecycle import JobStatus
from tests.browser.conftest import Site, go
from tests.browser.webdriver import Browser
from tests.testing.fake_gateway import end

pytestmark = pytest.mark.browser

JOB = JobID.from_text("WordCount")
FLAT_MAP = JobVertexID.from_text("flat_map -> key_by")
PAGE = f"/job/{JOB}/vertex/{FLAT_MAP}/flamegraph"
ATTACK = "<img src=x onerror=\"window.attacked = true\"> & 'quotes':1"
STACKS = {
    ("engine.operators.chain.process:10", "__main__.split:7", "re.Pattern.split:1"): 52,
    ("engine.operators.chain.process:10", "__main__.split:8"): 24,
    ("engine.operators.chain.process:12", ATTACK): 4,
    (): 20,
}
FRAMES = """
return [...document.querySelectorAll('.frame')].map((one) => {
    const box = one.getBoundingClientRect(), all = one.parentNode.getBoundingClientRect();
    return [one.textContent, Math.round(100 * box.width / all.width), one.className.replace('frame ', '')];
});
"""


def frames(browser: Browser) -> dict[str, tuple[int, str]]:
    """Return name → width in percent, class."""
    return {name: (width, kind) for name, width, kind in browser.script(FRAMES)}


def hottest(browser: Browser) -> list[str]:
    rows = browser.script("return [...document.querySelectorAll('#flamegraph tbody tr')].map((row) => row.innerText)")
    return [row.split("\t")[0].strip() for row in rows]


def frame(name: str) -> str:
    return f".frame[title^='{name}']"


def test_the_flame_graph_of_a_vertex_adds_up_and_is_read_zoomed_and_searched(
    browser: Browser, site: Site, tmp_path: Path
):
    site.gateway.stacks = STACKS
    go(browser, site.address, f"/job/{JOB}/vertex/{FLAT_MAP}")
    browser.click(".detail .tabs a[href$='flamegraph']")
    browser.wait_text("code was running in 80.0 %", "#flame-facts")
    drawn = frames(browser)
    assert drawn == {
        "all": (100, "root"),
        "engine.operators.chain.process:10": (95, "engine"),
        "engine.operators.chain.process:12": (5, "engine"),
        "__main__.split:7": (65, "user"),
        "__main__.split:8": (30, "user"),
        "re.Pattern.split:1": (65, "user"),
        ATTACK: (5, "user"),
    }
    assert browser.script("return [window.attacked, document.querySelectorAll('.flames img').length]") == [None, 0]
    assert hottest(browser) == ["re.Pattern.split:1", "__main__.split:8", ATTACK]
    browser.script("document.querySelector('.detail').scrollIntoView()")
    browser.screenshot(str(tmp_path / "flamegraph.png"))

    browser.script(
        "document.querySelector(arguments[0]).dispatchEvent(new Event('mouseover', {bubbles: true}))", frame("re")
    )
    assert browser.text("#flame-note").startswith("re.Pattern.split:1: 65.0 % (")
    counted = "return Number(document.querySelector('#flame-facts').textContent.split(' ')[0].replace(',', ''))"
    before = browser.script(counted)
    browser.wait(lambda: browser.script(counted) > before, "more samples")

    browser.click(frame("__main__.split:7"))
    zoomed = frames(browser)
    assert zoomed["__main__.split:7"] == (100, "user")
    assert zoomed["engine.operators.chain.process:10"] == (100, "engine above")
    assert "__main__.split:8" not in zoomed
    browser.type("#flame-search", "SPLIT")
    browser.wait_text("95.0 % of the samples", "#flame-found")
    assert frames(browser)["re.Pattern.split:1"] == (100, "user found")
    browser.script("document.querySelector('.detail').scrollIntoView()")
    browser.screenshot(str(tmp_path / "flamegraph-zoomed.png"))
    browser.click("#flame-whole")
    assert frames(browser)["__main__.split:8"] == (30, "user found")
    assert browser.script("return document.querySelector('#flame-search').value") == "SPLIT"

    browser.click(".choice a[href$='/full']")
    browser.wait_text("(not running", ".flames")
    assert [width for name, (width, _) in frames(browser).items() if name.startswith("(not running")] == [20]
    browser.click(".choice a[href$='/off_cpu']")
    browser.wait(lambda: [width for width, _ in frames(browser).values()] == [100, 100], "idle samples alone")


def test_one_subtask_can_be_looked_at(browser: Browser, site: Site):
    go(browser, site.address, f"{PAGE}/full")
    browser.wait(lambda: samples_a_second(browser) == 200, "samples of two subtasks")
    choose = "const s = document.querySelector('#flame-subtask'); s.value = '1'; s.dispatchEvent(new Event('change'))"
    browser.script(choose)
    browser.wait_ready(f"{PAGE}/full/1")
    browser.wait(lambda: samples_a_second(browser) == 100, "samples of one subtask")
    assert browser.script("return document.querySelector('#flame-subtask').value") == "1"


def samples_a_second(browser: Browser) -> float:
    told = re.match(r"([0-9,]+) samples in ([0-9]+) s ", browser.text("#flame-facts"))
    return int(told[1].replace(",", "")) / int(told[2]) if told else 0


def test_samples_that_are_awaited_missing_or_refused_are_told(browser: Browser, site: Site):
    site.call(site.gateway.may_sample.clear)
    site.gateway.stacks = {(): 100}
    go(browser, site.address, PAGE)
    assert browser.text("#flamegraph") == "Sampling…"
    site.call(site.gateway.may_sample.set)
    browser.wait_text("No code was running", "#flamegraph")
    graph = site.gateway.job(JOB)
    site.call(lambda: end(graph, JobStatus.FINISHED, graph.start_ms + 200_000))
    browser.wait_text("no subtask is running any more", "#flame-facts")
    go(browser, site.address, PAGE)
    assert "Nothing is sampled" in browser.text("#flamegraph")


def test_a_taskmanager_that_does_not_answer_is_told_and_the_page_lives_on(browser: Browser, site: Site):
    views = site.gateway.views
    site.call(lambda: setattr(site.gateway, "views", []))
    go(browser, site.address, PAGE)
    browser.wait_text("did not answer", ".flame-problem")
    site.call(lambda: setattr(site.gateway, "views", views))
    browser.wait_text("samples in", "#flame-facts")
    assert browser.script("return document.querySelector('.flame-problem')") is None
    browser.console_problems()  # the browser itself notes each answer 503


def test_of_very_many_stacks_those_that_are_seen_least_are_forgotten_and_shares_stay(browser: Browser, site: Site):
    site.gateway.stacks = {(f"rare.f{number}:1",): 1 for number in range(21_000)} | {("hot.f:1",): 21_000}
    go(browser, site.address, PAGE)
    browser.wait_text("samples in", "#flame-facts")
    assert frames(browser) == {"all": (100, "root"), "hot.f:1": (50, "user")}
    assert hottest(browser) == ["hot.f:1"]
