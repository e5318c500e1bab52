# SPDX-License-Identifier: Apache-2.0
"""Snapshots as JSON."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from netpath_values import snapshots
from wicketgate.errors import InputError
from wicketgate.netpath.codec import from_json, to_json
from wicketgate.netpath.snapshot import Snapshot

EMPTY = json.loads(to_json(Snapshot(taken_at=1.0)))


@given(snapshots)
@settings(max_examples=50, deadline=None)
def test_what_is_written_reads_back_equal(snapshot):
    """`from_json(to_json(s)) == s` for every snapshot, and the text is plain JSON."""
    text = to_json(snapshot)
    assert text.isascii()
    assert from_json(text) == snapshot
    assert to_json(from_json(text)) == text


@given(snapshots)
@settings(max_examples=10, deadline=None)
def test_values_can_be_members_of_sets(snapshot):
    """Every value has a hash, routes with metrics too, and equal ones have the same."""
    assert hash(from_json(to_json(snapshot))) == hash(snapshot)
    assert len(set(snapshot.routes)) <= len(snapshot.routes)


def test_every_list_stands_on_lines_of_its_own():
    """One rule a line, so that `diff` of two snapshots reads well."""
    text = to_json(
        from_json(json.dumps(EMPTY | {"rules": [{"family": 4, "priority": 1}, {"family": 6, "priority": 2}]}))
    )
    lines = [line for line in text.splitlines() if '"priority"' in line]
    assert len(lines) == 2


def test_what_has_a_default_may_be_left_out():
    """A file written by hand needs only what cannot be guessed."""
    assert from_json('{"version": 1, "taken_at": 5}') == Snapshot(taken_at=5.0)


RULE = {"family": 4, "priority": 1}

BAD = [
    ("", "line 1 column 1: no JSON"),
    ("[]", "$: read []; allowed: an object"),
    ("{}", "$.version: read null; allowed: 1"),
    ({"version": 2, "taken_at": 1}, "$.version: read 2; allowed: 1"),
    ({"version": True, "taken_at": 1}, "$.version: read true; allowed: 1"),
    ({"version": 1}, "$.taken_at: missing"),
    (EMPTY | {"taken_at": "now"}, '$.taken_at: read "now"; allowed: a number'),
    (EMPTY | {"taken_at": True}, "$.taken_at: read true; allowed: a number"),
    ('{"version": 1, "taken_at": NaN}', "NaN is no JSON number"),
    ('{"version": 1, "taken_at": 1, "taken_at": 2}', 'the key "taken_at" stands twice'),
    (EMPTY | {"routs": []}, "$.routs: read []; allowed: no such key here; known: taken_at,"),
    (EMPTY | {"rules": {}}, "$.rules: read {}; allowed: a list"),
    (EMPTY | {"rules": [RULE, RULE | {"fwmark": "0x1"}]}, '$.rules[1].fwmark: read "0x1"; allowed: a whole number'),
    (EMPTY | {"rules": [RULE | {"fwmark": 1.5}]}, "$.rules[0].fwmark: read 1.5; allowed: a whole number"),
    (EMPTY | {"rules": [RULE | {"fwmark": True}]}, "$.rules[0].fwmark: read true; allowed: a whole number"),
    (EMPTY | {"rules": [RULE | {"fwmark": 1 << 70}]}, "allowed: a whole number of at most 64 bits"),
    (EMPTY | {"rules": [RULE | {"family": 5}]}, "$.rules[0].family: read 5; allowed: 4 or 6"),
    (EMPTY | {"rules": [RULE | {"sport": [1]}]}, "$.rules[0].sport: read [1]; allowed: a list of 2"),
    (
        EMPTY | {"rules": [RULE | {"src": "10.0.0.1/24"}]},
        '$.rules[0].src: read "10.0.0.1/24"; allowed: a network without',
    ),
    (EMPTY | {"rules": [{"family": 4}]}, "$.rules[0].priority: missing"),
    (EMPTY | {"rules": [7]}, "$.rules[0]: read 7; allowed: an object (Rule)"),
    (EMPTY | {"routes": [{"dst": None}]}, "$.routes[0].dst: read null; allowed: a network without"),
    (
        EMPTY | {"routes": [{"dst": "::/0", "nexthops": [{"via": "fe80::1%"}]}]},
        '$.routes[0].nexthops[0].via: read "fe80::1%"; allowed: an IPv4 or IPv6 address',
    ),
    (EMPTY | {"sysctls": {"net.ipv4.ip_forward": 1}}, "$.sysctls.net.ipv4.ip_forward: read 1; allowed: a string"),
    (EMPTY | {"sysctls": []}, "$.sysctls: read []; allowed: an object of strings"),
    (EMPTY | {"firewall": None}, "$.firewall: read null; allowed: an object (Firewall)"),
    (EMPTY | {"kernel_release": "x" * 500}, None),
    (EMPTY | {"kernel_release": ["x" * 500]}, "xxx...; allowed: a string"),
    ("[" * 100_000, "no JSON that can be read"),
]


@pytest.mark.parametrize(("given", "says"), BAD, ids=range(len(BAD)))
def test_bad_input_is_told_with_its_place(given, says):
    """Every error names the JSON path, what was read and what is allowed, and is an InputError."""
    text = given if isinstance(given, str) else json.dumps(given)
    if says is None:
        from_json(text)
        return
    with pytest.raises(InputError) as caught:
        from_json(text)
    assert says in str(caught.value)
    assert len(str(caught.value)) < 500


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@given(snapshots, st.data())
@settings(max_examples=50, deadline=None)
def test_a_damaged_snapshot_is_read_or_refused_never_more(snapshot, data):
    """A random value in a random place, or a torn file, ends in a snapshot or in an InputError."""
    document = json.loads(to_json(snapshot))
    place, key = document, "version"
    while isinstance(place, dict | list) and place:
        parent = place
        key = data.draw(st.sampled_from(sorted(place) if isinstance(place, dict) else range(len(place))))
        place = parent[key]
        if data.draw(st.booleans()):
            break
    parent[key] = data.draw(_json)
    text = json.dumps(document)
    for given_text in (text, text[: data.draw(st.integers(0, len(text)))]):
        try:
            assert isinstance(from_json(given_text), Snapshot)
        except InputError as error:
            assert str(error).startswith("snapshot: ")


@given(st.text(max_size=50) | st.binary(max_size=50).map(lambda b: b.decode("latin-1")))
def test_any_text_is_read_or_refused(text):
    """Nothing but a snapshot or an InputError comes of any text."""
    try:
        from_json(text)
    except InputError:
        pass
