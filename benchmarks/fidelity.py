"""How near to exact Adam each moment format stays, on the gradients of a real network.

    python benchmarks/fidelity.py [STEPS]

A small byte-level GPT learns Python's own documentation by exact Adam. Every format, and every
peer's, keeps moments of its own from the same gradients, of a sample of whole groups; what is
compared is the update. Then the network is trained with each format, over seeds. Writes
docs/fidelity.md.
"""

from __future__ import annotations

import platform
import pydoc_data.topics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from fidelity_peers import installed
from fidelity_shadows import CODECS, Shadow, frozen, inactive
from torch import Tensor, nn

from adamas.torch import AdamW

SHADOWS: dict[str, Shadow] = CODECS | installed()
CONTEXT = 128
# Width, layers and batch: of the network that is followed, and of those over seeds.
FOLLOWED, TRAINED = (256, 4, 32), (128, 4, 8)
LR, WARMUP = 2e-3, 40
SEEDS, LOSS_STEPS = 3, 300
TRAININGS = {
    "float32": {},
    "bfloat16": {"moments": "bfloat16"},
    "int8": {"moments": "int8"},
    "int4": {"moments": "int4"},
    "bfloat16 weights, 24 bits, int8": {"moments": "int8", "master_bits": 24},
}


class Block(nn.Module):
    """Attention and a feed-forward layer, each with its norm before it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.attend = nn.LayerNorm(width), nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.second, self.up = nn.LayerNorm(width), nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        shape = (*x.shape[:2], -1, 64)  # heads of 64
        q, k, v = (
            part.reshape(shape).transpose(1, 2) for part in self.attend(self.norm(x)).chunk(3, 2)
        )
        mixed = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).reshape(x.shape))
        return x + self.down(nn.functional.gelu(self.up(self.second(x))))


class Gpt(nn.Module):
    """A language model over bytes."""

    def __init__(self, width: int, layers: int) -> None:
        super().__init__()
        self.bytes, self.places = nn.Embedding(256, width), nn.Embedding(CONTEXT, width)
        self.blocks = nn.ModuleList(Block(width) for _ in range(layers))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 256, bias=False)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, 0, 0.02)

    def forward(self, x: Tensor) -> Tensor:
        h = self.bytes(x) + self.places.weight[: x.shape[1]]
        for block in self.blocks:
            h = block(h)
        logits: Tensor = self.head(self.norm(h))
        return logits


def losses(model: nn.Module, batch: int, seed: int) -> Iterator[Tensor]:
    """Of one batch after the other."""
    text = torch.tensor(list("".join(pydoc_data.topics.topics.values()).encode()))
    generator = torch.Generator().manual_seed(seed)
    while True:
        starts = torch.randint(0, len(text) - CONTEXT - 1, (batch,), generator=generator)
        x = torch.stack([text[i : i + CONTEXT + 1] for i in starts.tolist()])
        logits = model(x[:, :-1]).flatten(0, 1).float()
        yield nn.functional.cross_entropy(logits, x[:, 1:].flatten())


def sample(model: nn.Module) -> np.ndarray:
    """The gradients of 1024 elements of every 32,768, and of all small parameters."""
    parts = []
    for p in model.parameters():
        assert p.grad is not None
        flat = p.grad.flatten()
        whole = flat[: flat.numel() // 1024 * 1024].view(-1, 1024)[::32].flatten()
        parts.append(whole if whole.numel() else flat[: flat.numel() // 64 * 64])
    return torch.cat(parts).numpy()


class Figures(NamedTuple):
    """Of one shadow over the stream."""

    error: float
    over_50: float
    gain: float


def follow(stream: list[np.ndarray], shadow: Shadow, beta2: float) -> Figures:
    """How far the shadow's updates are from exact Adam's, from step 100 on."""
    n, one, beta1 = stream[0].size, np.float32(1), np.float32(0.9)
    b2 = np.float32(beta2)
    m, v, kept = np.zeros(n, np.float32), np.zeros(n, np.float32), shadow.start(n)
    errors, gains, over = [], [], []
    sums = np.zeros((2, n), np.float64)
    for t, g in enumerate(stream, 1):
        m, v = beta1 * m + (one - beta1) * g, b2 * v + (one - b2) * g * g
        a, b = shadow.read(kept)
        a, b = beta1 * a + (one - beta1) * g, b2 * b + (one - b2) * g * g
        kept = shadow.write(a, b, g != 0, t)
        corrections = 1 - 0.9**t, (1 - beta2**t) ** 0.5
        exact, ours = (
            (x / corrections[0]) / (np.sqrt(y) / corrections[1] + 1e-8) for x, y in ((m, v), (a, b))
        )
        sums += exact, ours
        if t > 100:
            errors.append(np.linalg.norm(ours - exact) / np.linalg.norm(exact))
            gains.append((ours * exact).sum() / (exact * exact).sum())
            if t % 50 == 0:
                over.append(np.linalg.norm(sums[1] - sums[0]) / np.linalg.norm(sums[0]))
        if t % 50 == 0:
            sums[:] = 0
    return Figures(float(np.mean(errors)), float(np.mean(over)), float(np.mean(gains)))


def record(steps: int) -> tuple[list[np.ndarray], float]:
    """The gradients of the sample, step by step, and the last loss."""
    torch.manual_seed(0)
    *shape, batch = FOLLOWED
    model = Gpt(*shape)
    optimizer = AdamW(model.parameters(), lr=LR, weight_decay=0.0)
    stream = []
    for t, loss in zip(range(steps), losses(model, batch, 0), strict=False):
        optimizer.param_groups[0]["lr"] = LR * min(1.0, (t + 1) / WARMUP)
        optimizer.zero_grad()
        loss.backward()
        stream.append(sample(model))
        optimizer.step()
    return stream, float(loss.detach())


def train(seed: int, options: dict[str, object]) -> float:
    """The mean loss of the last steps of a training."""
    torch.manual_seed(seed)
    *shape, batch = TRAINED
    model = Gpt(*shape)
    model = model.bfloat16() if "master_bits" in options else model
    optimizer = AdamW(model.parameters(), lr=LR, weight_decay=0.01, **options)  # type: ignore[arg-type]
    found = []
    for t, loss in zip(range(LOSS_STEPS), losses(model, batch, seed), strict=False):
        optimizer.param_groups[0]["lr"] = LR * min(1.0, (t + 1) / WARMUP)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(float(loss.detach()))
    return float(np.mean(found[-25:]))


def count(width: int, layers: int, _: int) -> float:
    """Parameters, in millions."""
    return sum(p.numel() for p in Gpt(width, layers).parameters()) / 1e6


def table(headings: list[str], rows: list[list[str]]) -> str:
    """In Markdown."""
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def bars(figures: dict[str, Figures]) -> str:
    """What is promised, beside what was measured."""
    soft, near = figures["8-bit softsign, sqrt, nearest"], figures["4-bit nearest"]
    checks: list[tuple[str, float, Callable[[float], bool], str]] = []
    for name, other, most, bias, size in (
        ("int8", soft, 0.36, 0.005, 2.10),
        ("int4", near, 0.56, 0.015, 1.10),
    ):
        ours = figures[name]
        ratio = ours.error / other.error
        checks += [
            (f"{name}: error, of the peer's", ratio, lambda x, m=most: x <= m, f"at most {most}"),
            (f"{name}: bias", ours.gain - 1, lambda x, b=bias: abs(x) <= b, f"within {bias}"),
            (f"{name}: bytes", SHADOWS[name].size, lambda x, s=size: x <= s, f"at most {size}"),
        ]
    return table(
        ["beta2 = 0.999", "bar", "measured", ""],
        [
            [text, bound, f"{value:.3g}", "held" if holds(value) else "missed"]
            for text, value, holds, bound in checks
        ],
    )


def main(steps: int = 350) -> None:
    """Measures, prints, and writes the document."""
    started = time.time()
    stream, loss = record(steps)
    found = {
        beta2: {name: follow(stream, shadow, beta2) for name, shadow in SHADOWS.items()}
        for beta2 in (0.999, 0.95)
    }
    rows = []
    for name, shadow in SHADOWS.items():
        cells = [name, f"{shadow.size:.2f}"]
        for beta2 in found:
            figures = found[beta2][name]
            cells += [f"{figures.error:.4f}", f"{figures.over_50:.4f}", f"{figures.gain:.4f}"]
        rows.append(cells)
    parts = ["error", "over 50", "gain"]
    headings = ["", "bytes", *(f"{part}, {beta2}" for beta2 in found for part in parts)]
    trained = {name: [train(s, o) for s in range(SEEDS)] for name, o in TRAININGS.items()}
    exact, kept = frozen(None), {name: frozen(shadow) for name, shadow in SHADOWS.items()}
    moved = {name: [inactive(shadow, b) for b in (0.9, 0.99)] for name, shadow in SHADOWS.items()}
    text = TEXT.format(
        loss=loss,
        steps=steps,
        size=count(*FOLLOWED),
        small=count(*TRAINED),
        loss_steps=LOSS_STEPS,
        errors=table(headings, rows),
        bars=bars(found[0.999]),
        frozen=table(
            ["", "sqrt(v), exact " + f"{exact:.3f}", "of exact"],
            [[name, f"{value:.3f}", f"{value / exact:.2f}"] for name, value in kept.items()],
        ),
        inactive=table(
            ["", "beta1 = 0.9", "beta1 = 0.99"],
            [[name, *(f"{value:.3f}" for value in values)] for name, values in moved.items()],
        ),
        losses=table(
            ["", *(f"seed {s}" for s in range(SEEDS)), "mean"],
            [
                [name, *(f"{x:.4f}" for x in values), f"{np.mean(values):.4f}"]
                for name, values in trained.items()
            ],
        ),
        where=f"{platform.processor() or platform.machine()}, Python {platform.python_version()}, "
        f"torch {torch.__version__}, {time.time() - started:.0f} s, {time.strftime('%Y-%m-%d')}",
    )
    path = Path(__file__).parent.parent / "docs" / "fidelity.md"
    path.write_text(text)
    print(text)


TEXT = """# How near to exact Adam each format stays

Written by `python benchmarks/fidelity.py` ({where}).

A byte-level GPT of {size:.1f}M parameters learns Python's documentation by exact Adam for {steps}
steps (last loss {loss:.2f}); each format keeps its own moments from the same gradients, of one
parameter in 32. Error: of the update, |ours - exact| / |exact|, mean from step 100 on; over 50: of
the sum of 50 updates; gain: the part of the exact update that ours has, 1 where there is no bias.
Bytes: a parameter, for both moments. bitsandbytes and torchao are their own code, where they are
installed; the two last codecs are written anew, in NumPy: softsign and roots as in FlashOptim's
paper (arXiv 2602.23349), 4 bits as in Li et al. 2023 (arXiv 2309.01507).

{errors}

{bars}

## A second moment that falls

v at 1, then gradients 100 times smaller for 3000 steps; one element of each group stays large.

{frozen}

## A weight whose gradient stops

How far it moves in 200 steps after its gradient has become zero, while the others of its group go
on; in updates of full size, beyond what exact Adam's does.

{inactive}

## Loss

Of a smaller one, of {small:.1f}M parameters: mean of the last 25 of {loss_steps} steps.

{losses}
"""

if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
