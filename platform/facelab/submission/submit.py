"""Look, submit, follow."""

import argparse
import hashlib
import json
import re
import shlex
import sys
import tomllib
import uuid
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import yaml
from ray.job_submission import JobSubmissionClient

from facelab.config import JobConfig, without_secret
from facelab.errors import UsageError, one_line
from facelab.job import DONE, INTERRUPTED, UNUSABLE
from facelab.submission import client as ray_jobs
from facelab.submission.checks import (
    ANSWER,
    Check,
    check_in,
    checked,
    config_file,
    no_local_places,
    no_secrets,
    upload,
    works_on_workers,
)
from facelab.version import commit

_PACKAGES = ("ray", "torch", "mlflow")
"""Compared with the lock file: what must agree between driver and workers."""
_UV_RUN = ("uv", "run", "--frozen", "--no-default-groups")
_PROBE_S = 300
"""The longest that is waited for an answer of the cluster: environments are unpacked, and with --uv installed."""


def submit(options: argparse.Namespace, name: str, config: JobConfig, arguments: list[str]) -> int:
    """Returns the exit code: of the job where it is followed."""
    folder = Path.cwd()
    runtime_env = _runtime_env(folder, options.uv)
    files = ray_jobs.uploaded_files(folder, runtime_env)
    needed = [*_code(folder), *config_file(config, folder)]
    if not _all_well([
        checked("no secret in what Ray shows", no_secrets, arguments, runtime_env["env_vars"]),
        checked("inputs and output", no_local_places, config, folder),
        checked("computed on workers", works_on_workers, config),
        checked("upload", upload, folder, files, ray_jobs.archive_size(files), ray_jobs.UPLOAD_LIMIT, needed),
    ]):  # fmt: skip
        return UNUSABLE
    try:
        client = ray_jobs.connect(options.address)
    except UsageError as error:
        _all_well([Check("cluster", str(error))])
        return UNUSABLE
    _all_well([Check(f"cluster: {client.get_address()}")])
    submission = _id(name, config)
    dashboard = f"{client.get_address()}/#/jobs/{submission}"
    client.submit_job(
        entrypoint=_entrypoint(options, _locked(folder), name, arguments),
        submission_id=submission,
        runtime_env=runtime_env,
        metadata=_metadata(name, config, submission) | {"dashboard": dashboard},
        # The driver must not be preempted, nor take a worker's place.
        entrypoint_resources=ray_jobs.head_resource(client),
    )
    answer = _answer(client, submission)
    if options.check or not answer["well"]:
        ray_jobs.forget(client, submission)
        return DONE if answer["well"] else UNUSABLE
    print(f"submitted  {submission}")
    print(f"dashboard  {dashboard}")
    print(f"mlflow     {one_line(_mlflow_link(answer, config, submission))}", flush=True)  # as the cluster says
    if options.detach:
        print(_afterwards(submission))
        return DONE
    return _follow(client, submission, answered=True)


def look_after(options: argparse.Namespace) -> int:
    """Follow or stop a job that was submitted; returns the exit code."""
    client = ray_jobs.connect(options.address)
    if options.follow:
        return _follow(client, options.follow)
    ray_jobs.stop(client, options.stop)
    return DONE


def _follow(client: JobSubmissionClient, submission: str, answered: bool = False) -> int:
    try:
        return ray_jobs.follow(client, submission, answered)
    except KeyboardInterrupt:
        print(f"\nthe job goes on\n{_afterwards(submission)}")
        return INTERRUPTED


def _afterwards(submission: str) -> str:
    each = (f"{what:10} python -m jobs.submit --{what} {submission}" for what in ("follow", "stop"))
    return "\n".join(each)


def _all_well(checks: Iterable[Check]) -> bool:
    """Print them as they come; whether none is wrong."""
    wrong = 0
    for check in checks:
        print(check, file=sys.stderr if check.wrong else sys.stdout, flush=True)
        wrong += bool(check.wrong)
    return not wrong


def _entrypoint(options: argparse.Namespace, packages: dict[str, str], name: str, arguments: list[str]) -> str:
    """The job, which looks around first."""
    told = [f"--{flag}" for flag in ("grows", "check") if getattr(options, flag)]
    python = [*(_UV_RUN if options.uv else ()), "python", "-m", "jobs.submit"]
    return shlex.join([*python, *told, "--look", json.dumps(packages), "--", name, *arguments])


def _answer(client: JobSubmissionClient, submission: str) -> dict[str, Any]:
    """What a job answers that looks around first: {"well": whether it goes on, "uri", "experiment": of MLflow}. Its
    checks are shown as they come.

    Raises:
        UsageError: none. The job is stopped, as where the user does not wait for it.
    """
    line = ""
    try:
        for line in ray_jobs.lines_until_answer(client, submission, _PROBE_S):
            if check := check_in(line):
                _all_well([check])
    except BaseException:
        client.stop_job(submission)
        raise
    return json.loads(line.removeprefix(ANSWER))


def _runtime_env(folder: Path, uv: bool) -> dict[str, Any]:
    """That of runtime_env.yaml, with the folder that is uploaded."""
    file = folder / "runtime_env.yaml"
    if not file.exists():
        raise UsageError(f"{file}: not there: run jobs.submit in the root of the checkout, which is what is uploaded")
    runtime_env = {"env_vars": {}} | yaml.safe_load(file.read_text()) | {"working_dir": str(folder)}
    if uv:
        # One environment a node for each lock file. Inside the upload, every change of the code would want a new one.
        lock = hashlib.sha256((folder / "uv.lock").read_bytes()).hexdigest()[:12]
        runtime_env["env_vars"] |= {
            "UV_PROJECT_ENVIRONMENT": f"${{HOME}}/.cache/facelab/environments/{lock}",
            "UV_NO_INSTALL_PROJECT": "1",
        }
    return runtime_env


def _code(folder: Path) -> list[str]:
    """What every job imports, and what uv reads, as paths in the folder."""
    code = (file for place in ("jobs", "models", "platform/facelab") for file in (folder / place).rglob("*.py"))
    return [*(str(file.relative_to(folder)) for file in code), "pyproject.toml", "uv.lock"]


def _locked(folder: Path) -> dict[str, str]:
    """Name -> version of the packages that are compared."""
    lock = tomllib.loads((folder / "uv.lock").read_text())
    return {each["name"]: each["version"] for each in lock["package"] if each["name"] in _PACKAGES}


def _id(name: str, config: JobConfig) -> str:
    """Readable, and of this submission alone."""
    readable = re.sub("[^A-Za-z0-9_.-]+", "-", f"{name}-{Path(config.output).name}")
    return f"{readable[:60]}-{uuid.uuid4().hex[:6]}"


def _metadata(name: str, config: JobConfig, submission: str) -> dict[str, str]:
    """What Ray's dashboard shows of the job, and tells its driver. Where the nodes track, only they know."""
    where = without_secret(config.tracking_uri) if config.tracking_uri else "MLFLOW_TRACKING_URI of the nodes"
    git = known.metadata() if (known := commit()) else {}
    return {
        "job": name,
        "output": config.output,
        "mlflow": f"{where}, experiment {config.experiment}: {_query(submission)}",
    } | {key: without_secret(value) for key, value in git.items()}


def _query(submission: str) -> str:
    """Finds the MLflow runs of this submission, which are tagged with it."""
    return f'tags.ray_submission_id = "{submission}"'


def _mlflow_link(answer: dict[str, Any], config: JobConfig, submission: str) -> str:
    """Of the runs of this submission; how to open them where no server has a page."""
    query = _query(submission)
    if answer["uri"].startswith("sqlite:"):
        return f"mlflow ui --backend-store-uri {answer['uri']}, then search for {query}"
    if answer["experiment"] is None:  # this job will make it
        return f"{answer['uri']}/#/experiments, {config.experiment}, then search for {query}"
    return f"{answer['uri']}/#/experiments/{answer['experiment']}/runs?searchFilter={quote(query)}"
