"""Circuits, features and head scores as HTML for a notebook.  Text in it is escaped."""

from functools import singledispatch

from saekit.features.records import FeatureRecord
from saekit.heads.scores import HeadScores
from saekit.report.circuit.svg import circuit_svg
from saekit.report.feature_html import feature_html
from saekit.report.heads.chart import atlas_svg
from saekit.routes.circuit import Circuit


@singledispatch
def picture(shown: object) -> str:
    """HTML for what has a picture: a `Circuit`, a `FeatureRecord` or `HeadScores`."""
    raise NotImplementedError(f"A {type(shown).__name__} has no picture.")


@picture.register
def _(shown: Circuit) -> str:
    return f'<div style="overflow-x:auto">{circuit_svg(shown, "auto")}</div>'


@picture.register
def _(shown: FeatureRecord) -> str:
    return feature_html(shown)


@picture.register
def _(shown: HeadScores) -> str:
    return f'<div style="overflow-x:auto">{atlas_svg(shown)}</div>'
