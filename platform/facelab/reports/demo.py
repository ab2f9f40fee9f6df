"""report.html: one self-contained page of pictures, curves, a table, and how each number was computed."""

import html
import math
import shlex
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from matplotlib import pyplot as plt

from facelab import storage
from facelab.config import JobConfig, without_secret
from facelab.data.tensors import load_faces, load_pairs
from facelab.metrics.number import Number
from facelab.metrics.protocol import metric_names
from facelab.reports.page import PictureRow, page, picture_rows, svg
from facelab.reports.table import Row, build_table
from facelab.tracking.runs import metric_history
from facelab.trained import store
from facelab.trained.apply import super_resolve
from models.resize import resize

_COLUMNS = 8  # faces in a picture


@dataclass(frozen=True)
class DemoResults:
    """Everything that the page shows."""

    config: JobConfig
    faces: dict[str, str]
    test: str
    table: dict[str, dict[str, Any]]
    """Row name -> summary of its evaluation."""
    summary: dict[str, Any]
    runs: dict[str, str]
    """Stage folder -> MLflow run id."""
    seconds: dict[str, float]
    tracking_uri: str
    sr_runs: list[str]


def demo_report(r: DemoResults) -> str:
    """The page, as HTML."""
    truth_known = "test" in r.faces
    body = [
        "<h1>facelab</h1>",
        "<p class=lead>Real low-resolution faces suffer blur, noise and compression that nobody can write down. A "
        "<b>styleVAE</b> learnt them from <i>unpaired</i> faces; super-resolution networks then trained on the pairs it "
        f"made. Preset <code>{r.config.preset}</code>, seed {r.config.seed}, {sum(r.seconds.values()):.0f} s in all.</p>",
        _headline(r),
        "<h2>1 · What the styleVAE made of sharp faces</h2>",
        _degradation_picture(r, truth_known),
        _degradation_table(r),
        "<h2>2 · What each network makes of unseen faces</h2>",
        _sr_picture(r, truth_known),
        "<h2>3 · Numbers</h2>",
        _sr_table(r),
        "<h2>4 · Training</h2>",
        _curves(r),
        "<h2>5 · How each number was computed</h2>",
        _methods(r, truth_known),
        "<h2>6 · Go on</h2>",
        _commands(r),
    ]
    return page("facelab demo", body)


def _headline(r: DemoResults) -> str:
    learnt, bicubic = r.summary["degradation_distance_learnt"], r.summary["degradation_distance_bicubic"]
    ratio = bicubic / max(learnt, 1e-9)
    verdict = f"{ratio:.1f} times closer to" if learnt < bicubic else f"{1 / ratio:.1f} times farther from"
    return (
        f"<p class=verdict>On held-out faces the learnt LR is <b>{verdict}</b> real LR than bicubic LR is: spectral "
        f"distance {learnt:.3f} against {bicubic:.3f}; two sets of real LR are "
        f"{r.summary['degradation_distance_floor']:.3f} apart.</p>"
    )


def _degradation_picture(r: DemoResults, truth_known: bool) -> str:
    pairs = load_pairs(storage.join(r.config.output, "test_pairs"))
    size = pairs.lr.shape[-1]
    rows: list[PictureRow] = [
        ("sharp test face", pairs.hr),
        ("bicubic LR", resize(pairs.hr[:_COLUMNS], size)),
        ("styleVAE LR", pairs.lr),
    ]
    if truth_known:
        rows.append(("true LR of the same faces", load_pairs(r.faces["test"]).lr))
    rows.append(("real LR of other people", load_faces(r.faces["real"], size).images))
    return picture_rows(rows, 96)


def _models(r: DemoResults) -> dict[str, store.TrainedModel]:
    return {name: store.load_model(storage.join(r.config.output, name.lower()), "sr") for name in r.sr_runs}


def _sr_picture(r: DemoResults, truth_known: bool) -> str:
    models = _models(r)
    size, scale = next((m.hr_size, m.scale) for m in models.values())
    test = load_pairs(r.test)
    real = load_faces(r.faces["real"], size // scale).images[:_COLUMNS]

    def rows(lr: torch.Tensor) -> list[PictureRow]:
        outputs = [(name, super_resolve(model.network, lr)) for name, model in models.items()]
        return [("input", lr), ("bicubic", resize(lr, size)), *outputs]

    kind = "the known nuisance" if truth_known else "styleVAE LR"
    truth = ("truth", test.hr[:_COLUMNS])
    return (
        f"<h3>Test faces, with truth ({kind})</h3>" + picture_rows([*rows(test.lr[:_COLUMNS]), truth], 112)
        + "<h3>Real low-resolution faces, without</h3>" + picture_rows(rows(real), 112)
    )  # fmt: skip


def _degradation_table(r: DemoResults) -> str:
    names = [key.removesuffix("_learnt") for key in r.summary if key.endswith("_learnt")]
    head = "<tr><th>distance to real LR<th>styleVAE LR<th>bicubic LR<th>floor (real to real)</tr>"
    lines = []
    for name in names:
        values = [r.summary[f"{name}_{kind}"] for kind in ("learnt", "bicubic", "floor")]
        best = min((v for v in values[:2] if not math.isnan(v)), default=math.nan)
        cells = [f"<td><b>{v:.4g}</b>" if v == best and i < 2 else f"<td>{v:.4g}" for i, v in enumerate(values)]
        lines.append(f"<tr><td>{html.escape(name.replace('_', ' '))}{''.join(cells)}</tr>")
    return f"<table>{head}{''.join(lines)}</table>"


def _fd_name(r: DemoResults) -> str:
    return next(name for name in metric_names(r.table["bicubic"]) if name.startswith(("fd_", "fid")))


def _sr_table(r: DemoResults) -> str:
    main = (*(f"{name}_{colour}" for name in ("psnr", "ssim") for colour in ("rgb", "y")), _fd_name(r))
    table = build_table([Row(name, summary) for name, summary in r.table.items()], main)
    note = (
        "B: trained on bicubic pairs, S: on styleVAE pairs, for the same number of steps, which in preset demo are far "
        "fewer than the paper's: compare S with B, not with published numbers."
    )
    return f"{table.html()}<p class=note>{note}</p>"


def _curves(r: DemoResults) -> str:
    points: Counter[str] = Counter()

    def history(folder: str, name: str) -> tuple[np.ndarray, np.ndarray]:
        found = np.array(sorted(set(metric_history(r.tracking_uri, r.runs[folder], name)))).reshape(-1, 2)
        points[folder] += len(found)
        return found[:, 0], found[:, 1]

    figure, axes = plt.subplots(1, 4, figsize=(15, 3.2))
    for term in ("content", "style"):
        axes[0].plot(*history("stylevae", f"train/{term}"), label=term, lw=1)
    axes[0].set(title="styleVAE: content and style loss", yscale="log")
    for term in ("kl", "mi"):
        x, y = history("stylevae", f"train/{term}")
        axes[1].plot(x, y, label=f"{term}, nats", lw=1)
    axes[1].set(title="styleVAE: KL and mutual information")
    axes[2].plot(*history("stylevae", "val/fd"), label="Fréchet distance", color="tab:green")
    axes[2].set(title="styleVAE: held-out faces", yscale="log")
    for name in r.sr_runs:
        axes[3].plot(*history(name.lower(), "val/psnr_rgb"), label=name)
    axes[3].set(title="SR: PSNR on held-out training pairs, dB")
    for axis in axes:
        axis.legend(fontsize=8)
        axis.set_xlabel("step")
        axis.spines[["top", "right"]].set_visible(False)
    note = "The PSNR curves of B and S are on their own kind of LR, which differs in difficulty; compare the table instead."
    if missing := ", ".join(folder for folder, count in points.items() if not count):
        # A step that was kept may have been logged elsewhere.
        note += f" There are no curves of {missing}: no such runs at {without_secret(r.tracking_uri)}."
    return f"{svg(figure)}<p class=note>{html.escape(note)}</p>"


def _methods(r: DemoResults, truth_known: bool) -> str:
    e = r.table["bicubic"]
    fd = _fd_name(r)
    own = (
        "the LR that the known nuisance pipeline made of the very same faces; training saw only images that it made of "
        "other identities" if truth_known else "the real test faces; the floor compares them with the real training faces"
    )  # fmt: skip
    distance = Number.of(fd, e)
    warning = f" {html.escape(distance.warning)}." if distance.warning else ""
    items = [
        "<b>degradation distance</b> D(A, B): mean over radii 1..h/2 of |a_r − b_r|, a_r the mean over images of the mean "
        "of log10(|FFT₂(luma)|² + 1) over the ring r. Never a loss, never used to choose a checkpoint. Real LR is here: "
        f"{own}.",
        "<b>highpass …</b>: absolute difference of mean, variance and kurtosis of luma minus its Gaussian blur (σ 1 px).",
        f"<b>PSNR, SSIM</b>: per image on uint8, then the mean over {e['n']} faces; no crop. Y is BT.601 studio range; SSIM "
        "has an 11x11 Gaussian window of σ 1.5, valid region. LR of the test faces: "
        + ("the known nuisance." if truth_known else "styleVAE LR made of them, as in the paper's Table 1."),
        f"<b>{fd}</b>: Fréchet distance between {e['n_real']} super-resolved real faces and {e['n_reference']} sharp training faces, "
        f"over {distance.dims} channels of layer {distance.layer}, averaged over positions; its interval is a jackknife's, the "
        f"floor compares sharp test faces with the same training faces. It is not FID, which means Inception.{warning}",
        "LR and HR are resized by one function, antialiased bicubic. Means of every stage are in its summary.json, each "
        "image's numbers in evaluation/…/per_image.parquet.",
    ]
    return "<ul>" + "".join(f"<li>{item}" for item in items) + "</ul>"


def _commands(r: DemoResults) -> str:
    paths = (r.config.output, r.faces["hr"], r.faces["lr"], without_secret(r.tracking_uri))
    out, hr, lr, tracker = map(shlex.quote, paths)
    commands = [
        ("once in each terminal", f"source .venv/bin/activate\nexport MLFLOW_TRACKING_URI={tracker}"),
        ("compare the runs and open the registered models, at http://127.0.0.1:5000",
         f"mlflow ui --backend-store-uri {tracker}"),
        ("train longer", f"python -m jobs.train_degrader --preset demo --max-steps 2000 --hr {hr} --lr "
         f"{lr} --output {out}/stylevae-longer"),
        ("another SR model on the same pairs", f"python -m jobs.train_sr --preset demo --model edsr --pairs {out}/pairs "
         f"--output {out}/edsr-s"),
        ("search the loss weights", f"python -m jobs.sweep --preset demo --hr {hr} --lr {lr} --output "
         f"{out}/sweep"),
        ("your own faces", "make demo HR=folder LR=folder TEST=folder REAL=folder OUT=outputs/own"),
    ]  # fmt: skip
    return "".join(f"<p>{title}<pre>{html.escape(command)}</pre>" for title, command in commands)
