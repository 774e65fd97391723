"""States of the peers themselves, where they are installed."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from layouts import BETAS, State, random
from torch import Tensor, nn

from adamas.torch import Adam, AdamW, convert_state_dict
from adamas.torch.standins import stand_ins


def peer(name: str) -> Any:
    """An installed peer's module, whatever it warns about when it is imported."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip(name, exc_type=ImportError)


def peer_torchao(kind: str) -> Callable[[Any], torch.optim.Optimizer]:
    rule = getattr(peer("torchao.optim"), kind)
    return lambda params: rule(params, lr=0.01, weight_decay=0.1)


def peer_optimi(kind: str, **options: Any) -> Callable[[Any], torch.optim.Optimizer]:
    rule = getattr(peer("optimi"), kind)
    return lambda params: rule(params, lr=0.01, weight_decay=0.1, betas=BETAS, eps=1e-8, **options)


def peer_bitsandbytes(kind: str) -> Callable[[Any], torch.optim.Optimizer]:
    rule = getattr(peer("bitsandbytes").optim, kind)
    return lambda params: rule(params, lr=0.01, weight_decay=0.1)


def peer_deepspeed() -> Callable[[Any], torch.optim.Optimizer]:
    rule = peer("deepspeed.ops.adam").DeepSpeedCPUAdam
    return lambda params: rule(list(params), lr=0.01, weight_decay=0.1)


def peer_flashoptim(kind: str) -> Callable[[Any], torch.optim.Optimizer]:
    rule = getattr(peer("flashoptim"), kind)
    options = {"quantize": False, "master_weight_bits": None, "fused": False}
    return lambda params: rule(params, lr=0.01, weight_decay=0.1, **options)


PEERS: dict[str, tuple[Callable[[], Any], bool, bool]] = {
    # its constructor, whether its decay is decoupled, whether its moments are exact
    "torchao AdamW8bit": (lambda: peer_torchao("AdamW8bit"), True, False),
    "torchao Adam8bit": (lambda: peer_torchao("Adam8bit"), False, False),
    "torchao AdamW4bit": (lambda: peer_torchao("AdamW4bit"), True, False),
    "torchao AdamWFp8": (lambda: peer_torchao("AdamWFp8"), True, False),
    "optimi AdamW": (lambda: peer_optimi("AdamW"), True, True),
    "optimi Adam": (lambda: peer_optimi("Adam"), False, True),
    "optimi foreach": (lambda: peer_optimi("AdamW", foreach=True), True, True),
    "optimi lr": (lambda: peer_optimi("AdamW", decouple_lr=True, max_lr=0.04), True, True),
    "bitsandbytes AdamW": (lambda: peer_bitsandbytes("AdamW"), True, True),
    "bitsandbytes Adam": (lambda: peer_bitsandbytes("Adam"), True, True),
    "bitsandbytes AdamW8bit": (lambda: peer_bitsandbytes("AdamW8bit"), True, False),
    "bitsandbytes Adam8bit": (lambda: peer_bitsandbytes("Adam8bit"), True, False),
    "DeepSpeed CPUAdam": (peer_deepspeed, True, True),
    "flashoptim AdamW": (lambda: peer_flashoptim("FlashAdamW"), True, True),
    "flashoptim Adam": (lambda: peer_flashoptim("FlashAdam"), False, True),
}


def own_value(state: State, key: str) -> Tensor:
    """A moment as the peer itself reads it."""
    number = {"exp_avg": 1, "exp_avg_sq": 2}[key]
    value: Any = state.get(key, state.get(f"state{number}"))
    if getattr(value, "dtype", None) == torch.uint8:
        value = peer("bitsandbytes.functional").dequantize_blockwise(
            value,
            absmax=state[f"absmax{number}"],
            code=state[f"qmap{number}"],
            blocksize=256,
        )
    if hasattr(value, "materialize"):
        value = value.materialize()
    return value.dequantize() if hasattr(value, "codes") else value


@pytest.mark.parametrize("name", PEERS)
@pytest.mark.filterwarnings("ignore")
def test_goes_on_as_the_peer_does(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """After 20 steps of a peer, ours and its own next step agree; so do moments and torch's."""
    make, decoupled, exact = PEERS[name]
    build = make()
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)
    shapes = [(80, 64), (7,)]
    model = nn.ParameterList([nn.Parameter(random(shape, i)) for i, shape in enumerate(shapes)])
    twin = [nn.Parameter(p.detach().clone()) for p in model]
    theirs = build(model.parameters())
    decay = 0.1 / 0.04 if name == "optimi lr" else 0.1
    rule = torch.optim.AdamW if decoupled else torch.optim.Adam
    beside = rule(twin, lr=0.01, weight_decay=decay)

    def step(optimizer: torch.optim.Optimizer, params: Any, number: int) -> None:
        for i, p in enumerate(params):
            p.grad = random(tuple(p.shape), 100 * number + i)
        optimizer.step()

    for number in range(20):
        step(theirs, model, number)
        step(beside, twin, number)
    file = io.BytesIO()
    torch.save(theirs.state_dict(), file)
    file.seek(0)
    with torch.serialization.safe_globals(stand_ins()):
        given = torch.load(file, weights_only=True)
    result, report = convert_state_dict(given, model)
    assert report.stepped == 2
    states = result["state"].values(), theirs.state.values(), beside.state.values()
    for p, own, q in zip(*states, strict=True):
        for key in ("exp_avg", "exp_avg_sq"):
            if not name.startswith("optimi"):  # whose moments are bias-corrected
                assert torch.equal(p[key], own_value(own, key)), key
            bound = 1e-4 if exact else 0.6
            assert (p[key] - q[key]).abs().max() <= bound * q[key].abs().max(), key
    ours = [nn.Parameter(p.detach().clone()) for p in model]
    optimizer = (AdamW if decoupled else Adam)(zip("01", ours, strict=True))
    optimizer.load_state_dict(result)
    step(optimizer, ours, 20)
    step(theirs, model, 20)
    for mine, their in zip(ours, model, strict=True):
        assert torch.allclose(mine, their, rtol=1e-4, atol=1e-6)
