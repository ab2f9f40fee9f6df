"""What the trainings of an experiment would cost here: a few steps of each are made, on drawn faces."""

import tempfile
from collections.abc import Sequence
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from facelab.experiments.steps import Step
from facelab.reports.terminal import duration
from facelab.samples.faces import sample_face
from facelab.training.config import TrainConfig
from facelab.training.timing import timed

_HELD_OUT = 16
"""More drawn faces than a batch has, as some are held out."""


def estimated(steps: Sequence[Step]) -> str:
    """A line for each training, and the sum of those whose number of updates is known; what is no training is counted,
    and not timed."""
    trainings = [step for step in steps if isinstance(step.config, TrainConfig)]
    known: dict[str, float] = {}
    lines, total = [], 0.0
    for step in tqdm(trainings, desc="timing some steps of each training", unit="training", leave=False):
        config = step.config
        like = str({name: v for name, v in config.settings().items() if name not in ("seed", "hr", "lr", "pairs")})
        if like not in known:
            known[like] = seconds_per_step(config)
        each = f"of {known[like]:.3g} s  {step.folder}"
        if config.max_steps:
            total += known[like] * config.max_steps
            lines.append(f"#   {duration(known[like] * config.max_steps):>12}  {config.max_steps} steps {each}")
        else:  # as many as there are faces
            lines.append(
                f"#   {'?':>12}  {config.epochs} epochs, of each {config.images_per_update} faces a step {each}"
            )
    others = len(steps) - len(trainings)
    whole = "all trainings" if all(step.config.max_steps for step in trainings) else "the trainings of known length"
    return "\n".join([
        "# cost on this machine, one after another:", *lines,
        f"#   {duration(total):>12}  {whole}; {others} other steps (faces, synthesis, evaluation) are not timed",
    ])  # fmt: skip


def seconds_per_step(config: TrainConfig) -> float:
    """Of one update of a training like this one, in this process."""
    with tempfile.TemporaryDirectory(prefix="facelab-") as folder:
        faces = Path(folder) / "faces"
        faces.mkdir()
        for i in range(_HELD_OUT + 2 * config.images_per_update):
            Image.fromarray(sample_face(0, i, config.hr_size)).save(faces / f"{i:03d}.png")
        own = {name: str(faces) for name in ("hr", "lr") if getattr(config, name)}
        # On bicubic pairs, as others cost the same.
        given = own | ({"hr": str(faces), "pairs": None} if getattr(config, "pairs", None) else {})
        given |= {"output": f"{folder}/out", "cache_folder": f"{folder}/cache", "init_from": None, "watch": None}
        return timed(config.model_copy(update=given))
