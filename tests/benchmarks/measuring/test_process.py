"""Child processes: what both ends learn of each other."""

from __future__ import annotations

import os
import time

import psutil
import pytest

from fanin.benchmarks.measuring.process import Child, EndedError, child_environment

# A child that does what it is told: `say` something, `print` it, `end` in the middle of a line.
MODULE = """if True:
    import os, sys
    from fanin.benchmarks.measuring.process import Parent
    pipe = int(sys.argv[-1])
    parent = Parent(pipe)
    while True:
        do, what = parent.receive()
        if do == "say":
            parent.send(what)
        if do == "print":
            print(what, flush=True)
        if do == "end":
            os.write(pipe, b'{"half": ')
            os._exit(what)
"""


@pytest.fixture
def child(tmp_path, monkeypatch):
    (tmp_path / "obedient.py").write_text(MODULE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    with Child("obedient", log=tmp_path / "child.log") as child:
        yield child


def test_messages_pass_in_order_and_prints_do_not_mix_with_them(child, tmp_path):
    large = "x" * 300_000  # more than a pipe holds
    child.send(["print", "hello"])
    for message in (1.5, {"a": [None, True]}, large):
        child.send(["say", message])
    assert [child.receive() for _ in range(3)] == [1.5, {"a": [None, True]}, large]
    assert (tmp_path / "child.log").read_text() == "hello\n"


def test_half_a_message_is_the_end(child):
    child.send(["say", 1])
    child.send(["end", 7])
    assert list(child.messages()) == [1]
    with pytest.raises(EndedError, match=r"^its process ended: see .*child\.log$"):
        child.receive()
    assert child.process.wait(20) == 7
    child.send(["say", 2])  # nobody is there; this is no error


def test_patience_ends(child):
    child.send(["say", 1])
    assert child.receive(20) == 1
    with pytest.raises(TimeoutError, match=r"no answer within 0\.2 seconds"):
        child.receive(0.2)


def test_one_that_is_asked_to_end_does(child):
    child.send(["say", 1])
    child.receive()
    child.close(20)
    assert child.process.returncode == 0
    child.close()  # once more does nothing


def test_it_is_gone_after_an_exception(tmp_path):
    with pytest.raises(KeyboardInterrupt), Child("timeit", log=tmp_path / "log") as child:
        assert psutil.pid_exists(child.process.pid)
        raise KeyboardInterrupt
    assert child.process.returncode is not None


def test_it_ends_with_its_parent(child):
    child.send(["say", 1])
    child.receive()
    child.process.stdin.close()  # as the end of a process closes it
    end = time.monotonic() + 20
    while child.process.poll() is None:
        assert time.monotonic() < end
        time.sleep(0.01)


def test_threads_wait_shortly_unless_it_is_said_how(monkeypatch):
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    assert child_environment()["GOMP_SPINCOUNT"] == "5000"
    monkeypatch.setenv("GOMP_SPINCOUNT", "7")
    assert child_environment()["GOMP_SPINCOUNT"] == "7"
    monkeypatch.delenv("GOMP_SPINCOUNT")
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    assert "GOMP_SPINCOUNT" not in child_environment()
