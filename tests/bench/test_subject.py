from __future__ import annotations

from pathlib import Path

import pytest

from qdeploy import runner
from qdeploy.bench.subject import choose_baseline, read_subjects
from qdeploy.core.errors import QDeployError
from qdeploy.core.records import Metric
from tests.bundles import write_bundle


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("build")
    return [write_bundle(folder, "fp32", "float32"), write_bundle(folder, "ptq-int8", "ptq")]


def test_a_subject_is_what_the_manifest_says(build):
    subject = read_subjects(build)[1]
    opened = runner.read_bundle(build[1])
    assert (subject.name, subject.method, subject.sha256) == ("ptq-int8", "ptq", opened["sha256"])
    assert subject.size_bytes == len(opened["model"])
    assert subject.metric == Metric("top1", 0.98, 0.97, 0.99, 360)
    assert subject.integer_mac_share == 1.0


def test_a_bundle_without_metric_and_coverage_can_be_measured(tmp_path):
    (subject,) = read_subjects([write_bundle(tmp_path, metric=None, coverage=None)])
    assert (subject.metric, subject.integer_mac_share) == (None, None)


def test_bundles_of_one_name_are_told_apart(build, tmp_path):
    again = write_bundle(tmp_path / "build2", "fp32", "float32")
    names = [subject.name for subject in read_subjects([*build, again, again])]
    assert names == [f"{build[0].parent.name}/fp32", "ptq-int8", "build2/fp32", "build2/fp32 (2)"]


def test_the_baseline_is_the_one_float32_bundle_or_the_named_one(build, tmp_path):
    subjects = read_subjects([*build, write_bundle(tmp_path, "other", "float32")])
    assert choose_baseline(subjects[:2], None) is subjects[0]
    assert choose_baseline(subjects[1:2], None) is None
    assert choose_baseline(subjects, None) is None
    assert choose_baseline(subjects, "other") is subjects[2]
    with pytest.raises(QDeployError, match="No bundle here is named 'fp31'") as caught:
        choose_baseline(subjects, "fp31")
    assert "fp32" in caught.value.hint
