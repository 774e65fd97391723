"""What adamas promises of its speed, held against a run."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from .measure import Result, Timing
from .scaling import LAYOUTS, Scaling


@dataclass(frozen=True)
class Bar:
    """One promise: a figure between two bounds."""

    text: str
    value: float | None
    """None where the run did not measure it."""
    low: float | None = None
    high: float | None = None

    @property
    def holds(self) -> bool | None:
        """Whether the promise is kept; None where it was not measured."""
        if self.value is None:
            return None
        return (self.low is None or self.value >= self.low) and (
            self.high is None or self.value <= self.high
        )

    @property
    def bound(self) -> str:
        """The bounds in words."""
        if self.low is None:
            return f"at most {self.high:g}"
        return f"at least {self.low:g}" if self.high is None else f"{self.low:g} to {self.high:g}"


def bars(results: Iterable[Result], scaling: Scaling | None) -> list[Bar]:
    """All promises for float32, with what a run says of each."""
    timings = {(r.key, t.key): t for r in results for t in r.timings}

    def of(workload: str, key: str = "adamas") -> Timing | None:
        return timings.get((workload, key))

    def fused(workload: str, key: str = "adamas") -> float | None:
        timing = of(workload, key)
        return timing.ratio_fused if timing else None

    large, arrays, by_hand = of("124m"), of("1.8m", "adamas-numpy"), of("1.8m", "numpy")
    speedup = None
    if arrays and arrays.milliseconds and by_hand and by_hand.milliseconds:
        speedup = by_hand.milliseconds / arrays.milliseconds
    coded, theirs = of("124m", "adamas-int8"), of("124m", "bitsandbytes")
    faster = None
    if coded and coded.milliseconds and theirs and theirs.milliseconds:
        faster = theirs.milliseconds / coded.milliseconds
    series = scaling.series if scaling else ()
    exponents = {s.layout: s.exponent for s in series if s.key == "adamas"}
    return [
        Bar("GPT-2 124M: time, of torch fused's", fused("124m"), high=0.85),
        Bar("GPT-2 124M: of the memory limit", large.ratio_limit if large else None, low=0.85),
        Bar("1000 tensors of 3500: time, of torch fused's", fused("1000x3500"), high=0.2),
        Bar("100 tensors of 100: time, of torch fused's", fused("100x100"), high=0.1),
        Bar("MLP 1.8M, NumPy: times faster than by hand", speedup, low=8),
        *(
            Bar(f"GPT-2 124M, {text}: time, of torch fused's", fused("124m", key), high=high)
            for text, key, high in (
                ("int8", "adamas-int8", 0.7),
                ("int4", "adamas-int4", 0.75),
                ("16-bit weights, int8", "adamas-lean", 0.7),
            )
        ),
        Bar("GPT-2 124M, int8: times faster than bitsandbytes", faster, low=20),
        *(
            Bar(f"Exponent of time over parameters, {layout}", exponents.get(layout), 0.95, 1.05)
            for layout in LAYOUTS
        ),
    ]
