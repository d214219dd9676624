"""A build and a bench, kept by a real MLflow server and read back by MLflow's own client."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from qdeploy.cli.main import app
from qdeploy.core import records
from qdeploy.core.errors import QDeployError
from qdeploy.core.records import Bench, Results
from qdeploy.loggers.mlflow import Logger, _shown
from tests.mlflow_server import mlflow_server, require_mlflow
from tests.sshd import free_port

pytestmark = pytest.mark.slow
RECIPE = """
name: kept
model: {factory: "models/simple_cnn.py:SimpleCNN", channels: 8}
data: {name: digits, calibration: 64}
train: {epochs: 9, lr: 0.004}
variants:
  fp32: {}
  qat-int4: {method: qat, weights: {bits: 4}, train: {epochs: 9}}
bench: {seconds: 0.05, threads: [1]}
profiles:
  fast: {train.epochs: 2, variants.qat-int4.train.epochs: 1}
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server's address."""
    require_mlflow()
    with mlflow_server(tmp_path_factory.mktemp("server")) as address:
        yield address


@pytest.fixture(scope="module")
def client(server: str) -> Any:
    """MLflow's client of it."""
    from mlflow.tracking import MlflowClient

    return MlflowClient(server)


def qdeploy(folder: Path, *arguments: str) -> Any:
    """The command line, in ``folder``."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        return CliRunner().invoke(app, arguments, env={"COLUMNS": "200"})


@pytest.fixture(scope="module")
def built(server: str, repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a build in a profile, which the server was told of."""
    folder = tmp_path_factory.mktemp("work")
    (folder / "recipes").mkdir()
    (folder / "recipes" / "kept.yaml").write_text(RECIPE)
    (folder / "models").symlink_to(repository / "models")
    done = qdeploy(folder, "build", "kept", "--profile", "fast", "--log", f"mlflow:{server}")
    assert done.exit_code == 0, done.output
    assert f"log: {server}/#/experiments/" in done.output
    return folder / "runs" / "kept-fast"


def runs(client: Any, parent: str | None) -> dict[str, Any]:
    """The finished runs of the experiment below a run, or those on top, by their names."""
    experiment = client.get_experiment_by_name("kept").experiment_id
    found = [run for run in client.search_runs([experiment]) if run.data.tags.get("mlflow.parentRunId") == parent]
    assert {run.info.status for run in found} <= {"FINISHED"}
    return {run.info.run_name: run for run in found}


def test_a_build_is_a_run_with_its_parameters_results_and_machine(built: Path, client: Any, tmp_path: Path) -> None:
    run = runs(client, None)["kept-fast"]
    assert run.data.params["train.epochs"] == "2"
    assert run.data.params["model.channels"] == "8"
    assert run.data.params["profile"] == "fast"
    results = records.load(Results, built / "results.json")
    assert results.profile == "fast"
    assert results.environment is not None
    assert run.data.tags["machine.cpu"] == results.environment.cpu
    for name in ("results.json", "report.html"):
        kept = Path(client.download_artifacts(run.info.run_id, name, str(tmp_path)))
        assert kept.read_bytes() == (built / name).read_bytes()
    assert len(client.get_metric_history(run.info.run_id, "train_loss")) == 2


def test_its_variants_are_nested_runs_with_their_numbers_and_bundles(built: Path, client: Any, tmp_path: Path) -> None:
    parent = runs(client, None)["kept-fast"]
    found = runs(client, parent.info.run_id)
    results = records.load(Results, built / "results.json")
    assert set(found) == {variant.name for variant in results.variants}
    for variant in results.variants:
        run = found[variant.name]
        assert variant.latency is not None
        assert run.data.metrics["top1"] == variant.metric.value
        assert run.data.metrics["top1_low"] == variant.metric.low
        assert run.data.metrics["size_bytes"] == variant.size_bytes
        assert run.data.metrics["p50_ms"] == variant.latency.p50_ms.value
        assert run.data.metrics["integer_mac_share"] == variant.integer_mac_share
        assert run.data.tags["bundle_sha256"] == variant.bundle_sha256
        kept = Path(client.download_artifacts(run.info.run_id, variant.bundle, str(tmp_path)))
        assert kept.read_bytes() == (built / variant.bundle).read_bytes()
    int4 = found["qat-int4"]
    assert int4.data.params["weights.bits"] == "4"
    assert int4.data.metrics["speedup"] == results.variants[1].latency.speedup.value
    (history,) = (built / "stages" / "qat-int4" / "qat").glob("*/history.json")
    losses = [line["train_loss"] for line in json.loads(history.read_text())["epochs"]]
    kept_losses = client.get_metric_history(int4.info.run_id, "train_loss")
    assert [(point.step, point.value) for point in kept_losses] == list(enumerate(losses, start=1))


def test_a_bench_is_a_run_of_the_same_experiment(built: Path, client: Any, server: str, tmp_path: Path) -> None:
    file = tmp_path / "bench.json"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", server)  # where "mlflow" alone is
        options = ("--threads", "1", "--seconds", "0.05", "--json", str(file))
        done = qdeploy(tmp_path, "bench", str(built / "fp32.qdeploy.zip"), *options, "--log", "mlflow")
    assert done.exit_code == 0, done.output
    run = runs(client, None)["bench local"]
    (row,) = records.load(Bench, file).rows
    (child,) = runs(client, run.info.run_id).values()
    assert child.data.metrics["p50_ms"] == row.latency.p50_ms.value
    assert child.data.tags["bundle_sha256"] == row.latency.bundle_sha256
    kept = Path(client.download_artifacts(run.info.run_id, "bench.json", str(tmp_path / "kept")))
    assert json.loads(kept.read_text()) == json.loads(file.read_text())


FAILING = """
from qdeploy.core.errors import QDeployError
from qdeploy.loggers._base import Log


class Logger(Log):
    def __init__(self, address=""):
        if not address:
            raise QDeployError("Nobody is there.", "Give an address.")

    def write(self, project, run):
        raise QDeployError(f"{run.name} was not taken.", "Try again.")
"""


def test_a_logger_that_fails_at_the_end_loses_nothing(built: Path, server: str, client: Any) -> None:
    """Its error is shown, the results are there, what other loggers take they have, and the exit code is 2."""
    folder = built.parents[1]
    (folder / "failing.py").write_text(FAILING)
    logs = ("--log", "failing.py:somewhere", "--log", f"mlflow:{server}")
    before = len(client.search_runs([client.get_experiment_by_name("kept").experiment_id]))
    shutil.copytree(built, folder / "again")
    (folder / "again" / "results.json").unlink()
    done = qdeploy(folder, "build", "kept", "--profile", "fast", "--out", "again", "--no-bench", *logs)
    assert done.exit_code == 2
    assert "kept-fast was not taken." in done.output
    assert "What was built or measured is complete without it." in done.output
    assert f"log: {server}" in done.output
    assert len(records.load(Results, folder / "again" / "results.json").variants) == 2
    assert len(client.search_runs([client.get_experiment_by_name("kept").experiment_id])) == before + 3


def test_a_logger_that_is_not_there_is_told_before_any_work(built: Path) -> None:
    folder = built.parents[1]
    for log, said in (
        ("failing.py", "Nobody is there."),
        ("mlfow", "Did you mean 'mlflow'?"),
        (f"mlflow:http://127.0.0.1:{free_port()}", "cannot be used"),
    ):
        (folder / "failing.py").write_text(FAILING)
        done = qdeploy(folder, "build", "kept", "--out", "never", "--log", log)
        assert done.exit_code == 2
        assert said in done.output
        assert not (folder / "never").exists()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # MLflow's own use of SQLAlchemy
def test_databases_and_folders_are_addresses_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    require_mlflow()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "no.db").write_text("this is no database")
    with pytest.raises(QDeployError, match="cannot be used"):
        Logger("sqlite:///no.db")
    with pytest.raises(QDeployError, match="no scheme") as caught:
        Logger("localhost:5000")
    assert "mlflow:http://localhost:5000" in caught.value.hint
    assert not (tmp_path / "localhost:5000").exists()
    assert Logger("file:kept").uri == "file:kept"
    assert (tmp_path / "kept").is_dir()


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("no http://me:s3cret@host:5000/x there", "no http://host:5000/x there"),
        ("http://s3cret@host", "http://host"),
        ("http://me:s3@cret@host", "http://host"),
        ("http://me:s3/cr@et@host", "http://host"),
        ("postgresql+psycopg://me:s3cret@host/db", "postgresql+psycopg://host/db"),
        ("sqlite+pysqlcipher://:s3cret@/runs.db", "sqlite+pysqlcipher:///runs.db"),
        ("'http://a:s3cret@b' or 'http://c:s3cret@d'", "'http://b' or 'http://d'"),
        ("sqlite:///me@work.db", "sqlite:///me@work.db"),
        ("http://host:5000/x, me@work", "http://host:5000/x, me@work"),
    ],
)
def test_what_is_shown_of_addresses(text: str, shown: str) -> None:
    assert _shown(text) == shown


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # MLflow's own use of SQLAlchemy
@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("http://me:s3cret@127.0.0.1:{port}", "cannot be used"),
        ("http://me:s3/cr@et@127.0.0.1:{port}", "cannot be used"),
        ("me:s3cret@localhost:5000", "localhost:5000 has no scheme"),
        ("postgresql+none://me:s3cret@127.0.0.1:{port}/db", "cannot be used"),
        ("foo://me:s3cret@127.0.0.1:{port}/" + 30 * "long" + "@x", "cannot be used"),
    ],
)
def test_no_password_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, address: str, said: str) -> None:
    require_mlflow()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(QDeployError, match=said) as caught:
        Logger(address.format(port=free_port()))
    for secret in ("s3", "cret", "cr@et", "me:"):
        assert secret not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_a_database_without_mlflows_part_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    require_mlflow()
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name, find=importlib.util.find_spec: find(name) if name == "mlflow" else None
    )
    with pytest.raises(QDeployError, match=r"^postgresql://host/db is a database") as caught:
        Logger("postgresql://me:s3cret@host/db")
    assert caught.value.hint == "pip install mlflow"


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # MLflow's own use of SQLAlchemy
@pytest.mark.parametrize(
    ("dialect", "module", "package"),
    [
        ("postgresql+psycopg2", "psycopg2", "psycopg2-binary"),
        ("postgresql+psycopg", "psycopg", "psycopg[binary]"),
        ("mysql+pymysql", "pymysql", "pymysql"),
        ("mysql", "MySQLdb", "mysqlclient"),
    ],
)
def test_a_database_without_its_driver(
    monkeypatch: pytest.MonkeyPatch, dialect: str, module: str, package: str
) -> None:
    require_mlflow()
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(
        QDeployError, match=rf"{re.escape(dialect)}://127.0.0.1:1/db cannot be used: .*{module}"
    ) as caught:
        Logger(f"{dialect}://me:s3cret@127.0.0.1:1/db")
    assert caught.value.hint == f'pip install "{package}"'


def test_mlflow_reports_nothing_to_its_makers(tmp_path: Path) -> None:
    require_mlflow()
    Logger(str(tmp_path / "kept"))
    from mlflow.telemetry.utils import is_telemetry_disabled

    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"
    assert is_telemetry_disabled()
