"""What has to be trained, synthesised and measured for each table and figure of the paper, each thing once."""

from dataclasses import dataclass, replace
from typing import Any, Literal

from facelab import storage
from facelab.evaluation.degradation import EVALUATE_LR
from facelab.evaluation.run import EVALUATE
from facelab.experiments import paper
from facelab.experiments.faces import FaceSets, experiment_step, face_sets, face_steps
from facelab.experiments.paper import FID, PSNR, SSIM, Column
from facelab.experiments.reproduce_config import ReproduceConfig
from facelab.experiments.steps import Step
from facelab.job import Job
from facelab.reports.report import REPORT
from facelab.synthesis.job import SYNTHESIZE
from facelab.training.config import TrainConfig
from facelab.training.job import TRAIN_DEGRADER, TRAIN_SR

COMPARED = {"SRCNN": "srcnn", "SRGAN": "srgan", "VDSR": "vdsr", "EDSR": "edsr", "RDN": "rdn"}
"""Methods that are trained on bicubic LR."""
_SIZES = (64, 128)
"""Sides of Table 4's faces, px: the paper does not say; its level of PSNR is that of 128."""


@dataclass(frozen=True)
class Cell:
    """A number of a table, of one seed."""

    row: str
    column: Column
    printed: float | None
    """The paper's."""
    folder: str
    """Of the evaluation that measures it."""
    suffix: str = ""
    """Of the metric's name in its summary."""
    network: str = ""
    """That is judged, as the paper names it; empty: none that is trained."""


class Chain:
    """The steps of an experiment, in the order in which they are asked for, each once."""

    def __init__(self, config: ReproduceConfig, tracking_uri: str, seed: int):
        self.config, self.seed, self.steps = config, seed, dict[str, Step]()
        self._tracking_uri = tracking_uri

    def faces(self, hr_size: int = _SIZES[0]) -> FaceSets:
        """Drawn faces are of one size; of one's own, larger ones do for both."""
        own = self.config.hr is not None
        folder = "" if own or hr_size == _SIZES[0] else str(hr_size)
        for step in face_steps(self.config, self._tracking_uri, folder, _SIZES[0] if own else hr_size):
            self.steps.setdefault(step.folder, step)
        return face_sets(self.config, folder)

    def add(self, folder: str, job: Job, **values: Any) -> str:
        """Where the step of that folder, below the seed's, writes."""
        c, values = self.config, {"seed": self.seed} | values
        if issubclass(job.config, TrainConfig):
            values |= {"workers": c.workers, "compute": {"gpu": c.gpu}}
            values |= {"max_steps": steps} if (steps := c.steps_of(job.config.kind)) else {}
        place = self.place(folder)
        self.steps.setdefault(place, experiment_step(c, self._tracking_uri, place, job, **values))
        return storage.join(c.output, place)

    def place(self, folder: str) -> str:
        """The step's whole folder: of the seed's."""
        return f"seed{self.seed}/{folder}"

    def stylevae(self) -> str:
        faces = self.faces()
        return self.add("stylevae", TRAIN_DEGRADER, model="stylevae", hr=faces.hr, lr=faces.lr)

    def pairs(self, of: str, degrader: str, name: str) -> str:
        """LR of `of` by a trained degrader."""
        return self.add(f"pairs/{name}", SYNTHESIZE, hr=of, lr=self.faces().lr, degrader=degrader)

    def sr(self, model: str, kind: Literal["B", "S", "H"]) -> str:
        """A network trained on bicubic (B), styleVAE (S) or Bulat's High-to-Low LR (H)."""
        data = {"B": self.bicubic_lr, "S": self.stylevae_lr, "H": self.high_to_low_lr}[kind]()
        return self.add(f"sr/{model}-{kind.lower()}", TRAIN_SR, model=model, **data)

    def bicubic_lr(self) -> dict[str, str]:
        """Options of train_sr."""
        return {"hr": self.faces().hr}

    def stylevae_lr(self) -> dict[str, str]:
        """Options of train_sr."""
        return {"pairs": self.pairs(self.faces().hr, self.stylevae(), "stylevae")}

    def high_to_low_lr(self) -> dict[str, str]:
        """Options of train_sr."""
        faces = self.faces()
        degrader = self.add("high-to-low", TRAIN_DEGRADER, model="bulat", hr=faces.hr, lr=faces.lr)
        return {"pairs": self.pairs(faces.hr, degrader, "high-to-low")}

    def measured(self, model: str, name: str) -> str:
        """Folder of the evaluation of a network on styleVAE LR of the test faces, and on real faces."""
        faces = self.faces()
        test = self.pairs(faces.test_hr, self.stylevae(), "test")
        judged = {"test": test, "real": faces.real, "reference": faces.hr}
        self.add(f"evaluation/{name}", EVALUATE, model=model, **judged, **self.config.judge)
        return self.place(f"evaluation/{name}")


def table1(chain: Chain) -> list[Cell]:
    """Every method, in its own way; ours on styleVAE pairs."""
    folders = {"BICUBIC": chain.measured("bicubic", "bicubic")}
    folders |= {title: _trained(chain, model, "B") for title, model in COMPARED.items()}
    folders |= {"Bulat": _trained(chain, "bulat", "H"), "Ours": _trained(chain, "attentive", "S")}
    return [
        Cell(title, column, value, folders[title], network="" if title == "BICUBIC" else title)
        for title, printed in paper.TABLE_1.items()
        for column, value in zip((PSNR, SSIM, FID), printed, strict=True)
    ]


def _trained(chain: Chain, model: str, kind: Literal["B", "S", "H"]) -> str:
    """Folder of the evaluation of a network that is trained on LR of a kind."""
    return chain.measured(chain.sr(model, kind), f"{model}-{kind.lower()}")


def table2(chain: Chain) -> list[Cell]:
    """Plug and play: SRCNN and EDSR on styleVAE pairs instead of bicubic ones."""
    networks: dict[str, tuple[str, Literal["B", "S"]]] = {
        "SRCNN-B": ("srcnn", "B"), "EDSR-B": ("edsr", "B"), "SRCNN-S": ("srcnn", "S"), "EDSR-S": ("edsr", "S"),
    }  # fmt: skip
    return [
        Cell(title, FID, printed, _trained(chain, *networks[title]), network=title)
        for title, printed in paper.TABLE_2.items()
    ]


def table3(chain: Chain) -> list[Cell]:
    """AdaIN x MI of the styleVAE: how far its LR of test faces is from real LR of others."""
    faces, preset = chain.faces(), {"preset": "paper_mini"} if chain.config.preset == "mini" else {}
    variants: dict[str, dict[str, Any]] = {
        "neither": {"stylevae": {"use_adain": False}, "weights": {"lambda_mi": 0.0}},
        "MI": {"stylevae": {"use_adain": False}},
        "AdaIN": {"weights": {"lambda_mi": 0.0}},
        "AdaIN + MI": {},
    }
    cells = []
    for title, options in variants.items():
        name = title.lower().replace(" + ", "-")
        options |= {"model": "stylevae", "hr": faces.hr, "lr": faces.lr}
        trained = chain.add(f"table3/{name}", TRAIN_DEGRADER, **options, **preset)
        pairs = chain.pairs(faces.test_hr, trained, f"table3-{name}")
        chain.add(f"table3/{name}-lr", EVALUATE_LR, pairs=pairs, real=faces.real, other=faces.lr, **chain.config.judge)
        folder = chain.place(f"table3/{name}-lr")
        if not cells:  # of the same faces, whatever the styleVAE
            cells.append(Cell("bicubic", FID, paper.TABLE_3["bicubic"], folder, "_bicubic"))
        cells.append(Cell(title, FID, paper.TABLE_3[title], folder, network=title))
    return cells


def table4(chain: Chain) -> list[Cell]:
    """GA x LA of the SR network, on bicubic LR, 16 → 64 and 32 → 128 px."""
    cells = []
    for size in _SIZES:
        faces, column = chain.faces(size), replace(PSNR, name=f"PSNR {size // 4} → {size} px")

        def measured(model: str, name: str, size: int = size, faces: FaceSets = faces) -> str:
            chain.add(f"table4/{name}-{size}-lfw", EVALUATE, model=model, test=faces.test_hr, hr_size=size)
            return chain.place(f"table4/{name}-{size}-lfw")

        cells.append(Cell("bicubic", column, None, measured("bicubic", "bicubic")))
        for title, printed in paper.TABLE_4.items():
            name = title.lower().replace(" + ", "-")
            switches = {"use_global": "GA" in title, "use_local": "LA" in title}
            options = {"model": "attentive", "attentive": switches, "hr": faces.hr, "hr_size": size}
            trained = chain.add(f"table4/{name}-{size}", TRAIN_SR, **options)
            cells.append(Cell(title, column, printed, measured(trained, name), network=title))
    return cells


def _figure(chain: Chain, name: str, cells: list[Cell]) -> list[Cell]:
    """Pictures of what the evaluations of some cells kept, side by side; of the first seed."""
    if chain.seed == chain.config.seed:
        titles = {cell.folder: chain.config.title(cell.network) if cell.network else cell.row for cell in cells}
        runs = tuple(storage.join(chain.config.output, folder) for folder in titles)
        chain.add(name, REPORT, runs=runs, names=tuple(titles.values()), preset="paper")
    return cells


def fig4(chain: Chain) -> list[Cell]:
    """Real faces by every method of Table 1."""
    return _figure(chain, "fig4", table1(chain))


def fig5(chain: Chain) -> list[Cell]:
    """Real faces by SRCNN and EDSR on both kinds of pairs, and by ours."""
    ours = Cell("Ours", FID, paper.TABLE_1["Ours"][2], _trained(chain, "attentive", "S"), network="Ours")
    return _figure(chain, "fig5", [*table2(chain), ours])


TABLES = {"table1": table1, "table2": table2, "table3": table3, "table4": table4, "fig4": fig4, "fig5": fig5}
