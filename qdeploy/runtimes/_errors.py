"""Where the stand-alone runner's errors become qdeploy's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from qdeploy.core.errors import QDeployError
from qdeploy.runner import RunnerError


@contextmanager
def qdeploy_errors() -> Iterator[None]:
    """A RunnerError raised inside leaves as the QDeployError with the same message and hint.

    The runner may import nothing of qdeploy, so it cannot raise QDeployError itself.
    """
    try:
        yield
    except RunnerError as error:
        raise QDeployError(error.message, error.hint) from error
