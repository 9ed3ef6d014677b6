"""How MLflow's pages show a model's runs: a saved view that a link opens. Pure.

MLflow 3 keeps a view that people share in a tag of the experiment, `mlflow.sharedViewState.<key>`: JSON with a name,
two times and the state of the page, which is JSON again. A link names it as `viewStateShareKey=<key>`. The state has
the filter, the order, the columns and the charts.
"""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import quote, urlencode

from core.files import digest_json

EXPERIMENT_TAGS = {
    "mlflow.experimentKind": "custom_model_development",
    "mlflow.note.content": (
        "Variants of served language models: what each one keeps of its baseline's quality, what its tokens cost, and "
        "whether it was promoted. The saved view of a model (`parsimony ui` prints its link) lists its variants, the "
        "cheapest first; `docs/metrics.md` explains every metric."
    ),
}
"""An experiment's kind, which chooses the pages for models that are made over those for prompts and traces, and its
description."""

TABLE, CHART = "TABLE", "CHART"
"""The two ways in which MLflow shows runs, as its links name them."""
VIEW_TAG = "mlflow.sharedViewState."
COST, QUALITY = "usd_per_1m_tokens", "quality"
COLUMNS = (
    ("tags", "variant", 100),
    ("tags", "verdict", 120),
    ("metrics", QUALITY, 75),
    ("metrics", COST, 150),
    ("metrics", "difference_points", 135),
    ("metrics", "tok_per_s", 90),
    ("metrics", "size_mib", 80),
)
"""Kind, name and width (pixels) of the columns, from left to right. The first four fit beside the panel that MLflow
opens at a first visit. The run's name stands on their left; a long one is cut off before the variant."""
PINNED = {"attributes.`Run Name`": 150, "runDateAndNestInfo": 105}
"""MLflow's own columns on the left, which every table has: id and width (pixels)."""
SECTION = "cost-against-quality"


def view_key(model: str) -> str:
    """The name of a model's view in links."""
    return f"parsimony-{digest_json(model)[:12]}"


def view_tag(model: str, filter_text: str, created_ms: int) -> tuple[str, str]:
    """Name and text of the experiment's tag that holds a model's view.

    Args:
        model: the model's name.
        filter_text: which runs it shows, in MLflow's filter language.
        created_ms: milliseconds since 1970, shown beside the view's name.

    """
    state = json.dumps(view_state(filter_text), sort_keys=True)
    named = {"name": f"{model}: cost and quality", "createdAt": created_ms, "updatedAt": created_ms, "state": state}
    return VIEW_TAG + view_key(model), json.dumps(named)


def view_state(filter_text: str) -> dict[str, Any]:
    """The state of MLflow's page of runs: the columns, cheapest run first, and one chart above the generated ones."""
    columns = [_column(kind, name) for kind, name, _ in COLUMNS]
    chart = {
        "uuid": "cost-against-quality-1", "type": "SCATTER", "metricSectionId": SECTION, "deleted": False,
        "isGenerated": False, "runsCountToCompare": 100,
        "xaxis": {"key": COST, "type": "METRIC"}, "yaxis": {"key": QUALITY, "type": "METRIC"},
    }  # fmt: skip
    section = {
        "uuid": SECTION, "name": "Cost against quality", "display": True, "isReordered": True, "deleted": False,
        "isGenerated": False, "columns": 1, "cardHeight": 480,
    }  # fmt: skip
    return {
        "searchFilter": filter_text,
        "orderByKey": _column("metrics", COST),
        "orderByAsc": True,
        "selectedColumns": columns,
        "columnOrder": [*PINNED, *columns],
        "columnWidths": PINNED | {_column(kind, name): width for kind, name, width in COLUMNS},
        "runsHiddenMode": "FIRST_20_RUNS",
        "compareRunCharts": [chart],
        "compareRunSections": [section],
        "isAccordionReordered": True,
    }


def view_url(server: str, experiment_id: str, model: str, mode: str = TABLE) -> str:
    """The link to a model's view on a server (`http://host:port`)."""
    options = {"workflowType": "machine_learning", "viewStateShareKey": view_key(model), "compareRunsMode": mode}
    return f"{server.rstrip('/')}/#/experiments/{quote(experiment_id)}/runs?{urlencode(options)}"


def _column(kind: str, name: str) -> str:
    return f"{kind}.`{name}`"
