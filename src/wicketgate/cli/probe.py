# SPDX-License-Identifier: Apache-2.0
"""`wicket probe`: is that WireGuard server alive, does it know this client, does the tunnel carry packets?"""

from __future__ import annotations

import asyncio
import json
import math
import socket
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from wicketgate.cli.keyfiles import read_key
from wicketgate.cli.probe_report import Attempt, Report
from wicketgate.cli.target import Endpoint, Target
from wicketgate.errors import InputError
from wicketgate.wireguard.client import ProbeFailure, Step, SyntheticClient
from wicketgate.wireguard.constants import INITIATION_INTERVAL
from wicketgate.wireguard.keys import PresharedKey, PrivateKey, PublicKey

Address = IPv4Address | IPv6Address


def probe(
    target: Annotated[str, Parameter(name="HOST:PORT")],
    /,
    *,
    public_key: str,
    private_key_file: Path | None = None,
    preshared_key_file: Path | None = None,
    ping: Address | None = None,
    address: Address | None = None,
    count: int = 3,
    interval: float = 1.0,
    timeout: float = 3.0,
    new_port: Annotated[bool, Parameter(negative="")] = False,
    output_json: Annotated[bool, Parameter(name="--json", negative="")] = False,
) -> int:
    r"""Make a WireGuard handshake, and a ping through the tunnel, from outside.

    Says what answered, how fast, and, when something failed, which step and what
    that means. A probe with the key of a client in use takes that client's
    traffic for a moment: the server moves a peer's endpoint at the handshake.
    Give the probe a peer of its own.

    Exit codes: 0 at least one attempt was answered in full (the echo too, with
    --ping); 1 none was; 2 bad input; 3 a file or the name service could not be
    read. Ctrl-C ends the run with its summary, as in ping.

    For example:

      wicket probe gw.example.com:51820 --public-key KEY --private-key-file FILE
      wicket probe [2001:db8::1]:51820 --public-key KEY --private-key-file FILE \
        --ping 10.0.0.1 --address 10.0.0.9

    With --json one object is printed at the end:

      {"target": as given, "server": "ADDRESS:PORT" that was used,
       "public_key": the server's, "ok": bool, "unknown_client": bool,
       "attempts": [{"seq": int, "ok": bool, "under_load": bool,
                     "handshake_seconds": float|null,
                     "echo_seconds": float|null,
                     "step": null|"refused"|"unreachable"|"silent"|
                             "under_load"|"wrong_psk"|"malformed"|"no_echo",
                     "meaning": null|sentence}],
       "handshake_seconds": null|{"min", "median", "max": float},
       "echo_seconds": null|{"min", "median", "max": float}}

    Args:
        target: the server: name:port, 192.0.2.1:port or [2001:db8::1]:port.
        public_key: the server's public key, base64.
        private_key_file: file with the client's private key. Without it a key is made for this run, to which every
            server stays silent; it still tells a closed port (refused) and a loaded server (cookie).
        preshared_key_file: file with the preshared key, if the peer has one.
        ping: after each handshake, ping this address through the tunnel; needs --address.
        address: the client's own address in the tunnel (one of the peer's AllowedIPs on the server).
        count: how many attempts; 0 goes on until Ctrl-C.
        interval: seconds from one attempt to the next.
        timeout: seconds that each step may take.
        new_port: a new source port for every attempt; behind a load balancer each may reach another target.
        output_json: print one JSON object instead of lines.
    """
    _check(count, interval, timeout, ping, address)
    where = Target.parse(target)
    try:
        server_key = PublicKey.parse(public_key)
    except ValueError as error:
        raise InputError(f"--public-key: {error}") from None
    private_key = read_key(private_key_file, PrivateKey) if private_key_file else PrivateKey.generate()
    preshared_key = read_key(preshared_key_file, PresharedKey) if preshared_key_file else None
    try:
        client = SyntheticClient(private_key, server_key, preshared_key)
    except ValueError as error:
        raise InputError(f"--public-key: {error}") from None
    endpoints = where.resolve()
    run = _Run(client, endpoints, count, interval, timeout, ping, address, new_port=new_port, quiet=output_json)
    run.report = Report(target, str(endpoints[0]), str(server_key), ping is not None, private_key_file is None)
    if not output_json:
        others = f" (the first of {', '.join(map(str, endpoints))})" if len(endpoints) > 1 else ""
        print(
            f"PROBE {target}: {endpoints[0]}{others}, server key {server_key.short}, "
            f"client key {private_key.public().short}",
            flush=True,
        )
    if private_key_file is None:
        print(
            "wicket: no --private-key-file: a key was made for this run; a server stays silent to unknown clients",
            file=sys.stderr,
        )
    try:
        asyncio.run(run.attempts())
    except KeyboardInterrupt:
        if not output_json:
            print(flush=True)
    if output_json:
        print(json.dumps(run.report.to_json()))
    else:
        print("\n".join(run.report.summary()))
    return 0 if run.report.ok else 1


def _check(count: int, interval: float, timeout: float, ping: Address | None, address: Address | None) -> None:
    if count < 0:
        raise InputError(f"--count: {count} was read; allowed are 1 and more, and 0 for no end")
    if not INITIATION_INTERVAL <= interval < math.inf:
        raise InputError(
            f"--interval: {interval} was read; allowed are {INITIATION_INTERVAL} s and more: "
            "servers drop faster handshakes of one client"
        )
    if not 0 < timeout < math.inf:
        raise InputError(f"--timeout: {timeout} was read; allowed are seconds greater than 0")
    if (ping is None) != (address is None):
        missing, given = ("--address", "--ping") if address is None else ("--ping", "--address")
        raise InputError(f"{given} without {missing}: an echo has a source (--address) and a destination (--ping)")
    if ping is not None and address is not None and ping.version != address.version:
        raise InputError(f"--ping {ping} and --address {address} are of two families")


@dataclass(slots=True)
class _Run:
    client: SyntheticClient
    endpoints: list[Endpoint]
    count: int
    interval: float
    timeout: float
    ping: Address | None
    address: Address | None
    new_port: bool
    quiet: bool
    report: Report = None  # type: ignore[assignment]

    async def attempts(self) -> None:
        with ExitStack() as sockets:
            sockets.callback(self.client.close)
            sock: socket.socket | None = None
            due = time.monotonic()
            seq = 0
            while self.count == 0 or seq < self.count:
                if seq:
                    due = max(due + self.interval, time.monotonic())
                    await asyncio.sleep(max(0.0, due - time.monotonic()))
                seq += 1
                attempt = Attempt(seq)
                try:
                    if sock is None or self.new_port:
                        sock = self._connect()
                        sockets.callback(sock.close)
                        self.client.attach(sock)
                    await self._step(attempt)
                except ProbeFailure as failure:
                    attempt.failure = failure
                self.report.attempts.append(attempt)
                if not self.quiet:
                    key = PublicKey.parse(self.report.public_key).short
                    print(attempt.line(self.report.server, key, str(self.ping)), flush=True)

    async def _step(self, attempt: Attempt) -> None:
        done = await self.client.handshake(self.timeout)
        attempt.handshake, attempt.under_load = done.rtt, done.under_load
        if self.ping is not None and self.address is not None:
            attempt.echo = await self.client.ping(self.address, self.ping, self.timeout)

    def _connect(self) -> socket.socket:
        """To the first address that a socket can be connected to: a host without IPv6 has no route to the others."""
        problem = OSError("no address")
        for endpoint in self.endpoints:
            try:
                sock = endpoint.connect()
            except OSError as error:
                problem = error
                continue
            self.report.server = str(endpoint)
            return sock
        raise ProbeFailure(Step.UNREACHABLE, problem.strerror or str(problem))
