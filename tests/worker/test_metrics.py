import time

import pytest
from prometheus_client import generate_latest
from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.parser import text_string_to_metric_families

from worker.metrics import STAGES, Metrics

# name, type and labels, as dashboards and alerts rely on them
EXPECTED = {
    "mhpc_images": ("counter", {"line", "outcome"}),
    "mhpc_stage_seconds": ("histogram", {"stage"}),
    "mhpc_end_to_end_seconds": ("histogram", {"line"}),
    "mhpc_stream_lag_entries": ("gauge", {"line"}),
    "mhpc_pending_entries": ("gauge", {"line"}),
    "mhpc_oldest_pending_seconds": ("gauge", {"line"}),
    "mhpc_score_to_threshold": ("histogram", {"line"}),
    "mhpc_threshold": ("gauge", {"line"}),
    "mhpc_anomalies": ("counter", {"line"}),
    "mhpc_drift": ("gauge", {"line"}),
    "mhpc_learning_outside_share": ("gauge", {"line"}),
    "mhpc_learning_subspace_change": ("gauge", {"line"}),
    "mhpc_bank_anchors": ("gauge", {"line"}),
    "mhpc_bank_radius": ("gauge", {"line"}),
    "mhpc_pca_components": ("gauge", {"line"}),
    "mhpc_snapshot_last_success_timestamp_seconds": ("gauge", {"line"}),
    "mhpc_snapshot_owed_seconds": ("gauge", {"line"}),
    "mhpc_line_keeper": ("gauge", {"line"}),
    "mhpc_line_settings_differ": ("gauge", {"line"}),
    "mhpc_dead_letters": ("counter", {"line", "reason"}),
    "mhpc_entries_lost": ("counter", {"line"}),
    "mhpc_redis_reconnects": ("counter", set()),
    "mhpc_line_phase": ("gauge", {"line", "phase"}),
    "mhpc_fleet_workers": ("gauge", set()),
    "mhpc_fleet_problems": ("gauge", set()),
    "mhpc_build_info": ("gauge", {"version", "python", "torch"}),
}


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(name, labels)


def test_every_name_is_there_with_its_type_before_anything_happened() -> None:
    families = text_string_to_metric_families(generate_latest(Metrics().registry).decode())
    own = [family for family in families if family.name.startswith("mhpc_")]
    found = {family.name: family.type for family in own if not family.name.endswith("_created")}
    assert found == {name: kind for name, (kind, _) in EXPECTED.items()}


def test_labels_are_those_that_stay_few() -> None:
    collectors = {c for c in vars(Metrics()).values() if isinstance(c, MetricWrapperBase)}
    labels = {c._name: set(c._labelnames) for c in collectors}
    assert labels == {name: names for name, (_, names) in EXPECTED.items()}


def test_each_worker_has_a_registry_of_its_own() -> None:
    one, other = Metrics(), Metrics()
    one.redis_reconnects.inc()
    assert value(one, "mhpc_redis_reconnects_total") == 1
    assert value(other, "mhpc_redis_reconnects_total") == 0


def test_the_stages_are_timed_per_call() -> None:
    metrics = Metrics()
    for stage in STAGES:
        assert value(metrics, "mhpc_stage_seconds_count", stage=stage) == 0
        with metrics.stage(stage):
            pass
        assert value(metrics, "mhpc_stage_seconds_count", stage=stage) == 1


def test_stages_that_are_gone_through_at_once_share_the_time_less_that_of_stages_within() -> None:
    metrics, parts = Metrics(), dict[str, float]()
    began = time.perf_counter()
    with metrics.stages(parts):
        parts |= {"forward": 3.0, "score": 1.0}
        with metrics.stage("read"):
            time.sleep(0.02)
        time.sleep(0.04)
    wall = time.perf_counter() - began
    stages = ("forward", "score", "read")
    forward, score, read = (value(metrics, "mhpc_stage_seconds_sum", stage=stage) or 0.0 for stage in stages)
    assert forward == pytest.approx(3 * score)
    assert forward + score >= 0.04
    assert read >= 0.02
    assert forward + score + read <= wall
    with metrics.stages({}):  # nothing was gone through
        pass


def test_the_build_is_told() -> None:
    samples = [sample for family in Metrics().registry.collect() for sample in family.samples]
    build = next(sample for sample in samples if sample.name == "mhpc_build_info")
    assert build.value == 1
    assert all(build.labels.values())


def test_the_process_is_measured_too() -> None:
    assert value(Metrics(), "process_resident_memory_bytes")


def test_what_waits_of_a_line_that_redis_does_not_tell_of_is_not_told() -> None:
    metrics = Metrics()
    for name in ("press-3", "press-4"):
        metrics.open_line(name)
        for gauge in (metrics.stream_lag, metrics.pending, metrics.oldest_pending):
            gauge.labels(name).set(700)
    metrics.forget_backlog("press-3")
    for name in ("stream_lag_entries", "pending_entries", "oldest_pending_seconds"):
        told = [value(metrics, f"mhpc_{name}", line=line) for line in ("press-3", "press-4")]
        assert told == [None, 700]


def test_what_only_the_keeper_knows_goes_with_the_line_that_is_lost() -> None:
    metrics = Metrics()
    metrics.open_line("press-3")
    for name in ("press-3", "press-4"):
        metrics.drift.labels(name).set(1.25)
        metrics.line_phase.labels(name, "scoring").set(1)
    metrics.forget_keeping("press-3")
    told = {(sample.name, sample.labels["line"]) for family in metrics.registry.collect() for sample in family.samples
            if "line" in sample.labels}  # fmt: skip
    assert ("mhpc_drift", "press-4") in told
    assert not told & {("mhpc_drift", "press-3"), ("mhpc_line_phase", "press-3")}
    assert ("mhpc_entries_lost_total", "press-3") in told
