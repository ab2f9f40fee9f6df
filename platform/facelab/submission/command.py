"""`python -m jobs.submit` as it is typed. What needs Ray, which takes seconds to import, waits until that is right."""

import argparse
import json
import sys
from collections.abc import Callable
from typing import Any

from facelab.config import parse, without_secret
from facelab.errors import UsageError
from facelab.job import DONE, INTERRUPTED, UNUSABLE, Job


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> Any:
        raise UsageError(f"{self.prog}: {message} (see --help)")


def _options(argv: list[str]) -> argparse.Namespace:
    parser = _Parser(
        prog="jobs.submit",
        usage="jobs.submit [options] -- JOB [options of the job]",
        description="Look what would stop a job on a Ray cluster, submit it, follow it to its end; exits as it does.",
        epilog="Ctrl-C ends the following, not the job. Credentials come from the environment of the nodes.",
    )
    parser.add_argument("--address", help="dashboard, http://HEAD:8265; default: RAY_API_SERVER_ADDRESS")
    parser.add_argument("--detach", action="store_true", help="return once the job is submitted")
    parser.add_argument("--check", action="store_true", help="look, and submit nothing")
    parser.add_argument("--uv", action="store_true", help="let uv install uv.lock on each node, where it is missing")
    parser.add_argument("--grows", action="store_true", help="wait for an autoscaler, where nothing tells of one")
    parser.add_argument("--follow", metavar="ID", help="follow a job that was submitted")
    parser.add_argument("--stop", metavar="ID", help="stop it: as SIGTERM does, and after 30 s for good")
    parser.add_argument("--look", help=argparse.SUPPRESS)  # on the cluster: versions of packages in the lock file
    return parser.parse_args(argv)


def main(argv: list[str], job_named: Callable[[str], Job]) -> int:
    """Run from the command line; returns the exit code.

    Args:
        job_named: the job of a name; raises UsageError for one that there is not.
    """
    cut = argv.index("--") if "--" in argv else len(argv)
    try:
        options, (name, *arguments) = _options(argv[:cut]), argv[cut + 1 :] or [""]
        if options.follow or options.stop:
            from facelab.submission import submit  # see above

            return submit.look_after(options)
        if not name:
            raise UsageError("jobs.submit: no job: write it behind --, as in -- train_sr --hr s3://… (see --help)")
        job = job_named(name)
        config = parse(job.config, arguments, f"jobs.{name}")
        if options.look:
            from facelab.submission.probe import probe  # see above

            if not probe(config, json.loads(options.look), options.grows):
                return UNUSABLE
            return DONE if options.check else job.main(arguments)
        from facelab.submission import submit  # see above

        return submit.submit(options, name, config, arguments)
    except UsageError as error:
        print(f"error: {without_secret(str(error))}", file=sys.stderr)
        return UNUSABLE
    except KeyboardInterrupt:
        print("jobs.submit: interrupted", file=sys.stderr)
        return INTERRUPTED
