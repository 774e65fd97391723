"""The page of ``adamas explain``: it computes the library's bits, and shows its numbers."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from pages import Visit

from adamas.hyper import Hyper
from adamas.lab.explain import Lesson, number, prepare
from adamas.lab.explain_page import explain_page
from adamas.lab.problems import PROBLEMS, Problem
from adamas.lab.trace import Step, trace

if TYPE_CHECKING:
    from playwright.sync_api import Page

Show = Callable[[Lesson], "Page"]

HYPERS = [
    Hyper(0.1),
    Hyper(0.03, (0.0, 0.99), weight_decay=0.1, amsgrad=True, decoupled_weight_decay=True),
    Hyper(0.5, (0.97, 0.9), eps=0.1, weight_decay=0.3),
    Hyper(2.0, (0.9995, 0.99999), eps=0.0, weight_decay=3.0, decoupled_weight_decay=True),
]
LESSONS = [
    *(
        prepare(hyper, name, steps=steps)
        for name in PROBLEMS
        for hyper, steps in zip(HYPERS, (20, 1000, 20, 1000), strict=True)
    ),
    *(prepare(hyper, gradients="1,0,-2,3e-9", start="-0.1", steps=9) for hyper in HYPERS),
    prepare(Hyper(1e-3), "tilted", start="0.1,1e100", steps=9),
]
# Numbers as text, since JSON knows of no infinity.
TRACES = """(lessons) => JSON.stringify(
  lessons.map(JSON.parse).map(({ problems, problem, hyper, start }) =>
    trace(problems.find(({ name }) => name === problem), hyper, hyper.steps, start)),
  (key, x) => typeof x === "number" ? String(x) : x)"""


@pytest.fixture
def show(visit: Visit, tmp_path: Path) -> Iterator[Show]:
    """Opens the page of a lesson; what it says on its console fails the test."""
    with ExitStack() as stack:

        def show(lesson: Lesson) -> Page:
            file = tmp_path / "page.html"
            file.write_text(explain_page(lesson), encoding="utf-8")
            page, said = stack.enter_context(visit(file))
            heard.append(said)
            return page

        heard: list[list[str]] = []
        yield show
        assert not any(heard)


def data(lesson: Lesson) -> str:
    """What the page's script is given."""
    html = explain_page(lesson)
    found = re.search(r'<script type="application/json" id="lesson">(.*?)</script>', html)
    assert found
    return found[1]


def test_computes_the_same_bits(show: Show) -> None:
    """By equality, whatever is computed."""
    found = show(LESSONS[0]).evaluate(TRACES, [data(lesson) for lesson in LESSONS])
    for lesson, steps in zip(LESSONS, json.loads(found), strict=True):
        expected = trace(lesson.problem, lesson.hyper, lesson.steps, lesson.start)
        assert len(steps) == len(expected)
        for step, own in zip(expected, steps, strict=True):
            for key in Step._fields:
                value = getattr(step, key)
                read = None if own[key] is None else np.float64(own[key])
                assert np.array_equal(value, read, equal_nan=value is not None), (lesson, key)


def test_writes_numbers_as_the_terminal_does(show: Show) -> None:
    values = [0.0, -0.0, 1.0, 13.625, -13.635, 9999.4, 9999.5, 12345.0, 1e-4, 9.99996e-5, 1e-8]
    values += [2e300, 123456789.0, 0.1 + 0.2, math.inf, -math.inf, math.nan, 1e100]
    found = show(LESSONS[0]).evaluate("(values) => values.map(number)", values)
    assert [text.replace("NaN", "nan") for text in found] == [number(value) for value in values]


def test_draws_what_overflows(show: Show) -> None:
    hyper = Hyper(1e308, (0.0, 0.999))
    page = show(prepare(hyper, gradients="1,-1,-1", start="0", steps=9))
    drawn = [picture.inner_html() for picture in page.locator("svg").all()]
    assert len(drawn) == 4
    assert not re.search("NaN|Infinity", "".join(drawn))


def move(page: Page, name: str, position: float) -> None:
    """Drags a slider there."""
    page.locator(f"#{name}").evaluate(
        "(slider, x) => { slider.value = x; slider.dispatchEvent(new Event('input')); }", position
    )


def test_follows_its_sliders(show: Show) -> None:
    lesson = prepare(Hyper(0.1), "ravine", start="-1,1", steps=8)
    page = show(lesson)

    def check(problem: Problem, lr: float, beta1: float, steps: int) -> None:
        """What is said of the end, and the table's last row, are the library's."""
        start = lesson.start if problem is lesson.problem else problem.start
        last = trace(problem, Hyper(lr, (beta1, 0.999)), steps, start)[-1]
        end = ", ".join(number(float(x)) for x in last.new)
        losses = [problem.loss(np.array(start)), last.loss]
        before, after = (number(loss) for loss in losses if loss is not None)
        text = f"After {steps} steps, p is {end}; the loss went from {before} to {after}."
        assert page.locator("#outcome").text_content() == text
        keys = ["t", "p", "g", "m", "v", "m_hat", "v_hat", "step", "update", "new"]
        row = [np.ravel(getattr(last, key))[0] for key in keys]
        cells = page.locator("#steps-table table").first.locator("tr").last.locator("td")
        assert cells.all_text_contents() == [number(float(value)) for value in row]

    ravine = lesson.problem
    check(ravine, 0.1, 0.9, 8)
    move(page, "steps", 25)
    check(ravine, 0.1, 0.9, 25)
    move(page, "lr", -2)
    check(ravine, 0.01, 0.9, 25)
    page.fill("#beta1-value", "1.5")
    check(ravine, 0.01, 0.9, 25)
    assert page.locator("#wrong").text_content() == "beta1 must be in [0, 1); drawn is 0.9."
    page.fill("#beta1-value", "0.5")
    for name, problem in PROBLEMS.items():
        page.select_option("#problem", name)
        check(problem, 0.01, 0.5, 25)
    page.click("#reset")
    check(ravine, 0.1, 0.9, 8)


def test_the_path_is_where_the_steps_lead(show: Show) -> None:
    lesson = prepare(Hyper(0.1), "ravine", steps=8)
    page = show(lesson)
    steps = trace(lesson.problem, lesson.hyper, 8, lesson.start)
    points = [lesson.start, *(step.new for step in steps)]
    texts = [f"t = {t}: p = {', '.join(number(float(x)) for x in p)}" for t, p in enumerate(points)]
    drawn = page.locator("#path circle.first title, #path circle.last title")
    assert drawn.all_text_contents() == texts
