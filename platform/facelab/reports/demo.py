"""report.html: one self-contained page of pictures, curves, a table, and how each number was computed."""

import html
import math
import shlex
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from facelab import storage
from facelab.config import JobConfig, without_secret
from facelab.data.tensors import load_faces, load_pairs
from facelab.metrics.catalogue import metric
from facelab.metrics.number import Number
from facelab.metrics.protocol import metric_names
from facelab.reports.page import PictureRow, page, picture_rows, svg
from facelab.reports.table import Row, build_table
from facelab.tracking.runs import metric_history
from facelab.trained import store
from facelab.trained.apply import super_resolve
from facelab.training.stage import WATCH
from models.resize import resize

LR_CELL, LR_COLUMNS = 128, 8
SR_CELL, SR_COLUMNS = 192, 6  # px: three of the screen for each of a face of 64, so that eyes and mouths can be judged
COMPARED = ("psnr_rgb", "ssim_y")
"""Metrics of single images in which rows are compared."""
_COLOURS = {"B": "tab:blue", "Classical": "tab:orange", "S": "tab:green", "Ceiling": "tab:gray"}
_SHARES = (-0.5, 1.5)  # of the plot: where the gap is nearly nothing, its share may be anything


@dataclass(frozen=True)
class DemoResults:
    """Everything that the page shows."""

    config: JobConfig
    faces: dict[str, str]
    test: str
    classical: torch.Tensor
    """LR of the test faces by the classical degrader, (N, 3, h, w) uint8."""
    table: dict[str, dict[str, Any]]
    """Row name -> summary of its evaluation."""
    summary: dict[str, Any]
    runs: dict[str, str]
    """Stage folder -> MLflow run id."""
    seconds: dict[str, float]
    tracking_uri: str
    sr_runs: dict[str, str]
    """Row name -> folder of its training."""

    @property
    def truth_known(self) -> bool:
        """Whether the true degradation is: of drawn faces."""
        return "test" in self.faces

    def place(self, folder: str) -> str:
        return storage.join(self.config.output, folder)


def distance_names(evaluation: dict[str, Any]) -> list[str]:
    """The Fréchet distances of an evaluation, the main one first."""
    return [name for name in metric_names(evaluation) if name.startswith(("fd_", "fid"))]


def demo_report(r: DemoResults) -> str:
    """The page, as HTML."""
    curve = ["<h2>4 · The gap against training steps</h2>", _gap_curves(r)] if "Ceiling" in r.sr_runs else []
    training = 4 + bool(curve)
    body = [
        "<h1>facelab</h1>",
        "<p class=lead>Real low-resolution faces suffer blur, noise and compression that nobody can write down. A "
        "<b>styleVAE</b> learnt them from <i>unpaired</i> faces; one super-resolution network then trained on the pairs that "
        f"it made, and on others. Preset <code>{r.config.preset}</code>, seed {r.config.seed}, "
        f"{sum(r.seconds.values()):.0f} s in all.</p>",
        _headline(r),
        "<h2>1 · What the styleVAE made of sharp faces</h2>",
        _look("Compare blur, grain and blocks of the styleVAE's row with the rows below it; bicubic LR is cleaner than any "
              "real face."),
        _degradation_picture(r),
        _degradation_table(r),
        "<h2>2 · One network, trained on four kinds of pairs</h2>" if r.truth_known else
        "<h2>2 · One network, trained on three kinds of pairs</h2>",
        _look("Look at the eyes and the mouth: whether S is free of the noise and blocks that B keeps and sharpens, and as "
              "crisp as Ceiling." if r.truth_known else
              "Look at the eyes and the mouth: whether S is free of the noise and blocks that B keeps and sharpens."),
        _sr_picture(r),
        "<h2>3 · Numbers</h2>",
        _look("Compare S with B, which differs from it in nothing but its training pairs."),
        _sr_table(r),
        *curve,
        f"<h2>{training} · Training</h2>",
        _look(_training_look(r)),
        _curves(r),
        f"<h2>{training + 1} · How each number was computed</h2>",
        _methods(r),
        f"<h2>{training + 2} · Go on</h2>",
        _commands(r),
    ]  # fmt: skip
    return page("facelab demo", body)


def _look(sentence: str) -> str:
    return f"<p class=look>{sentence}</p>"


def _headline(r: DemoResults) -> str:
    learnt, bicubic, floor = (r.summary[f"degradation_distance_{kind}"] for kind in ("learnt", "bicubic", "floor"))
    ratio = bicubic / max(learnt, 1e-9)
    verdict = f"{ratio:.1f} times closer to" if learnt < bicubic else f"{1 / ratio:.1f} times farther from"
    return (
        f"<p class=verdict>{_gap_headline(r) if r.truth_known else _gain_headline(r)} On held-out faces the learnt LR is "
        f"<b>{verdict}</b> real LR than bicubic LR is: spectral distance {learnt:.3f} against {bicubic:.3f}; two sets of "
        f"real LR are {floor:.3f} apart.</p>"
    )


def _gap_headline(r: DemoResults) -> str:
    psnr, ssim = (_closed(r, name) for name in COMPARED)
    if psnr is None and ssim is None:
        return "The network gains nothing from true pairs over bicubic ones yet, so that there is no gap to close."
    what = [f"<b>{share} of the gap</b> in {name}" for name, share in (("PSNR", psnr), ("SSIM", ssim)) if share]
    uncertain = "[" not in (psnr or ssim or "")
    doubt = " With so few faces, or so small a gap, that has no interval and says little." if uncertain else ""
    return (
        f"Trained on the styleVAE's pairs, the network closes {' and '.join(what)} between training on bicubic pairs and "
        f"training on true ones, which the real world has of nobody.{doubt}"
    )


def _gain_headline(r: DemoResults) -> str:
    """Where nobody knows what true pairs would give."""
    distance = distance_names(r.table["S"])[0]
    return (
        "Trained on the styleVAE's pairs instead of bicubic ones, the network changes by "
        f"<b>{_difference(r, 's_minus_b_psnr_rgb')} dB</b> on styleVAE LR of the test faces, which is its own kind (nobody knows their "
        f"true LR), and by <b>{_difference(r, f's_minus_b_{distance}')}</b> in the Fréchet distance between its outputs on real faces and "
        "sharp faces, where less is better."
    )


def _spread(r: DemoResults, name: str, shown: Callable[[float], str]) -> str | None:
    """A number of the summary with its interval, if it has one; None where there is no such number."""
    if (value := r.summary.get(name)) is None:
        return None
    low, high = (r.summary.get(f"{name}_{end}") for end in ("low", "high"))
    return shown(value) + ("" if low is None or high is None else f" [{shown(low)}, {shown(high)}]")


def _closed(r: DemoResults, name: str) -> str | None:
    return _spread(r, f"gap_closed_{name}", lambda share: f"{100 * share:.0f} %")


def _difference(r: DemoResults, name: str) -> str:
    digits = metric(name.partition("_minus_")[2].partition("_")[2]).digits
    return _spread(r, name, lambda value: f"{value:+{digits}}") or "–"


def _degradation_picture(r: DemoResults) -> str:
    pairs = load_pairs(r.place("test_pairs"))
    hr, size = pairs.hr[:LR_COLUMNS], pairs.lr.shape[-1]
    rows: list[PictureRow] = [
        ("sharp test face", hr),
        ("bicubic LR", resize(hr, size)),
        ("classical LR", r.classical),
        ("styleVAE LR", pairs.lr),
    ]
    if r.truth_known:
        rows.append(("true LR of the same faces", load_pairs(r.faces["test"]).lr))
    rows.append(("real LR of other people", load_faces(r.faces["real"], size).images))
    return picture_rows(rows, LR_CELL, LR_COLUMNS)


def _sr_picture(r: DemoResults) -> str:
    models = {row: store.load_model(r.place(folder), "sr") for row, folder in r.sr_runs.items()}
    size, scale = next((m.hr_size, m.scale) for m in models.values())
    test = load_pairs(r.test)
    real = load_faces(r.faces["real"], size // scale).images[:SR_COLUMNS]

    def rows(lr: torch.Tensor) -> list[PictureRow]:
        outputs = [(_LABELS[row], super_resolve(model.network, lr)) for row, model in models.items()]
        return [("input", lr), ("bicubic interpolation", resize(lr, size)), *outputs]

    kind = "the known nuisance" if r.truth_known else "styleVAE LR"
    told = [*rows(test.lr[:SR_COLUMNS]), ("truth", test.hr[:SR_COLUMNS])]
    return (
        f"<h3>Test faces, with truth ({kind})</h3>" + picture_rows(told, SR_CELL, SR_COLUMNS)
        + "<h3>Real low-resolution faces, without</h3>" + picture_rows(rows(real), SR_CELL, SR_COLUMNS)
    )  # fmt: skip


_LABELS = {
    "B": "B: bicubic pairs",
    "Classical": "Classical pairs",
    "S": "S: styleVAE pairs",
    "Ceiling": "Ceiling: true pairs",
}


def _degradation_table(r: DemoResults) -> str:
    names = [key.removesuffix("_learnt") for key in r.summary if key.endswith("_learnt")]
    head = "<tr><th>distance to real LR<th>styleVAE LR<th>bicubic LR<th>classical LR<th>floor (real to real)</tr>"
    lines = []
    for name in names:
        *values, floor = (r.summary[f"{name}_{kind}"] for kind in ("learnt", "bicubic", "classical", "floor"))
        best = min((v for v in values if not math.isnan(v)), default=math.nan)
        cells = [f"<td><b>{v:.4g}</b>" if v == best else f"<td>{v:.4g}" for v in values]
        lines.append(f"<tr><td>{html.escape(name.replace('_', ' '))}{''.join(cells)}<td>{floor:.4g}</tr>")
    return f"<table>{head}{''.join(lines)}</table>"


def _sr_table(r: DemoResults) -> str:
    distance = distance_names(r.table["bicubic"])[0]
    main = (*(f"{name}_{colour}" for name in ("psnr", "ssim") for colour in ("rgb", "y")), distance)
    table = build_table([Row(_LABELS.get(row, row), summary) for row, summary in r.table.items()], main)
    head = "".join(f"<th>{html.escape(metric(name).title)}" for name in (*COMPARED, distance))
    lines = []
    for label, row in (("S − B", "b"), ("S − Classical", "classical")):
        lines.append((label, [_difference(r, f"s_minus_{row}_{name}") for name in (*COMPARED, distance)]))
    if "Ceiling" in r.table:
        lines.append(("gap closed by S", [_closed(r, name) or "no gap" for name in (*COMPARED, distance)]))
    body = "".join(f"<tr><td>{label}{''.join(f'<td>{cell}' for cell in cells)}</tr>" for label, cells in lines)
    note = (
        "All rows but the first are one network: pre-trained on bicubic pairs, then trained for the same number of steps on "
        "the pairs that they are named after. In preset demo these are far fewer than the paper's: compare S with B, not "
        "with published numbers. [ , ]: 95 % over faces, the same in all rows."
    )
    return f"{table.html()}<div class=wide><table><tr><th>{head}</tr>{body}</table></div><p class=note>{note}</p>"


def _history(r: DemoResults, folder: str, name: str) -> dict[int, float]:
    """Step -> value of a stage's metric."""
    return dict(sorted(set(metric_history(r.tracking_uri, r.runs[folder], name))))


def _gap_curves(r: DemoResults) -> str:
    """What each row has on the test faces with true LR after so many steps, and the share of the gap that S closes."""
    figure, axes = plt.subplots(1, 3, figsize=(15, 3.6))
    for axis, name in zip(axes, COMPARED, strict=False):
        title = metric(name).title
        curves = {row: _history(r, folder, f"{WATCH}{name}") for row, folder in r.sr_runs.items()}
        for row, curve in curves.items():
            axis.plot(list(curve), list(curve.values()), "o-", ms=3, label=_LABELS[row], color=_COLOURS[row])
        axis.set(title=f"{title}, test faces with true LR")
        s, b, ceiling = (curves[row] for row in ("S", "B", "Ceiling"))
        steps = [step for step in s if step in b and step in ceiling and ceiling[step] > b[step]]
        shares = [100 * (s[step] - b[step]) / (ceiling[step] - b[step]) for step in steps]
        axes[2].plot(steps, shares, "o-", ms=3, label=title)
    axes[2].axhline(100, color="tab:gray", lw=1, ls="--")
    axes[2].axhline(0, color="tab:blue", lw=1, ls="--")
    low, high = axes[2].get_ylim()
    axes[2].set(title="gap between B (0) and Ceiling (100) closed by S, %")
    axes[2].set_ylim(max(low, 100 * _SHARES[0]), min(high, 100 * _SHARES[1]))
    _finish(axes)
    look = _look("The share should be well above 0, and stay there as all three go on training.")
    note = (
        "Measured at the end of every epoch on the moving average of the weights, on at most <code>--validation-images</code> of the "
        "test faces (64 in preset demo), so that the table's numbers differ a little; no weights are chosen by it. Steps are those after "
        " the common pre-training; there is no share where Ceiling is not above B."
    )
    return f"{look}{svg(figure)}<p class=note>{note}</p>"


def _finish(axes: Iterable[Axes]) -> None:
    for axis in axes:
        if axis.get_legend_handles_labels()[0]:
            axis.legend(fontsize=8)
        axis.set_xlabel("step")
        axis.spines[["top", "right"]].set_visible(False)


def _training_look(r: DemoResults) -> str:
    kl = "KL should be above 0, as real faces differ in how they were degraded."
    if not _history(r, "stylevae", "train/recognition"):
        return kl
    return f"Recognition should fall, as the styleVAE reads ever better how an image was degraded. {kl}"


def _curves(r: DemoResults) -> str:
    points: Counter[str] = Counter()

    def history(folder: str, name: str) -> tuple[list[int], list[float]]:
        found = _history(r, folder, name)
        points[folder] += len(found)
        return list(found), list(found.values())

    figure, axes = plt.subplots(1, 4, figsize=(15, 3.2))
    for axis, title, terms in (
        (axes[0], "styleVAE: losses", ("recognition", "content", "style")),
        (axes[1], "styleVAE: KL and mutual information, nats", ("kl", "mi")),
    ):
        for term in terms:  # each network has some of them
            steps, values = history("stylevae", f"train/{term}")
            if steps:
                axis.plot(steps, values, label=term, lw=1)
        axis.set(title=title)
    axes[2].plot(*history("stylevae", "val/fd"), label="Fréchet distance", color="tab:green")
    axes[2].set(title="styleVAE: held-out faces", yscale="log")
    for row, folder in r.sr_runs.items():
        axes[3].plot(*history(folder, "val/psnr_rgb"), label=row, color=_COLOURS[row])
    axes[3].set(title="SR: PSNR on held-out training pairs, dB")
    _finish(axes)
    note = "The PSNR curves are each on their own kind of LR, which differs in difficulty; compare the table instead."
    if missing := ", ".join(folder for folder, count in points.items() if not count):
        # A step that was kept may have been logged elsewhere.
        note += f" There are no curves of {missing}: no such runs at {without_secret(r.tracking_uri)}."
    return f"{svg(figure)}<p class=note>{html.escape(note)}</p>"


def _methods(r: DemoResults) -> str:
    e = r.table["bicubic"]
    fd = distance_names(e)[0]
    own = (
        "the LR that the known nuisance pipeline made of the very same faces; training, but for the ceiling's, saw only "
        "images that it made of other identities" if r.truth_known else
        "the real test faces; the floor compares them with the real training faces"
    )  # fmt: skip
    distance = Number.of(fd, e)
    warning = f" {html.escape(distance.warning)}." if distance.warning else ""
    ceiling = [
        "<b>Ceiling</b>: the same network, trained on the training faces with their own true LR. The real world has no such "
        "pairs. Nothing else reads them, and neither they nor the test faces, also where curves of those are drawn, choose a "
        "checkpoint or a row. What a styleVAE's camera can do was decided when one knew which parts of this nuisance matter "
        "(docs/degradation.md); real faces have been a second judge of it.",
        "<b>gap closed</b>: (S − B) / (Ceiling − B), each a mean over the test faces; its interval draws faces, the same for all "
        "three rows, and divides in each draw. Without an interval where fewer than 10 faces were measured, or the gap "
        "itself may be none; absent where Ceiling is not above B.",
    ]
    items = [
        "<b>rows</b>: one network, pre-trained on bicubic pairs, then trained on bicubic pairs (B), on pairs of random blur, "
        "resizing, noise and JPEG (Classical), on the styleVAE's (S)"
        + (", on true ones (Ceiling)" if r.truth_known else "")
        + ": same sharp faces, recipe, steps and random numbers. Each keeps the epoch that is best on held-out pairs of its own "
        "kind.",
        *(ceiling if r.truth_known else []),
        "<b>S − B, S − Classical</b>: mean of the differences on each test face; its interval is a bootstrap of faces, that of "
        "the Fréchet distance a jackknife over groups of them.",
        "<b>degradation distance</b> D(A, B): mean over radii 1..h/2 of |a_r − b_r|, a_r the mean over images of the mean "
        "of log10(|FFT₂(luma)|² + 1) over the ring r. Never a loss, never used to choose a checkpoint. Real LR is here: "
        f"{own}.",
        "<b>highpass …</b>: absolute difference of mean, variance and kurtosis of luma minus its Gaussian blur (σ 1 px).",
        f"<b>PSNR, SSIM</b>: per image on uint8, then the mean over {e['n']} faces; no crop. Y is BT.601 studio range; SSIM "
        "has an 11x11 Gaussian window of σ 1.5, valid region. LR of the test faces: "
        + ("the known nuisance." if r.truth_known else "styleVAE LR made of them, as in the paper's Table 1."),
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
        ("another SR model on the same pairs", f"python -m jobs.train_sr --preset demo --model edsr --pairs {out}/pairs/stylevae "
         f"--output {out}/edsr-s"),
        ("ablate global and local attention", f"python -m jobs.sweep --preset demo --space attention --hr {hr} --output "
         f"{out}/sweep"),
        ("your own faces", "make demo HR=folder LR=folder TEST=folder REAL=folder OUT=outputs/own"),
    ]  # fmt: skip
    return "".join(f"<p>{title}<pre>{html.escape(command)}</pre>" for title, command in commands)
