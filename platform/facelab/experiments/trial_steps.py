"""The jobs of a sweep's trial: its training, and the measuring of what that gave on test faces."""

import json
from dataclasses import dataclass
from typing import Any

from ray import tune
from ray.tune.integration.ray_train import TuneReportCallback

from facelab import storage
from facelab.config import build, flatten
from facelab.data.source import manifest_of
from facelab.errors import Occupied, StoreError, Untracked, UsageError
from facelab.evaluation.degradation import EVALUATE_LR
from facelab.evaluation.run import EVALUATE
from facelab.experiments.space import Point
from facelab.experiments.steps import Step, begin, prepared
from facelab.experiments.sweep_config import SweepConfig
from facelab.experiments.trials import State, Trial
from facelab.job import Job
from facelab.synthesis.job import SYNTHESIZE
from facelab.tracking.runs import JobRun
from facelab.training.config import TrainConfig
from facelab.training.job import check_inputs, train, training_plan
from facelab.training.update import NonFiniteLoss

_TESTS = {"debug": "debug", "paper": "paper"}
"""Preset of the trainings -> of the tests, where it is not demo."""


@dataclass(frozen=True)
class TrialSteps:
    """Makes them, in the driver and in the trial's own process."""

    config: SweepConfig
    tracking_uri: str
    run_id: str
    """Of the sweep."""
    gpu: bool

    def training(self, point: Point, seed: int, folder: str = "trials/none") -> TrainConfig:
        """Of a point.

        Raises:
            UsageError: its values cannot be together.
        """
        c = self.config
        values: dict[str, Any] = {"preset": c.trial_preset, "model": c.network, "seed": seed, "workers": c.workers}
        values |= {name: getattr(c, name) for name in ("hr", "hr_size", "scale", "max_rejected", "allow_enlarged")}
        values |= {"lr": c.lr} if c.train == "degrader" else {"pairs": c.pairs}
        values |= {"max_steps": c.max_steps} if c.max_steps else {}
        values |= {"resume": True, "checkpoint_minutes": 0.5}
        values |= self._recorded(folder)
        values["compute"] = {"cpus_per_worker": c.cpus_per_worker, "gpu": self.gpu}
        for option, value in point.items():
            group, _, name = option.rpartition(".")
            (values.setdefault(group, {}) if group else values)[name] = value
        return build(c.training, **values)

    def defaults(self) -> dict[str, Any]:
        """{dotted option: value} of a trial of which nothing is searched."""
        return flatten(json.loads(self.training({}, self.config.seed).model_dump_json()))

    def output(self, trial: Trial) -> str:
        """Where its training writes."""
        return storage.join(self.config.output, f"trials/{trial.name}")

    def step(self, trial: Trial) -> Step[TrainConfig]:
        """Its training, whose network is not registered."""
        folder = f"trials/{trial.name}"
        config = self.training(trial.point, trial.seed, folder)
        work = Job(self.config.job, self.config.training, _train, training_plan)
        return Step(folder, work, config, self._tags(trial))

    def run(self, trial: Trial) -> dict[str, Any] | None:
        """Train, in the trial's own process. What a restart would meet again is handed back, not raised."""
        try:
            step = self.step(trial)
            if prepared(step) is None:
                begin(step, self.run_id)
        except (Occupied, StoreError, Untracked):
            raise  # may pass; as a process of a driver that crashed, which needs some seconds to end
        except UsageError as error:
            return {"ended": State.REFUSED.value, "reason": str(error)}
        except NonFiniteLoss as error:
            return {"ended": State.DIVERGED.value, "reason": str(error)}
        return None

    def check_inputs(self) -> None:
        """
        Raises:
            UsageError: nothing there to train on, or to test on later.
        """
        check_inputs(self.training({}, self.config.seed))
        c = self.config
        for option, kinds in (("test", ("faces", "pairs") if c.train == "sr" else ("faces",)), ("real", ("faces",))):
            if uri := getattr(c, option):
                manifest_of(uri, *kinds)

    def tests(self, trial: Trial) -> list[Step]:
        """Measure what a finished trial gave on --test and --real; the last step has the numbers."""
        c, trained = self.config, self.output(trial)
        sizes = {name: getattr(c, name) for name in ("hr_size", "scale", "allow_enlarged")}
        if c.train == "sr":
            judged = {"test": c.test, "real": c.real, "reference": c.hr if c.real else None}
            return [self._test(trial, "evaluation", EVALUATE, model=trained, **sizes, **judged)]
        pairs = self._test(trial, "pairs", SYNTHESIZE, hr=c.test, lr=c.lr, degrader=trained, overwrite=True, **sizes)
        judged = {"real": c.real, "other": c.lr, "allow_enlarged": c.allow_enlarged}
        return [pairs, self._test(trial, "evaluation", EVALUATE_LR, pairs=pairs.config.output, **judged)]

    def _test(self, trial: Trial, name: str, job: Job, **values: Any) -> Step:
        folder = f"tests/{trial.name}/{name}"
        preset = _TESTS.get(self.config.trial_preset, "demo")
        config = build(job.config, preset=preset, seed=self.config.seed, **self._recorded(folder), **values)
        return Step(folder, job, config, self._tags(trial))

    def _recorded(self, folder: str) -> dict[str, Any]:
        c = self.config
        recorded = {"experiment": c.experiment, "tracking_patience": c.tracking_patience}
        return recorded | {"tracking_uri": self.tracking_uri, "output": storage.join(c.output, folder)}

    def _tags(self, trial: Trial) -> dict[str, str]:
        return {"sweep": self.run_id, "trial": trial.name, "variant": trial.variant}


def _train(config: TrainConfig, run: JobRun) -> dict[str, Any]:
    return train(config, run, ray_callbacks=[TuneReportCallback()] if config.workers else [], report=tune.report)
