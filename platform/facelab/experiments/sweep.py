"""Ray Tune over loss weights and ablation switches: each trial is a step of its own. Only this file imports Tune."""

import json
import math
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field, model_validator
from ray import tune
from ray.tune.integration.ray_train import TuneReportCallback

from facelab import storage
from facelab.cluster import ray_session, require_room, room
from facelab.config import JobConfig, Uri, build, preset_values
from facelab.errors import UsageError
from facelab.experiments.steps import Step
from facelab.job import Job
from facelab.tracking.logger import RunLogger
from facelab.tracking.runs import JobRun, end_stopped_trials
from facelab.training.config import TrainConfig
from facelab.training.degrader import DegraderStage, TrainDegraderConfig
from facelab.training.job import check_inputs, training_plan
from facelab.training.launch import run_training
from facelab.training.sr import SRStage, TrainSRConfig
from models.stylevae_loss import LossWeights

_DRIVER_CPU = 0.01
"""What a trial itself reserves when Ray Train workers do its work. Tune does not see their placement groups: with
whole-CPU drivers, trials would hold all CPUs and wait for ever for their workers."""


class SweepConfig(JobConfig):
    """Search the loss weights, or run an ablation grid, with early stopping (ASHA) and repeated seeds."""

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        "debug": {"samples": 2, "max_steps": 4, "grace_steps": 2},
        "demo": {"samples": 4, "max_steps": 120, "grace_steps": 40},
        "paper": {},
    }

    space: Literal["weights", "stylevae", "attention"] = "weights"
    """weights: λ1–λ3, α, β of the styleVAE, log-uniform around the preset's; stylevae: AdaIN x MI (Table 3);
    attention: GA x LA of the attentive network on bicubic LR (Table 4)."""
    hr: Uri
    """URI of sharp training faces."""
    lr: Uri | None = None
    """URI of real low-resolution training faces; the styleVAE spaces need it."""
    samples: int = Field(default=20, ge=1)
    """Points of the space `weights`; the grids have four."""
    seeds: int = Field(default=1, ge=1)
    """Every point is trained with so many seeds: seed, seed + 1, …"""
    factor: float = Field(default=10, gt=1)
    """Weights are drawn between the preset's divided and multiplied by this."""
    max_steps: int | None = Field(default=None, ge=1)
    """Steps of a trial that is not stopped early; default: the training preset's."""
    early_stopping: bool | None = None
    """ASHA. None: only for `weights`; an ablation compares networks that were all trained to the end."""
    grace_steps: int = Field(default=200, ge=1)
    """ASHA stops no trial before this step."""
    reduction: int = Field(default=3, ge=2)
    """ASHA keeps one trial in so many at each rung."""
    workers: int = Field(default=0, ge=0)
    """Ray Train workers of each trial; 0 trains in the trial's own process."""
    cpus_per_trial: float = Field(default=1, gt=0)
    """CPUs of a trial without Ray Train workers; with them, of each worker."""

    def check_output(self) -> None:
        super().check_output()
        if storage.exists(storage.join(self.output, "trials")):
            raise UsageError(f"{self.output}: has trials of an earlier sweep: choose another --output")

    @model_validator(mode="after")
    def _lr_given(self):
        if self.space != "attention" and self.lr is None:
            raise ValueError(f"space {self.space} trains a styleVAE and needs --lr")
        return self


def trial_table(config: SweepConfig) -> list[dict[str, Any]]:
    """Every trial: its name and the options that it sets. A function of the config alone."""
    points: list[tuple[str, dict[str, Any]]] = []
    if config.space == "weights":
        centre = preset_values(TrainDegraderConfig, config.preset, {}).get("weights", {})
        base = LossWeights(**centre)
        for i in range(config.samples):
            rng = np.random.default_rng((config.seed, i))
            weights = {name: float(value * config.factor ** rng.uniform(-1, 1)) for name, value in vars(base).items()}
            points.append((f"weights-{i:03d}", {"weights": weights}))
    else:
        for first in (False, True):
            for second in (False, True):
                signs = f"{'+' if first else '-'}{{}}{'+' if second else '-'}{{}}"
                if config.space == "stylevae":
                    options: dict[str, Any] = {"stylevae": {"use_adain": first}}
                    if not second:
                        options["weights"] = {"lambda_mi": 0.0}
                    points.append((signs.format("adain", "mi"), options))
                else:
                    switches = {"use_global": first, "use_local": second}
                    points.append((signs.format("ga", "la"), {"attentive": switches}))
    return [
        {"name": f"{name}-seed{config.seed + s}", "point": name, "seed": config.seed + s, "options": options}
        for name, options in points
        for s in range(config.seeds)
    ]


def trial_step(config: SweepConfig, trial: dict[str, Any], tracking_uri: str) -> Step[TrainConfig]:
    """The training of one trial, whose network is not registered."""
    kind: type[TrainConfig] = TrainSRConfig if config.space == "attention" else TrainDegraderConfig
    values = trial["options"] | {"preset": config.preset, "hr": config.hr, "seed": trial["seed"]}
    folder = f"trials/{trial['name']}"
    values |= {"output": storage.join(config.output, folder)}
    values |= {"tracking_uri": tracking_uri, "experiment": config.experiment, "workers": config.workers}
    values |= {"model": "attentive"} if kind is TrainSRConfig else {"model": "stylevae", "lr": config.lr}
    values |= {"max_steps": config.max_steps} if config.max_steps else {}
    values["checkpoint_every"] = 10**9  # only at the ends of epochs, where the metric is known: ASHA needs it
    values["compute"] = {"cpus_per_worker": config.cpus_per_trial}
    return Step(folder, Job(trial["name"], kind, _train, training_plan), build(kind, **values))


def _train(config: TrainConfig, run: JobRun) -> dict[str, Any]:
    if config.workers:
        return run_training(config, lambda: run.logger(config.output), ray_callbacks=[TuneReportCallback()])
    return run_training(config, lambda: _TuneLogger(run.uri, run.id, config.output))


class _TuneLogger(RunLogger):
    """Also tells Tune, for a trial that trains in its own process."""

    def metrics(self, step: int, values: dict[str, float]) -> None:
        super().metrics(step, values)
        validated = {name.removeprefix("val/"): value for name, value in values.items() if name.startswith("val/")}
        if validated:
            self.flush()  # Tune may end this process at its report
            tune.report(validated | {"step": step})


def _concurrent_trials(config: SweepConfig) -> int:
    """How many trials the cluster holds at once.

    Raises:
        UsageError: not even one.
    """
    needed, has = config.cpus_per_trial * max(config.workers, 1), room().get("CPU", 0)
    drivers = _DRIVER_CPU * 16 if config.workers else 0
    what = f"a trial (--workers {config.workers}, --cpus-per-trial {config.cpus_per_trial:g}) needs"
    require_room(what, {"CPU": needed + drivers}, "one of them")
    return max(math.floor((has - drivers) / needed), 1)


def sweep(config: SweepConfig, run: JobRun) -> dict[str, Any]:
    """Run every trial of the table; returns the summary and writes OUTPUT/trials.json.

    Raises:
        UsageError: unusable inputs, or trials that can never start.
        RuntimeError: every trial failed.
    """
    trials = trial_table(config)
    first = trial_step(config, trials[0], run.uri).config
    check_inputs(first)
    metric, mode = SRStage.selection if config.space == "attention" else DegraderStage.selection
    # The dashboard carries the State API, without which Ray Train never frees the workers of a stopped trial.
    with ray_session(dashboard=config.workers > 0):
        results = _fit(config, trials, run, first.max_steps or 10**9, metric, mode)
    rows = [_row(result, metric) for result in results]
    stopped = end_stopped_trials(run.uri, config.experiment, run.id, {row["name"] for row in rows if row["error"]})
    done = [row for row in rows if row["error"] is None and row[metric] is not None]
    storage.write_text(storage.join(config.output, "trials.json"), json.dumps(rows, indent=2))
    run.text(json.dumps(rows, indent=2), "trials.json")
    if not done:
        raise RuntimeError(f"every trial failed; the first: {rows[0]['error']}")
    for row in sorted(done, key=lambda row: row[metric], reverse=mode == "max"):
        print(f"{row['name']:32} {metric} {row[metric]:.5g}  steps {row['steps']}")
    # A trial that was stopped early had fewer steps: its metric is no match for the others'.
    most = max(row["steps"] for row in done)
    whole = [row for row in done if row["steps"] == most]
    best = (min if mode == "min" else max)(_points(whole, metric), key=lambda point: point[1])
    counts = {"n_trials": len(rows), "n_failed": len(rows) - len(done), "n_stopped_early": stopped}
    return {"best_point": best[0], f"best_{metric}": best[1], **counts}


def _fit(
    config: SweepConfig, trials: list[dict[str, Any]], run: JobRun, longest: int, metric: str, mode: str
) -> tune.ResultGrid:
    tracking_uri, parent = run.uri, run.id

    def train_trial(params: dict[str, Any]) -> None:
        step = trial_step(config, params["trial"], tracking_uri)
        step.job.run(step.config, parent=parent)

    filesystem, path = storage.resolve(config.output)
    cpus = _DRIVER_CPU if config.workers else config.cpus_per_trial
    tuner = tune.Tuner(
        tune.with_resources(train_trial, {"CPU": cpus}),
        param_space={"trial": tune.grid_search(trials)},
        tune_config=tune.TuneConfig(
            metric=metric,
            mode=mode,
            max_concurrent_trials=_concurrent_trials(config),
            scheduler=_scheduler(config, longest),
        ),
        run_config=tune.RunConfig(
            name=f"tune-{parent[:8]}", storage_path=path, storage_filesystem=filesystem, verbose=1
        ),
    )
    return tuner.fit()


def _scheduler(config: SweepConfig, longest: int) -> tune.schedulers.TrialScheduler:
    if not (config.space == "weights" if config.early_stopping is None else config.early_stopping):
        return tune.schedulers.FIFOScheduler()
    return tune.schedulers.ASHAScheduler(
        time_attr="step",
        max_t=longest + 1,  # at max_t it would kill a trial that is about to end by itself
        grace_period=min(config.grace_steps, longest),
        reduction_factor=config.reduction,
    )


def _row(result: Any, metric: str) -> dict[str, Any]:
    trial, metrics = result.config["trial"], result.metrics or {}
    error = str(result.error).splitlines()[-1] if result.error else None
    return {**trial, metric: metrics.get(metric), "steps": metrics.get("step"), "error": error}


def _points(rows: list[dict[str, Any]], metric: str) -> list[tuple[str, float]]:
    """Mean of the metric over the seeds of each point."""
    names = dict.fromkeys(row["point"] for row in rows)
    return [(name, float(np.mean([row[metric] for row in rows if row["point"] == name]))) for name in names]


def sweep_plan(config: SweepConfig) -> str:
    trials = trial_table(config)
    lines = [f"{trial['name']}: {trial['options']}" for trial in trials[:40]]
    return f"{len(trials)} trials below {config.output}/trials:\n#   " + "\n#   ".join(lines)


SWEEP = Job("sweep", SweepConfig, sweep, sweep_plan)
