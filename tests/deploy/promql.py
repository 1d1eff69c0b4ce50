"""What an expression of rules and dashboards relies on, held against the worker's registry."""

from collections.abc import Iterator
from typing import Any

import promql_parser
from prometheus_client import Counter, Histogram
from prometheus_client.metrics import MetricWrapperBase
from promql_parser import (
    AggModifierType,
    AggregateExpr,
    BinaryExpr,
    Call,
    MatchOp,
    MatrixSelector,
    ParenExpr,
    SubqueryExpr,
    UnaryExpr,
    VectorSelector,
)

from worker.line import PHASES
from worker.message import REASONS
from worker.metrics import OUTCOMES, STAGES, Metrics

TARGET = {"instance", "job"}  # that Prometheus adds to what it reads
VALUES = {"outcome": OUTCOMES, "stage": STAGES, "reason": REASONS, "phase": PHASES, "job": ("mhpc",)}


def exported() -> dict[str, set[str]]:
    """Every name that Prometheus can have of a worker, with its labels."""
    metrics = Metrics()
    names: dict[str, set[str]] = {"up": set(TARGET)}
    for family in metrics.registry.collect():  # what describes the process stands there at once
        names |= {sample.name: {*sample.labels, *TARGET} for sample in family.samples}
    for collector in vars(metrics).values():
        if isinstance(collector, MetricWrapperBase):
            labels = {*collector._labelnames, *TARGET}
            if isinstance(collector, Counter):
                names[f"{collector._name}_total"] = labels
            elif isinstance(collector, Histogram):
                names |= {f"{collector._name}_{end}": labels for end in ("count", "sum")}
                names[f"{collector._name}_bucket"] = {*labels, "le"}
            else:
                names[collector._name] = labels
    return names


def children(node: Any) -> list[Any]:
    match node:
        case BinaryExpr():
            return [node.lhs, node.rhs]
        case Call():
            return list(node.args)
        case AggregateExpr() | ParenExpr() | SubqueryExpr() | UnaryExpr():
            return [node.expr]
        case MatrixSelector():
            return [node.vector_selector]
    return []


def nodes(node: Any) -> Iterator[Any]:
    yield node
    for child in children(node):
        yield from nodes(child)


def selectors(expression: str) -> list[VectorSelector]:
    found = [node for node in nodes(promql_parser.parse(expression)) if isinstance(node, VectorSelector)]
    assert found, f"{expression} reads no metric"
    return found


def names(expression: str) -> set[str]:
    return {str(selector.name) for selector in selectors(expression)}


def problems(expression: str, known: dict[str, set[str]]) -> list[str]:
    """Names, labels and values of labels that the worker has not."""
    found = []
    for selector in selectors(expression):
        if selector.name not in known:
            found.append(f"no metric {selector.name}")
            continue
        for matcher in selector.matchers.matchers:
            if matcher.name not in known[selector.name]:
                found.append(f"{selector.name} has no label {matcher.name}")
            found += [f"{matcher.name} is never {value!r}" for value in _unheard_of(matcher)]
    for node in nodes(promql_parser.parse(expression)):
        if isinstance(node, AggregateExpr) and node.modifier and node.modifier.type == AggModifierType.By:
            below = [known.get(str(each.name), set()) for each in nodes(node) if isinstance(each, VectorSelector)]
            found += [
                f"grouped by {label}, which is no label"
                for label in node.modifier.labels
                if label not in set().union(*below)
            ]
    return found


def _unheard_of(matcher: Any) -> list[str]:
    values = matcher.value.split("|") if matcher.op in (MatchOp.Re, MatchOp.NotRe) else [matcher.value]
    return [value for value in values if matcher.name in VALUES and value not in VALUES[matcher.name]]
