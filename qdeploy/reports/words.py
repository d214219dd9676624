"""How numbers are written: the one place that decides on digits, units and the words for a difference.

Everything here is ASCII, so that a table survives any terminal, pipe and locale; the HTML report sets proper minus
and multiplication signs itself.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from qdeploy.core.records import Environment, Interval, Latency, Metric

NO_DIFFERENCE = "no difference"
NOT_MEASURED = "not measured"
WITHHELD = "withheld"


def decimals(value: float, significant: int = 3, most: int = 4) -> int:
    """How many decimals show ``value`` with that many significant digits, at most ``most``."""
    if value == 0 or not math.isfinite(value):
        return 0
    return min(most, max(0, significant - 1 - math.floor(math.log10(abs(value)))))


def fixed(value: float, places: int, *, sign: bool = False) -> str:
    """``value`` with that many decimals, thousands separated; ``sign`` also writes a plus. Zero never has a sign."""
    text = f"{value:{'+' if sign else ''},.{places}f}"
    return text.lstrip("+-") if not any(c in "123456789" for c in text) else text


def between(low: float, high: float, places: int, *, sign: bool = False) -> str:
    """An interval, as "[low, high]"."""
    return f"[{fixed(low, places, sign=sign)}, {fixed(high, places, sign=sign)}]"


def size(count: int) -> str:
    """A number of bytes in decimal units with three significant digits: "38.5 kB"."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= scale:
            return f"{fixed(count / scale, decimals(count / scale))} {unit}"
    return f"{count} B"


def count(number: int) -> str:
    """A large count with three significant digits: "1.82 G"; below ten thousand, all of its digits."""
    for unit, scale in (("G", 1e9), ("M", 1e6), ("k", 1e4)):
        if number >= scale:
            value = number / (1e3 if unit == "k" else scale)
            return f"{fixed(value, decimals(value))} {unit}"
    return f"{number:,}"


def seconds(value: float) -> str:
    """A duration for people: "3.2 s", "47 s", "6 min 5 s"."""
    if value < 9.95:
        return f"{fixed(value, 1)} s"
    minutes, rest = divmod(round(value), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def milliseconds(value: float) -> str:
    """A time with three significant digits: "0.214 ms"."""
    return f"{fixed(value, decimals(value))} ms"


def ratio(value: float) -> str:
    """A ratio with three significant digits: "2.12x"."""
    return f"{fixed(value, min(2, decimals(value)))}x"


def ratio_interval(interval: Interval) -> str:
    """The interval of a ratio, with the digits that ``ratio`` gives its value."""
    return between(interval.low, interval.high, min(2, decimals(interval.value)))


def share(value: float) -> str:
    """A share of a whole in percent. Only the whole is written as 100%, only nothing as 0%."""
    if value >= 1:
        return "100%"
    if value <= 0:
        return "0%"
    if value < 0.001:
        return "<0.1%"
    return f"{min(100 * value, 99.9):.1f}%"


def decibels(value: float | None) -> str:
    """A signal-to-noise ratio: "34.1 dB", or a dash where it is not known."""
    return "-" if value is None else f"{fixed(value, 1)} dB"


def interval(samples: int) -> str:
    """What an interval over so many samples is: few samples know their spread badly (verify/evaluate.py)."""
    if samples >= 10:
        return "a 95% interval"
    return "a 95% interval, too narrow with so few samples"


def plural(number: int, noun: str) -> str:
    """A count and its noun: "1 thread", "2 threads"."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def listed(names: Sequence[str]) -> str:
    """Names in a sentence: "a, b and c"."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def capital(text: str) -> str:
    """A sentence's beginning; the rest is left as it is."""
    return text[:1].upper() + text[1:]


def setting(latency: Latency) -> str:
    """What a latency was measured with: "onnxruntime (CPU), 1 thread, batch 1"."""
    return f"{latency.runtime}, {plural(latency.threads, 'thread')}, batch {latency.batch}"


def environment_line(environment: Environment) -> str:
    """The machine and its software in one sentence."""
    flags = f" ({', '.join(environment.isa)})" if environment.isa else ""
    cores = f"{environment.cores_allowed} of {environment.cores_present} cores ({environment.cores_reason})"
    parts = [f"{environment.cpu}, {environment.architecture}{flags}", cores, f"{size(environment.memory_bytes)} memory"]
    if environment.governor:
        parts.append(f"governor {environment.governor}")
    if environment.emulator:
        parts.append(f"emulated by {environment.emulator}")
    parts += [environment.system, f"Python {environment.python}", f"onnxruntime {environment.onnxruntime}"]
    return ", ".join([*parts, f"numpy {environment.numpy}"])


@dataclass(frozen=True, slots=True)
class Scores:
    """How one metric is written.

    A score that lies in 0..1 and grows with quality is a fraction: it is shown in percent and its differences in
    percentage points. Everything else (a loss, decibels) is shown as it is.
    """

    label: str  # "top-1 accuracy"
    noun: str  # "accuracy"
    percent: bool
    higher_is_better: bool
    places: int

    @classmethod
    def of(cls, metrics: Iterable[Metric]) -> Scores:
        """The way to write ``metrics``, which are all of one name; without any, plain numbers."""
        known = list(metrics)
        name = known[0].name if known else "metric"
        higher = known[0].higher_is_better if known else True
        percent = bool(known) and all(m.is_fraction for m in known)
        top = re.fullmatch(r"top_?(\d+)", name)
        label = f"top-{top[1]} accuracy" if top else name.replace("_", " ")
        largest = max((abs(m.value) for m in known), default=1.0)
        return cls(label, "accuracy" if top else label, percent, higher, 2 if percent else decimals(largest, 4))

    @property
    def factor(self) -> float:
        """What a recorded value is multiplied with to be shown."""
        return 100.0 if self.percent else 1.0

    @property
    def unit(self) -> str:
        """The unit of a difference: " points" for a fraction."""
        return " points" if self.percent else ""

    def value(self, value: float) -> str:
        """One score: "98.06%"."""
        return fixed(value * self.factor, self.places) + ("%" if self.percent else "")

    def interval(self, low: float, high: float) -> str:
        """A score's interval, in the unit of ``value``."""
        return between(low * self.factor, high * self.factor, self.places)

    def difference(self, value: float, *, sign: bool = True) -> str:
        """A difference of two scores: "-0.10 points"."""
        return fixed(value * self.factor, self.places, sign=sign) + self.unit

    def difference_interval(self, low: float, high: float) -> str:
        """The interval of a difference, in the unit of ``difference``."""
        return between(low * self.factor, high * self.factor, self.places, sign=True)

    def gain(self, delta: Interval) -> float:
        """How much better a difference makes it: positive is better whichever way the metric points."""
        return delta.value if self.higher_is_better else -delta.value

    def loses(self, delta: Interval | None) -> bool:
        """Whether a difference is a measurable loss."""
        return delta is not None and delta.excludes(0) and self.gain(delta) < 0
