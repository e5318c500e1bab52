# SPDX-License-Identifier: Apache-2.0
"""Values as lines of a wg-quick file, in the order and spelling of wg-quick's and wg's own output."""

from __future__ import annotations

from wicketgate.config.model import Interface, Peer
from wicketgate.config.names import explicit_name
from wicketgate.config.values import SPACE
from wicketgate.errors import InputError

Setting = tuple[str, str]  # key, value


def _setting(section: str, key: str, value: str) -> Setting:
    # A value from elsewhere (a Kubernetes object) must not become a second line, nor lose its end to a comment.
    if not value or value != value.strip(SPACE) or any(c in value for c in "#\n\0"):
        # The text stays out of the message: hooks quote secrets.
        raise InputError(
            f"[{section}] {key}: a value that a wg-quick file cannot hold; "
            "allowed: one line without # (which begins a comment, even in quotes) and without blanks around it"
        )
    return key, value


def interface_settings(interface: Interface) -> list[Setting]:
    """The settings that differ from a file that does not name them.

    Raises:
        InputError: a value that would not be read back.
    """
    settings: list[Setting] = [("Address", str(a)) for a in interface.addresses]
    names = [*map(str, interface.dns), *interface.dns_search]
    if names:
        settings.append(("DNS", ", ".join(names)))
    if interface.mtu is not None:
        settings.append(("MTU", str(interface.mtu)))
    if interface.table != "auto":
        settings.append(("Table", str(interface.table)))
    if interface.save_config:
        settings.append(("SaveConfig", "true"))
    settings += [("PreUp", hook) for hook in interface.pre_up]
    settings += [("PostUp", hook) for hook in interface.post_up]
    settings += [("PreDown", hook) for hook in interface.pre_down]
    settings += [("PostDown", hook) for hook in interface.post_down]
    if interface.listen_port is not None:
        settings.append(("ListenPort", str(interface.listen_port)))
    if interface.fwmark is not None:
        settings.append(("FwMark", spell_fwmark(interface.fwmark)))
    if interface.private_key is not None:
        settings.append(("PrivateKey", interface.private_key.expose_base64()))
    return [_setting("Interface", key, value) for key, value in settings]


def spell_fwmark(fwmark: int) -> str:
    """As `wg showconf` writes it."""
    return f"0x{fwmark:x}" if fwmark else "off"


def peer_settings(peer: Peer) -> list[Setting]:
    """The settings of a peer; what it does not say is left out.

    Raises:
        InputError: a value that would not be read back.
    """
    settings: list[Setting] = [("PublicKey", str(peer.public_key))]
    if peer.preshared_key is not None:
        settings.append(("PresharedKey", peer.preshared_key.expose_base64()))
    if peer.allowed_ips:
        settings.append(("AllowedIPs", ", ".join(map(str, peer.allowed_ips))))
    if peer.endpoint is not None:
        settings.append(("Endpoint", str(peer.endpoint)))
    if peer.persistent_keepalive is not None:
        settings.append(("PersistentKeepalive", str(peer.persistent_keepalive or "off")))
    return [_setting("Peer", key, value) for key, value in settings]


def name_comment(name: str) -> str:
    """`# Name = x`.

    Raises:
        InputError: the name would not be read back.
    """
    comment = f"# Name = {name}"
    if "\n" in name or explicit_name(comment) != name:
        raise InputError("peer name: a comment cannot hold it; allowed: one line of 1-64 printable characters, no key")
    return comment


def peer_section(peer: Peer) -> list[str]:
    """A whole section: its header, its name as a comment, its settings."""
    name = [] if peer.name is None else [name_comment(peer.name)]
    return ["[Peer]", *name, *(f"{key} = {value}" for key, value in peer_settings(peer))]
