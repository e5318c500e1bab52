# SPDX-License-Identifier: Apache-2.0
"""What a load balancer says about itself: targets, states, reasons, flows. JSON in and out."""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import TypeAdapter, ValidationError

from wicketgate.errors import InputError
from wicketgate.lab.nlb.settings import explain
from wicketgate.lab.nlb.target import Reason, State
from wicketgate.netpath.snapshot import IPAddress


@dataclass(frozen=True, slots=True)
class ProbeStatus:
    """The newest probe of one checker.

    Attributes:
        checker: its address.
        az: its zone.
        passed: whether the target answered as it should.
        description: what happened.
        seconds: how long the probe took.
    """

    checker: IPAddress
    az: str
    passed: bool
    description: str
    seconds: float


@dataclass(frozen=True, slots=True)
class TargetStatus:
    """One target.

    Attributes:
        address: of the target.
        port: of the target.
        az: its zone.
        state: as DescribeTargetHealth names it.
        reason: as DescribeTargetHealth names it; None when healthy.
        description: for people.
        serving: new flows may come here (so it is under fail-open too).
        flows: how many it has.
        probes: how many outcomes since registration.
        state_seconds: how long it has been in this state.
        last: the newest probe of each checker.
    """

    address: IPAddress
    port: int
    az: str
    state: State
    reason: Reason | None
    description: str
    serving: bool
    flows: int
    probes: int
    state_seconds: float
    last: tuple[ProbeStatus, ...] = ()


@dataclass(frozen=True, slots=True)
class FlowStatus:
    """One flow.

    Attributes:
        protocol: `udp` or `tcp`.
        client: who began it; the target sees this address.
        client_port: its source port.
        address: of the load balancer.
        port: of the listener.
        target: where it goes.
        target_port: the port there.
        packets: from the client.
        replies: from the target.
        expires: whole seconds until it is forgotten if nothing more comes.
    """

    protocol: str
    client: IPAddress
    client_port: int
    address: IPAddress
    port: int
    target: IPAddress
    target_port: int
    packets: int
    replies: int
    expires: int


@dataclass(frozen=True, slots=True)
class NlbStatus:
    """The whole load balancer.

    Attributes:
        name: its name.
        fail_open: every target is served because none is healthy.
        targets: by address.
        flows: by client.
        listeners: `udp 51820 -> target port`, for people.
    """

    name: str
    fail_open: bool
    targets: tuple[TargetStatus, ...]
    flows: tuple[FlowStatus, ...]
    listeners: tuple[str, ...] = ()

    def target(self, address: object) -> TargetStatus:
        """The target with this address (text or an address).

        Raises:
            InputError: no such target is registered.
        """
        for one in self.targets:
            if str(one.address) == str(address):
                return one
        known = ", ".join(str(one.address) for one in self.targets) or "none"
        raise InputError(f"load balancer {self.name}: no target {address}; registered: {known}")

    def to_json(self) -> str:
        """One line of JSON."""
        return _ADAPTER.dump_json(self).decode()

    @classmethod
    def from_json(cls, text: str | bytes) -> NlbStatus:
        """Read it back.

        Raises:
            InputError: every field that is wrong.
        """
        try:
            return _ADAPTER.validate_json(text)
        except ValidationError as error:
            raise InputError("load balancer status: " + explain(error)) from None


_ADAPTER: TypeAdapter[NlbStatus] = TypeAdapter(NlbStatus)
