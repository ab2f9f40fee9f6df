"""Ray Tune over loss weights and ablation switches: each trial is a step of its own. Only this file imports Tune."""

import json
import math
import os
import sys
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field, model_validator
from ray import tune
from ray.tune.integration.ray_train import TuneReportCallback

from facelab import storage
from facelab.cluster import on_cluster, ray_session, require_room, room
from facelab.config import Uri, build, preset_values
from facelab.data.faces import LimitsConfig
from facelab.errors import StoreError, UsageError
from facelab.experiments.steps import Step
from facelab.job import Job
from facelab.tracking.runs import JobRun, end_stopped_trials
from facelab.training.config import TrainConfig
from facelab.training.degrader import DegraderStage, TrainDegraderConfig
from facelab.training.job import check_inputs, train, training_plan
from facelab.training.sr import SRStage, TrainSRConfig
from facelab.training.update import NonFiniteLoss
from models.stylevae_loss import LossWeights

_DRIVER = 0.01
"""What a trial itself reserves when Ray Train workers do its work, of a CPU, or of the resource `head` where a cluster
has one: the workers' controller is pinned to the driver's node and dies with it. Tune does not see the placement groups
of the workers: with whole-CPU drivers, trials would hold all CPUs and wait for ever for them."""


_WEIGHTS = ("lambda_kl", "lambda_style", "lambda_mi", "alpha", "beta")
"""Of Eq. 2 and 6."""


class SweepConfig(LimitsConfig):
    """Search the loss weights, or run an ablation grid, with early stopping (ASHA) and repeated seeds."""

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        "debug": {"samples": 2, "max_steps": 4, "grace_steps": 2},
        "demo": {"samples": 4, "max_steps": 120, "grace_steps": 40},
        "paper": {},
    }

    WRITES = (*LimitsConfig.WRITES, "trials.json")

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
    gpus_per_trial: float | None = Field(default=None, ge=0, le=1)
    """GPUs of a trial, a fraction shares one; with Ray Train workers, of each worker, 0 or 1. None: one if there are
    enough now, which a cluster that grows from nothing never has."""
    concurrent_trials: int | None = Field(default=None, ge=1)
    """At most so many trials at once. None: with Ray Train workers, as many as there is room for now; without, as many
    as find room, for which a cluster grows."""

    def check_output(self) -> None:
        super().check_output()
        if storage.exists(storage.join(self.output, "trials")):
            raise UsageError(f"{self.output}: has trials of an earlier sweep: choose another --output")

    @model_validator(mode="after")
    def _lr_given(self):
        if self.space != "attention" and self.lr is None:
            raise ValueError(f"space {self.space} trains a styleVAE and needs --lr")
        return self

    @model_validator(mode="after")
    def _whole_gpus(self):
        if self.workers and self.gpus_per_trial not in (None, 0, 1):
            raise ValueError(f"gpus_per_trial {self.gpus_per_trial:g}: Ray Train workers do not share GPUs: 0 or 1")
        return self


def training_preset(config: SweepConfig) -> str:
    """Of the trials: weights and switches of the styleVAE are the paper's, which a camera does without."""
    return "paper_mini" if config.preset == "demo" and config.space != "attention" else config.preset


def trial_table(config: SweepConfig) -> list[dict[str, Any]]:
    """Every trial: its name and the options that it sets. A function of the config alone."""
    points: list[tuple[str, dict[str, Any]]] = []
    if config.space == "weights":
        centre = preset_values(TrainDegraderConfig, training_preset(config), {}).get("weights", {})
        base = LossWeights(**centre)
        for i in range(config.samples):
            rng = np.random.default_rng((config.seed, i))
            weights = {name: float(getattr(base, name) * config.factor ** rng.uniform(-1, 1)) for name in _WEIGHTS}
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


def trial_step(config: SweepConfig, trial: dict[str, Any], tracking_uri: str, gpu: bool) -> Step[TrainConfig]:
    """The training of one trial, whose network is not registered."""
    kind: type[TrainConfig] = TrainSRConfig if config.space == "attention" else TrainDegraderConfig
    values = trial["options"] | {"preset": training_preset(config), "hr": config.hr, "seed": trial["seed"]}
    folder = _folder(trial)
    values |= {"output": storage.join(config.output, folder)}
    values |= {"tracking_uri": tracking_uri, "experiment": config.experiment, "workers": config.workers}
    values |= {"model": "attentive"} if kind is TrainSRConfig else {"model": "stylevae", "lr": config.lr}
    values |= {"max_steps": config.max_steps} if config.max_steps else {}
    values |= {"max_rejected": config.max_rejected, "allow_enlarged": config.allow_enlarged}
    values |= {"resume": True, "checkpoint_minutes": 0.5}  # what Tune restarts goes on
    values["compute"] = {"cpus_per_worker": config.cpus_per_trial, "gpu": gpu}
    return Step(folder, Job(trial["name"], kind, _train, training_plan), build(kind, **values))


def _folder(trial: dict[str, Any]) -> str:
    """In the output of the sweep."""
    return f"trials/{trial['name']}"


def _train(config: TrainConfig, run: JobRun) -> dict[str, Any]:
    return train(config, run, ray_callbacks=[TuneReportCallback()] if config.workers else [], report=tune.report)


def _gpus(config: SweepConfig) -> float:
    """GPUs of a trial, or of each of its workers."""
    enough = room().get("GPU", 0) >= max(config.workers, 1)
    return float(enough) if config.gpus_per_trial is None else config.gpus_per_trial


def _reserved(config: SweepConfig, gpus: float) -> dict[str, float]:
    """What Tune reserves for a trial."""
    if config.workers:
        return {"head" if "head" in room() else "CPU": _DRIVER}
    return {"CPU": config.cpus_per_trial, "GPU": gpus}


def _concurrent_trials(config: SweepConfig, gpus: float, trials: int) -> int | None:
    """How many trials may run at once; None leaves it to Tune, which sees what trials without workers reserve.

    Raises:
        UsageError: this machine has no room for one.
    """
    workers = max(config.workers, 1)
    needed = {"CPU": workers * config.cpus_per_trial, "GPU": workers * gpus}
    if config.workers:
        needed["CPU"] += _reserved(config, gpus).get("CPU", 0)
    sizes = f"--workers {config.workers}, --cpus-per-trial {config.cpus_per_trial:g}, --gpus-per-trial {gpus:g}"
    require_room(f"a trial ({sizes}) needs", needed, "one of them")
    if not config.workers or (config.concurrent_trials and on_cluster()):
        return config.concurrent_trials
    fit = max(min(math.floor(room().get(name, 0) / amount) for name, amount in needed.items() if amount), 1)
    if on_cluster() and fit < trials:
        print(f"{fit} of {trials} trials at a time, as the cluster is now: see --concurrent-trials", file=sys.stderr)
    return min(fit, config.concurrent_trials or fit)


def sweep(config: SweepConfig, run: JobRun) -> dict[str, Any]:
    """Run every trial of the table; returns the summary and writes OUTPUT/trials.json.

    Raises:
        UsageError: unusable inputs, also of every trial alone, or trials that can never start.
        RuntimeError: every trial failed.
    """
    trials = trial_table(config)
    first = trial_step(config, trials[0], run.uri, gpu=False).config
    check_inputs(first)
    outputs = {trial["name"]: storage.join(config.output, _folder(trial)) for trial in trials}
    metric, mode = SRStage.selection if config.space == "attention" else DegraderStage.selection
    try:
        # The dashboard carries the State API, without which Ray Train never frees the workers of a stopped trial.
        with ray_session(dashboard=config.workers > 0):
            results = _fit(config, trials, run, first, metric, mode)
    except BaseException:  # an interruption, too
        end_stopped_trials(run.uri, config.experiment, run.id, outputs, interrupted=True)
        raise
    rows = [_row(result, metric) for result in results]
    storage.write_text(storage.join(config.output, "trials.json"), json.dumps(rows, indent=2))
    crashed = {row["name"] for row in rows if row["error"]}
    stopped = end_stopped_trials(run.uri, config.experiment, run.id, outputs, crashed)
    done = [row for row in rows if row[metric] is not None]
    run.text(json.dumps(rows, indent=2), "trials.json")
    if not done:
        unusable = all((result.metrics or {}).get("unusable") for result in results)
        raise (UsageError if unusable else RuntimeError)(f"every trial failed; the first: {rows[0]['error']}")
    for row in sorted(done, key=lambda row: row[metric], reverse=mode == "max"):
        print(f"{row['name']:32} {metric} {row[metric]:.5g}  steps {row['steps']}")
    best, value, seeds = best_point(done, metric, mode)
    if seeds < config.seeds:
        print(f"no point finished all of its {config.seeds} seeds: the best is one of those that finished {seeds}")
    counts = {"n_trials": len(rows), "n_failed": len(rows) - len(done), "n_stopped_early": stopped}
    return {"best_point": best, f"best_{metric}": value, "best_point_seeds": seeds, **counts}


def _fit(
    config: SweepConfig, trials: list[dict[str, Any]], run: JobRun, first: TrainConfig, metric: str, mode: str
) -> tune.ResultGrid:
    tracking_uri, parent = run.uri, run.id
    gpus = _gpus(config)
    cluster = {"RAY_ADDRESS": os.environ["RAY_ADDRESS"]} if on_cluster() else {}

    def train_trial(params: dict[str, Any]) -> dict[str, Any] | None:
        os.environ.update(cluster)  # Ray's processes are not told, and a training would think that it cannot grow
        step = trial_step(config, params["trial"], tracking_uri, gpu=gpus > 0)
        try:
            step.job.run(step.config, parent=parent)
        except StoreError:
            raise  # may pass
        except (UsageError, NonFiniteLoss) as error:  # handed back, not raised: a restart would meet it again
            return {metric: math.nan, "error": str(error), "unusable": isinstance(error, UsageError)}
        return None

    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"  # which would take Ctrl-C for the end of the sweep, and return
    filesystem, path = storage.resolve(config.output)
    tuner = tune.Tuner(
        tune.with_resources(train_trial, _reserved(config, gpus)),
        param_space={"trial": tune.grid_search(trials)},
        tune_config=tune.TuneConfig(
            metric=metric,
            mode=mode,
            max_concurrent_trials=_concurrent_trials(config, gpus, len(trials)),
            scheduler=_scheduler(config, first.max_steps or 10**9),
        ),
        run_config=tune.RunConfig(
            name=f"tune-{parent[:8]}",
            storage_path=path,
            storage_filesystem=filesystem,
            # Ray Train restarts workers by itself.
            failure_config=tune.FailureConfig(max_failures=0 if config.workers else first.compute.max_failures),
            verbose=1,
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
    error = str(result.error).splitlines()[-1] if result.error else metrics.get("error")
    return {**trial, metric: None if error else metrics.get(metric), "steps": metrics.get("step"), "error": error}


def best_point(rows: list[dict[str, Any]], metric: str, mode: str) -> tuple[str, float, int]:
    """The point with the best mean of the metric over its seeds: name, mean, and how many seeds it has.

    One lucky seed proves nothing: only the points with the most finished seeds compete. And a trial that was stopped
    early had fewer steps: its metric is no match for the others'.
    """
    most = max(row["steps"] for row in rows)
    values: dict[str, list[float]] = {}
    for row in rows:
        if row["steps"] == most:
            values.setdefault(row["point"], []).append(row[metric])
    seeds = max(map(len, values.values()))
    means = {point: float(np.mean(each)) for point, each in values.items() if len(each) == seeds}
    best = (min if mode == "min" else max)(means, key=lambda point: means[point])
    return best, means[best], seeds


def sweep_plan(config: SweepConfig) -> str:
    trials = trial_table(config)
    lines = [f"{trial['name']}: {trial['options']}" for trial in trials[:40]]
    return (
        f"{len(trials)} trials of preset {training_preset(config)} below {config.output}/trials:\n#   "
        + "\n#   ".join(lines)
    )


SWEEP = Job("sweep", SweepConfig, sweep, sweep_plan)
