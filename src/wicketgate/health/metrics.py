# SPDX-License-Identifier: Apache-2.0
"""Prometheus metrics, computed at scrape from the board and the device. Base units, `_total` for what only grows.

Peers are named by the name their configuration gives them, or by the first characters of their public key. The agent's
own probe peer is left out: it is no client.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from types import MappingProxyType
from typing import Literal, Protocol

from prometheus_client import CollectorRegistry, Histogram
from prometheus_client import Counter as PromCounter
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from wicketgate.health.board import Board
from wicketgate.health.check import State
from wicketgate.netpath.snapshot import WireGuardState

Step = Literal["handshake", "tunnel", "egress", "tcp"]

SHORT_KEY = 8  # characters of base64, as `PublicKey.short`

# A door round trip takes 0.2-1.2 ms (userspace WireGuard), a cookie round twice that, a time-out a second or more.
BUCKETS = (0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)

_NONE: Mapping[str, int] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Counters:
    """What the agent counted since its start.

    Attributes:
        repairs: what of ours was put back, by kind (`rule`, `route`, `nft`, `address`, `link`, `device`).
        changes: changes others made to what the agent needs, by kind.
    """

    repairs: Mapping[str, int] = field(default_factory=lambda: _NONE)
    changes: Mapping[str, int] = field(default_factory=lambda: _NONE)


class DeviceView(Protocol):
    """What the metrics ask of the agent. Answers at once from what is known: a scrape never waits for the kernel."""

    def state(self) -> WireGuardState | None:
        """The device as last read; None when it could not be."""
        ...

    def peer_names(self) -> Mapping[str, str]:
        """Names of peers by public key (base64)."""
        ...

    def probe_public_key(self) -> str | None:
        """The agent's own peer, base64, which is no client."""
        ...

    def counters(self) -> Counters:
        """What was counted."""
        ...


def peer_labels(keys: Iterable[str], names: Mapping[str, str]) -> dict[str, str]:
    """A label for every peer: no two alike, whatever names people give.

    Args:
        keys: public keys, base64, each once.
        names: by public key; may collide with each other or with keys.

    Returns:
        the label by public key: the name, or the short key; in a collision both, then the whole key.
    """
    forms = {
        key: (
            (name, f"{name} {key[:SHORT_KEY]}", key) if (name := names.get(key, "").strip()) else (key[:SHORT_KEY], key)
        )
        for key in keys
    }
    level = dict.fromkeys(forms, 0)
    while True:
        labels = {key: choice[level[key]] for key, choice in forms.items()}
        owners: dict[str, list[str]] = {}
        for key, label in labels.items():
            owners.setdefault(label, []).append(key)
        clash = [
            key for group in owners.values() if len(group) > 1 for key in group if level[key] < len(forms[key]) - 1
        ]
        if not clash:
            return labels
        for key in clash:
            level[key] += 1


def own_version() -> str:
    """This package's version; `unknown` when it runs without being installed."""
    try:
        return version("wicketgate")
    except PackageNotFoundError:
        return "unknown"


class Metrics(Collector):
    """Everything /metrics prints, in a registry of its own.

    Args:
        board: where the verdict is.
        device: the WireGuard device; None where there is none to look at.
    """

    def __init__(self, board: Board, device: DeviceView | None = None) -> None:
        self._board = board
        self.device = device
        self.registry = CollectorRegistry(auto_describe=False)
        self._round_trips = Histogram(
            "wicketgate_probe_round_trip_seconds",
            "Time until a probe's answer, by step.",
            ["step"],
            buckets=BUCKETS,
            registry=self.registry,
        )
        self._disagreements = PromCounter(
            "wicketgate_door_disagreements",
            "Rounds in which the door probe failed and the model saw no reason.",
            registry=self.registry,
        )
        self.registry.register(self)

    def count_disagreement(self) -> None:
        """Count a round in which the door was red and the model saw nothing wrong."""
        self._disagreements.inc()

    def observe_round_trip(self, step: Step, seconds: float) -> None:
        """Count a probe that was answered.

        Args:
            step: which.
            seconds: from sending to the answer.
        """
        self._round_trips.labels(step).observe(seconds)

    def render(self, accept: str) -> tuple[bytes, str]:
        """The exposition in the format that the Accept header asks for.

        Returns:
            body and content type.
        """
        encoder, content_type = choose_encoder(accept)
        return encoder(self.registry), content_type

    def collect(self) -> Iterator[Metric]:
        """Compute all families now."""
        yield from self._verdict()
        build = InfoMetricFamily("wicketgate_build", "The version that runs.")
        build.add_metric([], {"version": own_version()})
        yield build
        if self.device is not None:
            yield from self._counters(self.device.counters())
            state = self.device.state()
            if state is not None:
                yield from self._device(state, self.device)

    def describe(self) -> Iterable[Metric]:
        """Nothing: families are computed at scrape."""
        return []

    def _verdict(self) -> Iterator[Metric]:
        board = self._board
        verdict, now = board.verdict(), board.now()
        yield _gauge("wicketgate_ready", "1 when a new client would be served now.", verdict.ready)
        yield _gauge(
            "wicketgate_serving", "1 when the load balancer is told yes: ready and not draining.", verdict.serving
        )
        yield _gauge("wicketgate_draining", "1 when the agent is about to leave.", verdict.draining)
        yield _gauge("wicketgate_live", "1 when the agent's loop and probes turn.", board.live)
        evidence = GaugeMetricFamily(
            "wicketgate_evidence",
            "1 for the level promised and where its evidence comes from.",
            labels=["level", "evidence"],
        )
        if verdict.level is not None and verdict.evidence is not None:
            evidence.add_metric([verdict.level, verdict.evidence], 1)
        yield evidence
        state = GaugeMetricFamily(
            "wicketgate_check_state", "1 for the state a check is in, 0 for the others.", labels=["check", "state"]
        )
        age = GaugeMetricFamily("wicketgate_check_age_seconds", "Age of a check's evidence.", labels=["check"])
        for check in verdict.checks:
            for each in State:
                state.add_metric([check.name, str(each)], float(check.state is each))
            age.add_metric([check.name], max(0.0, now - check.at))
        yield state
        yield age
        cause = GaugeMetricFamily("wicketgate_cause", "1 for every cause that is active now.", labels=["code"])
        for code in verdict.causes:
            cause.add_metric([str(code)], 1)
        yield cause

    def _counters(self, counters: Counters) -> Iterator[Metric]:
        repairs = CounterMetricFamily(
            "wicketgate_repairs", "Things of the agent's own that were gone and put back.", labels=["kind"]
        )
        for kind, count in sorted(counters.repairs.items()):
            repairs.add_metric([kind], count)
        yield repairs
        changes = CounterMetricFamily(
            "wicketgate_changes", "Changes that others made to what the agent needs.", labels=["kind"]
        )
        for kind, count in sorted(counters.changes.items()):
            changes.add_metric([kind], count)
        yield changes

    def _device(self, state: WireGuardState, view: DeviceView) -> Iterator[Metric]:
        info = InfoMetricFamily("wicketgate_device", "The WireGuard device.")
        info.add_metric([], {"backend": state.backend, "interface": state.ifname})
        yield info
        probe = view.probe_public_key()
        peers = [peer for peer in state.peers if peer.public_key != probe]
        labels = peer_labels([peer.public_key for peer in peers], view.peer_names())
        received = CounterMetricFamily("wicketgate_peer_receive_bytes", "Bytes received from a peer.", labels=["peer"])
        sent = CounterMetricFamily("wicketgate_peer_transmit_bytes", "Bytes sent to a peer.", labels=["peer"])
        handshake = GaugeMetricFamily(
            "wicketgate_peer_latest_handshake_timestamp_seconds",
            "When a peer's latest handshake was, seconds since the epoch; 0 for never.",
            labels=["peer"],
        )
        about = InfoMetricFamily("wicketgate_peer", "A peer and its public key.", labels=["peer"])
        for peer in peers:
            label = labels[peer.public_key]
            received.add_metric([label], peer.rx_bytes)
            sent.add_metric([label], peer.tx_bytes)
            handshake.add_metric([label], peer.latest_handshake)
            about.add_metric([label], {"public_key": peer.public_key})
        yield from (received, sent, handshake, about)


def _gauge(name: str, text: str, value: bool) -> Metric:
    family = GaugeMetricFamily(name, text)
    family.add_metric([], float(value))
    return family
