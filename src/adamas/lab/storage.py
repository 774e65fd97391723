"""Where a study is kept: a SQLite file, or any database that SQLAlchemy reaches."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

import optuna
from optuna.storages import RDBStorage
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import (
    ArgumentError,
    IntegrityError,
    NoSuchModuleError,
    ProgrammingError,
    SQLAlchemyError,
)

from . import TrainingError, UserError

Result = TypeVar("Result")

HEARTBEAT = 15  # seconds
_GRACE = 4 * HEARTBEAT  # a trial silent for that long is lost
_CONNECT = 10  # seconds
_EXAMPLE = "postgresql://user@host/database"
# What `pip install` calls the drivers that SQLAlchemy names.
_PACKAGES = {"psycopg2": "psycopg[binary]", "MySQLdb": "mysqlclient"}


class Storage:
    """A database of studies.

    Args:
        url: SQLAlchemy's, see ``parse_url``.
        shared: whether processes of other machines may use it, who tell by heartbeats that they
            are alive.
    """

    def __init__(self, url: URL, shared: bool) -> None:
        self.url, self.shared = url, shared
        arguments: dict[str, Any] = {}
        if url.get_backend_name() in ("postgresql", "mysql", "mariadb"):
            arguments = {"connect_timeout": _CONNECT}
        beat: dict[str, Any] = {}
        if shared:
            beat = {"heartbeat_interval": HEARTBEAT, "grace_period": _GRACE}
        options = {"engine_kwargs": {"pool_pre_ping": True, "connect_args": arguments}, **beat}
        with self._reached(), quiet():
            address = url.render_as_string(hide_password=False)
            self.rdb = again(lambda: RDBStorage(address, **options))

    @classmethod
    def of_file(cls, path: Path) -> Storage:
        """A SQLite file of one process at a time."""
        return cls(URL.create("sqlite", database=str(path.absolute())), shared=False)

    @property
    def shown(self) -> str:
        """The URL without its password."""
        return self.url.render_as_string(hide_password=True)

    def close(self) -> None:
        """Gives the connections back."""
        self.rdb.remove_session()
        self.rdb.engine.dispose()

    @contextmanager
    def kept(self, what_to_do: str) -> Iterator[None]:
        """Turns a database that goes away in the middle into one clear error."""
        try:
            yield
        except (SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
            raise TrainingError(
                f"{self.shown} does not answer any more ({_reason(error)}): what has ended is kept "
                f"there; {what_to_do}"
            ) from None

    @contextmanager
    def _reached(self) -> Iterator[None]:
        try:
            yield
        except ModuleNotFoundError as error:
            package = _PACKAGES.get(str(error.name), str(error.name))
            raise UserError(f"{self.shown} needs {error.name}: pip install '{package}'") from None
        except (SQLAlchemyError, optuna.exceptions.StorageInternalError, RuntimeError) as error:
            remedy = "check that the server runs, the database exists, user and password are right"
            if self.url.get_backend_name() == "sqlite":
                remedy = "restore the file, or search anew"
            raise UserError(f"{self.shown} cannot be used ({_reason(error)}): {remedy}") from None


def parse_url(text: str) -> URL:
    """The URL of a database.

    Raises:
        UserError: it is no URL, of a kind that SQLAlchemy does not know, or its driver is missing.
    """
    try:
        url = make_url(text)
        url.get_dialect()
    except NoSuchModuleError:
        raise UserError(
            f"--storage {_hidden(text)!r} names a kind of database that is unknown: it must be "
            f"such as {_EXAMPLE}, or of another kind that SQLAlchemy has a driver for"
        ) from None
    except (ArgumentError, ValueError):
        raise UserError(
            f"--storage {_hidden(text)!r} is no URL of a database: it must be such as {_EXAMPLE}"
        ) from None
    if url.drivername == "postgresql":
        # SQLAlchemy's default is psycopg2; its successor is easier to install.
        if find_spec("psycopg"):
            return url.set(drivername="postgresql+psycopg")
        if not find_spec("psycopg2"):
            raise UserError(
                f"--storage {_hidden(text)} needs psycopg: pip install 'psycopg[binary]'"
            )
    return url


def again(act: Callable[[], Result]) -> Result:
    """Does what fails where two processes make the same tables or rows at the same moment."""
    for tries in range(4):
        try:
            return act()
        except (IntegrityError, ProgrammingError):
            time.sleep(0.2 * (1 + tries))
    return act()


@contextmanager
def quiet() -> Iterator[None]:
    """Without Optuna's log and its notes on what may change in it."""
    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            warnings.filterwarnings("ignore", "Heartbeat of storage")  # `Study.beat` does it
            yield
    finally:
        optuna.logging.set_verbosity(level)


def _hidden(text: str) -> str:
    """A URL, as far as it is one, without its password."""
    head, at, tail = text.rpartition("@")
    scheme, slashes, user = head.partition("://")
    return f"{scheme}://{user.partition(':')[0]}@{tail}" if at and slashes else text


def _reason(error: BaseException) -> str:
    cause: BaseException = error
    while cause.__cause__ is not None and isinstance(cause, optuna.exceptions.OptunaError):
        cause = cause.__cause__
    original = getattr(cause, "orig", None) or cause
    return " ".join(str(original).split())[:200] or type(original).__name__
