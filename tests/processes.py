"""Starting processes that a test will interrupt."""

from __future__ import annotations

import signal


def accept_interrupts() -> None:
    """A ``preexec_fn``: what runs in the background of a shell ignores SIGINT and hands that on to its children."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
