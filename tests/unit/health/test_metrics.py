# SPDX-License-Identifier: Apache-2.0
"""What Prometheus reads."""

from __future__ import annotations

import re
from collections.abc import Mapping
from ipaddress import ip_address

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.openmetrics import parser as openmetrics
from prometheus_client.parser import text_string_to_metric_families

from wicketgate.clock import FakeClock
from wicketgate.health.board import Board
from wicketgate.health.cause import Cause
from wicketgate.health.check import CheckResult, State
from wicketgate.health.metrics import Counters, Metrics, peer_labels
from wicketgate.netpath.snapshot import PeerState, WireGuardState

PROBE, ALICE, BOB, NOBODY = ("P" * 43 + "=", "A" * 43 + "=", "B" * 43 + "=", "N" * 43 + "=")


class Device:
    """A device as the agent shows it."""

    def state(self) -> WireGuardState | None:
        return WireGuardState(
            "wg0",
            "userspace",
            peers=(
                PeerState(PROBE, rx_bytes=1, tx_bytes=1),
                PeerState(ALICE, (ip_address("203.0.113.9"), 4), rx_bytes=10, tx_bytes=20, latest_handshake=1.7e9),
                PeerState(BOB, rx_bytes=30, tx_bytes=40),
                PeerState(NOBODY),
            ),
        )

    def peer_names(self) -> Mapping[str, str]:
        return {ALICE: 'lap"top', BOB: 'lap"top'}

    def probe_public_key(self) -> str | None:
        return PROBE

    def counters(self) -> Counters:
        return Counters({"rule": 3}, {"route": 2})


def rig() -> tuple[FakeClock, Board, Metrics]:
    clock = FakeClock()
    board = Board(clock, 1.0)
    metrics = Metrics(board, Device())
    board.publish(
        [
            CheckResult("handshake", State.PASS, "answered", at=board.now(), seconds=0.001),
            CheckResult("tunnel", State.FAIL, "silent", Cause.TUNNEL_SILENT, at=board.now()),
        ],
        "tunnel",
        "door",
        backend="userspace",
    )
    metrics.observe_round_trip("handshake", 0.001)
    metrics.count_disagreement()
    return clock, board, metrics


def samples(metrics: Metrics) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    body, _ = metrics.render("")
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(body.decode())
        for sample in family.samples
    }


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    return samples(metrics).get((name, frozenset(labels.items())))


def test_the_verdict_is_there():
    """Ready, serving, draining, each check's state and age, and the active causes."""
    clock, board, metrics = rig()
    clock.advance(2)
    assert value(metrics, "wicketgate_ready") == 0
    assert value(metrics, "wicketgate_serving") == 0
    assert value(metrics, "wicketgate_draining") == 0
    assert value(metrics, "wicketgate_check_state", check="handshake", state="pass") == 1
    assert value(metrics, "wicketgate_check_state", check="tunnel", state="pass") == 0
    assert value(metrics, "wicketgate_check_state", check="tunnel", state="fail") == 1
    assert value(metrics, "wicketgate_check_age_seconds", check="tunnel") == 2
    assert value(metrics, "wicketgate_cause", code="tunnel-silent") == 1
    assert value(metrics, "wicketgate_cause", code="rp-filter") is None
    clock.advance(2)
    assert value(metrics, "wicketgate_check_state", check="handshake", state="unknown") == 1
    board.begin_drain()
    assert value(metrics, "wicketgate_draining") == 1


def test_peers_are_told_apart_and_the_probe_is_no_peer():
    """Two peers of one name get two labels, one without a name its short key; the probe peer is nowhere."""
    _, _, metrics = rig()
    assert value(metrics, "wicketgate_peer_receive_bytes_total", peer='lap"top AAAAAAAA') == 10
    assert value(metrics, "wicketgate_peer_transmit_bytes_total", peer='lap"top BBBBBBBB') == 40
    assert value(metrics, "wicketgate_peer_latest_handshake_timestamp_seconds", peer='lap"top AAAAAAAA') == 1.7e9
    assert value(metrics, "wicketgate_peer_receive_bytes_total", peer="NNNNNNNN") == 0
    body = metrics.render("")[0].decode()
    assert "PPPP" not in body
    assert "203.0.113" not in body, "no peer's address"


def test_what_was_counted():
    """Repairs, foreign changes, disagreements, round trips, the device and the version."""
    _, _, metrics = rig()
    assert value(metrics, "wicketgate_repairs_total", kind="rule") == 3
    assert value(metrics, "wicketgate_changes_total", kind="route") == 2
    assert value(metrics, "wicketgate_door_disagreements_total") == 1
    assert value(metrics, "wicketgate_probe_round_trip_seconds_count", step="handshake") == 1
    assert value(metrics, "wicketgate_probe_round_trip_seconds_bucket", step="handshake", le="0.001") == 1
    assert value(metrics, "wicketgate_probe_round_trip_seconds_bucket", step="handshake", le="0.0005") == 0
    assert value(metrics, "wicketgate_device_info", backend="userspace", interface="wg0") == 1
    assert any(name == "wicketgate_build_info" for name, _ in samples(metrics))


def test_openmetrics_is_spoken_to_those_who_ask():
    """By the Accept header: OpenMetrics, which its strict parser takes, or the classic text."""
    _, _, metrics = rig()
    body, kind = metrics.render("application/openmetrics-text;version=1.0.0;q=0.9,text/plain;q=0.5")
    assert kind.startswith("application/openmetrics-text; version=1.0.0")
    families = {family.name for family in openmetrics.text_string_to_metric_families(body.decode())}
    assert "wicketgate_peer_receive_bytes" in families
    assert metrics.render("*/*")[1].startswith("text/plain; version=0.0.4")


def test_names_follow_the_convention():
    """One prefix, base units, `_total` on counters and nowhere else, a help text for each (promtool's lint)."""
    _, _, metrics = rig()
    body = metrics.render("application/openmetrics-text; version=1.0.0")[0].decode()
    for family in openmetrics.text_string_to_metric_families(body):
        assert re.fullmatch(r"wicketgate_[a-z][a-z_]*[a-z]", family.name), family.name
        assert not re.search(r"_(ms|milliseconds|kb|minutes|percent|bits|gauge|counter|total)(_|$)", family.name)
        assert family.documentation.endswith(".")
        for sample in family.samples:
            if family.type == "counter":
                assert sample.name.endswith(("_total", "_created"))
            for label in sample.labels:
                assert label not in {"type", "job", "instance"}
                assert re.fullmatch(r"[a-z_]+", label)


@given(
    st.dictionaries(
        st.text(st.sampled_from("AB"), min_size=12, max_size=12),
        st.one_of(st.just(""), st.sampled_from(["x", "y", "AAAAAAAA", "x AAAAAAAA"]), st.text(st.sampled_from("AB x"))),
        max_size=12,
    )
)
def test_labels_never_collide(names: dict[str, str]):
    """Whatever peers are called, even after each other's keys, each has a label of its own."""
    labels = peer_labels(names, names)
    assert set(labels) == set(names)
    assert len(set(labels.values())) == len(labels)
    for key, name in names.items():
        if (
            name.strip()
            and list(names.values()).count(name) == 1
            and not any(name.strip() in other for other in labels.values() if other != labels[key])
        ):
            assert labels[key].startswith(name.strip()) or labels[key] == key


def test_a_name_given_once_is_the_label():
    """The usual case is the plain one."""
    assert peer_labels([ALICE, BOB], {ALICE: "alice"}) == {ALICE: "alice", BOB: "BBBBBBBB"}
