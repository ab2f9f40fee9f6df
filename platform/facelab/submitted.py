"""What Ray tells the driver of a submitted job of its submission."""

import json
import os


def submission_id() -> str | None:
    """Of the submitted job whose driver this process is; None in any other process."""
    return told().get("job_submission_id")


def told() -> dict[str, str]:
    """The metadata of the submission, given by jobs.submit or with `ray job submit --metadata-json`; empty in any other
    process."""
    return json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")).get("metadata", {})
