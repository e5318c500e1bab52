# SPDX-License-Identifier: Apache-2.0
"""What is remembered of a lab."""

from __future__ import annotations

import os

import pytest

from wicketgate.errors import InputError, StateError
from wicketgate.lab import state
from wicketgate.lab.host import _HOLDER, HOLDER_NAME, holder_name
from wicketgate.lab.state import HostRecord, LabRecord, ProcessId, ProcessRecord


@pytest.fixture(autouse=True)
def _own_directory(tmp_path, monkeypatch):
    monkeypatch.setenv("WICKET_LAB_DIR", str(tmp_path / "labs"))


NOBODY = ProcessId(2**22 + 1, 1)


def record(name="one", *, owner=None, holder=NOBODY):
    return LabRecord(
        name,
        "vpc",
        2,
        owner,
        [HostRecord("pod1", holder)],
        [ProcessRecord("pod1", "tcp-echo", NOBODY, "/x.log")],
        {"pod1": "10.0.16.11"},
    )


def test_a_record_comes_back_as_it_was_written():
    """save, then load: the same values."""
    before = record(owner=ProcessId.of(os.getpid()))
    before.save()
    assert state.load("one") == before
    assert state.names() == ["one"]


def test_no_record_is_none_and_a_broken_one_is_an_error_that_names_the_file():
    """A missing lab is an answer; a file that is no record is said with its path, and `sweep` still removes it."""
    assert state.load("one") is None
    for text in ("", "{}", "[]", '{"version": 99}', '{"version": 1}'):
        state.record_path("one").write_text(text)
        with pytest.raises(StateError, match=r"one\.json: not a lab's record"):
            state.load("one")
    assert state.sweep("one") == []
    assert state.load("one") is None


def test_a_process_is_itself_only_with_its_start_time():
    """The same pid with another start time is a stranger; a pid that nobody has is nobody."""
    own = ProcessId.of(os.getpid())
    assert own is not None
    assert own.alive()
    assert not ProcessId(own.pid, own.start + 1).alive()
    assert ProcessId.of(2**22 + 1) is None


def test_sweeping_spares_a_stranger_who_got_the_pid_later():
    """A record that names our own pid with an older start time is removed without touching us."""
    own = ProcessId.of(os.getpid())
    stranger = ProcessId(own.pid, own.start - 1)
    lost = record(holder=stranger)
    lost.processes = [ProcessRecord("pod1", "x", stranger, "")]
    lost.save()
    assert state.sweep("one") == []
    assert not lost.path().exists()


def test_an_owner_that_ended_leaves_an_orphan():
    """A lab of a running command, a lab that stays by itself, and one whose command has ended."""
    assert not record(owner=ProcessId.of(os.getpid())).orphaned()
    assert not record().orphaned()
    assert record(owner=ProcessId(os.getpid(), 1)).orphaned()


@pytest.mark.parametrize("name", ["", "Lab", "a/b", "..", "-a", "a-", "x" * 41, "a b", "a.json"])
def test_names_that_could_leave_the_directory_are_refused(name):
    """A name is letters, digits and dashes; the error says so."""
    with pytest.raises(InputError, match="--name"):
        state.check_name(name)


def test_a_host_is_asked_for_by_name():
    """An unknown host: the known ones are listed. One whose holder ended: the way out is named."""
    with pytest.raises(InputError, match="no host 'pod9'; it has: pod1"):
        record().pid_of("pod9")
    with pytest.raises(StateError, match="wicket lab down --name one"):
        record(holder=ProcessId(os.getpid(), 1)).pid_of("pod1")


def test_only_a_holder_looks_like_a_holder():
    """The command line of a holder gives its name; what merely mentions one does not."""
    assert holder_name(["sh", "-c", _HOLDER, HOLDER_NAME, "lab-pod1", "keep"]) == "lab-pod1"
    assert (
        holder_name(["unshare", "--net", "--mount", "sh", "-c", _HOLDER, HOLDER_NAME, "lab-pod1", "bound"])
        == "lab-pod1"
    )
    for argv in (
        ["grep", "wicket-host", "lab-pod1", "keep"],
        ["sh", "-c", "sleep 9", HOLDER_NAME, "lab-pod1", "keep"],
        ["sh", "-c", _HOLDER, HOLDER_NAME, "lab-pod1", "other"],
        [],
    ):
        assert holder_name(argv) is None
