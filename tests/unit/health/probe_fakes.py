# SPDX-License-Identifier: Apache-2.0
"""Doors, a client, a subject and a model whose answers a test decides, and a prober among them."""

from __future__ import annotations

from ipaddress import ip_address
from typing import ClassVar

from wicketgate.clock import FakeClock
from wicketgate.health.board import Board
from wicketgate.health.check import CheckResult, State
from wicketgate.health.door import NoRouteToStrangers, Outcome, OutTarget, TcpAnswer
from wicketgate.health.prober import Prober
from wicketgate.health.target import ProbeIdentity, ProbeTarget, TunnelPath
from wicketgate.wireguard.client import HandshakeDone
from wicketgate.wireguard.failure import ProbeFailure
from wicketgate.wireguard.keys import PrivateKey

KEY = PrivateKey.generate()
PATH4 = TunnelPath(ip_address("10.8.0.254"), ip_address("10.8.0.1"))
ADDRESS = {4: ip_address("10.0.0.5"), 6: ip_address("fd00::5")}


class Subject:
    def __init__(self, **more) -> None:
        self.more = {
            "level": "tunnel",
            "identity": ProbeIdentity(KEY),
            "public_key": KEY.public(),
            "paths": (PATH4,),
        } | more
        self.mends = 0
        self.mended = False
        self.trouble: Exception | None = None
        self.mend_trouble: Exception | None = None

    async def target(self) -> ProbeTarget:
        if self.trouble is not None:
            raise self.trouble
        return ProbeTarget(ifname="wg0", listen_port=51820, **self.more)

    async def mend(self) -> bool:
        self.mends += 1
        if self.mend_trouble is not None:
            raise self.mend_trouble
        return self.mended


class Sock:
    def __init__(self) -> None:
        self.open = True

    def connect(self, _where):
        return

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.open = False


class FakeDoor:
    uplink = "eth0"
    tcp_supported = True

    def __init__(self) -> None:
        self.loss = self.loss_out = None
        self.accounts = 0
        self.no_route = False
        self.outcome = Outcome.ANSWERED

    def udp_socket(self, _family, _port):
        if self.no_route:
            raise NoRouteToStrangers("no route to strangers")
        return Sock()

    async def tcp_check(self, _family, port, _timeout, *, http_path):
        return TcpAnswer(self.outcome, 0.001, 200, f"GET {http_path} on port {port}")

    def out_target(self, _family):
        return OutTarget(ip_address("192.0.2.3"), 50000, 50000)

    async def account(self, _family, again):
        self.accounts += 1
        await again()
        return self.loss

    async def account_out(self, _family, again):
        self.accounts += 1
        await again()
        return self.loss_out


class Doors:
    demanded = False

    def __init__(self, *families) -> None:
        self.doors = {family: FakeDoor() for family in families}
        self.generation = 0
        self.rebuilt = False

    def families(self):
        return tuple(self.doors)

    def door(self, family):
        return self.doors[family]

    def address(self, family):
        return ADDRESS[family]

    def uplink(self, _family):
        return "eth0"

    def reason(self, _family):
        return "no act_mirred"

    async def settled(self):
        return

    async def retry(self):
        return False

    async def verify(self):
        return self.rebuilt


class Explainer:
    def __init__(self) -> None:
        self.cause = None

    async def all(self, _target, family, _uplink, _address, at):
        return [CheckResult(f"{n}-ipv{family}", State.PASS, "asked", at=at) for n in ("arrival", "reply", "balancer")]

    async def why(self, _target, _family, _uplink, _address, at):
        return None if self.cause is None else CheckResult("x", State.FAIL, "because", cause=self.cause, at=at)

    async def listener(self, _target, family, _address, at):
        return CheckResult(f"listener-ipv{family}", State.PASS, "bound", at=at)

    async def balancer(self, family, _uplink, _address, at):
        return CheckResult(f"balancer-ipv{family}", State.PASS, "asked", at=at)


class Client:
    """A synthetic client whose answers a test decides; it refuses to work on a closed socket."""

    handshakes: ClassVar[list] = []
    answers: ClassVar[list] = []
    failing: ClassVar[dict] = {}

    def __init__(self, *_keys) -> None:
        self.sock = None

    def attach(self, sock):
        self.sock = sock

    def close(self):
        return

    async def handshake(self, timeout):
        assert self.sock.open
        Client.handshakes.append(timeout)
        answer = Client.answers.pop(0) if Client.answers else None
        if answer is not None:
            raise ProbeFailure(answer)
        return HandshakeDone(0.001, under_load=False)

    def _do(self, what):
        assert self.sock.open
        if what in Client.failing:
            raise ProbeFailure(Client.failing[what])
        return 0.002

    async def ping(self, _source, destination, _timeout, size=56):
        return self._do(str(destination))

    async def tcp_syn(self, _source, destination, _port, _timeout):
        return self._do(str(destination))

    async def udp_echo(self, *_arguments):
        return self._do("echo")


class Model:
    """A model of the place whose opinions a test decides."""

    def __init__(self) -> None:
        self.opinions = {}

    async def ask(self, _target, _family, _uplink, _address):
        return self.opinions

    async def close(self):
        return


class Stand:
    def __init__(self, doors: Doors, subject: Subject) -> None:
        self.clock = FakeClock()
        self.board = Board(self.clock, 1.0)
        self.doors, self.subject, self.explainer = doors, subject, Explainer()
        self.model = Model()
        self.prober = Prober(
            subject, board=self.board, doors=doors, explainer=self.explainer,
            health_port=8080, interval=1.0, clock=self.clock, model=self.model,
        )  # fmt: skip

    async def round(self):
        self.clock.advance(1.0)
        mended = await self.prober.round()
        self.verdict = self.board.verdict()
        self.checks = {c.name: c for c in self.verdict.checks}
        return mended
