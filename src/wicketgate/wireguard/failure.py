# SPDX-License-Identifier: Apache-2.0
"""Which step of a probe failed, and what that means. WireGuard answers most mistakes with silence, by design."""

from __future__ import annotations

from enum import StrEnum


class Step(StrEnum):
    """Where a probe ended. Codes are stable."""

    REFUSED = "refused"
    UNREACHABLE = "unreachable"
    SILENT = "silent"
    UNDER_LOAD = "under_load"
    WRONG_PSK = "wrong_psk"
    MALFORMED = "malformed"
    NO_ECHO = "no_echo"
    TCP_REFUSED = "tcp_refused"
    TCP_SILENT = "tcp_silent"


MEANING = {
    Step.REFUSED: "the host answers that nothing listens on this UDP port",
    Step.UNREACHABLE: "the packet cannot be sent, or a router says that it cannot be delivered",
    Step.SILENT: (
        "no answer: wrong server key, client key unknown to the server, stale timestamp, a firewall, "
        "or nothing there; WireGuard makes all of these look alike by design"
    ),
    Step.UNDER_LOAD: "the server is alive but under load: it sent a cookie, and then did not finish the handshake in time",
    Step.WRONG_PSK: "the server answered, but its sealed payload does not open: the preshared keys differ",
    Step.MALFORMED: "the server answered our index with something that is no valid WireGuard response",
    Step.NO_ECHO: (
        "the handshake is fine, but nothing came back through the tunnel: the source address is not in the peer's "
        "AllowedIPs, the destination is not there or does not answer, or forwarding, a route or a firewall stops it"
    ),
    Step.TCP_REFUSED: "the way through the tunnel works, but nothing listens on that TCP port",
    Step.TCP_SILENT: (
        "the handshake is fine, but the SYN through the tunnel was not answered: AllowedIPs, forwarding, a route "
        "or a firewall stops it"
    ),
}


class ProbeFailure(Exception):  # noqa: N818 - the result of a probe that worked
    """A probe's negative result.

    Attributes:
        step: which step failed.
        meaning: what that means, one sentence without a full stop.
    """

    def __init__(self, step: Step, detail: str = "") -> None:
        self.step = step
        self.meaning = MEANING[step] + (f" ({detail})" if detail else "")
        super().__init__(f"{step}: {self.meaning}")
