# SPDX-License-Identifier: Apache-2.0
"""The settings of `wicket up` and `wicket sidecar`: defaults, flags, environment, and every refusal."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, asdict
from ipaddress import ip_address

import pytest

from wicketgate.config.settings import (
    Choice,
    Egress,
    GatewaySettings,
    Level,
    Role,
    SidecarSettings,
    Strategy,
    environment_name,
    flag_name,
)
from wicketgate.errors import InputError


def test_defaults_of_a_gateway():
    """The defaults of the design."""
    settings = GatewaySettings()
    assert asdict(settings) == {
        "role": Role.SERVER, "strategy": Strategy.PIN, "userspace": Choice.AUTO, "health_port": 8080, "tcp_port": 9000,
        "level": None, "door": Choice.AUTO, "probe_interval": 1.0, "egress": None, "drain": 30.0, "log": "console",
    }  # fmt: skip
    assert settings.effective_level is Level.TUNNEL
    assert GatewaySettings(role=Role.EXIT).effective_level is Level.EGRESS
    assert GatewaySettings(role=Role.EXIT, level=Level.HANDSHAKE).effective_level is Level.HANDSHAKE


def test_defaults_of_a_sidecar():
    """It stands beside wg0; the weaker level is never the default."""
    settings = SidecarSettings()
    assert (settings.interface, settings.private_key_file, settings.listen_port) == ("wg0", None, None)
    assert settings.effective_level is Level.TUNNEL
    assert SidecarSettings(level=Level.PORT).effective_level is Level.PORT


def test_a_flag_wins_over_its_variable():
    """Flags, then the environment, then the default; an empty variable is none; foreign variables are left alone."""
    environ = {
        "WICKET_HEALTH_PORT": "8081",
        "WICKET_DRAIN": "5",
        "WICKET_EGRESS": "",
        "WICKET_PORT": "tcp://x",
        "X": "y",
    }
    settings = GatewaySettings.load({"health_port": 8082, "tcp_port": None, "role": "exit"}, environ)
    assert (settings.health_port, settings.drain, settings.egress, settings.tcp_port) == (8082, 5.0, None, 9000)
    assert settings.role is Role.EXIT


def test_names():
    """Each flag's variable is made of its name."""
    assert environment_name("health_port") == "WICKET_HEALTH_PORT"
    assert flag_name("probe_interval") == "--probe-interval"


def test_settings_do_not_change():
    """They are values."""
    with pytest.raises(FrozenInstanceError):
        GatewaySettings().drain = 3


@pytest.mark.parametrize(
    ("field", "value", "read"),
    [
        ("tcp_port", "0", 0),
        ("health_port", "1", 1),
        ("probe_interval", "0.1", 0.1),
        ("probe_interval", "60", 60.0),
        ("drain", "0", 0.0),
        ("log", "json", "json"),
        ("strategy", "off", Strategy.OFF),
        ("userspace", "always", Choice.ALWAYS),
        ("door", "never", Choice.NEVER),
        ("level", "egress", Level.EGRESS),
        ("egress", "192.0.2.1", Egress(ip_address("192.0.2.1"))),
        ("egress", "192.0.2.1:443", Egress(ip_address("192.0.2.1"), 443)),
        ("egress", "2001:db8::1", Egress(ip_address("2001:db8::1"))),
        ("egress", "[2001:db8::1]", Egress(ip_address("2001:db8::1"))),
        ("egress", "[2001:db8::1]:443", Egress(ip_address("2001:db8::1"), 443)),
    ],
)
def test_values(field, value, read):
    """As a flag and as a variable alike."""
    assert getattr(GatewaySettings.load({field: value}, {}), field) == read
    assert getattr(GatewaySettings.load({}, {environment_name(field): value}), field) == read


@pytest.mark.parametrize("text", ["192.0.2.1", "192.0.2.1:443", "2001:db8::1", "[2001:db8::1]:443"])
def test_egress_is_written_as_it_is_read(text):
    """Its str is what the flag takes."""
    assert str(GatewaySettings.load({"egress": text}, {}).egress) == text


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("role", "client", '"client"; allowed: server, exit'),
        ("strategy", "isolate", '"isolate", which is not built yet; allowed: pin, off'),
        ("strategy", "host", '"host", which is not built yet; allowed: pin, off'),
        ("strategy", "none", '"none"; allowed: pin, off'),
        ("userspace", "yes", "allowed: auto, always, never"),
        ("health_port", "0", "allowed: a port: 1-65535"),
        ("health_port", "65536", "allowed: a port: 1-65535"),
        ("health_port", "http", '"http"; allowed: a port'),
        ("health_port", "8_080", "allowed: a port"),
        ("health_port", "٣", "allowed: a port"),
        ("tcp_port", "-1", "allowed: a port: 1-65535, or 0 for none"),
        ("level", "port", '"port"; allowed: handshake, tunnel, egress'),
        ("door", "", '""; allowed: auto'),
        ("probe_interval", "0.09", "allowed: seconds: 0.1-60"),
        ("probe_interval", "61", "allowed: seconds"),
        ("probe_interval", "nan", "allowed: seconds"),
        ("probe_interval", "1s", "allowed: seconds"),
        ("probe_interval", "1_0", "allowed: seconds"),
        ("probe_interval", " 1", "allowed: seconds"),
        ("probe_interval", "٣", "allowed: seconds"),
        ("drain", "-1", "allowed: seconds: 0-3600"),
        ("drain", "inf", "allowed: seconds"),
        ("log", "xml", "allowed: json, console"),
        ("egress", "example.com", "no host names"),
        ("egress", "192.0.2.1:0", "with a port of 1-65535"),
        ("egress", "192.0.2.1:", "with a port"),
        ("egress", "[2001:db8::1]x", "with a port"),
        ("egress", "[192.0.2.1]:1", "with a port"),
        ("egress", "0.0.0.0", "ADDRESS"),
        ("egress", "fe80::1%eth0", "ADDRESS"),
    ],
)
def test_refusals(field, value, said):
    """The error names the flag or the variable, the value and what is allowed."""
    with pytest.raises(InputError) as caught:
        GatewaySettings.load({field: value}, {})
    assert str(caught.value).startswith(f"{flag_name(field)}: ")
    assert said in str(caught.value)
    if value:
        with pytest.raises(InputError) as caught:
            GatewaySettings.load({}, {environment_name(field): value})
        assert str(caught.value).startswith(f"{environment_name(field)}: ")


def test_all_refusals_come_at_once():
    """One line each, also for what is no setting at all."""
    with pytest.raises(InputError) as caught:
        GatewaySettings.load({"drain": "x", "healt_port": 1}, {"WICKET_ROLE": "y"})
    lines = str(caught.value).splitlines()
    assert len(lines) == 3
    assert "--healt-port: unknown; did you mean --health-port?" in lines


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("health_port", True),
        ("health_port", 8080.0),
        ("health_port", 70000),
        ("drain", True),
        ("drain", [1]),
        ("egress", 3),
        ("interface", 3),
    ],
)
def test_values_of_another_kind(field, value):
    """What a program hands over instead of a text is read as strictly."""
    with pytest.raises(InputError, match=flag_name(field)):
        SidecarSettings.load({field: value}, {})


def test_two_listeners_need_two_ports():
    """The health port and the TCP port differ, or there is no TCP port."""
    with pytest.raises(InputError, match="--tcp-port and --health-port are both 8080"):
        GatewaySettings.load({"tcp_port": 8080}, {})


@pytest.mark.parametrize("name", ["", "a/b", "a b", "sixteencharacters", ".", "..", "wg:0", "üüüüüüüü"])
def test_a_sidecar_needs_an_interface_that_can_be(name):
    """What the kernel would not take as a name is refused; umlauts count as two bytes, as there."""
    with pytest.raises(InputError, match="--interface"):
        SidecarSettings.load({"interface": name}, {})


def test_a_key_in_the_place_of_its_file_is_not_shown():
    """Nor in the repr of the settings' error."""
    key = "yAnz5TF+lXXJte14tji3zlMNq+hd2rYUIgJBgB3fBmk="
    with pytest.raises(InputError) as caught:
        SidecarSettings.load({"interface": key, "private_key_file": 3}, {})
    assert key[:12] not in str(caught.value)
    with pytest.raises(InputError) as caught:
        SidecarSettings.load({"private_key_file": key}, {})
    assert key[:12] not in str(caught.value)
