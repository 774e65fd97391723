"""What a trial is: a training, or a user's function; told to a search epoch by epoch."""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import inspect
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import GeneratorType
from typing import Any

import torch

from . import TrainingError, UserError
from .data import listed
from .names import did_you_mean
from .run import Prepared, make_trainer, threads_for
from .space import DEFAULTS, Values

# The loss after an epoch, and the score where there is one.
Epoch = tuple[float, float | None]


class DivergedError(Exception):
    """The loss of a trial is not finite, which is a bad result and no failure."""


@dataclass(frozen=True)
class TrainingObjective:
    """The validation loss of a training, after each epoch.

    Args:
        prepared: the training, but for its hyperparameters.
        threads: the most that a large model may use.
    """

    prepared: Prepared
    threads: int

    def load(self) -> tuple[str, ...]:
        """The hyperparameters that can be searched."""
        return tuple(DEFAULTS)

    def epochs(self, values: Values) -> Iterator[Epoch]:
        """Trains with these hyperparameters.

        Raises:
            DivergedError: the loss is not finite.
        """
        prepared = self.prepared
        others: dict[str, Any] = dict(values)
        betas = others.pop("beta1"), others.pop("beta2")
        options = replace(prepared.options, betas=betas, **others)
        trainer = make_trainer(prepared.task, options, prepared.frame, prepared.training)
        # As `adamas train` has it, so that the losses are those of the command to paste.
        torch.set_num_threads(min(threads_for(trainer), self.threads))
        try:
            while not trainer.finished:
                for metrics in trainer.epoch():
                    if metrics:
                        yield metrics["validation_loss"], metrics["validation_score"]
        except TrainingError as error:
            raise DivergedError(str(error)) from None


@dataclass(frozen=True)
class ScriptObjective:
    """A function of a user's script, which returns its loss, or yields one after each epoch.

    Its parameters say what is searched: any of lr, beta1, beta2, betas (both), eps, weight_decay.

    Args:
        path: the script.
        function: the name of the function.
    """

    path: Path
    function: str

    @classmethod
    def parse(cls, text: str) -> ScriptObjective:
        """From ``FILE.py:FUNCTION``.

        Raises:
            UserError: it is not of that form, there is no such file, or no such function in it.
        """
        file, colon, function = text.rpartition(":")
        if not colon or not file or not function.isidentifier():
            raise UserError(
                f"--script must be FILE.py:FUNCTION, such as my_train.py:objective, got {text!r}"
            )
        path = Path(file)
        try:
            tree = ast.parse(path.read_bytes(), file)
        except FileNotFoundError:
            raise UserError(f"{path} does not exist: give the path of a Python script") from None
        except OSError as error:
            raise UserError(f"{path} cannot be read ({error.strerror}): check it") from None
        except (SyntaxError, ValueError) as error:
            raise UserError(f"{path} is not Python ({error}): correct it") from None
        # What is imported or assigned may be a function, too; the worker that loads it will see.
        if function not in ast.dump(tree):
            raise _no_function(path, function, _functions(tree))
        return cls(path.resolve(), function)

    def sha256(self) -> str:
        """Of the script's content."""
        return hashlib.sha256(self.path.read_bytes()).hexdigest()

    def load(self) -> tuple[str, ...]:
        """Runs the script, and says which hyperparameters the function takes.

        Raises:
            UserError: there is no such function, or it takes something else.
            Exception: what the script raises.
        """
        sys.path.insert(0, str(self.path.parent))  # as Python does for a script
        spec = importlib.util.spec_from_file_location(self.path.stem, self.path)
        if spec is None or spec.loader is None:
            raise UserError(f"{self.path} is not a Python script: its name must end in .py")
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)
        found = getattr(module, self.function, None)
        if not callable(found):
            raise _no_function(
                self.path, self.function, _functions(ast.parse(inspect.getsource(module)))
            )
        return self._names(found)

    def epochs(self, values: Values) -> Iterator[Epoch]:
        """Calls the function with these hyperparameters.

        Raises:
            DivergedError: the loss is not finite.
            TypeError: it gives something else than numbers.
            Exception: what the function raises.
        """
        function = getattr(sys.modules[self.path.stem], self.function)
        given: dict[str, Any] = dict(values)
        if "betas" in inspect.signature(function).parameters:
            given["betas"] = (given.pop("beta1"), given.pop("beta2"))
        result = function(**given)
        losses = result if isinstance(result, GeneratorType) else iter([result])
        count = 0
        for loss in losses:
            count += 1
            yield self._number(loss), None
        if not count:
            raise TypeError(f"{self.function} must yield a loss after each epoch, it yielded none")

    def _number(self, loss: Any) -> float:
        try:
            value = float(loss)
        except (TypeError, ValueError):
            raise TypeError(
                f"{self.function} must return a number, its loss (or yield one after each epoch), "
                f"got {str(loss)[:80]!r}"
            ) from None
        if not math.isfinite(value):
            raise DivergedError(f"the loss is {value}")
        return value

    def _names(self, function: Any) -> tuple[str, ...]:
        names: list[str] = []
        for name, parameter in inspect.signature(function).parameters.items():
            if name == "betas":
                names += ["beta1", "beta2"]
            elif name in DEFAULTS:
                names.append(name)
            elif parameter.default is parameter.empty and parameter.kind not in (
                parameter.VAR_KEYWORD,
                parameter.VAR_POSITIONAL,
            ):
                raise UserError(
                    f"{self.function} of {self.path} takes {name!r}, which is not searched: its "
                    f"parameters must be among {listed([*DEFAULTS, 'betas'])}; "
                    "give it a default, or leave it out"
                )
        if len(set(names)) < len(names):
            raise UserError(
                f"{self.function} of {self.path} takes betas twice: take betas, or beta1 and beta2"
            )
        if not names:
            raise UserError(
                f"{self.function} of {self.path} takes nothing to search: its parameters say "
                f"what is, any of {listed([*DEFAULTS, 'betas'])}"
            )
        return tuple(name for name in DEFAULTS if name in names)


Objective = TrainingObjective | ScriptObjective


def find_task(name: str | None, others: Sequence[str] = ()) -> Path | None:
    """The CSV file that a task is, or None for the digits.

    Args:
        name: what was typed.
        others: what else could have been, for the error.

    Raises:
        UserError: it is neither.
    """
    if name in (None, "digits"):
        return None
    path = Path(name or "")
    if path.exists() or path.suffix or len(path.parts) > 1:
        return path  # what is wrong with it, its reader says
    files = sorted(file.name for file in Path().glob("*.csv"))
    known = [*others, "digits"]
    hint = did_you_mean(str(name), [*known, *files], 0.4)
    here = f"; CSV files here: {listed(files, 5)}" if files else ""
    raise UserError(
        f"task {name!r} is unknown: it must be {listed(known)} or the path of a CSV file"
        f"{hint}{here}"
    )


def _functions(tree: ast.Module) -> list[str]:
    return [n.name for n in tree.body if isinstance(n, ast.FunctionDef)]


def _no_function(path: Path, name: str, there: list[str]) -> UserError:
    has = f"it has {listed(there, 10)}" if there else "it has none"
    return UserError(f"{path} has no function {name!r}: {has}{did_you_mean(name, there)}")
