"""Groups that decay and groups that do not, by depth, and their table."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from adamas.torch import Adam, AdamW, decay_groups


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm((2, 4))
        self.mlp = nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 4))


class Transformer(nn.Module):
    """As language models are built: the head shares the embedding's weight."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(10, 4)
        self.pos_embed = nn.Parameter(torch.zeros(1, 6, 4))
        self.blocks = nn.ModuleList(Block() for _ in range(2))
        self.norm = nn.RMSNorm(4)
        self.head = nn.Linear(4, 10)
        self.head.weight = self.embed.weight


class Wrapped(nn.Module):
    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        self.position_bias = nn.Parameter(torch.zeros(3, 4))
        self.scale = nn.Parameter(torch.ones(4))
        self.bag = nn.EmbeddingBag(5, 4)
        self.mask_token = nn.Parameter(torch.zeros(1, 4))
        self.unbiased = nn.Linear(4, 4)


class Stages(nn.Module):
    """As image models are built: a stem, two lists, something between them, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 2, 3, bias=False)
        self.layer1 = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
        self.between = nn.Linear(2, 2, bias=False)
        self.layer2 = nn.Sequential(nn.Sequential(nn.Linear(2, 2, bias=False)))
        self.head = nn.Linear(2, 2, bias=False)


def names(groups: list[dict[str, Any]]) -> dict[str, list[str]]:
    return {group["name"]: [name for name, _ in group["params"]] for group in groups}


def test_biases_and_norms_do_not_decay() -> None:
    decay, rest = decay_groups(Transformer(), 0.1)
    assert (decay["weight_decay"], rest["weight_decay"]) == (0.1, 0.0)
    assert names([decay, rest]) == {
        "decay": [
            "pos_embed",
            "embed.weight",
            "blocks.0.mlp.0.weight",
            "blocks.0.mlp.2.weight",
            "blocks.1.mlp.0.weight",
            "blocks.1.mlp.2.weight",
        ],
        "no decay": [
            "blocks.0.norm.weight",
            "blocks.0.norm.bias",
            "blocks.0.mlp.0.bias",
            "blocks.0.mlp.2.bias",
            "blocks.1.norm.weight",
            "blocks.1.norm.bias",
            "blocks.1.mlp.0.bias",
            "blocks.1.mlp.2.bias",
            "norm.weight",
            "head.bias",
        ],
    }


@pytest.mark.parametrize(("decay_embeddings", "where"), [(True, "decay"), (False, "no decay")])
def test_embeddings_do_not_decay_on_request(decay_embeddings: bool, where: str) -> None:
    model = Wrapped(Transformer())
    found = names(decay_groups(model, 0.1, decay_embeddings=decay_embeddings))
    embeddings = {"module.embed.weight", "module.pos_embed", "bag.weight", "mask_token"}
    assert embeddings <= set(found[where])
    assert {"position_bias", "scale", "unbiased.bias"} <= set(found["no decay"])
    assert "unbiased.weight" in found["decay"]


def test_a_head_tied_to_an_embedding_is_an_embedding_in_whatever_order() -> None:
    model = nn.ModuleDict({"head": nn.Linear(4, 10), "embed": nn.Embedding(10, 4)})
    model["head"].weight = model["embed"].weight
    found = names(decay_groups(model, 0.1, decay_embeddings=False))
    assert found == {"no decay": ["head.weight", "head.bias"]}


def test_every_parameter_to_train_comes_once() -> None:
    model = Wrapped(Transformer())
    for param in model.module.blocks[0].parameters():
        param.requires_grad_(False)
    groups = decay_groups(model, 0.1, lr=1.0, layer_decay=0.5)
    listed = [param for group in groups for _, param in group["params"]]
    assert {id(p) for p in listed} == {id(p) for p in model.parameters() if p.requires_grad}
    assert len(listed) == len({id(p) for p in listed})


DEPTHS = {
    "a transformer": (
        Transformer,
        {
            "pos_embed": 0,
            "embed.weight": 0,
            "blocks.0.norm.weight": 1,
            "blocks.0.mlp.2.weight": 1,
            "blocks.1.mlp.0.bias": 2,
            "norm.weight": 3,
            "head.bias": 3,
        },
    ),
    "wrapped, an embedding last": (
        lambda: Wrapped(Transformer()),
        {
            "position_bias": 0,
            "module.blocks.1.norm.bias": 2,
            "module.head.bias": 3,
            "bag.weight": 0,
        },
    ),
    "two lists": (
        Stages,
        {
            "stem.weight": 0,
            "layer1.0.weight": 1,
            "layer1.1.weight": 2,
            "between.weight": 2,
            "layer2.0.0.weight": 3,
            "head.weight": 4,
        },
    ),
    "no head": (
        lambda: nn.Sequential(nn.Embedding(3, 2), nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 2)),
        {"0.weight": 1, "1.bias": 2, "3.weight": 3},
    ),
}


@pytest.mark.parametrize(("build", "depths"), DEPTHS.values(), ids=DEPTHS)
def test_depth_sets_the_learning_rate(build: Any, depths: dict[str, int]) -> None:
    lrs = {
        name: (group["name"], group["lr"])
        for group in decay_groups(build(), 0.1, lr=0.3, layer_decay=0.7)
        for name, _ in group["params"]
    }
    deepest = max(depths.values())
    for name, depth in depths.items():
        label, lr = lrs[name]
        assert label.startswith(f"depth {depth}, ")
        assert lr == 0.3 * 0.7 ** (deepest - depth)


def test_depths_may_learn_alike() -> None:
    groups = decay_groups(Stages(), 0.1, lr=0.3, layer_decay=1.0)
    assert [group["lr"] for group in groups] == [0.3] * 5


def test_a_callable_overrides_the_depth() -> None:
    groups = decay_groups(
        Stages(), 0.1, lr=1.0, layer_decay=0.5, depth=lambda name: 2 * name.startswith("head")
    )
    assert [(g["name"], g["lr"]) for g in groups] == [
        ("depth 0, decay", 0.25),
        ("depth 2, decay", 1),
    ]


@pytest.mark.parametrize("optimizer", [Adam, AdamW, torch.optim.AdamW])
def test_optimizers_take_groups_and_checkpoints_keep_names(optimizer: Any) -> None:
    model = Transformer()
    groups = decay_groups(model, 0.1)
    taken = optimizer(groups, lr=0.02)
    packed = taken.state_dict()["param_groups"]
    assert [g["param_names"] for g in packed] == list(names(decay_groups(model, 0.1)).values())
    assert [(g["weight_decay"], g["lr"]) for g in packed] == [(0.1, 0.02), (0.0, 0.02)]
    assert [g["name"] for g in packed] == ["decay", "no decay"]


def test_a_step_is_that_of_groups_by_hand() -> None:
    def step(optimizer: torch.optim.Optimizer, model: nn.Module) -> list[Tensor]:
        for _ in range(3):
            for i, param in enumerate(model.parameters()):
                param.grad = torch.full_like(param, 0.1 * i - 0.7)
            optimizer.step()
        return [param.detach() for param in model.parameters()]

    torch.manual_seed(0)
    one, two = Stages(), Stages()
    two.load_state_dict(one.state_dict())
    by_hand = [
        {"params": [two.stem.weight], "lr": 0.1 * 0.5**2, "weight_decay": 0.3},
        {"params": two.layer1.parameters(), "lr": 0.1 * 0.5, "weight_decay": 0.3},
        {"params": two.between.parameters(), "lr": 0.1 * 0.5, "weight_decay": 0.3},
        {"params": two.layer2.parameters(), "lr": 0.1 * 0.5, "weight_decay": 0.3},
        {"params": two.head.parameters(), "lr": 0.1, "weight_decay": 0.3},
    ]

    def depth(name: str) -> int:
        return {"stem": 5, "head": 7}.get(name.split(".")[0], 6)

    groups = decay_groups(one, 0.3, lr=0.1, layer_decay=0.5, depth=depth)
    for p, q in zip(step(AdamW(groups), one), step(AdamW(by_hand), two), strict=True):
        assert torch.equal(p, q)


TABLE = """\
group              decay    lr  tensors  parameters  names
depth 1, decay       0.1  0.25        1          40  0.weight
depth 2, decay       0.1   0.5        2          64  1.mlp.0.weight, 1.mlp.2.weight
depth 2, no decay      0   0.5        4          28  1.norm.weight, 1.norm.bias, and 2 more
depth 3, decay       0.1     1        1          40  2.weight
depth 3, no decay      0     1        1          10  2.bias
total                                 9         182"""


def test_it_prints_as_a_table() -> None:
    model = nn.Sequential(nn.Embedding(10, 4), Block(), nn.Linear(4, 10))
    groups = decay_groups(model, 0.1, lr=1.0, layer_decay=0.5)
    assert str(groups) == repr(groups) == TABLE


def test_the_table_follows_the_optimizer() -> None:
    groups = decay_groups(nn.Linear(300, 5), 0.1)
    assert str(groups) == (
        "group     decay           lr  tensors  parameters  names\n"
        "decay       0.1  optimizer's        1       1,500  weight\n"
        "no decay      0  optimizer's        1           5  bias\n"
        "total                               2       1,505"
    )
    optimizer = AdamW(groups, lr=torch.tensor(0.01))
    optimizer.param_groups[1]["lr"] = 0.25
    assert str(groups) == (
        "group     decay    lr  tensors  parameters  names\n"
        "decay       0.1  0.01        1       1,500  weight\n"
        "no decay      0  0.25        1           5  bias\n"
        "total                        2       1,505"
    )


def test_the_table_takes_plain_groups() -> None:
    groups = decay_groups(nn.Linear(300, 5, bias=False), 0.1)
    groups.append({"params": [nn.Parameter(torch.ones(3))]})
    assert str(groups).splitlines()[2].split() == ["optimizer's"] * 2 + ["1", "3", "no", "name"]


def test_a_depth_that_is_no_number() -> None:
    with pytest.raises(TypeError, match="depth must return a whole number, got None for 'weight'"):
        decay_groups(nn.Linear(2, 2), 0.1, lr=1.0, layer_decay=0.5, depth=lambda name: None)  # type: ignore[arg-type, return-value]


BAD = {
    "decay below 0": ({"weight_decay": -0.1}, "weight_decay must be at least 0, got -0.1"),
    "decay nan": ({"weight_decay": float("nan")}, "weight_decay must be at least 0, got nan"),
    "lr": ({"lr": -1.0}, "lr must be at least 0, got -1.0"),
    "layer_decay 0": ({"layer_decay": 0.0, "lr": 1.0}, r"must be in \(0, 1\], got 0.0"),
    "layer_decay above 1": ({"layer_decay": 1.5, "lr": 1.0}, r"must be in \(0, 1\], got 1.5"),
    "no lr": ({"layer_decay": 0.5}, "layer_decay=0.5 needs .* pass lr="),
    "depth alone": ({"depth": len}, "depth is of use with layer_decay only"),
    "no blocks": ({"layer_decay": 0.5, "lr": 1.0}, "has none to train: pass depth="),
}


@pytest.mark.parametrize(("options", "message"), BAD.values(), ids=BAD)
def test_bad_arguments(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        decay_groups(nn.Linear(2, 2), **{"weight_decay": 0.1, **options})


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.Linear(2, 2).requires_grad_(False), "must have parameters to train, got none"),
        (nn.LazyLinear(2), "weight must have a shape, but is lazy"),
    ],
    ids=["frozen", "lazy"],
)
@pytest.mark.filterwarnings("ignore:Lazy modules")
def test_bad_models(model: nn.Module, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        decay_groups(model, 0.1)
