"""The files of the telemetry profile, read."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml

DEPLOY: Final = Path(__file__).parents[2] / "deploy"
TELEMETRY: Final = DEPLOY / "telemetry"
DASHBOARDS: Final = sorted((TELEMETRY / "grafana" / "dashboards").glob("*.json"))


@dataclass(frozen=True, slots=True)
class Query:
    """A query of a panel."""

    dashboard: str
    panel: str
    expression: str


def read(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


def queries() -> list[Query]:
    """Return every query of every panel, with values for Grafana's variables."""
    found = []
    for path in DASHBOARDS:
        for panel in json.loads(path.read_text())["panels"]:
            for target in panel["targets"]:
                expression = target["expr"].replace("$__rate_interval", "1m").replace("$vm", ".*")
                found.append(Query(path.stem, panel["title"], expression))
    return found


def alerts() -> dict[str, str]:
    """Return the expression of each alert."""
    return {
        rule["alert"]: rule["expr"]
        for group in read(TELEMETRY / "alerts.yml")["groups"]
        for rule in group["rules"]
    }
