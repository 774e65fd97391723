"""Small tables for the tests of the command line."""

from pathlib import Path

import numpy as np
import pandas as pd

ROWS = 120


def mixed_frame(rows: int = ROWS) -> pd.DataFrame:
    """Numbers, categories and booleans with missing cells, a price and a class to predict."""
    random = np.random.default_rng(0)
    frame = pd.DataFrame(
        {
            "age": random.integers(18, 80, rows).astype(float),
            "city": random.choice(["Rome", "Oslo", "Lima"], rows),
            "member": random.random(rows) < 0.5,
        }
    )
    price = frame["age"] + frame["city"].map({"Rome": 30.0, "Oslo": 0.0, "Lima": -20.0})
    frame["price"] = price + 25 * frame["member"] + random.normal(0, 2, rows)
    frame["big"] = np.where(frame["price"] > frame["price"].median(), "yes", "no")
    frame = frame.astype(object)
    for name in ("age", "city", "member"):
        frame.loc[random.random(rows) < 0.1, name] = None
    return frame


def mixed_csv(folder: Path, rows: int = ROWS) -> Path:
    """``mixed_frame`` as a file."""
    path = folder / "mixed.csv"
    mixed_frame(rows).to_csv(path, index=False)
    return path
