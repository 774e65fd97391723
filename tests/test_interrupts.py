"""Signals that wait for the end of a block."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from adamas.interrupts import deferred

pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="no such signals here")


@pytest.fixture
def came() -> Iterator[list[int]]:
    """What has come of three signals, each of whose handlers raises."""
    found: list[int] = []

    def handler(number: int, frame: Any) -> None:
        found.append(number)
        raise TimeoutError(number)

    numbers = signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM
    before = [signal.signal(number, handler) for number in numbers]
    yield found
    assert all(signal.getsignal(number) is handler for number in numbers)
    for number, old in zip(numbers, before, strict=True):
        signal.signal(number, old)


def test_all_are_delivered_though_one_raises(came: list[int]) -> None:
    with ExitStack() as outer:
        outer.enter_context(pytest.raises(TimeoutError))
        outer.enter_context(deferred())
        for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGUSR2, signal.SIGTERM):
            signal.raise_signal(number)
        assert not came
    assert sorted(came) == sorted([signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM])


def test_one_block_within_another(came: list[int]) -> None:
    with ExitStack() as outer:
        outer.enter_context(pytest.raises(TimeoutError))
        outer.enter_context(deferred())
        with deferred():
            signal.raise_signal(signal.SIGUSR1)
        assert not came
    assert came == [signal.SIGUSR1]


def test_one_that_could_not_be_put_back_is_passed_on(came: list[int]) -> None:
    """Where a handler raises between two that are put back, those left call what they stand for."""
    block = deferred()
    block.__enter__()
    kept: Any = signal.getsignal(signal.SIGUSR1)
    block.__exit__(None, None, None)
    with pytest.raises(TimeoutError):
        kept(signal.SIGUSR1, None)
    assert came == [signal.SIGUSR1]
