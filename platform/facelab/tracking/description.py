"""What MLflow is told of a run before its work begins: tags, parameters, and a note for people to read."""

import getpass
import html
from typing import Any

from mlflow.utils import mlflow_tags as words

from facelab.config import JobConfig, changes, without_secret
from facelab.submitted import submission_id, told
from facelab.version import code_hash, commit

KIND = {"mlflow.experimentKind": "custom_model_development"}
"""Tag of an experiment, which MLflow then opens as a table of runs, and not as the traces of a language model."""
_MOST_CHANGES = 40
"""Lines of a note."""


def tags_of(job: str, config: JobConfig) -> dict[str, str]:
    """Who runs what code, where it came from, and what it makes."""
    tags = {"job": job, "preset": config.preset, "seed": str(config.seed), "output": config.output}
    tags |= {"code_hash": code_hash()[:16], words.MLFLOW_SOURCE_NAME: f"jobs/{job}.py"}
    tags |= {words.MLFLOW_SOURCE_TYPE: "JOB" if submission_id() else "LOCAL", words.MLFLOW_USER: _user()}
    if known := commit():
        tags |= {words.MLFLOW_GIT_COMMIT: known.sha, words.MLFLOW_GIT_DIRTY: str(known.changed).lower()}
        more = {words.MLFLOW_GIT_BRANCH: known.branch, words.MLFLOW_GIT_REPO_URL: without_secret(known.repository)}
        tags |= {tag: value for tag, value in more.items() if value}
    return tags | _ray_tags()


def _ray_tags() -> dict[str, str]:
    """Where Ray shows the submitted job that this process drives. The address of its page is the one that jobs.submit
    was given: Ray itself does not know by which one its users come."""
    tags = {"ray_submission_id": "job_submission_id", "ray_dashboard": "dashboard"}
    known = told()
    return {tag: known[name] for tag, name in tags.items() if name in known}


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's number without a name
        return "unknown"


def params_of(config: JobConfig) -> dict[str, str]:
    """What decides the result, without what is left open; config.yaml has all. MLflow's limit is 6000 characters."""
    return {name: _shown(value) for name, value in config.settings().items() if value is not None}


def _shown(value: Any) -> str:
    """A value as a parameter or a tag."""
    return without_secret(str(value))[:500]


def note(job: str, config: JobConfig, pictures: dict[str, str]) -> str:
    """Markdown: what differs from the preset, and pictures.

    Args:
        pictures: name -> URL.
    """
    lines = [f"**{job}**, preset {config.preset}, seed {config.seed}", ""]
    own = {name: pair for name, pair in changes(config).items() if name != "seed"}
    if own:
        lines += [f"| option | {config.preset} | here |", "|---|---|---|"]
        lines += [f"| {name} | {_cell(was)} | {_cell(now)} |" for name, (was, now) in [*own.items()][:_MOST_CHANGES]]
        lines += [f"… and {left} more, in config.yaml"] if (left := len(own) - _MOST_CHANGES) > 0 else []
    else:
        lines.append("Every option is the preset's.")
    for name, url in pictures.items():
        lines += ["", f"![{name}]({url})", "", name]
    return "\n".join(lines)


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    return html.escape(_shown(value)).replace("|", "\\|").replace("\n", " ") or "–"
