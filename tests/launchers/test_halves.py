"""Compositions made by two processes: the same, with or without the second one."""

from __future__ import annotations

import os
import threading
import time

import pytest

from launchers import halves

MANY = [(f"a={i}", "b") for i in range(40)]


@pytest.fixture(autouse=True)
def two_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threading, "active_count", lambda: 1)
    monkeypatch.setattr(halves, "_cores", lambda: 2)


def made(combination: tuple[str, ...]) -> tuple[str, bool]:
    if combination == MANY[7]:
        raise ValueError("the caller makes this one again")
    return combination[0] * 1000, os.getpid() == PARENT


PARENT = os.getpid()


def test_both_halves_come_back() -> None:
    found = halves.in_halves(made, MANY)
    assert {c: text for c, (text, _) in found.items()} == {
        c: c[0] * 1000 for c in MANY if c != MANY[7]
    }
    here = [c for c, (_, by_parent) in found.items() if by_parent]
    assert here == MANY[::2]


def test_few_are_left_to_the_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    assert halves.in_halves(made, MANY[: halves.WORTH_IT - 1]) == {}
    monkeypatch.setattr(threading, "active_count", lambda: 2)
    assert halves.in_halves(made, MANY) == {}


def test_a_second_process_that_hangs_or_dies_costs_a_moment() -> None:
    def hangs(combination):
        if os.getpid() != PARENT:
            time.sleep(60)
        return combination

    def dies(combination):
        if os.getpid() != PARENT:
            os._exit(1)
        return combination

    for make in (hangs, dies):
        begin = time.monotonic()
        assert list(halves.in_halves(make, MANY)) == MANY[::2]
        assert time.monotonic() - begin < 30
