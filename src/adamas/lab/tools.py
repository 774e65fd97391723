"""The commands that convert, measure, explain and compare: their options."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .commands import Classification, Drop, Regression, Target, kind_of, numbers, only_given


def convert(
    source: Annotated[Path, typer.Argument(metavar="IN", help="A checkpoint of torch.save.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Where to write the new one.")],
    to: Annotated[str, typer.Option(help="torch or adamas, which load the same files.")] = "torch",
    like: Annotated[
        Path | None,
        typer.Option(help="A checkpoint of the optimizer that it is for, to match it with."),
    ] = None,
    key: Annotated[
        str | None, typer.Option(help="Under which key the file has the optimizer's state.")
    ] = None,
    partial: Annotated[
        bool, typer.Option("--partial", help="Convert what matches, and say what does not.")
    ] = False,
    decoupled: Annotated[
        bool | None,
        typer.Option(
            "--decoupled/--coupled",
            help="Whether the weight decay is AdamW's.",
            show_default="as the source says",
        ),
    ] = None,
) -> None:
    """Convert the state of another Adam optimizer to torch.optim's and adamas's."""
    from .convert import convert_file

    typer.echo(str(convert_file(source, out, to, like, key, not partial, decoupled)))
    typer.echo(f"{'written':<13}{out}")


def memory(
    model: Annotated[
        str,
        typer.Argument(
            help="A parameter count (124M, 7B, 1e9), a .safetensors file, a state dictionary of "
            "torch.save, or a run's folder."
        ),
    ],
    weights: Annotated[
        str | None,
        typer.Option(
            help="float32, bfloat16 or float16.", show_default="the model's; of a count, float32"
        ),
    ] = None,
    gradients: Annotated[
        str | None,
        typer.Option(help="float32, bfloat16 or float16.", show_default="as the weights"),
    ] = None,
    master_bits: Annotated[
        int | None, typer.Option(help="Of 16-bit weights: 32, 24 or 16.", show_default="32")
    ] = None,
    amsgrad: Annotated[bool, typer.Option("--amsgrad", help="Keep its moment too.")] = False,
    key: Annotated[
        str | None, typer.Option(help="Under which key the file has the model's state.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print bytes, as JSON.")] = False,
) -> None:
    """Show what Adam keeps in memory to train a model, by format, and what fits here."""
    from .memory import measure

    measured = measure(model, weights, gradients, master_bits, amsgrad, key)
    if as_json:
        typer.echo(measured.to_json())
    else:
        measured.print()


def explain(
    problem: Annotated[
        str | None,
        typer.Option(help="quadratic, ravine, tilted, noisy or sparse.", show_default="quadratic"),
    ] = None,
    gradients: Annotated[
        str | None,
        typer.Option(help="Gradients given by hand instead, such as 1,0,-2; they repeat."),
    ] = None,
    start: Annotated[
        str | None,
        typer.Option(help="Where to begin, such as -1.5,1.", show_default="the problem's"),
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(
            help="From 1 to 1000.",
            show_default="10, and 60 in the page; or all given gradients",
        ),
    ] = None,
    lr: Annotated[float, typer.Option(help="Learning rate.")] = 0.1,
    beta1: Annotated[float, typer.Option(help="Decay rate of m.")] = 0.9,
    beta2: Annotated[float, typer.Option(help="Decay rate of v.")] = 0.999,
    eps: Annotated[float, typer.Option(help="Added to the denominator.")] = 1e-8,
    weight_decay: Annotated[float, typer.Option(help="Decoupled, as in AdamW.")] = 0.0,
    coupled: Annotated[
        bool, typer.Option("--coupled", help="Add the decay to the gradient, as in Adam.")
    ] = False,
    amsgrad: Annotated[
        bool, typer.Option("--amsgrad", help="Divide by the largest v so far.")
    ] = False,
    html: Annotated[
        Path | None, typer.Option(help="A page to write, where every number has a slider.")
    ] = None,
) -> None:
    """Step through Adam on a few numbers, with every quantity of its equation."""
    from ..hyper import Hyper
    from . import UserError
    from .explain import prepare, show

    try:
        hyper = Hyper(
            lr, (beta1, beta2), eps, weight_decay, amsgrad, decoupled_weight_decay=not coupled
        )
    except ValueError as error:
        raise UserError(str(error)) from None
    show(prepare(hyper, problem, gradients, start, steps), html)


def compare(
    arenas: Annotated[
        list[str] | None,
        typer.Argument(
            help="Where: rosenbrock, beale, himmelblau, ravine, saddle, rastrigin, digits, or CSV "
            "files.",
            show_default="all but CSV files",
        ),
    ] = None,
    rules: Annotated[
        str | None,
        typer.Option(help="Who, of sgd,momentum,rmsprop,adam,adamw.", show_default="all"),
    ] = None,
    moments: Annotated[
        str | None,
        typer.Option(help="Formats that race beside float32, of bfloat16,int8,int4."),
    ] = None,
    theirs: Annotated[bool, typer.Option("--torch", help="Race torch.optim's, too.")] = False,
    lr: Annotated[
        str | None,
        typer.Option(
            help="LOW,HIGH of those tried.", show_default="1e-4,10; of a training 1e-3,3.2"
        ),
    ] = None,
    steps: Annotated[
        int | None, typer.Option(help="Of each run.", show_default="300; of a training about 200")
    ] = None,
    seeds: Annotated[
        int | None, typer.Option(help="Starting points, or trainings.", show_default="5")
    ] = None,
    target: Target = None,
    classification: Classification = False,
    regression: Regression = False,
    drop: Drop = None,
    layers: Annotated[str | None, typer.Option(help="As for train; so the next.")] = None,
    batch_size: Annotated[int | None, typer.Option()] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="The comparison's folder.", show_default="runs/compare-NUMBER"),
    ] = None,
) -> None:
    """Race gradient descent, momentum, RMSProp, Adam and AdamW, and write a page to watch it."""
    from .compare import compare, prepare_comparison
    from .racers import line_up

    what = only_given(
        target=target, kind=kind_of(classification, regression), drop=tuple(drop or ()) or None
    )
    options = only_given(layers=numbers("--layers", layers, int), batch_size=batch_size)
    racers = line_up(rules, moments, theirs)
    comparison = prepare_comparison(arenas or (), options, what, racers, lr, steps, seeds)
    raise typer.Exit(compare(comparison, out))


def bench(
    shapes: Annotated[
        list[str] | None, typer.Option("--shape", help="A workload; may be repeated.")
    ] = None,
    peers: Annotated[
        list[str] | None, typer.Option("--peer", help="An optimizer; may be repeated.")
    ] = None,
    rounds: Annotated[int, typer.Option(help="Turns of each optimizer.")] = 15,
    dtype: Annotated[str, typer.Option(help="float32 or float64.")] = "float32",
    out: Annotated[Path | None, typer.Option(help="A folder for step.json and step.html.")] = None,
    scaling: Annotated[bool, typer.Option(help="Also time 10^3 to 10^8 parameters.")] = True,
) -> None:
    """Measure a step of adamas and of every other AdamW installed."""
    from . import UserError
    from .benchmark import bench

    try:
        bench(shapes or None, peers or None, rounds, dtype, out, scaling)
    except ValueError as error:
        raise UserError(str(error)) from None
    except (FileExistsError, NotADirectoryError) as error:
        raise UserError(
            f"--out {out} cannot be made a folder ({error.strerror}): choose another"
        ) from None
