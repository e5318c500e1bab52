# SPDX-License-Identifier: Apache-2.0
"""SaveConfig: the running state goes back into the file when the interface goes down; comments and spacing stay."""

from __future__ import annotations

import contextlib
import os
import tempfile

from wicketgate.config.edit import update
from wicketgate.config.model import Endpoint, Peer
from wicketgate.config.wgquick import WgQuickConfig, render
from wicketgate.errors import WicketError
from wicketgate.kernel.wireguard import WireGuardBackend
from wicketgate.logs import get_logger
from wicketgate.wireguard.keys import PublicKey

_log = get_logger("gateway")


async def save_config(
    path: str, config: WgQuickConfig, backend: WireGuardBackend, ifname: str, *, hide: PublicKey
) -> None:
    """Write the device's peers, port and mark back.

    Args:
        path: the file; replaced in one step (a new file of mode 0600 beside it, renamed over it).
        config: as it was last read.
        backend: of the device.
        ifname: the tunnel.
        hide: the probe peer, which is nobody's.

    A failure is logged and the file is as it was: on the way down nothing else should be kept from happening.
    """
    try:
        state = await backend.get(ifname)
        preshared = await backend.preshared_keys(ifname)
        peers = []
        for seen in state.peers:
            key = PublicKey.parse(seen.public_key)
            if key == hide:
                continue
            known = config.peer(key)
            endpoint = known.endpoint if known is not None else None
            # A host name stays one: the address it has today is not what was written.
            if seen.endpoint is not None and (endpoint is None or endpoint.address is not None):
                endpoint = Endpoint(str(seen.endpoint[0]), seen.endpoint[1])
            peers.append(
                Peer(
                    key,
                    preshared_key=preshared.get(key),
                    allowed_ips=seen.allowed_ips,
                    endpoint=endpoint,
                    persistent_keepalive=seen.persistent_keepalive or None,
                    name=known.name if known is not None else None,
                )
            )
        text = render(update(config, listen_port=state.listen_port or None, fwmark=state.fwmark or None, peers=peers))
        _replace(path, text)
    except (WicketError, OSError, ValueError) as error:
        _log.error(
            "SaveConfig: the running state could not be written back; the file is as it was",
            path=path,
            error=str(error),
        )
        return
    _log.info("saved", path=path, peers=len(peers))


def _replace(path: str, text: str) -> None:
    directory = os.path.dirname(os.path.abspath(path))
    handle, temporary = tempfile.mkstemp(prefix=".wicket-", dir=directory)  # mkstemp makes it 0600
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
