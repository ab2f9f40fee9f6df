"""A job: what `python -m jobs.NAME` does, as a value. Around its work: parse, dry run, one MLflow run, config.yaml,
summary.json, exit code."""

import json
import math
import signal
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from facelab import storage
from facelab.config import JobConfig, parse, to_yaml, without_secret
from facelab.errors import CheckFailed, StoreError, UsageError

if TYPE_CHECKING:
    from facelab.tracking.nested import Nested
    from facelab.tracking.runs import JobRun

C = TypeVar("C", bound=JobConfig)

_RAYS_ADVICE = " Failed to apply UDF transform"
"""How that begins which Ray Data appends to what a task raises."""
DONE, FAILED, UNUSABLE, INTERRUPTED, TERMINATED = 0, 1, 2, 130, 143


@dataclass(frozen=True)
class Job(Generic[C]):
    """Something that can be run by itself, by the demo, or as the trial of a sweep."""

    name: str
    config: type[C]
    work: Callable[[C, "JobRun"], dict[str, Any]]
    """-> summary of final numbers."""
    plan: Callable[[C], str]
    """What --dry-run says would be done."""

    def main(self, argv: list[str] | None = None) -> int:
        """Run from the command line; returns the exit code."""
        before = signal.signal(signal.SIGTERM, _terminate)
        try:
            return self._main(sys.argv[1:] if argv is None else argv)
        finally:
            signal.signal(signal.SIGTERM, before)

    def _main(self, argv: list[str]) -> int:
        try:
            config = parse(self.config, argv, f"jobs.{self.name}")
            if config.dry_run:
                print(to_yaml(config) + f"# plan: {self.plan(config)}")
                return DONE
            summary = self.run(config)
        except KeyboardInterrupt:
            print(f"jobs.{self.name}: interrupted", file=sys.stderr)
            return INTERRUPTED
        except SystemExit as stop:
            # The second is Ray's, whose handler takes the place of ours.
            if stop.code not in (TERMINATED, signal.SIGTERM):
                raise  # --help
            print(f"jobs.{self.name}: terminated", file=sys.stderr)
            return TERMINATED
        except Exception as error:  # the one place where every error ends
            if (usage := _usage_error(error)) is not None:
                text = str(usage).splitlines()[0].split(_RAYS_ADVICE)[0]
                print(f"error: {without_secret(text)}", file=sys.stderr)
                # A store may be back for the next try.
                return FAILED if isinstance(usage, (CheckFailed, StoreError)) else UNUSABLE
            print(without_secret(traceback.format_exc()), file=sys.stderr)
            print(f"error: jobs.{self.name} failed: {without_secret(str(error))}", file=sys.stderr)
            return FAILED
        for key, value in summary.items():
            print(f"{key:32} {value:.6g}" if isinstance(value, float) else f"{key:32} {value}")
        print(f"{'written to':32} {config.output}")
        return DONE

    def run(self, config: C, nested: "Nested | None" = None) -> dict[str, Any]:
        """Run as one MLflow run, below another if it is `nested`; returns what summary.json holds."""
        from facelab.tracking.runs import job_run  # MLflow takes seconds to import: wrong options are told before

        config.check_files()
        config.check_output()
        with job_run(self.name, config, nested) as run:
            storage.delete(storage.join(config.output, "summary.json"))  # of an earlier run, which this one replaces
            storage.write_text(storage.join(config.output, "config.yaml"), to_yaml(config))
            summary = self.work(config, run) | {"mlflow_run_id": run.id}
            # JSON knows no infinity, which is the PSNR of equal images.
            plain = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in summary.items()}
            text = json.dumps(plain, indent=2)
            storage.write_text(storage.join(config.output, "summary.json"), text)
            run.conclude(summary, text)
        return summary


def _terminate(*_: object) -> None:
    """Of a job that is stopped, a pod that is evicted, a spot node that is taken: ends as an interrupted one does."""
    sys.exit(TERMINATED)


def _usage_error(error: BaseException | None) -> UsageError | None:
    """The user's error, also from inside the wrappers that Ray puts around what its workers raise; or a full disk."""
    while error is not None:
        if isinstance(error, OSError) and (hint := storage.hint_for(error)):
            return StoreError(f"{error}: {hint}")
        if hasattr(error, "cause"):  # RayTaskError: also an instance of what it wraps, but its text is a traceback
            error = error.cause
        elif isinstance(error, UsageError):
            return error
        else:
            error = error.__cause__
    return None
