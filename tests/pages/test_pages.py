"""Every page in Chromium: it draws, answers, and reads well on a desk, on a phone and by night."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from pages import PAGES, Visit

if TYPE_CHECKING:
    from playwright.sync_api import Locator, Page

LOOK = Path(__file__).with_name("look.js").read_text(encoding="utf-8")
# What is asked to be drawn in the next frame is drawn.
FRAMES = "() => new Promise((then) => requestAnimationFrame(() => requestAnimationFrame(then)))"
DRAWN = """() => Object.fromEntries([...document.querySelectorAll(".plot")].map((plot) =>
  [plot.id, plot.querySelectorAll(".trace, .hm, svg > g > path").length]))"""
SIZES = """() => [...document.querySelectorAll(
  ".plot .trace, .plot .hm, .plot svg > g > path")].map((trace) => {
    const { width, height } = trace.getBoundingClientRect();
    return Math.max(width, height); })"""
SEEN = """() => [...document.querySelectorAll(".plot, table, [role=status]")]
  .map((part) => part.innerHTML).join()"""
BACKGROUND = "getComputedStyle(document.body).backgroundColor"
CONTROLS = "select, input[type=checkbox], input[type=range], button"

FAULTS = {
    '"small" is of 9px': '<p style="font-size: 9px">small</p>',
    '"faint" has a contrast of 1.1': '<p style="color: #eee">faint</p>',
    "the page is 3008 wide": '<div style="width: 3000px">.</div>',
    '"left" leaves the window': '<p style="position: fixed; left: -9px">left</p>',
    "p is empty": '<div class="plot" id="p"></div>',
    "p sticks out": '<div class="plot" id="p" style="width: 9px"><svg width="200"></svg></div>',
    '"label" is cut off in p': '<div class="plot" id="p"><svg><text x="-5" y="20">label</text>',
    '"b" is upon "a" in p': '<div class="plot" id="p"><svg><text y="20">a</text><text y="25">b',
    "ticks of p are of 16px and 20px": '<div class="plot" id="p"><svg><g class="xtick"><text '
    'y="20">1</text></g><g class="ytick"><text y="60" style="font-size: 20px">2</text></g>',
}
COMPLAINTS = {
    "asked for http://example.org/": '<img src="http://example.org/">',
    "error: boom": '<script>throw "boom"</script>',
    "log: hello": '<script>console.log("hello")</script>',
}


def made(folder: Path, body: str) -> Path:
    file = folder / "page.html"
    file.write_text(f"<!DOCTYPE html><title>page</title><body>{body}", encoding="utf-8")
    return file


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_found(fault: str, visit: Visit, tmp_path: Path) -> None:
    with visit(made(tmp_path, FAULTS[fault])) as (page, _):
        assert fault in " ".join(page.evaluate(LOOK))


@pytest.mark.parametrize("complaint", COMPLAINTS)
def test_a_complaint_is_heard(complaint: str, visit: Visit, tmp_path: Path) -> None:
    with visit(made(tmp_path, COMPLAINTS[complaint])) as (page, said):
        page.evaluate(FRAMES)
        assert complaint in said


def test_draws_every_trace(visited: tuple[str, Page, list[str]], page: Page) -> None:
    name, *_ = visited
    assert page.evaluate(DRAWN) == PAGES[name].drawn
    assert min(page.evaluate(SIZES)) > 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_reads_well(page: Page, width: int, scheme: str) -> None:
    page.set_viewport_size({"width": width, "height": 850})
    page.emulate_media(color_scheme=scheme)
    page.evaluate(FRAMES)
    shades = [int(part) for part in page.evaluate(BACKGROUND)[4:-1].split(",")]
    assert max(shades) < 50 if scheme == "dark" else min(shades) > 205
    assert page.evaluate(LOOK) == []
    for summary in page.locator("summary").all():
        summary.click()
        assert summary.locator("xpath=..").locator("table").bounding_box()
    assert page.evaluate(LOOK) == []
    for summary in page.locator("summary").all():
        summary.click()


def use(control: Locator) -> None:
    """Sets a control to something else than it was."""
    kind = control.evaluate("(element) => element.type || element.localName")
    if kind == "select-one":
        control.select_option(index=control.evaluate("(select) => select.selectedIndex ? 0 : 1"))
    elif kind == "range":
        control.press("End")
    else:
        control.click()


def test_every_control_changes_what_is_seen(page: Page) -> None:
    """One after the other, so that the button that puts all back has what to do."""
    for control in page.locator(CONTROLS).all():
        before, chosen = page.evaluate(SEEN), control.get_attribute("aria-pressed") == "true"
        use(control)
        if chosen and control.get_attribute("aria-pressed") == "true":
            continue  # of several, that which was chosen already
        page.wait_for_function(f"(before) => ({SEEN})() !== before", arg=before, timeout=9000)
        if chosen:
            use(control)  # back on, since what is off has nothing to show for the others
