"""Reading tables, telling what they hold, and encoding them."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from tables import mixed_csv

from adamas.lab import UserError, columns, target
from adamas.lab.columns import Categorical, Numeric, encode_columns, fit_columns
from adamas.lab.data import read_table
from adamas.lab.predict import predict_csv
from adamas.lab.run import resume, start
from adamas.lab.target import Classes, Value, fit_target, split, tell_kind


def csv(header: str, *rows: str) -> bytes:
    return "\n".join((header, *rows, "")).encode()


def rows(template: str, count: int = 40, **values: list[Any]) -> list[str]:
    """Rows from a template, with the row's number as ``i`` and values that repeat."""
    return [
        template.format(i=i, **{name: v[i % len(v)] for name, v in values.items()})
        for i in range(count)
    ]


GOOD = rows("{i},{a}", a=["x", "y"])
TEXT = rows("{i},{a},comment number {i} is of its own kind", a=["x", "y"])

BAD: dict[str, tuple[bytes | None, dict[str, Any], str]] = {
    "missing file": (None, {}, "data.csv does not exist"),
    "empty file": (b"", {}, "data.csv is empty"),
    "blank file": (b" \n\n", {}, "data.csv is empty"),
    "no rows": (csv("n,a"), {}, "column names but no rows"),
    "binary file": (b"\x89PNG\r\n\0\0", {}, "holds binary data"),
    "not UTF-8": ("n,a\n1,é\n".encode("latin-1"), {}, r"not UTF-8 text \(byte 7\)"),
    "ragged rows": (csv("n,a", *GOOD, "1,x,3"), {}, "not a table of 2 columns"),
    "short row": (csv("n,a", *GOOD, "1"), {}, "line 42 has fewer"),
    "open quote": (csv("n,a", *GOOD, '1,"x'), {}, "not a table of 2 columns"),
    "equal names": (csv("n,a,n", "1,x,2"), {}, "more than one column named 'n'"),
    "no target": (csv("n,a", *GOOD), {"target_name": None}, "--target is needed.*'n', 'a'"),
    "unknown target": (csv("n,Alpha", *GOOD), {"target_name": "alpha"}, "mean 'Alpha'"),
    "unknown drop": (csv("n,a", *GOOD), {"drop": ("z",)}, "--drop 'z' is not a column"),
    "dropped target": (csv("n,a", *GOOD), {"drop": ("a",)}, "--drop 'a' is the target"),
    "all dropped": (csv("n,a", *GOOD), {"drop": ("n",)}, "no column to learn from"),
    "constant features": (
        csv("n,a", *rows("1,{a}", a=["x", "y"])),
        {},
        "no column to learn from",
    ),
    "constant target": (csv("n,a", *rows("{i},x")), {}, "target 'a' is 'x' in every row"),
    "constant number": (csv("n,a", *rows("{i},2.5")), {}, "target 'a' is '2.5' in every row"),
    "merged classes": (
        csv("n,a", *rows("{i},{a}", a=[5, 10**17, 10**17 + 1])),
        {},
        "class 100000000000000000: numbers that name classes must be below 2\\^53",
    ),
    "infinite class": (
        csv("n,a", *rows("{i},{a}", a=[1, 2, "inf"])),
        {},
        "'a', row 3: 'inf' is infinite or too large",
    ),
    "classes that are one": (
        csv("n,a", *rows("{i},{a}", a=[1, 2**53, 2**53 + 1])),
        {},
        r"has the class 9007199254740992: numbers that name classes must be below 2\^53",
    ),
    "thousands": (
        csv("n;a", *rows("{i},000;{a}", a=["x", "y"])),
        {},
        "'n' holds numbers such as '0,000'",
    ),
    "empty target": (csv("n,a", *rows("{i},")), {}, r"0 row\(s\) have a target"),
    "too few rows": (csv("n,a", *GOOD[:9]), {}, "9 row.*at least 10"),
    "lone class": (csv("n,a", *GOOD, "1,z"), {}, r"class\(es\) 'z' of target 'a' occur once"),
    "lone number": (
        csv("n,a", *rows("{i},{a}", a=[0, 1]), "1,2"),
        {},
        "'2' of target 'a' occur once.*--regression",
    ),
    "text target": (csv("n,a", *rows("{i},name {i}")), {}, "target 'a' has 40 different values"),
    "numbers as classes": (
        csv("n,a", *rows("{i},{i}.5")),
        {"kind": "classification"},
        "40 different values.*use --regression",
    ),
    "regression of text": (csv("n,a", *GOOD), {"kind": "regression"}, "needs a numeric target"),
    "free text": (csv("n,a,c", *TEXT), {}, "'c' is free text.*--drop 'c'"),
    "short free text": (csv("n,a,c", *TEXT[:12]), {}, "'c' is free text"),
    "infinite cell": (csv("n,a", *GOOD, "inf,x"), {}, "column 'n', row 41: 'inf' is infinite"),
    "overflowing cell": (csv("n,a", *GOOD, "1e999,x"), {}, "row 41: '1e999' is infinite"),
    "infinite target": (csv("n,a", *rows("{i},{i}.5"), "1,-inf"), {}, "'-inf' is infinite"),
    "tiny validation": (
        csv("n,a", *rows("{i},{i}.5")),
        {"given": {"validation": 0.01}},
        "leaves 1 for validation",
    ),
    "target without file": (
        b"",
        {"path": None, "target_name": "price"},
        "--target 'price' is for a CSV file",
    ),
    "bad beta": (csv("n,a", *GOOD), {"given": {"betas": (1.5, 0.9)}}, "beta1 must be in .0, 1"),
    "one beta": (csv("n,a", *GOOD), {"given": {"betas": (0.9,)}}, "betas must be two numbers"),
    "bad lr": (csv("n,a", *GOOD), {"given": {"lr": math.nan}}, "lr must be finite"),
    "negative lr": (csv("n,a", *GOOD), {"given": {"lr": -1.0}}, "lr must be .* got -1.0"),
    "no lr": (csv("n,a", *GOOD), {"given": {"lr": 0.0}}, "lr must be above 0"),
    "huge lr": (csv("n,a", *GOOD), {"given": {"lr": 1e39}}, "lr must be at most 1e.30"),
    "bad eps": (csv("n,a", *GOOD), {"given": {"eps": -1.0}}, "eps must be finite"),
    "bad decay": (csv("n,a", *GOOD), {"given": {"weight_decay": math.inf}}, "weight_decay must"),
    "no epochs": (csv("n,a", *GOOD), {"given": {"epochs": 0}}, "epochs must be from 1"),
    "no batch": (csv("n,a", *GOOD), {"given": {"batch_size": 0}}, "batch-size must be from 1"),
    "negative batch": (csv("n,a", *GOOD), {"given": {"batch_size": -3}}, "batch-size must be"),
    "bad seed": (csv("n,a", *GOOD), {"given": {"seed": -1}}, "seed must be from 0"),
    "no width": (csv("n,a", *GOOD), {"given": {"layers": (8, 0)}}, "layers must be widths"),
    "bad schedule": (csv("n,a", *GOOD), {"given": {"schedule": "step"}}, "cosine or constant"),
    "bad smoothing": (csv("n,a", *GOOD), {"given": {"label_smoothing": 1.0}}, "must be in .0, 1"),
    "bad fraction": (csv("n,a", *GOOD), {"given": {"validation": 1.0}}, "must be a fraction"),
    "NaN fraction": (csv("n,a", *GOOD), {"given": {"validation": math.nan}}, "must be a fraction"),
    "infinite fraction": (
        csv("n,a", *GOOD),
        {"given": {"validation": -math.inf}},
        "must be a fraction",
    ),
    "huge width": (csv("n,a", *GOOD), {"given": {"layers": (10**9,)}}, "widths from 1 to 16384"),
    "vast width": (csv("n,a", *GOOD), {"given": {"layers": (10**19,)}}, "widths from 1 to 16384"),
    "many weights": (csv("n,a", *GOOD), {"given": {"layers": (16384,) * 6}}, "at most 1,073,741"),
    "unknown device": (csv("n,a", *GOOD), {"given": {"device": "abacus"}}, "device must be cpu"),
    "absent device": (csv("n,a", *GOOD), {"given": {"device": "cuda:99"}}, "is not here"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(tmp_path: Path, case: str) -> None:
    content, arguments, message = BAD[case]
    path = tmp_path / "data.csv"
    if content is not None:
        path.write_bytes(content)
    arguments = {"path": path, "given": {}, "target_name": "a", **arguments}
    with pytest.raises(UserError, match=message) as error:
        start(folder=lambda name: tmp_path / "runs" / name, **arguments)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "runs").exists()


def test_delimiters_in_quotes_do_not_count(tmp_path: Path) -> None:
    path = tmp_path / "data.csv"
    path.write_bytes(csv('"n;m;o",a', *GOOD))
    task = start(path, lambda name: tmp_path / name, {}, "a").task
    assert [column.name for column in task.columns] == ["n;m;o"]


def test_blank_rows_are_skipped_and_quotes_may_follow_spaces(tmp_path: Path) -> None:
    path = tmp_path / "data.csv"
    path.write_bytes(b'n, "a, b"\n\n1, "x, y"\n  \n2,\n')
    frame = read_table(path).frame
    assert list(frame) == ["n", "a, b"]
    assert frame["n"].tolist() == [1, 2]
    assert frame["a, b"].fillna("-").tolist() == ["x, y", "-"]


def test_a_table_of_texts(tmp_path: Path) -> None:
    path = tmp_path / "data.csv"
    path.write_bytes(csv("n,a", "x,y", "z,"))
    assert read_table(path).frame["n"].tolist() == ["x", "z"]


def test_numbers_are_read_as_numbers_where_all_are(tmp_path: Path) -> None:
    path = tmp_path / "data.csv"
    path.write_bytes(csv("n,late,word", *["01,02,x"] * 1500, "3,k,y", ",,"))
    frame = read_table(path).frame
    assert frame["late"].tolist()[:1501] == ["02"] * 1500 + ["k"]
    path.write_bytes(csv("n,late,word", *["01,02,x"] * 1500, "3,,y"))
    frame = read_table(path, {"late"}).frame
    assert frame["n"].dtype == float
    assert frame["late"].tolist()[:1500] == ["02"] * 1500


def test_predict_scores_classes_spelt_like_numbers(tmp_path: Path) -> None:
    path = tmp_path / "data.csv"
    classes = ["01", "02", "k"]
    path.write_bytes(csv("n,a", *rows("{n},{a}", 600, n=[0, 5, 9], a=classes)))
    run = start(path, lambda name: tmp_path / "run", {"epochs": 20, "lr": 0.05}, "a")
    run.train(lambda: False, lambda trainer, metrics: None)
    path.write_bytes(csv("n,a", *["0,01"] * 5))
    prediction = predict_csv(tmp_path / "run", path)
    assert prediction.frame["a"].tolist() == ["01"] * 5
    assert (prediction.score, prediction.scored) == (1, 5)


def test_classes_keep_their_spelling_in_any_file() -> None:
    """Alone, the cells "01" could be numbers; among classes of text they are not."""
    target = Classes("t", ("01", "02", "k"), numeric=False)
    assert target.encode(pd.Series(["01", "02", "01"])).tolist() == [0, 1, 0]
    numbers = Classes("t", ("1", "2"), numeric=True)
    assert numbers.encode(pd.Series(["01", "2.0", "x"])).tolist() == [0, 1, -1]
    assert numbers.encode(pd.Series(["01", "2.0", "inf"])).tolist() == [0, 1, -1]


def test_good_input_is_accepted(tmp_path: Path) -> None:
    path = tmp_path / "data.csv"
    path.write_bytes(csv("n,a", *GOOD))
    assert start(path, lambda name: tmp_path / name, {}, "a").task.target.kind == "classification"


@pytest.mark.parametrize(
    ("cells", "kind"),
    [
        (["a", "b"] * 10, "classification"),
        (["True", "False"] * 10, "classification"),
        (["0", "1"] * 10, "classification"),
        (["1.0", "2.0", "3.0"] * 10, "classification"),
        ([str(i) for i in range(30)], "regression"),
        ([str(i % 25) for i in range(200)], "regression"),
        (["0.5", "1.5", "2"] * 10, "regression"),
        (["1", "2", "3", "4"] * 2, "regression"),
        ([str(i % 2) for i in range(10)], "classification"),
    ],
)
def test_kind_is_told_from_the_target(cells: list[str], kind: str) -> None:
    told, why = tell_kind(pd.Series(cells, name="t"))
    assert told == kind
    assert "'t' holds" in why
    assert tell_kind(pd.Series(["1", "2"]), "regression") == ("regression", "as asked for")


def test_numeric_columns() -> None:
    series = pd.Series(["1", "2", None, "5", "1e9"], name="n")
    column = Numeric.fit(series, np.array([True, True, True, True, False]))
    assert (column.median, column.mean, column.indicator) == (2.0, 2.5, True)
    assert column.scale == np.std([1, 2, 2, 5])
    encoded = column.encode(series)
    np.testing.assert_array_equal(encoded[:, 1], [0, 0, 1, 0, 0])
    np.testing.assert_allclose(encoded[:4, 0], (np.array([1, 2, 2, 5]) - 2.5) / column.scale)
    assert encoded[4, 0] == columns.LIMIT
    whole = Numeric.fit(series, np.array([True, True, False, True, False]))
    assert whole.encode(series)[2, 0] == np.float32((2 - whole.mean) / whole.scale)
    assert whole.encode(series).shape == (5, 1)


def test_categorical_columns() -> None:
    series = pd.Series(["b", "a ", "a", "b", "c", None], name="c")
    training = np.ones(6, bool)
    column = Categorical.fit(series, training)
    assert (column.levels, column.other) == (("a", "b"), True)
    np.testing.assert_array_equal(column.encode(series).argmax(1), [1, 0, 0, 1, 2, 2])
    training[4:] = False
    without = Categorical.fit(series, training)
    assert not without.other
    np.testing.assert_array_equal(without.encode(series).sum(1), [1, 1, 1, 1, 0, 0])
    many = Categorical.fit(pd.Series([f"{i % 300:03}x" for i in range(900)]), np.ones(900, bool))
    assert len(many.levels) == columns.MOST_LEVELS


@pytest.mark.parametrize("spelling", [["True", "False"], ["TRUE", "FALSE"], ["true", "false"]])
def test_booleans_have_one_spelling(spelling: list[str]) -> None:
    series = pd.Series([*spelling, *spelling, None])
    assert Categorical.fit(series, np.ones(5, bool)).levels == ("False", "True")
    boolean = pd.Series([True, False, True, False])
    assert Categorical.fit(boolean, np.ones(4, bool)).levels == ("False", "True")


@pytest.mark.parametrize(
    ("cells", "classes"),
    [
        (["10", "9", "2", "9.0"], ("2", "9", "10")),
        (["b", "a", " b"], ("a", "b")),
        (["0.5", "0.25", "0.50"], ("0.25", "0.5")),
    ],
)
def test_classes_are_sorted_and_spelt_once(cells: list[str], classes: tuple[str, ...]) -> None:
    series = pd.Series(cells, name="t")
    fitted = fit_target(series, "classification", np.ones(len(cells), bool))
    assert isinstance(fitted, Classes)
    assert fitted.classes == classes
    assert (fitted.encode(series) >= 0).all()
    assert fitted.encode(pd.Series(["unseen"]))[0] == -1


def test_json_round_trip() -> None:
    for column in (Numeric("n", 0.1, 1 / 3, 2 / 3, True), Categorical("c", ("a", "b"), False)):
        assert columns.from_json(json.loads(json.dumps(columns.to_json(column)))) == column
    for what in (Classes("t", ("a", "b"), False), Value("t", 1 / 3, 0.1)):
        assert target.from_json(json.loads(json.dumps(target.to_json(what)))) == what


def test_split_is_stratified_and_a_function_of_the_seed() -> None:
    series = pd.Series(["a"] * 100 + ["b"] * 10 + ["c"] * 2, name="t")
    training = split(series, "classification", 0.2, 3)
    assert (~training).sum() == 20 + 2 + 1
    assert [(~training)[series == label].sum() for label in "abc"] == [20, 2, 1]
    np.testing.assert_array_equal(training, split(series, "classification", 0.2, 3))
    assert (training != split(series, "classification", 0.2, 4)).any()


def test_tables_are_read_as_they_are(tmp_path: Path) -> None:
    path = tmp_path / "data.csv"
    path.write_bytes('\ufeff;name; x\n0;"a;b";1\n1;"two\nlines";NA\n'.encode())
    table = read_table(path)
    assert list(table.frame.columns) == ["name", "x"]
    assert table.frame["name"].tolist() == ["a;b", "two\nlines"]
    assert table.frame["x"].isna().tolist() == [False, True]
    assert table.notices == ("left out: 1 column(s) without a name",)


def test_rows_without_target_and_constant_columns_are_told(tmp_path: Path) -> None:
    path = tmp_path / "data.csv"
    path.write_bytes(csv("n,k,a", *rows("{i},1,{a}", a=["x", "y"]), "3,1,", "4,1, "))
    notices = start(path, lambda name: tmp_path / name, {}, "a").notices
    assert "left out: 2 row(s) without a target" in notices
    assert "left out, one value only: 'k'" in notices
    assert "classification: 'a' holds 2 different texts" in notices


def test_only_an_empty_cell_of_text_is_missing(tmp_path: Path) -> None:
    """A class may be called None; among numbers it is none."""
    path = tmp_path / "data.csv"
    path.write_bytes(csv("n,k,a", *rows("{n},{k},{a}", n=[1, 2.5, "NA"], k="xy", a=["None", "b"])))
    run = start(path, lambda name: tmp_path / name, {}, "a")
    assert run.task.target == Classes("a", ("None", "b"), False)
    assert run.task.columns[0].kind == Numeric.kind
    assert run.task.columns[0].indicator
    assert "'None' in 20 cell(s) of 'a' is taken as a word like any other" in run.notices[0]


@pytest.mark.parametrize("last", ["x0", "inf"])
def test_text_further_down_leaves_other_columns_theirs(last: str, tmp_path: Path) -> None:
    """Words of a column of numbers stay none, whatever another column has."""
    path = tmp_path / "data.csv"
    path.write_bytes(csv("n,k,a", *rows("{i},{i},{a}", 1200, a=[1, 2]), f"NA,{last},1", "#NA,5,2"))
    frame = read_table(path).frame
    assert frame["n"].dtype == float
    assert frame["n"].isna().tolist() == [False] * 1200 + [True] * 2
    assert frame["k"].tolist()[1199:] == ["1199", last, "5"]


def test_a_run_whose_rows_are_read_otherwise(tmp_path: Path) -> None:
    path = tmp_path / "data.csv"
    path.write_bytes(csv("n,a", *rows("{i},{a}", a=["x", "y"])))
    folder = start(path, lambda name: tmp_path / name, {}, "a").folder
    settings = folder.load_settings()
    folder.save_settings(settings | {"rows": {"training": 30, "validation": 8}})
    folder.unlock()
    with pytest.raises(UserError, match=r"begun with 38 rows, and this adamas.*reads 40: train"):
        resume(folder.path, {})


def test_categories_that_look_like_numbers(tmp_path: Path) -> None:
    values = {"a": ["10%", "20%"], "b": ["12 345", "12 346"], "c": ["192.168.100.200", "1.1.1.1"]}
    frame = pd.DataFrame({name: pair * 20 for name, pair in values.items()})
    columns, _ = fit_columns(frame, np.ones(40, np.bool_))
    assert [column.kind for column in columns] == [Categorical.kind] * 3


@pytest.mark.parametrize("text", ["1,{i:03}", "{i} %", "{i},5", "$1,{i:03}.50", "1 {i:03},5"])
def test_numbers_in_a_way_of_their_own(text: str) -> None:
    frame = pd.DataFrame({"n": [text.format(i=i) for i in range(40)]})
    with pytest.raises(UserError, match="must be written as 1234567"):
        fit_columns(frame, np.ones(40, np.bool_))


def test_the_smallest_numbers_are_learnt(tmp_path: Path) -> None:
    """Their squares are 0."""
    series = pd.Series([1e-170, 3e-170], name="n")
    column = Numeric.fit(series, np.ones(2, np.bool_))
    assert column.encode(series).tolist() == [[-1.0], [1.0]]
    assert fit_target(series, Value.kind, np.ones(2, np.bool_)).scale == 1e-170


def test_a_target_called_probability(tmp_path: Path) -> None:
    path = tmp_path / "data.csv"
    path.write_bytes(csv("n,probability", *rows("{i},{a}", a=["high", "low"])))
    start(path, lambda name: tmp_path / name, {}, "probability")
    frame = predict_csv(tmp_path / "data", path).frame
    assert set(frame["probability"]) <= {"high", "low"}
    assert frame["class_probability"].between(0.5, 1).all()


PREDICT = {
    "unseen category": ("age,city,member\n30,Paris,True\n", None),
    "missing cells": ("age,city,member\n,,\n30,Rome,\n", None),
    "columns in another order": ("city,more,member,age\nRome,9,True,3\n", None),
    "missing column": ("age,city\n30,Rome\n", r"lack 1 column\(s\).*'member'"),
    "text for a number": ("age,city,member\nold,Rome,True\n", "row 1: 'old' is not a number"),
    "infinite number": ("age,city,member\n-inf,Rome,True\n", "is infinite"),
    "no rows": ("age,city,member\n", "no rows"),
    "empty file": ("", "is empty"),
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    for name, drop in (("price", "big"), ("big", "price")):
        start(mixed_csv(folder), lambda _, name=name: folder / name, {}, name, drop=(drop,))
    return folder


@pytest.mark.parametrize("case", PREDICT)
@pytest.mark.parametrize("name", ["price", "big"])
def test_predict(tmp_path: Path, trained: Path, name: str, case: str) -> None:
    content, message = PREDICT[case]
    path = tmp_path / "data.csv"
    path.write_text(content)
    if message:
        with pytest.raises(UserError, match=message):
            predict_csv(trained / name, path)
        return
    prediction = predict_csv(trained / name, path)
    assert len(prediction.frame) == content.count("\n") - 1
    assert list(prediction.frame) == (["price"] if name == "price" else ["big", "probability"])
    assert prediction.frame.notna().all(axis=None)
    assert prediction.score is None


@pytest.mark.parametrize("file", ["model.safetensors", "settings.json"])
def test_predict_refuses_damaged_runs(tmp_path: Path, file: str) -> None:
    path = mixed_csv(tmp_path)
    start(path, lambda name: tmp_path / "run", {}, "big")
    whole = (tmp_path / "run" / file).read_bytes()
    (tmp_path / "run/checkpoint.pt").unlink()
    predict_csv(tmp_path / "run", path)
    for content in (whole[:-9], b"noise", None):
        (tmp_path / "run" / file).unlink()
        if content is not None:
            (tmp_path / "run" / file).write_bytes(content)
        with pytest.raises(UserError, match=r"is damaged|is not a run"):
            predict_csv(tmp_path / "run", path)
        (tmp_path / "run" / file).write_bytes(whole)


def test_digits() -> None:
    table = read_table(None)
    assert table.frame.shape == (1797, 65)
    learnt, notices = fit_columns(table.frame.drop(columns="digit"), np.ones(1797, bool))
    assert encode_columns(learnt, table.frame).shape == (1797, 61)
    assert notices == ["left out, one value only: 'pixel_0_0', 'pixel_4_0', 'pixel_4_7'"]
