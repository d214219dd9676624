"""MLflow: an experiment a recipe, a run a build, and nested in it one a variant."""

from __future__ import annotations

import importlib.util
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from qdeploy.core.errors import QDeployError
from qdeploy.loggers._base import Log, Run

# Read by mlflow when it is imported or called; what the user has set stays.
SETTINGS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",  # by default it tries for minutes before it says that nobody is there
}
DATABASES = ("sqlite", "postgresql", "mysql", "mssql")
# What to install for a module that a database's driver is in, where it has another name.
PACKAGES = {"psycopg": "psycopg[binary]", "psycopg2": "psycopg2-binary", "MySQLdb": "mysqlclient"}
# "//user:password@" or "//token@"; passwords may have slashes and @: better too much is hidden than a part is shown.
SECRET = re.compile(r"(?<!/)//(?:[^\s/@:]*:\S*|[^\s/?#]*)@")
MOST_PARAMS, MOST_METRICS = 100, 1000  # what a server takes in one request


class Logger(Log):
    """An MLflow server (http://, https://), a database (sqlite:///runs.db), or a folder (a path, file:///).

    Without an address it is $MLFLOW_TRACKING_URI, else what mlflow itself defaults to. Runs go to the experiment
    $MLFLOW_EXPERIMENT_NAME, else to one named as the recipe. Databases need the whole mlflow, all else mlflow-skinny.
    """

    def __init__(self, address: str = "") -> None:
        self.require()
        for name, value in SETTINGS.items():
            os.environ.setdefault(name, value)
        import mlflow
        from mlflow.tracking import MlflowClient

        self.uri = _resolved(address or mlflow.get_tracking_uri())
        self.shown = _shown(self.uri)
        with _told(f"MLflow at {self.shown} cannot be used"):
            self._client = MlflowClient(self.uri)
            self._client.search_experiments(max_results=1)  # a client alone asks nobody

    @staticmethod
    def require() -> None:
        """QDeployError: mlflow is not installed."""
        if importlib.util.find_spec("mlflow") is None:
            raise QDeployError("The package mlflow is not installed.", 'pip install "qdeploy[mlflow]"')

    def write(self, project: str, run: Run) -> str:
        """Keep ``run`` in the experiment ``project``; returns the address of its page, or the store and its id."""
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or project
        with _told(f"MLflow at {self.shown} did not take all of {run.name}"):
            found = self._client.get_experiment_by_name(name)
            experiment = self._client.create_experiment(name) if found is None else found.experiment_id
            made = self._keep(run, experiment)
        if self.uri.startswith("http"):
            return f"{self.shown.rstrip('/')}/#/experiments/{experiment}/runs/{made}"
        return f"{self.shown}, experiment {name}, run {made}"

    def _keep(self, run: Run, experiment: str, parent: str | None = None) -> str:
        """Write a run and its children; returns its id. What breaks off is left as FAILED."""
        nested = {} if parent is None else {"mlflow.parentRunId": parent}
        made: str = self._client.create_run(experiment, run_name=run.name, tags={**run.tags, **nested}).info.run_id
        status = "FAILED"
        try:
            self._log(made, run)
            for child in run.children:
                self._keep(child, experiment, made)
            status = "FINISHED"
        finally:
            self._client.set_terminated(made, status)
        return made

    def _log(self, made: str, run: Run) -> None:
        from mlflow.entities import Metric, Param

        now = int(time.time() * 1000)
        params = [Param(_key(key), value) for key, value in run.parameters.items()]
        metrics = [Metric(_key(key), value, now, 0) for key, value in run.metrics.items()]
        for key, values in run.curves.items():
            metrics += [Metric(_key(key), value, now, epoch) for epoch, value in enumerate(values, start=1)]
        for start in range(0, len(params), MOST_PARAMS):
            self._client.log_batch(made, params=params[start : start + MOST_PARAMS])
        for start in range(0, len(metrics), MOST_METRICS):
            self._client.log_batch(made, metrics=metrics[start : start + MOST_METRICS])
        for file in run.files:
            self._client.log_artifact(made, str(file))
        for name, text in run.texts.items():
            self._client.log_text(made, text, name)


def _resolved(address: str) -> str:
    """The address as mlflow takes it. QDeployError: it lacks its scheme, or what serves it is not installed."""
    scheme, separator, _ = address.partition("://")
    if separator and scheme != "file":
        if scheme.partition("+")[0] in DATABASES and importlib.util.find_spec("sqlalchemy") is None:
            raise QDeployError(f"{_shown(address)} is a database, which needs all of MLflow.", "pip install mlflow")
        return address
    if re.fullmatch(r"(.*@)?[\w.-]+:\d+(/.*)?", address):
        shown = _shown(f"//{address}").removeprefix("//")
        raise QDeployError(f"{shown} has no scheme.", f"Write --log mlflow:http://{shown}.")
    # MLflow refuses folders, which get no new features, until it is told twice.
    os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
    return address if address.startswith("file:") else str(Path(address).expanduser().absolute())


@contextmanager
def _told(what: str) -> Iterator[None]:
    """``what`` as a QDeployError where mlflow, the network, a disk or a database fails."""
    from mlflow.exceptions import MlflowException

    failures: tuple[type[Exception], ...] = (MlflowException, OSError)  # those of requests are OSErrors
    if importlib.util.find_spec("sqlalchemy") is not None:
        from sqlalchemy.exc import SQLAlchemyError

        failures = (*failures, SQLAlchemyError)
    try:
        yield
    except failures as error:
        why = _shown(str(error)).strip().partition("\n")[0][:300] or type(error).__name__
        hint = "See that it is there and lets you write, or give another address: --log mlflow:http://HOST:5000."
        raise QDeployError(f"{what}: {why}", hint) from error
    except ImportError as error:  # of a driver, which is imported when it is first needed
        package = PACKAGES.get(error.name or "", error.name)
        hint = f'pip install "{package}"' if package else "Install the driver that the address needs."
        raise QDeployError(f"{what}: {_shown(str(error))}.", hint) from error


def _shown(text: str) -> str:
    """``text`` without the users and passwords in its addresses."""
    return SECRET.sub("//", text)


def _key(key: str) -> str:
    """A key of letters that mlflow takes."""
    return re.sub(r"[^\w\-. :/]", "_", key)
