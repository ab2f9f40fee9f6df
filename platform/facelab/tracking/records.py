"""Runs as MLflow has them: what they were told to do, on which data, and what came out."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import mlflow
from mlflow.entities import Run
from mlflow.utils import mlflow_tags as words

from facelab.config import RUN, without_secret
from facelab.errors import UsageError
from facelab.tracking.client import client_of, experiment_id
from facelab.tracking.delivery import is_away, reason_of

_MOST = 10_000
"""Runs of one search."""


@dataclass(frozen=True)
class Recorded:
    """A run."""

    id: str
    name: str
    experiment: str
    """Its number."""
    status: str
    params: dict[str, str]
    metrics: dict[str, float]
    """The newest value of each."""
    tags: dict[str, str]
    """Ours, without MLflow's own."""
    inputs: dict[str, str]
    """Option that names a set of images -> first 16 digits of its hash."""
    seconds: float | None
    """From its beginning to its end; None of one that runs."""
    commit: str
    """First 10 digits of the commit that it ran, with a + where files had been changed; empty if there was none."""

    @property
    def job(self) -> str:
        """The job that made it, such as train_sr; empty where no job of facelab did."""
        return self.tags.get("job", "")


def recorded(uri: str, runs: Sequence[str]) -> list[Recorded]:
    """The runs of these ids, or runs:/ID, in this order; one question to MLflow, however many they are.

    Raises:
        UsageError: MLflow has no such run, or cannot be reached.
    """
    ids = [run.removeprefix(RUN).rstrip("/") for run in runs]
    if odd := [i for i in ids if not i.isalnum()]:
        raise UsageError(f"{odd[0]}: is no run: give the id that MLflow shows, or runs:/ID")
    listed = ", ".join(f"'{i}'" for i in dict.fromkeys(ids))
    with _answering(uri):
        client = client_of(uri)
        places = [each.experiment_id for each in client.search_experiments()]
        found = client.search_runs(places, f"attributes.run_id IN ({listed})", max_results=_MOST)
    known = {run.info.run_id: _recorded(run) for run in found}
    if missing := [i for i in ids if i not in known]:
        raise UsageError(f"{missing[0]}: no such run at {without_secret(uri)}, or a deleted one: see --tracking-uri")
    return [known[i] for i in ids]


def searched(uri: str, experiment: str, query: str, only: str = "") -> list[Recorded]:
    """The runs of an experiment that match an MLflow search, oldest first; two questions to MLflow, however many they
    are.

    Args:
        only: what they match besides; unless it says so, it does not matter what became of them.

    Raises:
        UsageError: no such experiment, a query that MLflow does not understand, or too many runs.
    """
    place = experiment_id(uri, experiment)
    if place is None:
        raise UsageError(f"--experiment {experiment}: not at {without_secret(uri)}")
    whole = " and ".join(filter(None, (only, query)))
    with _answering(f"--filter {query}"):
        found = client_of(uri).search_runs([place], whole, max_results=_MOST, order_by=["attributes.start_time ASC"])
    if found.token:
        raise UsageError(f"--filter {query}: more than {_MOST} runs match: narrow it")
    return [_recorded(run) for run in found]


def artifacts_of(uri: str, run_id: str, folder: str | None = None) -> list[str]:
    """Paths of the files and folders that MLflow keeps of a run, or of those in one of its folders, sorted.

    Raises:
        UsageError: they cannot be listed.
    """
    with _answering(f"artifacts of run {run_id}"):
        return sorted(file.path for file in client_of(uri).list_artifacts(run_id, folder))


def fetch_artifact(uri: str, run_id: str, path: str, folder: str) -> str:
    """Download one file that MLflow keeps of a run into a local folder, to the same path below it; returns where it is.

    Raises:
        UsageError: it cannot be had.
    """
    with _answering(f"{path} of run {run_id}"):
        return client_of(uri).download_artifacts(run_id, path, folder)


@contextmanager
def _answering(what: str) -> Iterator[None]:
    """In this block, an error of MLflow, or of where it keeps its files, is one that the user can mend."""
    try:
        yield
    except Exception as error:
        if not is_away(error) and not isinstance(error, mlflow.MlflowException):
            raise
        raise UsageError(f"{without_secret(what)}: MLflow has no answer ({reason_of(error)})") from error


def _recorded(run: Run) -> Recorded:
    info, data = run.info, run.data
    inputs = {
        tag.value: each.dataset.digest
        for each in (run.inputs.dataset_inputs if run.inputs else ())
        for tag in each.tags
        if tag.key == words.MLFLOW_DATASET_CONTEXT
    }
    own = {name: value for name, value in data.tags.items() if not name.startswith("mlflow.")}
    seconds = (info.end_time - info.start_time) / 1000 if info.end_time else None
    changed = "+" if data.tags.get(words.MLFLOW_GIT_DIRTY) == "true" else ""
    commit = data.tags.get(words.MLFLOW_GIT_COMMIT, "")[:10] + changed
    known = data.params, data.metrics, own, inputs
    return Recorded(info.run_id, str(info.run_name), info.experiment_id, info.status, *known, seconds, commit)
