"""Ray's job API from the user's side: connect, upload, submit, follow, stop."""

import asyncio
import logging
import os
import re
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
from ray._private import ray_constants
from ray._private.runtime_env import packaging
from ray.exceptions import AuthenticationError
from ray.job_submission import JobStatus, JobSubmissionClient
from ray.util.state import list_nodes
from ray.util.state.exception import RayStateApiException

from facelab.config import without_secret
from facelab.errors import UsageError
from facelab.job import DONE, FAILED, TERMINATED
from facelab.submission.checks import ANSWER

UPLOAD_LIMIT = ray_constants.DASHBOARD_CLIENT_MAX_SIZE
_CONNECT_S, _POLL_S, _END_S, _STOP_S = 5, 0.5, 20, 60

# That they pack, upload, and what they leave out.
for _name in ("dashboard.modules.dashboard_sdk", "dashboard.modules.job.sdk", "_private.runtime_env"):
    logging.getLogger(f"ray.{_name}").setLevel(logging.ERROR)


def uploaded_files(folder: Path, runtime_env: dict[str, Any]) -> dict[str, int]:
    """{path in the folder: bytes} of what Ray would upload, by its own walk."""
    files: dict[str, int] = {}

    def note(path: Path) -> None:
        if path.is_file():
            files[str(path.relative_to(folder))] = path.stat().st_size

    excludes = [*ray_constants.get_runtime_env_default_excludes(), *runtime_env.get("excludes", ())]
    obeys_git = os.environ.get(ray_constants.RAY_RUNTIME_ENV_IGNORE_GITIGNORE, "0") != "1"
    packaging._dir_travel(folder, [packaging._get_excludes(folder, excludes)], note, obeys_git)
    return files


def archive_size(files: dict[str, int]) -> int:
    """Bytes of the zip file that Ray makes of them: not compressed, each file with two headers that name it."""
    return sum(size + 30 + 46 + 2 * len(name.encode()) for name, size in files.items()) + 22


def connect(address: str | None) -> JobSubmissionClient:
    """A client of a cluster's job API.

    Raises:
        UsageError: no address, nothing there, or no token that the cluster takes.
    """
    address = address or os.environ.get("RAY_API_SERVER_ADDRESS") or os.environ.get("RAY_ADDRESS") or ""
    if (shown := without_secret(address)) != address:
        raise UsageError(
            f"{shown}: the address is shown, and Ray takes no password in it: give the plain address, and the token in "
            "RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH"
        )
    url = urlsplit(address)
    if url.scheme not in ("http", "https") or not url.hostname:
        raise UsageError(
            f"{address or 'no cluster is named'}: give --address http://HEAD:8265, or set RAY_API_SERVER_ADDRESS; "
            "`ray dashboard cluster.yaml` tunnels one to http://127.0.0.1:8265"
        )
    os.environ["RAY_API_SERVER_ADDRESS"] = address  # which Ray prefers to the argument
    try:
        # Ray's own requests have no timeout.
        socket.create_connection((url.hostname, url.port or (443 if url.scheme == "https" else 80)), _CONNECT_S).close()
        return JobSubmissionClient(address)
    except AuthenticationError as error:
        raise UsageError(f"{address}: {_about_token(str(error))}") from error
    except (OSError, ConnectionError) as error:
        raise UsageError(
            f"{address}: no Ray dashboard answers ({error}): start the cluster (`ray up cluster.yaml`), tunnel to it "
            "(`ray dashboard cluster.yaml`), or mend --address"
        ) from error
    except RuntimeError as error:
        raise UsageError(f"{address}: is no Ray dashboard that takes jobs ({error}): mend --address") from error


def _about_token(error: str) -> str:
    if "Authentication failed" in error:
        return "refused the token (HTTP 403): set RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH to the cluster's token"
    return (
        "wants a token (HTTP 401): set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN, or RAY_AUTH_TOKEN_PATH, to the cluster's"
    )


def head_resource(client: JobSubmissionClient) -> dict[str, float] | None:
    """What a driver reserves so that it runs on the head, which is not preempted: a little of the resource `head`, as
    cluster.yaml names it. None where there is none of that name: Ray's default is the head, too, but a cluster may have
    changed it."""
    try:
        heads = list_nodes(client.get_address(), filters=[("is_head_node", "=", True)])
    except (RayStateApiException, OSError):
        return None
    return {"head": 0.001} if any("head" in node.resources_total for node in heads) else None


def job_info(client: JobSubmissionClient, submission: str) -> Any:
    """What the cluster knows of a job: a ray.job_submission.JobDetails.

    Raises:
        UsageError: it knows none of that name, or no longer answers.
    """
    try:
        return client.get_job_info(submission)
    except RuntimeError as error:
        raise UsageError(f"{submission}: no such job at {client.get_address()}: see `ray job list`") from error
    except OSError as error:  # what requests raises, too
        raise UsageError(_lost(client, submission)) from error


def _lost(client: JobSubmissionClient, submission: str) -> str:
    return (
        f"{client.get_address()} no longer answers; the job goes on as long as its cluster does: "
        f"python -m jobs.submit --follow {submission}"
    )


def finished(client: JobSubmissionClient, submission: str, within: float) -> Any:
    """A job once it has ended; as it is where that takes longer, in s."""
    deadline = time.monotonic() + within
    while not (info := job_info(client, submission)).status.is_terminal() and time.monotonic() < deadline:
        time.sleep(_POLL_S)
    return info


def lines_until_answer(client: JobSubmissionClient, submission: str, within: float) -> Iterator[str]:
    """The log of a job that looks around first, as it grows; the last line is its answer.

    Args:
        within: the longest that is waited for it, in s.

    Raises:
        UsageError: the job has ended without an answer, or did not give it in time.
    """
    deadline, known = time.monotonic() + within, 0
    while True:
        info = job_info(client, submission)  # before its log, which is whole if it has ended by now
        log = client.get_job_logs(submission)
        lines = log[: log.rfind("\n") + 1].splitlines()  # the last one may still be written
        for line in lines[known:]:
            yield line
            if line.startswith(ANSWER):
                return
        known = len(lines)
        if info.status.is_terminal():
            said = [line for line in (log or info.message or "").splitlines() if line.strip()]
            raise UsageError(
                f"it ended before it could look around: {said[-1].strip() if said else 'it said nothing'}: see `ray "
                f"job logs {submission}`; where a module or python is missing, install uv.lock on every node, as "
                "cluster.yaml does, or say --uv"
            )
        if time.monotonic() > deadline:
            raise UsageError(
                f"no answer within {within:g} s, so it was stopped: see `ray job logs {submission}`: try again, or use "
                "an image that has uv.lock installed"
            )
        time.sleep(_POLL_S)


def forget(client: JobSubmissionClient, submission: str) -> None:
    """Remove a job that only looked around from Ray's list, once it has ended."""
    if finished(client, submission, within=_END_S).status.is_terminal():
        client.delete_job(submission)


def follow(client: JobSubmissionClient, submission: str, answered: bool = False) -> int:
    """Print a job's log until its end; returns the exit code of the job.

    Args:
        answered: only what comes after the answer of a job that looked around first.

    Raises:
        UsageError: there is no such job, or the connection is lost.
    """
    job_info(client, submission)
    try:
        asyncio.run(_print_log(client, submission, answered))
        info = finished(client, submission, within=60)  # the log may end a moment before the job does
    except (RuntimeError, aiohttp.ClientError) as error:
        raise UsageError(_lost(client, submission)) from error
    if info.status == JobStatus.SUCCEEDED:
        return DONE
    if info.status == JobStatus.STOPPED:
        print(f"{submission} was stopped")
        return TERMINATED
    if not info.status.is_terminal():
        raise UsageError(_lost(client, submission))
    if info.driver_exit_code is None:  # it never ran: its node died, or its environment could not be made
        print("\n".join(_harmless(line) for line in f"{submission} failed: {info.message}".splitlines()))
    return info.driver_exit_code or FAILED


def stop(client: JobSubmissionClient, submission: str) -> None:
    """Stop a job and wait until it has ended.

    Raises:
        UsageError: there is no such job, or it does not end.
    """
    job_info(client, submission)
    client.stop_job(submission)
    info = finished(client, submission, within=_STOP_S)
    if not info.status.is_terminal():
        raise UsageError(f"{submission}: has not ended yet: look again with --follow {submission}")
    print(f"{submission}: {info.status.lower()}")


async def _print_log(client: JobSubmissionClient, submission: str, answered: bool) -> None:
    log, shown = Log(), not answered
    async for text in client.tail_job_logs(submission):
        for line in log.readable(text):
            if line.startswith(ANSWER):
                shown = True
            elif shown:
                print(line, flush=True)


_COLOUR = r"(?:\x1b\[[0-9;]*m)*"
_COMMAND = re.compile(r"\x1b\[[0-9;]*m|[^\t -~\xa0-\U0010ffff]|[\u200b-\u200f\u2028-\u202e\u2066-\u2069]")
"""Of a terminal: colours, which stay, and all else that a log may tell it to do."""
_SPEAKER = re.compile(rf"{_COLOUR}\(\w+ pid=\d+[^)]*\){_COLOUR}\s*")
_BAR = re.compile(r"^[^|]*?(\d+)%\|[^|]*\|[^\[]*\[[^\]]*\]")


class Log:
    """A job's log for people. Progress bars are made for terminals, and Ray draws each anew around every line that any
    worker prints: of a bar that moves, a line for each tenth of its way is kept."""

    def __init__(self) -> None:
        self._rest = ""
        self._tenth: int | None = None

    def readable(self, text: str) -> Iterator[str]:
        """Whole lines, without the newline."""
        *lines, self._rest = (self._rest + text).replace("\r", "\n").split("\n")
        for line in lines:
            while bar := _BAR.match(line):  # what was printed next may stand behind it
                if self._tenth != (tenth := int(bar[1]) // 10):
                    self._tenth = tenth
                    yield _harmless(bar[0]).strip()
                line = line[bar.end() :]
            if line.strip() and not _SPEAKER.fullmatch(line):
                yield _harmless(line).rstrip()


def _harmless(line: str) -> str:
    """Without what moves the cursor, changes the title or the clipboard, or turns the reading: a log quotes whatever
    names and messages its job met."""
    return _COMMAND.sub(lambda found: found[0] if len(found[0]) > 1 else "", line)
