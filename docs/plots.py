"""Draws the pictures of docs/adam.md from runs of the optimizer; needs matplotlib.

    python docs/plots.py [runs/bench/step.json]

With the results of ``adamas bench --out runs/bench`` it draws the time of a step, too.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import matplotlib as mpl
import numpy as np
import torch
from matplotlib import pyplot as plt
from sklearn.datasets import load_digits

from adamas.equations import adam
from adamas.hyper import Hyper
from adamas.torch import AdamW

FOLDER = Path(__file__).parent
TEAL, ORANGE, VIOLET, GREY = "#0e9488", "#d97706", "#8b5cf6", "#808590"  # on white and on black
STYLE = {
    "axes.edgecolor": GREY,
    "axes.grid": True,
    "axes.labelcolor": GREY,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlecolor": GREY,
    "axes.titlesize": 12,
    "font.family": "sans-serif",
    "font.size": 12,
    "grid.alpha": 0.25,
    "grid.color": GREY,
    "legend.frameon": False,
    "legend.labelcolor": GREY,
    "savefig.transparent": True,
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "adamas",  # the same bytes each time
    "xtick.color": GREY,
    "ytick.color": GREY,
}


def main() -> None:
    """Draws all of them."""
    mpl.rcParams.update(STYLE)
    bias_correction()
    sizes()
    if len(sys.argv) > 1:
        scaling(json.loads(Path(sys.argv[1]).read_text())["scaling"])


def save(name: str) -> None:
    plt.tight_layout()
    plt.savefig(FOLDER / name, metadata={"Date": None, "Creator": None})
    plt.close()


def updates(hyper: Hyper, steps: int, corrected: bool) -> list[float]:
    """Of a weight whose gradient is always 1, in learning rates."""
    p = m = v = np.float64(0)
    sizes = []
    for t in range(1, steps + 1):
        c = hyper.coefficients(t, "float64")
        if not corrected:
            c = c._replace(step_size=hyper.lr, denom_scale=1.0)
        before = p
        p, m, v, _ = adam(p, np.float64(1), m, v, None, c, np.sqrt, np.maximum)
        sizes.append(float(before - p) / hyper.lr)
    return sizes


def bias_correction() -> None:
    plt.figure(figsize=(7.4, 3.6))
    steps = 5000
    for beta2, color in ((0.999, ORANGE), (0.95, VIOLET)):
        line = updates(Hyper(betas=(0.9, beta2)), steps, corrected=False)
        print(f"beta2 {beta2}: first {line[0]:.2f}, most {max(line):.2f} at {np.argmax(line) + 1}")
        plt.plot(range(1, steps + 1), line, color=color, label=f"without, beta2 = {beta2}")
    plt.plot(range(1, steps + 1), updates(Hyper(), steps, True), color=TEAL, label="with")
    plt.xscale("log")
    plt.xlabel("step")
    plt.ylabel("update / lr")
    plt.ylim(0)
    plt.legend()
    save("bias.svg")


def sizes() -> None:
    """Gradients and updates of a network that learns digits, by layer."""
    torch.manual_seed(0)
    pixels, labels = load_digits(return_X_y=True)
    x, y = torch.from_numpy(pixels / 16).float(), torch.from_numpy(labels)
    layers = [layer for _ in range(3) for layer in (torch.nn.Linear(64, 64), torch.nn.Tanh())]
    model = torch.nn.Sequential(*layers, torch.nn.Linear(64, 10))
    weights = [(name, p) for name, p in model.named_parameters() if p.dim() == 2]
    optimizer = AdamW(model.named_parameters(), lr=1e-3, weight_decay=0.0)
    seen: dict[str, list[tuple[float, float]]] = {name: [] for name, _ in weights}
    for _ in range(600):
        batch = torch.randint(len(x), (64,))
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(x[batch]), y[batch]).backward()
        optimizer.measure_next_step()
        optimizer.step()
        for row in optimizer.statistics().parameters:
            if row.name in seen:
                root = row.elements**0.5
                seen[row.name].append((row.grad_norm / root, row.update_norm / root / 1e-3))
    _, panels = plt.subplots(1, 2, figsize=(7.4, 3.6))
    for panel, column, title in zip(
        panels, (0, 1), ("gradient, rms", "update / lr, rms"), strict=True
    ):
        for (name, _), color in zip(weights, (TEAL, ORANGE, VIOLET, GREY), strict=True):
            line = np.array(seen[name])[:, column]
            print(f"{title}, {name}: from {line.min():.2g} to {line.max():.2g}")
            panel.plot(range(1, len(line) + 1, 4), line[::4], color=color, lw=1, label=name)
        panel.set_title(title)
        panel.set_xlabel("step")
        panel.set_yscale("log")
    panels[1].set_ylim(1e-2, 10)
    panels[1].legend(loc="upper right")
    save("sizes.svg")


def scaling(found: dict[str, object]) -> None:
    """The time of a step by the number of parameters."""
    plt.figure(figsize=(7.4, 4.2))
    colors = iter((TEAL, VIOLET, ORANGE, GREY))
    for series in found["series"]:  # type: ignore[attr-defined]
        style = {"color": next(colors), "label": series["title"], "lw": 1.5}
        plt.loglog(series["parameters"], series["milliseconds"], **style)
    most = max(series["parameters"][-1] for series in found["series"])  # type: ignore[attr-defined]
    ends = np.array([1e4, most])
    limit = ends * found["step_bytes"] / found["bandwidth"] * 1e3  # type: ignore[operator]
    plt.loglog(ends, limit, color=GREY, ls=":", label="the memory's limit")
    plt.xlabel("parameters, float32")
    plt.ylabel("milliseconds a step")
    plt.legend()
    save("scaling.svg")


if __name__ == "__main__":
    main()
