"""The dashboard: it asks only for metrics that there are, and its panels lie beside each other."""

from __future__ import annotations

import inspect
import itertools
import json
import re

import yaml
from ray.dashboard.modules.metrics.dashboards import default_dashboard_panels

from raygenesis.cluster.gauges import GAUGES
from tests.support.manifests import CHECKOUT, INFRA

DASHBOARD = json.loads((INFRA / "grafana" / "raygenesis.json").read_text())
EXPRESSIONS = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]
METRICS = {name: set(tags) for name, (_, tags) in GAUGES.items()}
NAME = re.compile(r"\bray_\w+")


def test_all_metrics_of_the_pipeline_are_shown_and_no_others() -> None:
    own = {
        name for expression in EXPRESSIONS for name in NAME.findall(expression) if name.startswith("ray_raygenesis_")
    }
    assert own == {f"ray_{name}" for name in METRICS}


def test_the_nodes_metrics_are_those_of_rays_own_dashboard() -> None:
    rays = set(NAME.findall(inspect.getsource(default_dashboard_panels)))
    names = {name for expression in EXPRESSIONS for name in NAME.findall(expression)}
    of_nodes = {name for name in names if not name.startswith("ray_raygenesis_")}
    assert of_nodes == {"ray_node_cpu_utilization", "ray_node_gpus_utilization", "ray_object_store_memory"}
    assert of_nodes <= rays


def test_panels_group_and_select_by_tags_that_their_metrics_have() -> None:
    for panel in DASHBOARD["panels"]:
        for target in panel["targets"]:
            expression = target["expr"]
            metrics = [name.removeprefix("ray_") for name in NAME.findall(expression)]
            if not metrics[0].startswith("raygenesis_"):
                continue
            grouped = {tag for tags in re.findall(r" by \(([^)]*)\)", expression) for tag in tags.split(", ")}
            selected = {tag for tags in re.findall(r"\{([^}]*)\}", expression) for tag in re.findall(r"(\w+)=", tags)}
            shown = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
            for metric in metrics:
                assert grouped | selected <= METRICS[metric], expression
            assert shown <= grouped, expression


def test_rates_failures_and_progress_follow_the_verb_that_is_chosen() -> None:
    variables = {variable["name"]: variable for variable in DASHBOARD["templating"]["list"]}
    assert variables["datasource"]["query"] == "prometheus"
    assert variables["verb"]["query"] == "label_values(ray_raygenesis_done, verb)"
    for expression in EXPRESSIONS:
        for metric in NAME.findall(expression):
            if "verb" in METRICS.get(metric.removeprefix("ray_"), set()):
                assert f'{metric}{{verb=~"$verb"' in expression


def test_units_are_those_that_stages_count() -> None:
    asked = {
        unit
        for expression in EXPRESSIONS
        for units in re.findall(r'unit=~"([\w|]+)"', expression)
        for unit in units.split("|")
    }
    sources = "".join(path.read_text() for path in (CHECKOUT / "raygenesis").rglob("*.py"))
    units = re.findall(r'[pP]rogress\([^,]*, (?:[^"]*, )?"([\w ]+)"', sources)
    counted = {*units, "patterns", "crops"}  # by their folders' names
    assert asked == {"scans", "volumes", "patterns", "crops", "epochs"} and asked <= counted


def test_panels_do_not_overlap_and_fit_the_page() -> None:
    places = [panel["gridPos"] for panel in DASHBOARD["panels"]]
    cells = [
        {(x, y) for x in range(place["x"], place["x"] + place["w"]) for y in range(place["y"], place["y"] + place["h"])}
        for place in places
    ]
    assert all(not one & other for one, other in itertools.combinations(cells, 2))
    assert all(place["x"] + place["w"] <= 24 for place in places)
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(places)


def test_brackets_of_expressions_are_closed() -> None:
    for expression in EXPRESSIONS:
        for opening, closing in ("()", "{}"):
            assert expression.count(opening) == expression.count(closing)


def test_prometheus_reads_the_list_that_ray_writes() -> None:
    from ray._private import ray_constants

    (job,) = yaml.safe_load((INFRA / "grafana" / "prometheus.yaml").read_text())["scrape_configs"]
    (file,) = job["file_sd_configs"][0]["files"]
    assert file == f"/tmp/ray/{ray_constants.PROMETHEUS_SERVICE_DISCOVERY_FILE}"
