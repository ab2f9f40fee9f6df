"""A recorded run once more, from what MLflow has of it alone: is the result the same?"""

import json
import re
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar

import tyro
import yaml
from pydantic import Field

from facelab import storage
from facelab.config import REGISTRY, JobConfig, Uri, build, places
from facelab.data.manifest import read_manifest
from facelab.data.prepare import PREPARE
from facelab.errors import CheckFailed, UsageError
from facelab.evaluation.degradation import EVALUATE_LR
from facelab.evaluation.run import EVALUATE
from facelab.job import Job
from facelab.samples.sets import SAMPLE_FACES
from facelab.synthesis.job import SYNTHESIZE
from facelab.tracking.nested import Nested
from facelab.tracking.records import Recorded, artifacts_of, fetch_artifact, recorded
from facelab.tracking.runs import JobRun, environment
from facelab.trained import store
from facelab.training.config import TrainConfig
from facelab.training.images import load_training_faces
from facelab.training.job import TRAIN_DEGRADER, TRAIN_SR, at_hand, train
from facelab.version import code_hash

# A network that is trained again is no new version of its model.
JOBS: dict[str, Job] = {
    job.name: job
    for job in (
        SAMPLE_FACES, PREPARE, SYNTHESIZE, EVALUATE, EVALUATE_LR,
        replace(TRAIN_DEGRADER, work=train),
        replace(TRAIN_SR, work=lambda config, run: train(at_hand(config, run), run)),
    )
}  # fmt: skip
"""Name -> what can be replayed: jobs whose result their settings and inputs decide."""
_MODELS = {"evaluate": ("model", "sr"), "synthesize": ("degrader", "degrader"), "train_sr": ("init_from", "sr")}
"""Job -> the option that names a trained network, and its kind."""
_NO_RESULT = re.compile(r"mlflow_run_id|registered_model|seconds|per_s|usage|memory")
"""In the name of what a summary has beside results."""


class ReplayConfig(JobConfig):
    """Run a recorded run once more, from what MLflow has of it alone (settings, seed, code version, hashes of its
    data), and say whether the result is the same. Other code, or other data, is refused."""

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {"debug": {}, "demo": {}, "paper": {}}
    WRITES = (*JobConfig.WRITES, "differences.json")

    run: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """MLflow run, as ID or runs:/ID; before the options."""
    output: Uri = Field(default="outputs/replay", validate_default=True)
    """Folder or s3:// prefix for differences.json, config.yaml and summary.json; what the run makes this time lies
    below it, in a folder named by its ID."""
    allow_other_code: bool = False
    """Also with other code than it was run with, which the verdict then says."""
    require_same: bool = False
    """Exit code 1 if the result is not the same."""


@dataclass(frozen=True)
class Evidence:
    """What MLflow keeps of a run beside parameters, metrics and tags."""

    config: dict[str, Any]
    """config.yaml."""
    summary: dict[str, Any]
    environment: list[str]
    """Lines: Python, machine, and versions of packages."""


@dataclass(frozen=True)
class Difference:
    """A result that is not the same."""

    name: str
    recorded: Any
    replayed: Any

    @property
    def by(self) -> float | None:
        """Of numbers."""
        pair = self.recorded, self.replayed
        return self.replayed - self.recorded if all(type(each) in (int, float) for each in pair) else None


def replay(config: ReplayConfig, run: JobRun) -> dict[str, Any]:
    """Do the job; returns its summary, and writes differences.json to --output.

    Raises:
        UsageError: nothing that can be replayed, or code or data are not what they were.
        CheckFailed: another result, with --require-same.
    """
    (was,) = recorded(run.uri, [config.run])
    _require_whole(was)
    same_code = was.tags.get("code_hash") == code_hash()[:16]
    if not same_code and not config.allow_other_code:
        raise UsageError(_other_code(was))
    known = _evidence(run.uri, was)
    again = _settings(was, known, config, run.uri)
    again.check_files()
    _require_data(was, known, again, run)
    if storage.exists(storage.join(again.output, "config.yaml")):  # of an earlier replay
        storage.delete(again.output)
    done = JOBS[was.job].run(again, Nested(run.id, f"replay of {was.name}", {"replay_of": was.id}))
    (now,) = recorded(run.uri, [done["mlflow_run_id"]])
    for option, digest in now.inputs.items():  # of a folder, some jobs know it when they have read it
        _require_equal(f"--{option} {getattr(again, option)}", was.inputs.get(option, digest), digest)
    results = {name for name in known.summary if not _NO_RESULT.search(name)}
    found = differences(known.summary, json.loads(storage.read_bytes(storage.join(again.output, "summary.json"))))
    machine = sorted(set(known.environment).symmetric_difference(environment().splitlines()) - {""})
    record = {
        "run": was.id, "job": was.job, "code_hash": {"recorded": was.tags.get("code_hash"), "now": code_hash()[:16]},
        "differences": [asdict(each) for each in found], "environment": machine,
    }  # fmt: skip
    text = json.dumps(record, indent=2)
    storage.write_text(storage.join(config.output, "differences.json"), text)
    run.text(text, "differences.json")
    verdict = f"{len(found)} of {len(results)} results differ" if found else f"all {len(results)} results are the same"
    verdict += "" if same_code else f", with other code ({was.tags.get('code_hash')} then, {code_hash()[:16]} now)"
    _show(found, machine, _unknown(was, again) if found else [])
    print(f"{was.job} {was.name} ({was.id}): {verdict}")
    if found and config.require_same:
        raise CheckFailed(f"{was.id}: not the same: {verdict}: see {storage.join(config.output, 'differences.json')}")
    return {
        "same": not found, "replay_of": was.id, "replay": now.id, "same_code": same_code,
        "n_results": len(results), "n_different": len(found),
    }  # fmt: skip


def differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[Difference]:
    """Results of two summaries of one job that are not equal, to the last bit."""
    names = [name for name in {**then, **now} if not _NO_RESULT.search(name)]
    return [Difference(n, then.get(n), now.get(n)) for n in names if n not in then or then[n] != now.get(n)]


def _require_whole(was: Recorded) -> None:
    """Raises UsageError of a run that no replay can be like."""
    if was.job not in JOBS:
        what = f"of jobs.{was.job}" if was.job else "not of facelab"
        raise UsageError(f"run {was.id} ({was.name}) is {what}: give one of {', '.join(JOBS)}")
    if was.status != "FINISHED":
        raise UsageError(f"run {was.id} ({was.name}) is {was.status}: give a FINISHED one")
    if other := [name.removeprefix("resumed.") for name in was.tags if name.startswith("resumed.")]:
        raise UsageError(
            f"run {was.id} ({was.name}) was gone on with by other settings ({', '.join(other)}): give one that had the "
            "same from its beginning"
        )


def _other_code(was: Recorded) -> str:
    commit = was.commit.removesuffix("+")
    advice = f"`git checkout {commit}`, or" if commit else "no commit was recorded:"
    changed = ", though files differed from that commit then," if was.commit.endswith("+") else ""
    return (
        f"run {was.id} ({was.name}) was run with other code (hash {was.tags.get('code_hash', 'unknown')}) than is here "
        f"({code_hash()[:16]}): {advice}{changed} give --allow-other-code"
    )


def _evidence(uri: str, was: Recorded) -> Evidence:
    """
    Raises:
        UsageError: MLflow lacks some of it.
    """
    there = artifacts_of(uri, was.id)
    with tempfile.TemporaryDirectory(prefix="facelab-") as folder:

        def text(name: str) -> str:
            if name not in there:
                raise UsageError(
                    f"run {was.id} ({was.name}): MLflow has no {name} of it, without which none is like it"
                )
            return Path(fetch_artifact(uri, was.id, name, folder)).read_text()

        config, summary = yaml.safe_load(text("config.yaml")), json.loads(text("summary.json"))
        return Evidence(config, summary, text("environment.txt").splitlines())


def _settings(was: Recorded, known: Evidence, config: ReplayConfig, uri: str) -> JobConfig:
    """What the run was told to do, elsewhere."""
    kind = JOBS[was.job].config
    own = {"output": storage.join(config.output, was.id), "tracking_uri": uri, "experiment": config.experiment}
    own |= {"tracking_patience": config.tracking_patience}
    fresh = {name: False for name in ("resume", "overwrite") if name in kind.model_fields}
    return build(kind, **known.config | own | fresh)


def _require_data(was: Recorded, known: Evidence, config: JobConfig, run: JobRun) -> None:
    """
    Raises:
        UsageError: an input is gone, or is known to be another than it was.
    """
    for option, uri in places(config):
        if not storage.exists(uri):
            then = f" ({was.inputs[option]})" if option in was.inputs else ""
            raise UsageError(f"--{option} {uri}: is not there any more: put back what was{then}")
    for option, uri, digest in _sets(config):
        if option in was.inputs:
            _require_equal(f"--{option} {uri}", was.inputs[option], digest)
    option, kind = _MODELS.get(was.job, ("", ""))
    uri = getattr(config, option, None) or ""
    then = known.summary.get("init_from_sha256") or str(known.summary.get("model")).rpartition("@")[2]
    if uri.startswith(("/", "s3://", REGISTRY)):
        with run.model_folder(uri) as place:
            if store.holds_model(place):  # and not the images of another tool, which are known when they were read
                digest = store.load_model(place, kind).digest
                _require_equal(f"--{option.replace('_', '-')} {uri}", then[:16], digest[:16])


def _sets(config: JobConfig) -> Iterator[tuple[str, str, str]]:
    """(option, URI, digest) of the inputs whose rows are known before the work; a training's folders are decoded for
    it, where it will find them again."""
    for option, uri in places(config):
        if store.holds_model(uri) or storage.is_file(uri):
            continue
        if manifest := read_manifest(uri):
            yield option, uri, manifest.hash[:16]
        elif isinstance(config, TrainConfig) and uri in dict(config.inputs()):
            faces = load_training_faces(config, uri, option, sharp=option == "hr", progress=True)
            yield option, uri, faces.hash[:16]


def _require_equal(what: str, then: str, now: str) -> None:
    if then != now:
        raise UsageError(f"{what}: is not what it was: {then} then, {now} now: put back what was")


def _unknown(was: Recorded, config: JobConfig) -> list[str]:
    """Inputs of which nobody wrote down what they were."""
    option = _MODELS.get(was.job, ("",))[0]
    return [f"--{name} {uri}" for name, uri in places(config) if name not in was.inputs and name != option]


def _show(found: list[Difference], machine: list[str], unknown: list[str]) -> None:
    """Print what differs, and what else did that may be why."""
    if not found:
        return
    print(f"{'result':32} {'recorded':>24} {'replayed':>24} {'difference':>12}")
    for each in found:
        by = "" if each.by is None else f"{each.by:+.3g}"
        print(f"{each.name:32} {each.recorded!s:>24.24} {each.replayed!s:>24.24} {by:>12}")
    if machine:
        print(f"not the same machine or packages: {', '.join(machine[:12])}{', …' if len(machine) > 12 else ''}")
    for what in unknown:
        print(f"{what}: of what it was MLflow has no hash: it may be another")


def replay_plan(config: ReplayConfig) -> str:
    return f"run {config.run} once more, as MLflow has it, write to {config.output}, and compare the results"


REPLAY = Job("replay", ReplayConfig, replay, replay_plan)
