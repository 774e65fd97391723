"""The commands that train and predict: their options, and what they print."""

from __future__ import annotations

import shlex
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import typer

# What is learnt of a CSV file, wherever one is given.
Target = Annotated[str | None, typer.Option(help="The column of a CSV file to predict.")]
Classification = Annotated[bool, typer.Option("--classification", help="Force it.")]
Regression = Annotated[bool, typer.Option("--regression", help="Force it.")]
Drop = Annotated[list[str] | None, typer.Option(help="A column to leave out; may be repeated.")]


def train(
    data: Annotated[
        str | None, typer.Argument(help="digits, or a CSV file.", show_default="digits")
    ] = None,
    target: Target = None,
    classification: Classification = False,
    regression: Regression = False,
    drop: Drop = None,
    layers: Annotated[
        str | None, typer.Option(help="Widths of the hidden layers.", show_default="256,128")
    ] = None,
    epochs: Annotated[
        int | None, typer.Option(help="Passes over the data.", show_default="for about 2000 steps")
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Rows a step.", show_default="by the number of rows")
    ] = None,
    lr: Annotated[float | None, typer.Option(help="Learning rate.", show_default="0.001")] = None,
    betas: Annotated[
        str | None, typer.Option(help="Decay rates of the moments.", show_default="0.9,0.999")
    ] = None,
    eps: Annotated[
        float | None, typer.Option(help="Added to the denominator.", show_default="1e-8")
    ] = None,
    weight_decay: Annotated[
        float | None, typer.Option(help="Decoupled, as in AdamW.", show_default="0.01")
    ] = None,
    schedule: Annotated[
        str | None,
        typer.Option(
            help="Of the learning rate: cosine, down to 1 % of it, or constant.",
            show_default="cosine",
        ),
    ] = None,
    label_smoothing: Annotated[
        float | None, typer.Option(help="Of classes, in [0, 1).", show_default="0.1")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Of split, weights and batches.", show_default="0")
    ] = None,
    device: Annotated[str | None, typer.Option(help="cpu or cuda.", show_default="cpu")] = None,
    validation: Annotated[
        float | None, typer.Option(help="Fraction of the rows to validate on.", show_default="0.2")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="The run's folder.", show_default="runs/NAME-NUMBER")
    ] = None,
    resume: Annotated[Path | None, typer.Option(help="A run's folder, to continue it.")] = None,
) -> None:
    """Train a multilayer perceptron with AdamW on a CSV file or on handwritten digits."""
    from . import UserError, run
    from .folder import next_folder
    from .objective import find_task

    given = only_given(
        layers=numbers("--layers", layers, int),
        epochs=epochs,
        batch_size=batch_size,
        lr=lr,
        betas=numbers("--betas", betas, float),
        eps=eps,
        weight_decay=weight_decay,
        schedule=schedule,
        label_smoothing=label_smoothing,
        seed=seed,
        device=device,
        validation=validation,
    )
    kind = kind_of(classification, regression)
    path = find_task(data)
    if resume is None:
        drops = tuple(drop or ())
        _train(run.start(path, lambda name: out or next_folder(name), given, target, kind, drops))
        return
    fixed = only_given(target=target, drop=drop or None, out=out)
    fixed.update({kind: True} if kind else {})
    if fixed:
        option = f"--{next(iter(fixed))}"
        raise UserError(
            f"{option} cannot be given with --resume: a resumed run keeps its settings; "
            f"leave {option} out, or start a new run"
        )
    _train(run.resume(resume, given, path))


def _train(run: Any) -> None:
    """Trains a run that is prepared, and prints what comes of it."""
    from .output import Output
    from .process import stop_signals
    from .progress import Display, score_text
    from .results import write_results

    console = Output()
    task, trainer, folder = run.task, run.trainer, run.folder
    for notice in run.notices:
        console.print(notice)
    position = trainer.position
    epochs = f"{trainer.options.epochs} epochs of {trainer.steps_per_epoch} steps"
    if trainer.finished:
        console.print(f"{folder.path} is finished: {epochs} are done")
    else:
        rows = len(trainer.data.features), len(trainer.data.validation_features)
        console.print(
            f"{task.name}: {rows[0]:,} rows to train, {rows[1]:,} to validate; {epochs}, "
            f"{trainer.options.schedule} learning rate; in {folder.path}"
        )
        if position.epoch or position.step:
            console.print(f"continuing after epoch {position.epoch}, step {position.step}")
        with stop_signals() as received:
            with Display(console, task.target.score_name) as display:
                finished = run.train(lambda: bool(received), display)
            if not finished:
                console.tell(f"stopped and saved; to continue: {folder.resume_command}")
                raise typer.Exit(128 + received[0])
    write_results(run)
    last = folder.load_metrics()[-1]
    score = score_text(task.target.score_name, last["validation_score"])
    name = shlex.quote(str(folder.path))
    console.print(f"validation {task.target.score_name} {score}, in {last['seconds']:.1f} s")
    console.print(f"report:     {folder.report}")
    console.print(f"to predict: adamas predict {name} data.csv")
    console.check(folder.path)


def tune(
    task: Annotated[
        str | None, typer.Argument(help="digits, or a CSV file.", show_default="digits")
    ] = None,
    target: Target = None,
    script: Annotated[
        str | None,
        typer.Option(
            help="FILE.py:FUNCTION instead of a task: a function of any of lr, betas (or beta1, "
            "beta2), eps and weight_decay that returns its loss, or yields it after each epoch."
        ),
    ] = None,
    trials: Annotated[int | None, typer.Option(help="In all.", show_default="30")] = None,
    jobs: Annotated[
        int | None,
        typer.Option(
            help="Trials at once.", show_default="one a processor, a quarter of all at most"
        ),
    ] = None,
    lr: Annotated[str | None, typer.Option(help="LOW,HIGH.", show_default="1e-5,0.1")] = None,
    beta1: Annotated[str | None, typer.Option(help="LOW,HIGH.", show_default="0.5,0.99")] = None,
    beta2: Annotated[str | None, typer.Option(help="LOW,HIGH.", show_default="0.9,0.9999")] = None,
    eps: Annotated[str | None, typer.Option(help="LOW,HIGH.", show_default="1e-10,1e-4")] = None,
    weight_decay: Annotated[
        str | None, typer.Option(help="LOW,HIGH, or 0 for none.", show_default="1e-4,1")
    ] = None,
    classification: Classification = False,
    regression: Regression = False,
    drop: Drop = None,
    layers: Annotated[str | None, typer.Option(help="As for train; so the next.")] = None,
    epochs: Annotated[int | None, typer.Option()] = None,
    batch_size: Annotated[int | None, typer.Option()] = None,
    schedule: Annotated[str | None, typer.Option()] = None,
    label_smoothing: Annotated[float | None, typer.Option()] = None,
    device: Annotated[str | None, typer.Option()] = None,
    validation: Annotated[float | None, typer.Option()] = None,
    seed: Annotated[int | None, typer.Option(help="Of the search, too.", show_default="0")] = None,
    storage: Annotated[
        str | None,
        typer.Option(help="A database that machines share, as postgresql://user@host/database."),
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="Of the study in it.", show_default="the task's")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="The search's folder.", show_default="runs/tune-NAME-NUMBER")
    ] = None,
    resume: Annotated[Path | None, typer.Option(help="A search's folder, to continue it.")] = None,
) -> None:
    """Search Adam's hyperparameters for a training or for a function of yours."""
    from . import UserError

    if find_spec("optuna") is None:
        raise UserError("adamas tune needs optuna: pip install 'adamas[lab]'")
    from .tuning import search_anew, search_on

    given = only_given(
        layers=numbers("--layers", layers, int),
        epochs=epochs,
        batch_size=batch_size,
        schedule=schedule,
        label_smoothing=label_smoothing,
        seed=seed,
        device=device,
        validation=validation,
    )
    ranges = only_given(lr=lr, beta1=beta1, beta2=beta2, eps=eps, weight_decay=weight_decay)
    what = only_given(
        task=task,
        script=script,
        target=target,
        kind=kind_of(classification, regression),
        drop=tuple(drop) if drop else None,
    )
    where = only_given(trials=trials, jobs=jobs, storage=storage)
    if resume is None:
        places = only_given(name=name, out=out)
        status = search_anew(what, ranges, given, {**where, **places})
    else:
        fixed = {**what, **ranges, **given, **only_given(name=name, out=out)}
        status = search_on(resume, where, fixed)
    raise typer.Exit(status)


def predict(
    run: Annotated[Path, typer.Argument(help="The run's folder.")],
    data: Annotated[Path, typer.Argument(help="A CSV file with the columns of the training.")],
    out: Annotated[
        Path | None, typer.Option(help="Where to write the predictions; printed without.")
    ] = None,
) -> None:
    """Predict the rows of a CSV file with a trained run, as CSV."""
    from . import UserError
    from .files import write_text
    from .predict import predict_csv
    from .progress import score_text

    prediction = predict_csv(run, data)
    text = prediction.frame.to_csv(index=False, lineterminator="\n")
    if out is None:
        typer.echo(text, nl=False)
    else:
        try:
            write_text(out, text)
        except OSError as error:
            raise UserError(
                f"--out {out} cannot be written ({error.strerror}): choose another"
            ) from None
    if prediction.score is not None:
        score = score_text(prediction.score_name, prediction.score)
        rows = f"{prediction.scored:,} rows"
        typer.echo(f"{prediction.score_name} {score} on {rows} with a target", err=True)


def kind_of(classification: bool, regression: bool) -> str | None:
    """What is learnt where it is said.

    Raises:
        UserError: both are said.
    """
    from . import UserError

    if classification and regression:
        raise UserError("--classification and --regression exclude each other: give one of them")
    return "classification" if classification else "regression" if regression else None


def only_given(**options: Any) -> dict[str, Any]:
    """The options that were typed."""
    return {name: value for name, value in options.items() if value is not None}


def numbers(option: str, text: str | None, kind: type[int] | type[float]) -> Any:
    """The numbers of an option, if it was typed."""
    from .numbers import parse_numbers

    return None if text is None else parse_numbers(option, text, kind)
