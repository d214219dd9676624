"""The container of a bundle: a zip of five fixed names, the same bytes for the same content.

Members are stored, not deflated: a compressed stream depends on the zlib that made it. ``qdeploy.runner`` says how the
zip is laid out and reads it, here as on a device: a file that is not byte for byte what ``archive`` writes is refused.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qdeploy import runner

MEMBERS = tuple(runner.MEMBERS)
MANIFEST, MODEL, GOLDEN, RUNNER, CARD = MEMBERS


def archive(members: Mapping[str, bytes]) -> bytes:
    """A zip of ``members`` (name -> content) in their order: stored, dated 1980-01-01, readable by everyone."""
    headers = [runner.zip_header(name, data) for name, data in members.items()]
    pieces = [piece for pair in zip(headers, members.values(), strict=True) for piece in pair]
    return b"".join([*pieces, runner.zip_directory(headers)])


def npz(arrays: Mapping[str, NDArray[Any]]) -> bytes:
    """``arrays`` as np.savez would write them, sorted by name, with nothing that depends on when or where."""
    members = {}
    for name in sorted(arrays):
        buffer = io.BytesIO()
        contiguous = np.ascontiguousarray(arrays[name])
        np.lib.format.write_array(buffer, contiguous, version=(1, 0), allow_pickle=False)
        members[f"{name}.npy"] = buffer.getvalue()
    return archive(members)
