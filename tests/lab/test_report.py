"""The report page: what it shows, and what no data can do to it."""

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adamas.lab import page
from adamas.lab.curves import best_epoch, curves, power, thin, update_range
from adamas.lab.outcomes import confusion, residuals
from adamas.lab.report import LayerUpdates, Report, report_page, write_report

EVIL = '</script><script>alert(1)</script><!-- <b>"%{y}"</b> & &lt;'


def epoch(number: int, **more: float) -> dict[str, float]:
    values = {
        "epoch": number,
        "train_loss": 1 / number,
        "validation_loss": 1.1 / number,
        "train_score": 1 - 0.5 / number,
        "validation_score": 0.9 - 0.5 / number,
        "learning_rate": 1e-3,
        "seconds": 0.5 * number,
        "samples_per_second": 40_000.0,
    }
    return {**values, **more}


def layer(name: str, epochs: list[int]) -> LayerUpdates:
    quantiles = [[-7.0, -5.0, -4.0, -3.5, -3.0] for _ in epochs]
    return LayerUpdates(name, epochs, quantiles, [-8.0, -6.0, -4.0, -2.0], [10, 60, 30])


def report(**more: Any) -> Report:
    values: dict[str, Any] = {
        "title": "digits",
        "classification": True,
        "headline": [("validation accuracy", "98.3 %")],
        "epochs": [epoch(1), epoch(2)],
        "score_name": "accuracy",
        "updates": [layer("layer 1", [1, 2])],
        "classes": ["no", "yes"],
        "confusion": [[40, 3], [5, 60]],
        "targets": [],
        "predictions": [],
        "settings": [("lr", "0.001")],
    }
    return Report(**{**values, **more})


def regression(**more: Any) -> Report:
    values: dict[str, Any] = {
        "classification": False,
        "score_name": "R²",
        "classes": [],
        "confusion": [],
        "targets": [1.0, 2.0, 3.0],
        "predictions": [1.5, 2.0, 2.5],
    }
    return report(**{**values, **more})


def figures(html: str) -> dict[str, Any]:
    """The figures, read as a browser reads them."""
    found = re.search(r'<script type="application/json" id="figures">(.*?)</script>', html, re.S)
    assert found

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    return dict(json.loads(found[1], parse_constant=refuse))


def own(html: str) -> str:
    """The page without the plotting library."""
    return re.sub(r"<script>/\*\*.*?</script>", "", html, count=1, flags=re.DOTALL)


def test_page_shows_every_part() -> None:
    html = report_page(report())
    assert set(figures(html)) == {"loss", "score", "updates-0", "confusion"}
    for text in ("98.3 %", "layer 1", "8 of 108 validation rows", "7.7 %", "lr", "0.001"):
        assert text in own(html)
    html = report_page(regression())
    assert set(figures(html)) == {"loss", "score", "updates-0", "predicted", "residuals"}
    assert "off by -0.25 to 0.25" in own(html)


def test_every_figure_has_its_place() -> None:
    for html in (report_page(report()), report_page(regression())):
        places = re.findall(r'<div class="plot" id="([^"]+)"', html)
        assert sorted(places) == sorted(figures(html))


def test_page_is_self_contained() -> None:
    html = report_page(report())
    assert len(html.encode()) < 6_000_000
    assert html.count("* plotly.js v") == 1
    assert "default-src 'none'" in html
    assert not re.search(r"https?:|//\w|@import|url\(|<link|<img|\bsrc=", own(html))
    for text in ("prefers-color-scheme: dark", "width=device-width", "@media print"):
        assert text in html


def test_long_run_of_many_layers_is_thinned() -> None:
    numbers = list(range(1, 5001))
    updates = [layer(f"layer {k}", numbers) for k in range(20)]
    html = report_page(report(epochs=[epoch(k) for k in numbers], updates=updates))
    assert len(html.encode()) < 6_200_000
    x = figures(html)["loss"]["data"][0]["x"]
    assert (x[0], x[-1]) == (1, 5000)
    assert "100 of 5,000 epochs" in html


@pytest.mark.parametrize(
    "change",
    [
        {"title": EVIL},
        {"headline": [(EVIL, EVIL)]},
        {"settings": [(EVIL, EVIL)]},
        {"score_name": EVIL},
        {"classes": [EVIL, "yes"]},
        {"updates": [layer(EVIL, [1, 2])]},
    ],
    ids=lambda change: next(iter(change)),
)
def test_no_text_becomes_markup(change: dict[str, Any]) -> None:
    html = own(report_page(report(**change)))
    plain = own(report_page(report()))
    assert "alert(1)" in html
    for tag in ("<script", "</script", "<b>", "<!--"):
        assert html.count(tag) == plain.count(tag)


def test_no_class_name_becomes_markup_in_a_plot() -> None:
    figure = confusion(["<a href='x'>q</a>", "&lt;"], [[1, 1], [0, 1]])
    assert figure["layout"]["xaxis"]["ticktext"] == ["&lt;a href='x'&gt;q&lt;/…", "&amp;lt;"]
    text = figure["data"][2]["customdata"][0][1]
    assert text.startswith("true <b>&lt;a href='x'&gt;q&lt;/a&gt;</b><br>predicted <b>&amp;lt;</b>")


def test_no_name_is_taken_for_a_colour() -> None:
    html = report_page(report(classes=["@accent", "theme"]))
    assert figures(html)["confusion"]["layout"]["xaxis"]["ticktext"] == ["@accent", "theme"]


def test_embedded_data_is_json_that_ends_no_script() -> None:
    values = {"a": [math.nan, math.inf, 1.5], "b": (EVIL, -math.inf)}
    text = page.embed(values)
    assert "<" not in text
    assert json.loads(text) == {"a": [None, None, 1.5], "b": [EVIL, None]}


def test_undecodable_name_is_written(tmp_path: Path) -> None:
    # A file name that is no UTF-8 comes as lone surrogates.
    write_report(tmp_path / "report.html", report(title="\udcff.csv"))
    assert "?.csv" in (tmp_path / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"epochs": []}, "No epoch was finished."),
        ({"epochs": [epoch(1)]}, "All epochs"),
        ({"updates": []}, "No weight has changed."),
        ({"updates": [LayerUpdates("x", [], [], [], [])]}, "No weight has changed."),
        ({"updates": [LayerUpdates("x", [1], [[-4.0] * 5], [], [])]}, "<h3>x</h3>"),
        ({"updates": [layer("x", [1])], "epochs": [epoch(1, learning_rate=0.0)]}, "<h3>x</h3>"),
        ({"classes": [], "confusion": []}, "classification"),
        ({"confusion": [[0, 0], [0, 0]]}, "0 of 0 validation rows"),
        ({"confusion": [[4, 0], [0, 5]]}, "No error."),
        ({"headline": [], "settings": []}, "Confusion matrix"),
        ({"epochs": [epoch(1, train_loss=math.nan)]}, "training loss is not finite in epoch 1"),
        (
            {"epochs": [epoch(1), epoch(2, validation_loss=math.inf), epoch(3)]},
            "validation loss is not finite in epoch 2",
        ),
        (
            {"epochs": [epoch(k, train_loss=math.nan, validation_loss=math.inf) for k in (1, 2)]},
            "No value is finite.",
        ),
        ({"epochs": [{"epoch": 1}]}, "No value is finite."),
    ],
)
def test_little_data_makes_a_page(change: dict[str, Any], text: str) -> None:
    html = report_page(report(**change))
    figures(html)
    assert text in own(html)


@pytest.mark.parametrize(
    ("targets", "predictions", "text"),
    [
        ([1.0], [1.0], "Predictions"),
        ([1e20] * 3, [1e20] * 3, "Predictions"),
        ([1.0, 2.0], [math.nan, 2.0], "Not finite: 1 of 2 predictions."),
        ([1e308, 1.0], [-1e308, 1.0], "Not finite: 1 of 2 predictions."),
        ([1.0], [math.inf], "No prediction is finite."),
    ],
)
def test_predictions_of_every_kind(
    targets: list[float], predictions: list[float], text: str
) -> None:
    html = report_page(regression(targets=targets, predictions=predictions))
    figures(html)
    assert text in own(html)


@pytest.mark.parametrize("n", [2, 10, 24, 25, 100])
def test_confusion_matrix_of_many_classes(n: int) -> None:
    counts = [[i + j + 1 for j in range(n)] for i in range(n)]
    figure = confusion([f"class {i}" for i in range(n)], counts)
    right, wrong = figure["data"][1:]
    for i, row in enumerate(counts):
        for j, count in enumerate(row):
            share = count / sum(row)
            shown, hidden = (right, wrong) if i == j else (wrong, right)
            assert shown["z"][i][j] == pytest.approx(share)
            assert math.isnan(hidden["z"][i][j])
            assert f"{count:,} of {sum(row):,} rows" in shown["customdata"][i][j]
    assert ("text" in wrong) == (n <= 24)
    assert len(figure["layout"]["xaxis"]["tickvals"]) <= 20


def test_residuals_count_every_error() -> None:
    errors = np.random.default_rng(0).normal(size=1000)
    bars = residuals(errors)["data"][0]
    assert sum(bars["y"]) == 1000
    middle = len(bars["x"]) // 2
    assert bars["x"][middle] == pytest.approx(0, abs=1e-12)
    assert bars["x"] == pytest.approx([-x for x in reversed(bars["x"])])


@pytest.mark.parametrize(
    ("last", "kind"), [(0.5, "linear"), (0.01, "log"), (0.0, "linear"), (-1.0, "linear")]
)
def test_loss_axis_is_logarithmic_where_it_helps(last: float, kind: str) -> None:
    figure = curves([epoch(1), epoch(2, train_loss=last)], "loss", min)
    assert figure["layout"]["yaxis"]["type"] == kind


@pytest.mark.parametrize(("best", "number"), [(min, 3), (max, 2)])
def test_best_epoch(best: Callable[[Any], float], number: int) -> None:
    losses = [math.nan, 3.0, 1.0, 1.0, 2.0]
    epochs = [epoch(k, validation_loss=loss) for k, loss in enumerate(losses, 1)]
    found = best_epoch(epochs, "validation_loss", best)
    assert found is not None
    assert found["epoch"] == number
    assert best_epoch(epochs[:2], "validation_loss", best) is None


def test_thin_keeps_both_ends() -> None:
    assert thin(range(5), 5) == [0, 1, 2, 3, 4]
    assert thin(range(101), 5) == [0, 25, 50, 75, 100]


def test_panels_share_a_range_that_holds_the_learning_rate() -> None:
    low, high = update_range([layer("a", [1])], [-1.0])
    assert low == pytest.approx(-8.15)
    assert high == pytest.approx(-0.85)
    # A rounding of 1e-30 leaves room to the rest.
    tail = LayerUpdates("a", [1], [[-5.0, -4, -4, -4, -3]], [-30.0, -29, -4, -3], [1, 50, 49])
    assert update_range([tail], [])[0] == pytest.approx(-7.15)
    assert update_range([], []) == (-8, 0)


@pytest.mark.parametrize(
    ("exponent", "text"),
    [(-3.0, "1.0·10<sup>-3</sup>"), (-3.301, "5.0·10<sup>-4</sup>"), (math.nan, "?")],
)
def test_power(exponent: float, text: str) -> None:
    assert power(exponent) == text


def test_power_that_rounds_up_to_ten() -> None:
    assert power(math.log10(9.99e-5)) == "1.0·10<sup>-4</sup>"


def test_failed_write_leaves_the_old_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "report.html"
    write_report(path, report())
    before = path.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_report(path, report(title="other"))
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
