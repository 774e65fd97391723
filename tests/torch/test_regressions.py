"""Bugs that other Adams have shipped, each a test of ours; the names say the rows' numbers."""

from __future__ import annotations

import gc
import tracemalloc
import warnings
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import nn

from adamas import formats
from adamas.torch import Adam, AdamW, convert_state_dict


def grads(params: list[nn.Parameter], value: float = 1.0) -> None:
    for p in params:
        p.grad = torch.full_like(p, value)


def test_row_1_empty_tensors_in_the_list() -> None:
    params = [nn.Parameter(torch.ones(n)) for n in (1, 1, 0, 1, 0)]
    grads(params)
    Adam(params, lr=0.5).step()
    assert [p.tolist() for p in params] == [[0.5], [0.5], [], [0.5], []]


def test_row_2_tens_of_thousands_of_small_parameters() -> None:
    params = [nn.Parameter(torch.ones(i % 3 + 1)) for i in range(30_000)]
    grads(params)
    optimizer = AdamW(params, lr=0.5, weight_decay=0)
    optimizer.step()
    optimizer.step()
    assert all((p == 0).all() for p in params)


def test_row_4_all_elements_of_all_dimensions() -> None:
    params = [
        nn.Parameter(torch.ones(shape)) for shape in ((3, 5, 7), (1, 1000), (1000, 1), (2, 1, 3))
    ]
    grads(params)
    Adam(params, lr=0.5).step()
    assert all((p == 0.5).all() for p in params)


LAYOUTS = {
    "contiguous": lambda x: x.contiguous(),
    "channels_last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "transposed": lambda x: x.transpose(0, 1).contiguous().transpose(0, 1),
}


@pytest.mark.parametrize("grad_layout", LAYOUTS)
@pytest.mark.parametrize("param_layout", LAYOUTS)
@pytest.mark.parametrize("shape", [(4, 3, 5, 2), (4, 1, 5, 2), (4, 3, 1, 1), (1, 3, 1, 2)])
def test_row_6_layouts_that_differ(
    shape: tuple[int, ...], param_layout: str, grad_layout: str
) -> None:
    torch.manual_seed(0)
    values, grad = torch.randn(shape), torch.randn(shape)
    p, q = nn.Parameter(LAYOUTS[param_layout](values.clone())), nn.Parameter(values.clone())
    one, other = AdamW([p], lr=0.1), AdamW([q], lr=0.1)
    for _ in range(3):
        p.grad, q.grad = LAYOUTS[grad_layout](grad.clone()), grad.clone()
        one.step()
        other.step()
    assert torch.equal(p, q)
    assert torch.equal(one.state[p]["exp_avg"], other.state[q]["exp_avg"])
    loaded = AdamW([q], lr=0.1)
    loaded.load_state_dict(one.state_dict())  # a checkpoint in the other's layout
    grads([p, q])
    one.step()
    loaded.step()
    assert torch.equal(p, q)


def test_row_8_each_parameter_has_its_own_step() -> None:
    params = [nn.Parameter(torch.ones(3)) for _ in range(3)]
    alone = [nn.Parameter(torch.ones(3)) for _ in range(3)]
    together, apart = Adam(params, lr=0.1), [Adam([p], lr=0.1) for p in alone]
    for t in range(12):
        for i, (p, q) in enumerate(zip(params, alone, strict=True)):
            here = t % (i + 1) == 0
            p.grad = torch.full((3,), 0.1 * t - 0.5) if here else None
            q.grad = None if p.grad is None else p.grad.clone()
        together.step()
        for optimizer in apart:
            optimizer.step()
    assert all(torch.equal(p, q) for p, q in zip(params, alone, strict=True))
    assert [together.state[p]["step"] for p in params] == [12, 6, 4]


def test_row_10_steps_go_on_beyond_float32_and_survive_a_checkpoint() -> None:
    p = nn.Parameter(torch.ones(1))
    optimizer = Adam([p])
    grads([p])
    optimizer.step()
    for start in (255, 2047, 65535, 2**24, 2**24 + 1, 2**31 - 1):
        optimizer.state[p]["step"] = start
        optimizer.step()
        optimizer.step()
        assert optimizer.state[p]["step"] == start + 2
        optimizer.load_state_dict(optimizer.state_dict())
        assert optimizer.state[p]["step"] == start + 2


def test_row_11_default_dtype_float64() -> None:
    def run() -> torch.Tensor:
        p = nn.Parameter(torch.ones(3, dtype=torch.float32))
        optimizer = AdamW([p], lr=0.1)
        for _ in range(3):
            grads([p], 0.3)
            optimizer.step()
        assert optimizer.state[p]["exp_avg"].dtype == torch.float32
        return p.detach()

    expected = run()
    torch.set_default_dtype(torch.float64)
    try:
        assert torch.equal(run(), expected)
    finally:
        torch.set_default_dtype(torch.float32)


def test_row_13_the_step_counts_once() -> None:
    params = [nn.Parameter(torch.ones(2)) for _ in range(5)]
    optimizer = Adam([{"params": params[:2]}, {"params": params[2:]}])
    grads(params)
    optimizer.step()
    assert [optimizer.state[p]["step"] for p in params] == [1] * 5


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_row_16_zero_gradients(dtype: torch.dtype) -> None:
    for eps in (0.0, 1e-8, 1e-50):
        p = nn.Parameter(torch.ones(5, dtype=dtype))
        optimizer = Adam([p], eps=eps)
        grads([p], 0.0)
        optimizer.step()
        assert (p == 1).all()


def test_row_17_lr_zero() -> None:
    p = nn.Parameter(torch.ones(5))
    grads([p])
    AdamW([p], lr=torch.tensor(0.0), capturable=True).step()
    assert (p == 1).all()


def test_row_20_amsgrad_keeps_its_maximum_by_group() -> None:
    params = [nn.Parameter(torch.ones(1)) for _ in range(2)]
    optimizer = Adam([{"params": params[:1], "amsgrad": True}, {"params": params[1:]}])
    grads(params, 10.0)
    optimizer.step()
    largest = optimizer.state[params[0]]["max_exp_avg_sq"].clone()
    grads(params, 0.0)
    optimizer.step()
    assert optimizer.state[params[0]]["exp_avg_sq"] < largest
    assert torch.equal(optimizer.state[params[0]]["max_exp_avg_sq"], largest)
    assert "max_exp_avg_sq" not in optimizer.state[params[1]]
    optimizer.param_groups[1]["amsgrad"] = True  # switched on on the way
    optimizer.step()
    assert "max_exp_avg_sq" in optimizer.state[params[1]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_row_20_amsgrad_switched_on_before_a_checkpoint(dtype: torch.dtype) -> None:
    p, q = (nn.Parameter(torch.ones(2, dtype=dtype)) for _ in range(2))
    optimizer, other = Adam([p]), Adam([q])
    grads([p, q])
    optimizer.step()
    other.step()
    optimizer.param_groups[0]["amsgrad"] = True
    other.load_state_dict(optimizer.state_dict())
    for one in (optimizer, other):
        one.step()
    assert torch.equal(p, q)
    assert torch.equal(optimizer.state[p]["max_exp_avg_sq"], other.state[q]["max_exp_avg_sq"])


def test_row_20_amsgrad_switched_off_leaves_the_maximum_alone() -> None:
    p, q = (nn.Parameter(torch.ones(1)) for _ in range(2))
    one, other = Adam([p], amsgrad=True), Adam([q])
    grads([p], 10.0)
    one.step()
    largest = one.state[p]["max_exp_avg_sq"].clone()
    one.param_groups[0]["amsgrad"] = False
    q.data.copy_(p.data)
    other.state[q] = deepcopy(one.state[p])
    del other.state[q]["max_exp_avg_sq"]
    for _ in range(2):
        grads([p, q], 0.1)
        one.step()
        other.step()
        assert torch.equal(p, q)
        assert torch.equal(one.state[p]["max_exp_avg_sq"], largest)


@pytest.mark.parametrize(
    "step", [3, 3.0, torch.tensor(3), torch.tensor(3.0), torch.tensor([3.0]), torch.tensor([[3]])]
)
def test_row_34_steps_of_any_kind_load(step: Any) -> None:
    p = nn.Parameter(torch.ones(2))
    optimizer = Adam([p])
    grads([p])
    optimizer.step()
    state = optimizer.state_dict()
    state["state"][0]["step"] = step
    optimizer.load_state_dict(state)
    assert optimizer.state[p]["step"] == 3
    assert type(optimizer.state[p]["step"]) is int


def test_row_38_references_to_groups_stay_good() -> None:
    p = nn.Parameter(torch.ones(2))
    optimizer = Adam([p], lr=0.1)
    held = optimizer.param_groups[0]
    groups = optimizer.param_groups
    grads([p])
    optimizer.step()
    optimizer.load_state_dict(optimizer.state_dict())
    held["lr"] = 0.0
    before = p.detach().clone()
    optimizer.step()
    assert torch.equal(p, before)
    assert optimizer.param_groups is groups


def test_row_39_groups_of_old_checkpoints_lack_options() -> None:
    p = nn.Parameter(torch.ones(2))
    theirs = torch.optim.Adam([p], lr=0.25, weight_decay=0.5)
    grads([p])
    theirs.step()
    old = theirs.state_dict()
    for option in (
        "maximize",
        "foreach",
        "capturable",
        "differentiable",
        "fused",
        "amsgrad",
        "decoupled_weight_decay",
    ):
        del old["param_groups"][0][option]
    old["state"][0]["step"] = 1  # an int, before torch 1.12
    for rule, decoupled in ((Adam, False), (AdamW, True)):
        optimizer = rule([p])
        optimizer.load_state_dict(old)
        assert optimizer.param_groups[0]["lr"] == 0.25
        assert optimizer.param_groups[0]["decoupled_weight_decay"] is decoupled
        optimizer.step()


def test_row_40_states_are_matched_by_name() -> None:
    named = {name: nn.Parameter(torch.full((2,), float(i))) for i, name in enumerate("abc")}
    optimizer = Adam(named.items(), lr=0.1)
    for i, p in enumerate(named.values()):
        p.grad = torch.full((2,), 10.0 ** (i + 1))
    optimizer.step()
    wrapped = "module._orig_mod._fsdp_wrapped_module._checkpoint_wrapped_module."
    other = Adam(((wrapped + name, named[name]) for name in "cab"), lr=0.1)
    other.load_state_dict(optimizer.state_dict())
    for p in named.values():
        assert torch.equal(other.state[p]["exp_avg"], optimizer.state[p]["exp_avg"])
    stranger = Adam([("a", named["a"]), ("b", named["b"]), ("d", named["c"])])
    with pytest.raises(ValueError, match=r"lacks \['d'\] and has \['c'\]"):
        stranger.load_state_dict(optimizer.state_dict())


@pytest.mark.parametrize("converted", [False, True], ids=["loaded", "converted"])
def test_row_40_options_go_where_the_names_do(converted: bool) -> None:
    """To the group that has most of a saved one's parameters, wherever it stands."""
    named = {name: nn.Parameter(torch.full((2,), float(i))) for i, name in enumerate("abcdef")}

    def groups(*members: str) -> list[dict[str, Any]]:
        return [{"params": [(name, named[name]) for name in of]} for of in members]

    source = AdamW(groups("ab", "cd", "ef"), weight_decay=0.0)
    for group, decay in zip(source.param_groups, (0.1, 0.2, 0.3), strict=True):
        group["weight_decay"] = decay
    grads(list(named.values()))
    source.step()
    for members, expected in {
        ("ef", "ab", "cd"): [0.3, 0.1, 0.2],
        ("fe", "cd", "ba"): [0.3, 0.2, 0.1],
        ("ac", "db", "ef"): [0.1, 0.2, 0.3],  # among equals, that of its place
    }.items():
        target = AdamW(groups(*members))
        saved = source.state_dict()
        saved = convert_state_dict(saved, target).state_dict if converted else saved
        target.load_state_dict(saved)
        assert [group["weight_decay"] for group in target.param_groups] == expected


@pytest.mark.parametrize("prefix", ["", "module."], ids=["equal", "equal but for a wrapper"])
def test_states_are_matched_by_position_where_names_are_shared(prefix: str) -> None:
    """As those of an encoder and a decoder are, which are named each by itself."""
    saved, other = (
        [[(name, nn.Parameter(torch.ones(2)))] for name in ("weight", f"{prefix}weight")]
        for _ in range(2)
    )
    source, target = (Adam([{"params": named} for named in model]) for model in (saved, other))
    for i, ((_, p),) in enumerate(saved):
        p.grad = torch.full((2,), 10.0 ** (i + 1))
    source.step()
    match = target.load_state_dict(source.state_dict())
    assert match == (0, 2, [], [])
    for ((_, p),), ((_, q),) in zip(saved, other, strict=True):
        assert torch.equal(source.state[p]["exp_avg"], target.state[q]["exp_avg"])
    apart = Adam(
        [{"params": [(name, model[0][1])]} for name, model in zip("ab", other, strict=True)]
    )
    assert apart.load_state_dict(source.state_dict()) == (0, 2, [], [])


def test_states_that_have_names_for_keys() -> None:
    p, q = (nn.Parameter(torch.ones(2)) for _ in range(2))
    source, target = Adam([p]), Adam([q])
    grads([p])
    source.step()
    saved = source.state_dict()
    saved["state"] = {"weight": saved["state"][0], "own": 3}
    saved["param_groups"][0]["params"] = ["weight"]
    target.load_state_dict(saved)
    assert list(target.state) == [q, "own"]
    assert target.state[q]["step"] == 1


def test_row_42_a_tensor_lr_is_each_groups_own() -> None:
    lr = torch.tensor(0.5)
    params = [nn.Parameter(torch.ones(1)) for _ in range(2)]
    optimizer = Adam([{"params": [p]} for p in params], lr=lr)
    optimizer.param_groups[1]["lr"].fill_(0.0)
    grads(params)
    optimizer.step()
    assert [p.item() for p in params] == [0.5, 1.0]
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: 0.5**t)
    for _ in range(2):
        optimizer.step()
        schedule.step()
    assert optimizer.param_groups[0]["initial_lr"] == 0.5
    assert optimizer.param_groups[0]["lr"] == 0.125
    state = optimizer.state_dict()
    optimizer.load_state_dict(state)
    state["param_groups"][0]["lr"].fill_(7.0)
    assert optimizer.param_groups[0]["lr"] == 0.125


def test_row_43_a_parameter_twice_in_a_group() -> None:
    p = nn.Parameter(torch.ones(1))
    with pytest.warns(UserWarning, match="duplicate parameters"):
        optimizer = Adam([p, p], lr=0.5)
    grads([p])
    optimizer.step()
    assert p.item() == 0.5
    assert optimizer.state[p]["step"] == 1
    with pytest.raises(ValueError, match="more than one parameter group"):
        Adam([{"params": [p]}, {"params": [p]}])


def test_row_45_no_step_asks_a_tensor_for_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a device each such question would wait for it."""
    params = [nn.Parameter(torch.ones(3)) for _ in range(4)]
    optimizer = AdamW(params, max_grad_norm=1.0)
    asked = []
    for name in ("item", "tolist", "__float__", "__bool__", "__int__"):
        monkeypatch.setattr(torch.Tensor, name, lambda self, name=name: asked.append(name))
    for _ in range(3):
        grads(params)
        optimizer.step()
    assert asked == []


@pytest.mark.parametrize("options", [{}, {"moments": "int8", "max_grad_norm": 1.0}])
def test_row_46_1000_steps_leave_nothing_behind(options: dict[str, Any]) -> None:
    params = [nn.Parameter(torch.ones(100)) for _ in range(10)]
    optimizer = AdamW(params, **options)
    for _ in range(10):
        grads(params)
        optimizer.step()
    gc.collect()
    objects = len(gc.get_objects())
    tracemalloc.start()
    optimizer.step()
    before = tracemalloc.get_traced_memory()[0]
    for _ in range(1000):
        optimizer.step()
    grown = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    gc.collect()
    assert grown < 8000  # less than 8 bytes a step: the tables of tracemalloc itself
    assert len(gc.get_objects()) - objects < 10  # the interpreter's own caches may grow by a few


def test_no_warnings() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        p = nn.Parameter(torch.ones(3))
        optimizer = AdamW([p], lr=torch.tensor(0.1))
        grads([p])
        optimizer.step()
        optimizer.load_state_dict(optimizer.state_dict())


@pytest.mark.parametrize("moments", formats.FORMATS)
@pytest.mark.parametrize("master_bits", formats.MASTER_BITS)
def test_row_6_what_is_kept_of_a_transposed_weight_has_its_order(
    moments: str, master_bits: int
) -> None:
    """The rest of a master weight once lay in the memory's order, in a checkpoint as any."""
    torch.manual_seed(0)
    start, grads = torch.randn(37, 65), torch.randn(4, 37, 65)
    found = []
    for weights in (start.bfloat16(), start.bfloat16().t().contiguous().t()):
        p = nn.Parameter(weights)
        optimizer = AdamW([p], lr=0.01, moments=moments, master_bits=master_bits)
        for grad in grads[:3]:
            p.grad = grad.bfloat16()
            optimizer.step()
        saved = optimizer.state_dict()
        q = nn.Parameter(p.detach().clone(memory_format=torch.contiguous_format))
        other = AdamW([q], lr=0.01, moments=moments, master_bits=master_bits)
        other.load_state_dict(saved)
        q.grad = grads[3].bfloat16()
        other.step()
        found.append([q.detach(), *(v for k, v in saved["state"][0].items() if k != "step")])
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))
