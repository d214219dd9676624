"""Which records are of one machine and one bundle, what is reported of them, and what is said about it."""

from __future__ import annotations

import dataclasses
import itertools

import pytest

from qdeploy.core.errors import QDeployError
from qdeploy.core.records import Answers, Bench, Golden, Interval, Results
from qdeploy.reports.compare.facts import Comparison, joined
from qdeploy.reports.compare.merge import compare
from tests.reports import sample


def merged(*found: Results | Bench | Answers) -> Comparison:
    return compare([(f"{i}.json", record) for i, record in enumerate(found)])


def built() -> Results:
    """A build of the fleet's bundles, timed on the first machine."""
    bench = sample.machine_bench()
    variants = tuple(
        sample.variant(
            row.name,
            "float32" if row.name == "fp32" else "ptq",
            row.metric.value if row.metric else 0.0,
            row.size_bytes,
            bundle_sha256=row.latency.bundle_sha256,
            latency=row.latency,
            layers=(),
        )
        for row in bench.rows
    )
    return Results("cifar10-resnet20", "fp32", variants, sample.environment(), "cifar10")


def test_records_of_one_machine_share_it_and_others_do_not() -> None:
    compared = compare(sample.fleet())
    assert [machine.label for machine in compared.machines] == ["Example Silver 4314", "ssh://pi@board", "qemu:Haswell"]
    assert [machine.sources for machine in compared.machines] == [
        ("server-bench.json", "server.json"),
        ("board-bench.json", "board.json"),
        ("old.json",),
    ]
    assert [bundle.name for bundle in compared.bundles] == [name for name, _, _ in sample.FLEET]


@pytest.mark.parametrize(
    "changes",
    [
        {"cpu": "Another"},
        {"architecture": "arm64"},
        {"cores_allowed": 1},
        {"system": "Linux-5.10"},
        {"onnxruntime": "1.30.0"},
        {"emulator": "qemu"},
    ],
)
def test_every_fact_that_times_depend_on_tells_machines_apart(changes: dict[str, object]) -> None:
    other = sample.machine_bench(machine=sample.environment(**changes))
    compared = merged(sample.machine_bench(), other)
    assert len({machine.label for machine in compared.machines}) == 2


def test_another_target_is_another_machine_and_another_python_is_not() -> None:
    same = sample.environment(python="3.12.1", memory_bytes=1)
    assert len(merged(sample.machine_bench(), sample.machine_bench(machine=same)).machines) == 1
    assert len(merged(sample.machine_bench(), sample.machine_bench("ssh://pi@board")).machines) == 2


def test_labels_are_short_and_never_the_same() -> None:
    long = "ssh://administrator@" + "a" * 300
    targets = ["local", "ssh://pi@a", long + "1", long + "2", long + "3"]
    compared = merged(*(sample.machine_bench(target) for target in targets))
    labels = [machine.label for machine in compared.machines]
    assert len(set(labels)) == 5
    assert max(map(len, labels)) < 40


def test_a_label_says_what_differs() -> None:
    few, many = sample.environment(cores_allowed=1), sample.environment(cores_allowed=64)
    labels = [m.label for m in merged(sample.machine_bench(machine=few), sample.machine_bench(machine=many)).machines]
    assert labels == ["Example Silver 4314, 1 core", "Example Silver 4314, 64 cores"]


def test_two_bundles_of_one_name_stay_apart_and_are_warned_about() -> None:
    bench = sample.machine_bench("ssh://pi@board", sample.arm())
    row = dataclasses.replace(
        bench.rows[1], latency=dataclasses.replace(bench.rows[1].latency, bundle_sha256=sample.sha("rebuilt"))
    )
    compared = merged(sample.machine_bench(), dataclasses.replace(bench, rows=(bench.rows[0], row)))
    labels = [bundle.label for bundle in compared.bundles if bundle.name == "ptq-int8"]
    assert labels == [f"ptq-int8 ({sample.sha(name)[:8]})" for name in ("ptq-int8", "rebuilt")]
    assert [warning for warning in compared.warnings if "Several bundles are named ptq-int8" in warning]
    assert not [warning for warning in merged(sample.machine_bench()).warnings if "Several" in warning]


def test_digests_that_begin_alike_are_shown_until_they_differ() -> None:
    bench = sample.machine_bench()
    digests = ["a" * 64, "a" * 12 + "b" * 52]
    rows = tuple(
        dataclasses.replace(row, name="x", latency=dataclasses.replace(row.latency, bundle_sha256=digest))
        for row, digest in zip(bench.rows, digests, strict=False)
    )
    labels = [bundle.label for bundle in merged(dataclasses.replace(bench, rows=rows, baseline=None)).bundles]
    assert labels == [f"x ({'a' * 13})", f"x ({'a' * 12}b)"]


def test_bundles_that_no_two_machines_share_compare_nothing() -> None:
    bench = sample.machine_bench("ssh://pi@board", sample.arm())
    rows = tuple(
        dataclasses.replace(row, latency=dataclasses.replace(row.latency, bundle_sha256=sample.sha(f"{row.name}'")))
        for row in bench.rows
    )
    warnings = merged(sample.machine_bench(), dataclasses.replace(bench, rows=rows)).warnings
    assert "No bundle was measured on more than one machine, so nothing here compares machines." in warnings
    assert not [w for w in compare(sample.fleet()).warnings if "No bundle" in w]


def test_no_time_of_an_emulated_cpu_is_kept_whatever_the_record_claims() -> None:
    compared = merged(sample.machine_bench("qemu:Haswell", sample.environment(emulator="qemu")))
    assert compared.timings == ()
    assert compared.notes == ("Times on qemu:Haswell are withheld: the CPU is emulated (qemu).",)


def test_withheld_times_are_not_kept() -> None:
    bench = sample.machine_bench()
    rows = tuple(dataclasses.replace(row, latency=sample.withheld()) for row in bench.rows[:1])
    assert merged(dataclasses.replace(bench, rows=rows)).timings == ()


def test_a_build_brings_the_metric_and_the_times_that_no_bench_has_brought() -> None:
    alone = merged(built())
    assert [timing.source for timing in alone.timings] == ["0.json"] * 4
    assert alone.bundles[0].metric == sample.metric(0.9173)
    # The same measurement, made on a target: results.json does not say so, and must not become another machine.
    both = merged(sample.machine_bench("ssh://pi@board"), built())
    assert [machine.target for machine in both.machines] == ["ssh://pi@board"]
    assert {timing.source for timing in both.timings} == {"0.json"}


def test_a_bundles_own_metric_is_no_measurement_on_the_machine_that_timed_it() -> None:
    compared = merged(sample.machine_bench())
    assert compared.answers == ()
    assert compared.bundles[0].metric is not None


def test_the_longer_of_two_measurements_stays_and_mixed_runs_are_named() -> None:
    short = sample.machine_bench(factor=3.0)
    rows = tuple(dataclasses.replace(row, latency=dataclasses.replace(row.latency, calls=7)) for row in short.rows)
    for order in itertools.permutations([sample.machine_bench(), dataclasses.replace(short, rows=rows[:2])]):
        compared = merged(*order)
        assert {timing.latency.calls for timing in compared.timings} == {4200}
        again = "of which the measurement with more calls is shown: fp32 on Example Silver 4314 and ptq-int8 on"
        assert again in " ".join(compared.notes)
    first, second = sample.machine_bench(), sample.machine_bench(factor=1.01)
    halves = [dataclasses.replace(first, rows=first.rows[:2]), dataclasses.replace(second, rows=second.rows[2:])]
    assert "are of several runs" in " ".join(merged(*halves).notes)
    assert "several runs" not in " ".join(merged(first).notes)


def test_speed_ups_over_several_bundles_are_named() -> None:
    other = sample.machine_bench("ssh://pi@board", sample.arm())
    rows = list(other.rows)
    rows[0], rows[1] = (
        dataclasses.replace(row, latency=dataclasses.replace(row.latency, speedup=speedup))
        for row, speedup in zip(rows, (Interval(0.5, 0.4, 0.6), None), strict=False)
    )
    compared = merged(sample.machine_bench(), dataclasses.replace(other, rows=tuple(rows), baseline="ptq-int8"))
    assert (
        "Speed-ups do not refer to the same bundle: to fp32 on Example Silver 4314; to ptq-int8 on ssh://pi@board."
        in compared.warnings
    )


def test_answers_are_compared_with_those_of_the_first_machine_that_has_any() -> None:
    compared = compare(sample.fleet())
    assert compared.reference is not None
    assert (compared.reference.machine, compared.reference.runtime) == ("Example Silver 4314", "onnxruntime (CPU)")
    found = {(one.machine, one.bundle_sha256): one for one in compared.answers}
    assert found["Example Silver 4314", sample.sha("fp32")].identical is None
    board = found["ssh://pi@board", sample.sha("fp32")]
    assert (board.identical, board.differing) == (False, 3)
    assert board.agreement == pytest.approx(0.9997)
    old = found["qemu:Haswell", sample.sha("fp32")]
    assert (old.identical, old.agreement, old.differing) == (True, 1.0, 0)


def test_answers_of_one_place_have_no_reference() -> None:
    assert merged(sample.machine_answers(), sample.machine_bench("ssh://pi@board")).reference is None


def test_answers_for_another_split_are_not_compared() -> None:
    other = sample.machine_answers("ssh://pi@board", sample.arm(), dataset="cifar100")
    few = tuple(
        dataclasses.replace(row, metric=dataclasses.replace(row.metric, samples=100))
        for row in sample.machine_answers().rows
        if row.metric
    )
    for second in (other, dataclasses.replace(other, dataset="cifar10", rows=few)):
        compared = merged(sample.machine_answers(), second)
        assert {one.agreement for one in compared.answers} == {None}
        assert {one.identical for one in compared.answers} == {None}
        assert any("not of one evaluation split" in warning for warning in compared.warnings)


def test_a_record_without_a_data_set_is_not_of_another_one() -> None:
    warnings = merged(sample.machine_bench(), sample.machine_answers()).warnings
    assert not [warning for warning in warnings if "evaluation split" in warning]


def test_outputs_without_decisions_agree_only_where_every_bit_does() -> None:
    def without(answers: Answers) -> Answers:
        return dataclasses.replace(answers, rows=tuple(dataclasses.replace(r, decisions=None) for r in answers.rows))

    board = sample.machine_answers("ssh://pi@board", sample.arm(), differing=3)
    compared = merged(without(sample.machine_answers()), without(board))
    found = [(one.identical, one.agreement) for one in compared.answers if one.machine == "ssh://pi@board"]
    assert found == [(False, None), *[(True, 1.0)] * 3]


def test_wrong_golden_vectors_are_an_alert_also_if_another_run_was_right() -> None:
    answers = sample.machine_answers()
    row = answers.rows[1]
    wrong = dataclasses.replace(row.golden, passed=False, differing=37, max_difference=3.0)
    broken = dataclasses.replace(answers, rows=(dataclasses.replace(row, golden=wrong),))
    for order in itertools.permutations([answers, broken]):
        assert merged(*order).alerts == (
            "ptq-int8 gives other answers on Example Silver 4314 than where it was built: 37 of 80 golden values "
            "differ, by up to 3.",
        )


def test_a_check_of_golden_vectors_alone_takes_nothing_from_a_whole_run() -> None:
    answers = sample.machine_answers()
    bare = tuple(
        dataclasses.replace(row, metric=None, delta=None, outputs_sha256=None, decisions=None) for row in answers.rows
    )
    for order in itertools.permutations([answers, dataclasses.replace(answers, rows=bare, dataset="")]):
        compared = merged(*order)
        assert len(compared.answers) == 4
        assert all(one.metric is not None for one in compared.answers)


def test_runs_of_one_machine_that_differ_are_warned_about() -> None:
    compared = merged(sample.machine_answers(), sample.machine_answers(differing=2))
    assert "Two runs of fp32 on Example Silver 4314 gave different outputs: 0.json and 1.json." in compared.warnings
    assert not [w for w in merged(sample.machine_answers(), sample.machine_answers()).warnings if "Two runs" in w]


def test_what_answers_needed_is_said_once() -> None:
    (note,) = (note for note in compare(sample.fleet()).notes if "x64quantprecision" in note)
    assert note.startswith("ptq-int8, gptq-int4 and qat-int4 on qemu:Haswell: session.x64quantprecision=1")


def test_versions_of_onnxruntime_that_differ_are_warned_about() -> None:
    new, old = (sample.machine_bench(machine=sample.environment(onnxruntime=v)) for v in ("1.31.1", "1.30.0"))
    (warning,) = merged(new, old).warnings
    assert "versions of onnxruntime differ (1.31.1 on Example Silver 4314, onnxruntime 1.31.1; 1.30.0 on" in warning


def test_a_runtimes_version_does_not_tell_settings_apart_where_the_machine_does() -> None:
    latencies = [dataclasses.replace(row.latency, runtime="onnxruntime 1.31.1 (CPU)") for row in sample.bench().rows]
    rows = tuple(dataclasses.replace(r, latency=t) for r, t in zip(sample.bench().rows, latencies, strict=True))
    assert {t.latency.runtime for t in merged(sample.bench(rows=rows)).timings} == {"onnxruntime (CPU)"}


def test_what_a_bench_warned_of_is_told_with_its_machine() -> None:
    assert merged(sample.machine_bench(warnings=("Noisy.",))).warnings == ("Example Silver 4314: Noisy.",)


@pytest.mark.parametrize("found", [(), (sample.machine_bench(rows=()),), (Results("x", "fp32", ()),)])
def test_nothing_to_compare_is_an_error(found: tuple[Results | Bench, ...]) -> None:
    with pytest.raises(QDeployError, match="nothing to compare"):
        merged(*found)


def test_decisions_that_cannot_be_read_name_their_file() -> None:
    answers = sample.machine_answers("ssh://pi@board", differing=1)
    rows = tuple(dataclasses.replace(row, decisions="@@@", outputs_sha256=None) for row in answers.rows)
    with pytest.raises(QDeployError, match=r"1\.json: the decisions of fp32 cannot be read"):
        merged(sample.machine_answers(), dataclasses.replace(answers, rows=rows))


def test_names_are_joined_once_each() -> None:
    assert [joined("a"), joined("ab"), joined("abcb")] == ["a", "a and b", "a, b and c"]


def test_wrong_answers_that_a_bench_saw_are_said_first() -> None:
    bench = sample.machine_bench("ssh://board")
    wrong = Golden(False, 1, 10, 3, 0.5, "exact")
    rows = (bench.rows[0], dataclasses.replace(bench.rows[1], golden=wrong), *bench.rows[2:])
    found = compare([("a.json", dataclasses.replace(bench, rows=rows))])
    assert any("3 of 10 golden values differ" in alert for alert in found.alerts)
