"""What loggers are given, and what they promise."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from qdeploy.core import plugins


@dataclass(frozen=True, slots=True)
class Run:
    """What was built or measured, as plain data; the runs of its variants are its ``children``."""

    name: str
    parameters: Mapping[str, str] = field(default_factory=dict)  # dotted keys: "train.epochs"
    metrics: Mapping[str, float] = field(default_factory=dict)
    curves: Mapping[str, Sequence[float]] = field(default_factory=dict)  # a value an epoch, from epoch 1
    tags: Mapping[str, str] = field(default_factory=dict)
    files: tuple[Path, ...] = ()
    texts: Mapping[str, str] = field(default_factory=dict)  # further files: their contents by their names
    children: tuple[Run, ...] = ()


class Log(ABC):
    """A place that keeps runs.

    ``address`` is what follows the logger's name on the command line; where it is empty, the logger's own default.
    Making one finds out whether the place can be reached, before hours of work that end in it. QDeployError: it cannot.
    A static ``require()``, where there is one, raises QDeployError with what is missing on this machine.
    """

    @abstractmethod
    def __init__(self, address: str = "") -> None: ...

    @abstractmethod
    def write(self, project: str, run: Run) -> str:
        """Keep ``run`` and its children under ``project``; returns where to look. QDeployError: that went wrong."""


def open_log(text: str) -> Log:
    """The logger that "mlflow" or "mlflow:http://host:5000" names."""
    name, _, address = text.partition(":")
    log: Log = plugins.load("logger", name)(address)
    return log
