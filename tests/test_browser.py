"""MLflow's own pages on runs of facelab, in a browser: the table, the comparison, the charts, a run. What people look at
is there, and the pictures are loaded. `pytest -m browser tests/test_browser.py --screenshots docs` takes those of docs/."""

import io
import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import mlflow
import pytest
from conftest import free_port, write_faces
from facelab.config import build
from facelab.experiments.sweep import SWEEP
from facelab.experiments.sweep_config import SweepConfig
from facelab.training.job import TRAIN_SR
from facelab.training.sr import TrainSRConfig
from PIL import Image
from playwright.sync_api import Locator, Page, expect, sync_playwright
from servers import small_server

pytestmark = [
    pytest.mark.browser,
    pytest.mark.timeout(900),
    pytest.mark.skipif(not shutil.which("chromium"), reason="no chromium on the PATH: .ci/run installs Debian's"),
]
_PATIENCE_MS = 60_000
RATES = ("0.001", "0.0001")
NAMES = [f"{2 * seed + i:03d}-learning_rate-{rate}-seed{seed}" for seed in (0, 1) for i, rate in enumerate(RATES)]


@dataclass(frozen=True)
class Site:
    """A server, and what it has."""

    uri: str
    experiment: str
    sweep: dict
    """Its summary."""
    trainings: list[dict]
    """Summaries of its trials, in the order of NAMES."""
    evaluations: list[dict]
    """The same of their tests."""
    view: str
    """That the sweep has saved."""


@pytest.fixture(scope="module")
def site():
    """A sweep of four trials, each of them tested."""
    with TemporaryDirectory(prefix="facelab-") as place, small_server(Path(place), free_port()) as uri:
        folder = Path(place)
        hr, output = write_faces(folder / "faces" / "hr", 60), folder / "rates"
        config = build(
            SweepConfig, preset="debug", train="sr", model="vdsr", space=(f"learning_rate={','.join(RATES)}",),
            search="grid", seeds=2, early="none", max_steps=24, workers=0, hr=str(hr), test=str(hr), tested="all",
            output=str(output), tracking_uri=uri,
        )  # fmt: skip
        sweep = SWEEP.run(config)
        trainings, evaluations = (
            [json.loads((output / part / "summary.json").read_text()) for part in parts]
            for parts in ([f"trials/{name}" for name in NAMES], [f"tests/{name}/evaluation" for name in NAMES])
        )
        experiment = mlflow.MlflowClient(uri).get_experiment_by_name("facelab")
        (saved,) = (tag for tag in experiment.tags if tag.startswith("mlflow.sharedViewState."))
        view = f"/#/experiments/{experiment.experiment_id}/runs?viewStateShareKey={saved.rpartition('.')[2]}"
        yield Site(
            uri, experiment.experiment_id, sweep, trainings, evaluations, f"{view}&workflowType=machine_learning"
        )


@pytest.fixture
def page():
    with sync_playwright() as playwright:
        path = shutil.which("chromium")
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1400, "height": 900})
        page.set_default_timeout(_PATIENCE_MS)
        # MLflow's assistant takes a quarter of the first page.
        page.add_init_script("localStorage.setItem('mlflow.assistant.fab.autoOpenedOnFirstLoad_v1', 'true')")
        yield page
        browser.close()


@pytest.fixture
def screenshot(page, request):
    """Takes one, where a folder for them was given."""

    def take(name: str) -> None:
        if folder := request.config.getoption("--screenshots"):
            page.mouse.move(0, 0)
            page.wait_for_timeout(1500)  # for what fades in
            picture = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
            picture.quantize(256).save(Path(folder) / f"mlflow_{name}.png", optimize=True)  # a third of the bytes

    return take


def seen(locator: Locator) -> Locator:
    expect(locator.first).to_be_visible(timeout=_PATIENCE_MS)
    return locator


def loaded(page: Page, image: Locator) -> None:
    """The picture has pixels."""
    seen(image)
    page.wait_for_function("image => image.complete && image.naturalWidth > 0", arg=image.first.element_handle())


def cells(page: Page, row: int, text: str) -> Locator:
    """Those of the table that say this in this row; they come one by one, in any order."""
    return page.locator(f".ag-center-cols-container .ag-row[row-index='{row}'] .ag-cell").filter(has_text=text)


def test_a_view_shows_the_runs_their_numbers_and_their_data(site, page, screenshot):
    page.goto(site.uri + site.view)
    names = seen(page.locator(".ag-row a", has_text="learning_rate-"))
    ranked = sorted(zip(site.trainings, NAMES, strict=True), key=lambda pair: -pair[0]["best_psnr_rgb"])
    expect(names).to_have_text([name for _, name in ranked], timeout=_PATIENCE_MS)
    for title in ("best/psnr_rgb", "learning_rate", "seed", "Dataset", "Source"):
        seen(page.get_by_role("columnheader", name=title))
    for row, (summary, name) in enumerate(ranked):
        rate, seed = re.findall(r"-learning_rate-(.*)-seed(.*)", name)[0]
        for number in (str(summary["best_psnr_rgb"]), rate, seed):
            seen(cells(page, row, number).get_by_text(number, exact=True))
        for text in (f"faces/hr ({summary['hr_hash']})", "train_sr.py"):
            seen(cells(page, row, text))
    screenshot("runs")


def test_runs_that_are_chosen_in_the_table_are_compared(site, page, screenshot):
    """By parameters, parallel coordinates, numbers, and the last pictures side by side."""
    page.goto(site.uri + site.view)
    seen(page.get_by_role("link", name=NAMES[0]))
    for box in page.locator(".ag-row input[type=checkbox]").all():
        box.check()
    page.get_by_role("button", name="Compare", exact=True).click()
    seen(page.get_by_text("Comparing 4 Runs from 1 Experiment"))
    for axis in ("learning_rate", "seed", "train/loss"):
        seen(page.locator("svg text", has_text=re.compile(f"^{axis}$")))
    screenshot("compare")
    for switch in seen(page.get_by_text("Show diff only")).all():
        switch.click()
    rates = seen(page.get_by_role("row").filter(has=page.get_by_text("learning_rate", exact=True)))
    assert sorted(re.findall(r"0\.\d+", rates.first.inner_text())) == ["0.0001", "0.0001", "0.001", "0.001"]
    assert not page.get_by_text("hr_size", exact=True).is_visible()  # the same in all
    said = page.locator("body").inner_text()
    for summary in site.trainings:
        assert f"{summary['best_psnr_rgb']:.4g}".rstrip("0") in said
    # The list of files is there, but MLflow 3.17 makes it two pixels wide, which no mouse hits.
    page.get_by_text("samples.png", exact=True).first.dispatch_event("click")
    pictures = page.locator("img[src^='blob:']:visible")
    expect(pictures).to_have_count(4, timeout=_PATIENCE_MS)
    for number in range(4):
        loaded(page, pictures.nth(number))


def test_charts_have_parallel_coordinates_bars_and_pictures(site, page, screenshot):
    page.goto(f"{site.uri}{site.view}&compareRunsMode=CHART")
    seen(page.get_by_text("Parallel Coordinates", exact=True))
    for title in ("best/psnr_rgb", "samples"):
        seen(page.get_by_text(title, exact=True))
    for summary in site.trainings:
        seen(page.locator("svg text", has_text=re.compile(f"^{summary['best_psnr_rgb']:.2f}$")))
    loaded(page, page.locator("img"))
    screenshot("charts")


def test_a_run_has_its_note_with_a_picture_its_data_its_code_and_its_model(site, page, screenshot):
    name = site.sweep["best_trial"]
    summary = site.trainings[NAMES.index(name)]
    page.goto(
        f"{site.uri}/#/experiments/{site.experiment}/runs/{summary['mlflow_run_id']}?workflowType=machine_learning"
    )
    seen(page.get_by_role("heading", name=name))
    note = seen(page.get_by_role("row").filter(has=page.get_by_text("learning_rate", exact=True)))
    assert next(rate for rate in RATES if f"-{rate}-" in name) in note.first.inner_text()
    seen(page.get_by_text("Show more", exact=True)).first.click()
    loaded(page, page.locator("img[src*='samples/epoch-0002.png']"))
    seen(page.get_by_text(f"faces/hr ({summary['hr_hash']})"))
    seen(page.get_by_text("train_sr.py"))
    seen(page.get_by_role("link", name="facelab-vdsr"))
    seen(page.get_by_role("link", name="sweep rates"))
    screenshot("run")


def test_an_evaluation_has_its_numbers_and_its_grid(site, page):
    summary = site.evaluations[0]
    page.goto(
        f"{site.uri}/#/experiments/{site.experiment}/runs/{summary['mlflow_run_id']}?workflowType=machine_learning"
    )
    loaded(page, page.locator("img[src*='grid.png']"))
    numbers = seen(page.get_by_role("row").filter(has=page.get_by_text("ssim_y", exact=True)))
    assert str(summary["ssim_y"]) in numbers.first.inner_text()


def test_the_link_that_a_job_prints_opens_its_run_among_trainings(site, page, tmp_path, capsys):
    """And not among the traces of language models, as which MLflow opens by default."""
    hr = write_faces(tmp_path / "hr", 60)
    values = {"preset": "debug", "tracking_uri": site.uri, "hr": str(hr), "model": "srcnn", "max_steps": 1}
    TRAIN_SR.run(build(TrainSRConfig, **values, output=str(tmp_path / "linked")))
    (link,) = re.findall(r"MLflow run (\S+)", capsys.readouterr().out)
    page.goto(link)
    seen(page.get_by_role("heading", name="train_sr linked"))
    seen(page.get_by_role("link", name="Model registry"))
    assert not page.get_by_text("Evaluation runs").is_visible()
