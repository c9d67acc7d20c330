"""Tests that need something the machine lacks are left out with one line, never in silence."""

import os
from pathlib import Path

import pytest

FIXTURES = Path(__file__).parent / "fixtures"
PLUGIN = """
import os
import external_resources
import pytest

def no_lake():
    return None if "LAKE" in os.environ else "no lake found"

LAKE = external_resources.Resource("wet", "lake", no_lake, "dig one")

def pytest_addoption(parser):
    external_resources.add_option(parser)

def pytest_configure(config):
    external_resources.register(config, [LAKE])

@pytest.fixture
def lake():
    return "lake"

@pytest.fixture
def fish(lake):
    return "fish"
"""
TESTS = """
import pytest

def test_direct(lake): pass
def test_through_another_fixture(fish): pass
def test_dry(): pass
"""
LINE = "no lake found: 2 wet tests deselected; dig one"


@pytest.fixture
def runner(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    monkeypatch.setenv("PYTHONPATH", str(FIXTURES), os.pathsep)
    monkeypatch.delenv("LAKE", raising=False)
    pytester.makeconftest(PLUGIN)
    pytester.makepyfile(TESTS)
    return pytester


def test_without_the_resource_one_line_says_what_did_not_run(runner: pytest.Pytester) -> None:
    for options in ((), ("-n", "2")):  # in other processes, too
        result = runner.runpytest("--strict-markers", *options)
        assert result.ret == 0
        assert result.parseoutcomes()["passed"] == 1
        assert [line for line in result.outlines if "wet" in line] == [LINE]
    required = runner.runpytest("--require", "wet")
    assert required.ret == pytest.ExitCode.USAGE_ERROR
    assert "--require wet: no lake found; dig one" in required.stderr.str()


def test_with_the_resource_all_run(
    runner: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LAKE", "1")
    runner.runpytest("--require", "wet").assert_outcomes(passed=3)
    runner.runpytest("-m", "wet").assert_outcomes(passed=2, deselected=1)
    assert runner.runpytest("--require", "tea").ret == pytest.ExitCode.USAGE_ERROR
