from __future__ import annotations

import os
import sys

import pytest

from qdeploy import runner
from qdeploy.bench import probe


@pytest.mark.skipif(sys.platform != "linux", reason="threads are counted in /proc")
def test_default_threads_are_counted():
    count = probe.default_threads()
    assert count is not None
    assert 1 <= count <= (os.cpu_count() or 1)


def test_products_are_exact_where_the_cpu_has_vnni_or_is_an_arm():
    if runner.emulator() is None and {"avx512_vnni", "avx_vnni", "asimd"} & set(runner.environment()["isa"]):
        assert runner.saturates() is False
    else:
        assert runner.saturates() in (True, False)
