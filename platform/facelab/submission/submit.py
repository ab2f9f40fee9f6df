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

from facelab.config import JobConfig
from facelab.errors import UsageError
from facelab.job import DONE, INTERRUPTED, UNUSABLE
from facelab.submission import client as ray_jobs
from facelab.submission.checks import (
    ANSWER,
    Check,
    checked,
    config_file,
    no_local_places,
    no_secrets,
    upload,
    works_on_workers,
)
from facelab.version import git_sha

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
    python = [*(_UV_RUN if options.uv else ()), "python", "-m"]
    probe = [*python, "jobs.submit", *(["--grows"] if options.grows else []), "--probe", json.dumps(_locked(folder))]
    answer = _asked(client, shlex.join([*probe, "--", name, *arguments]), runtime_env)
    if not _all_well(Check(**check) for check in answer["checks"]):
        return UNUSABLE
    if options.check:
        return DONE

    submission = _id(name, config)
    link = _mlflow_link(answer, config, submission)
    client.submit_job(
        entrypoint=shlex.join([*python, f"jobs.{name}", *arguments]),
        submission_id=submission,
        runtime_env=runtime_env,
        metadata={"job": name, "output": config.output, "git_sha": git_sha(), "mlflow": link},
        # The driver must not be preempted, nor take a worker's place.
        entrypoint_resources={"head": 0.001} if answer["head"] else None,
    )
    print(f"submitted  {submission}")
    print(f"dashboard  {client.get_address()}/#/jobs/{submission}")
    print(f"mlflow     {link}", flush=True)
    if options.detach:
        print(_afterwards(submission))
        return DONE
    return _follow(client, submission)


def look_after(options: argparse.Namespace) -> int:
    """Follow or stop a job that was submitted; returns the exit code."""
    client = ray_jobs.connect(options.address)
    if options.follow:
        return _follow(client, options.follow)
    ray_jobs.stop(client, options.stop)
    return DONE


def _follow(client: JobSubmissionClient, submission: str) -> int:
    try:
        return ray_jobs.follow(client, submission)
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


def _asked(client: JobSubmissionClient, entrypoint: str, runtime_env: dict[str, Any]) -> dict[str, Any]:
    """What the cluster answers to a small job that looks around there.

    Raises:
        UsageError: nothing.
    """
    submission = client.submit_job(
        entrypoint=entrypoint, runtime_env=runtime_env, submission_id=f"look-{uuid.uuid4().hex[:6]}"
    )
    try:
        ended = ray_jobs.finished(client, submission, within=_PROBE_S).status.is_terminal()
        log = client.get_job_logs(submission).splitlines()
    finally:
        client.stop_job(submission)
    if answers := [line.removeprefix(ANSWER) for line in log if line.startswith(ANSWER)]:
        client.delete_job(submission)
        return json.loads(answers[-1])
    reason = next((line for line in reversed(log) if line.strip()), "it said nothing") if ended else "it did not end"
    raise UsageError(
        f"a first look from the cluster failed: {reason}: see `ray job logs {submission}`; where a module or python is "
        "missing, install uv.lock on every node, as cluster.yaml does, or say --uv"
    )


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


def _mlflow_link(answer: dict[str, Any], config: JobConfig, submission: str) -> str:
    """Of the runs of this submission, which are tagged with it; how to open them where no server has a page."""
    query = f'tags.ray_submission_id = "{submission}"'
    if answer["uri"].startswith("sqlite:"):
        return f"mlflow ui --backend-store-uri {answer['uri']}, then search for {query}"
    if answer["experiment"] is None:  # this job will make it
        return f"{answer['uri']}/#/experiments, {config.experiment}, then search for {query}"
    return f"{answer['uri']}/#/experiments/{answer['experiment']}/runs?searchFilter={quote(query)}"
