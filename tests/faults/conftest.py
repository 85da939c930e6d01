"""Faults are tried in cases; each kind's cases are counted, and the README's table is printed."""

import os
import traceback
from collections import Counter, defaultdict
from contextlib import contextmanager

import pytest

WHOLE = os.environ.get("FAULTS") == "whole"  # what `make test-faults` sets
NAMED = 20  # failed cases that a failing test names

tried, survived = Counter(), Counter()
figures = []  # lines below the table


class Kind:
    """A kind of fault: its cases, and those that were not survived.

    Attributes:
        name: as the README's table has it.
    """

    def __init__(self, name):
        self.name, self.failures = name, []

    @contextmanager
    def case(self, what):
        """Try a case; an error inside the block is noted, and the test goes on to the next one."""
        tried[self.name] += 1
        try:
            yield
        except (Exception, pytest.fail.Exception):
            self.failures.append(f"{what}: {traceback.format_exc(limit=-3)}")
        else:
            survived[self.name] += 1


@pytest.fixture
def fault():
    """Gives a `Kind` of a name; at the test's end all its cases must have been survived."""
    kinds = defaultdict(Kind)

    def kind(name):
        return kinds.setdefault(name, Kind(name))

    yield kind
    failures = [failure for each in kinds.values() for failure in each.failures]
    if failures:
        pytest.fail("\n".join([f"{len(failures)} cases failed", *failures[:NAMED]]), pytrace=False)


@pytest.fixture
def count():
    """Chooses the number of cases: few in `make test`, many in `make test-faults`."""
    return lambda quick, whole: whole if WHOLE else quick


@pytest.fixture
def measured():
    """Takes a line that is printed below the table."""
    return figures.append


def pytest_sessionfinish(session):
    """Hand what one of several test processes has counted to the one that reports."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["faults"] = dict(tried), dict(survived), figures


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node):
    """Add what a test process has counted."""
    its_tried, its_survived, its_figures = getattr(node, "workeroutput", {}).get(
        "faults", ({}, {}, [])
    )
    tried.update(its_tried)
    survived.update(its_survived)
    figures.extend(its_figures)


def pytest_terminal_summary(terminalreporter):
    if not (WHOLE and (tried or figures)):
        return
    terminalreporter.write_line("\n| what goes wrong | survived / tried |\n|---|---|")
    for name in sorted(tried):
        terminalreporter.write_line(f"| {name} | {survived[name]} / {tried[name]} |")
    for figure in figures:
        terminalreporter.write_line(figure)
