"""A saved view of MLflow's runs page: which runs, columns and charts somebody finds there who follows its link."""

import base64
import hashlib
import json
import time
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from facelab.tracking.client import client_of
from facelab.tracking.delivery import SAMPLES, epoch_of

_TAG = "mlflow.sharedViewState."
"""Of an experiment: what follows is the id of a view, which MLflow's menu `Views` lists."""
_SECTION = "comparison"


@dataclass(frozen=True)
class View:
    """What is shown of some runs of an experiment."""

    name: str
    """In the menu; a view of the same name takes its place."""
    runs: str
    """An MLflow search, such as tags.`mlflow.parentRunId` = 'ID'."""
    metrics: Sequence[str]
    """Columns and bars; the runs are in the order of the first."""
    params: Sequence[str]
    """Columns, and the other axes of the parallel coordinates."""
    ascending: bool = False
    """The smallest first."""


def save_view(uri: str, experiment: str, view: View) -> str:
    """Save it; returns where it is in MLflow's pages, below their address: the table of runs. With
    &compareRunsMode=CHART, its charts.

    Args:
        experiment: its number.
    """
    client = client_of(uri)
    key = hashlib.sha256(view.name.encode()).hexdigest()[:16]
    state = json.dumps(_state(view, _last_epoch(uri, experiment, view)))
    # As MLflow's own page writes it, so that it fits into a tag.
    packed = "deflate;" + base64.b64encode(zlib.compress(state.encode())).decode()
    saved = {"name": view.name, "createdAt": int(time.time() * 1000), "state": packed}
    client.set_experiment_tag(experiment, _TAG + key, json.dumps(saved))
    return f"/#/experiments/{experiment}/runs?viewStateShareKey={key}&workflowType=machine_learning"


def _last_epoch(uri: str, experiment: str, view: View) -> int | None:
    """Of the first run's pictures; None where there are none."""
    client = client_of(uri)
    order = [f"metrics.`{view.metrics[0]}` {'ASC' if view.ascending else 'DESC'}"]
    for run in client.search_runs([experiment], view.runs, max_results=1, order_by=order):
        return max((epoch_of(file.path) for file in client.list_artifacts(run.info.run_id, SAMPLES)), default=None)
    return None


def _state(view: View, epoch: int | None) -> dict[str, Any]:
    """Of the page, in its own words."""
    numbers = [f"metrics.`{name}`" for name in view.metrics] + [f"params.`{name}`" for name in view.params]
    columns = numbers + [f"attributes.`{name}`" for name in ("Dataset", "Source", "Models")]
    section = {"uuid": _SECTION, "name": "Comparison", "display": True, "isReordered": True}
    return {
        "searchFilter": view.runs, "orderByKey": columns[0], "orderByAsc": view.ascending,
        "selectedColumns": columns, "columnOrder": columns,
        "columnWidths": {name: 7 * len(name) for name in numbers},  # px; else they hide the ends of names
        "runsExpanded": {}, "runsPinned": [], "runsHidden": [], "runsVisibilityMap": {}, "runsHiddenMode": "SHOW_ALL",
        "groupBy": None, "groupsExpanded": {}, "useGroupedValuesInCharts": True, "hideEmptyCharts": True,
        "viewMaximized": False, "runListHidden": False, "autoRefreshEnabled": True,
        "globalLineChartConfig": {"xAxisKey": "step", "lineSmoothness": 0, "selectedXAxisMetricKey": ""},
        "isAccordionReordered": True,  # ours stays above those that MLflow makes of all other metrics
        "compareRunSections": [section | {"columns": 2, "cardHeight": 340}],
        "compareRunCharts": _charts(view, epoch),
    }  # fmt: skip


def _charts(view: View, epoch: int | None) -> list[dict[str, Any]]:
    axes = {"selectedParams": [*view.params], "selectedMetrics": [view.metrics[0]], "showAllRuns": True}
    charts: list[dict[str, Any]] = [{"type": "PARALLEL", **axes}] if view.params else []
    if epoch is not None:
        images = {"imageKeys": [SAMPLES], "step": epoch, "showRunParams": False}
        charts.append({"type": "IMAGE", "displayName": SAMPLES, **images})
    charts += [{"type": "BAR", "metricKey": name, "displayName": name} for name in view.metrics]
    own = {"metricSectionId": _SECTION, "deleted": False, "isGenerated": False, "runsCountToCompare": 100}
    return [{"uuid": f"{_SECTION}-{number}", **own, **chart} for number, chart in enumerate(charts)]
