"""Steps that need each other: those that do not, at the same time on Ray."""

import sys
from collections.abc import Sequence
from graphlib import TopologicalSorter
from typing import Any

import ray

from facelab import storage
from facelab.cluster import cluster_environment, driver_resources
from facelab.config import ActorConfig, places
from facelab.evaluation.degradation import EvaluateLRConfig
from facelab.experiments.steps import Done, Step, run_step
from facelab.training.config import TrainConfig


def needs(steps: Sequence[Step]) -> dict[str, set[str]]:
    """Folder of each step -> folders of the steps whose output it takes in."""
    return {
        step.folder: {
            other.folder
            for _, uri in places(step.config)
            for other in steps
            if other is not step and storage.within(uri, other.config.output)
        }
        for step in steps
    }


def run_graph(steps: Sequence[Step], parent: str, at_once: int) -> dict[str, Done]:
    """Run the steps, each of which stands after what it needs, as runs nested below `parent`, up to so many at the same
    time: one in this process, several as tasks of the Ray that is connected. Folder -> what became of it.

    What was finished before is not run again: see steps.run_steps.

    Raises:
        Exception: of the first step that failed, once those that ran beside it have ended; what is finished is kept.
    """
    for step in steps:  # before anything is deleted
        step.config.check_files()
    done: dict[str, Done] = {}

    def told(folder: str, result: Done) -> None:
        done[folder] = result
        print(f"── {len(done)} of {len(steps)}: {folder}", file=sys.stderr, flush=True)

    if at_once == 1:
        for step in steps:
            told(step.folder, run_step(step, parent))
        return done
    by_folder = {step.folder: step for step in steps}
    waiting = TopologicalSorter(needs(steps))
    waiting.prepare()
    ready, running = list(waiting.get_ready()), {}
    failed: Exception | None = None
    while running or (ready and failed is None):
        while ready and failed is None and len(running) < at_once:
            folder = ready.pop(0)
            running[_task(by_folder[folder]).remote(by_folder[folder], parent)] = folder
        (ended, *_), _ = ray.wait(list(running))
        folder = running.pop(ended)
        try:
            told(folder, ray.get(ended))
            waiting.done(folder)
            ready += waiting.get_ready()
        except Exception as error:  # raised below
            failed = failed or error
    if failed is not None:
        raise failed
    return done


def _task(step: Step) -> Any:
    """What runs a step on Ray: with a CPU, and a GPU where it wants one, if it computes in its own process."""
    config = step.config
    options: dict[str, Any] = {"num_cpus": 0, "resources": driver_resources()}
    if isinstance(config, TrainConfig) and not config.workers:
        options = {"num_cpus": config.compute.cpus_per_worker, "num_gpus": float(bool(config.compute.gpu))}
    elif isinstance(config, EvaluateLRConfig) or (isinstance(config, ActorConfig) and not config.actors):
        options = {"num_cpus": 1}
    if environment := cluster_environment():
        options["runtime_env"] = {"env_vars": environment}
    return ray.remote(**options)(run_step)
