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
FAILED = "FAILED: not every wet test ran, and --require wet asks for all"


@pytest.fixture
def runner(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    monkeypatch.setenv("PYTHONPATH", str(FIXTURES), os.pathsep)
    monkeypatch.delenv("LAKE", raising=False)
    pytester.makeconftest(PLUGIN)
    pytester.makepyfile(TESTS)
    return pytester


def test_without_the_resource_one_line_says_what_did_not_run(runner: pytest.Pytester) -> None:
    result = runner.runpytest("--strict-markers")
    assert result.ret == 0
    assert result.parseoutcomes()["passed"] == 1
    assert [line for line in result.outlines if "wet" in line] == [LINE]
    required = runner.runpytest("--require", "wet", "-n", "2")  # in other processes, too
    assert required.ret == 1
    assert [line for line in required.outlines if "wet" in line] == [LINE, FAILED]


def test_a_required_group_has_to_run_whole(
    runner: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LAKE", "1")
    whole = runner.runpytest("--require", "wet")
    assert whole.ret == 0
    whole.assert_outcomes(passed=3)
    runner.runpytest("-m", "wet").assert_outcomes(passed=2, deselected=1)
    assert runner.runpytest("--require", "wet", "-k", "dry").ret == 1
    runner.makepyfile(test_more="import pytest\ndef test_not_now(lake): pytest.skip('later')")
    assert runner.runpytest("--require", "wet").ret == 1
    assert runner.runpytest("--require", "tea").ret == pytest.ExitCode.USAGE_ERROR
