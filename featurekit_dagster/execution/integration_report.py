"""The report of an integration test: what was done, step by step, and whether it held. Counts, names and times only."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

from featurekit_dagster.errors import FeatureKitError, safe_reason


class StepState(Enum):
    """What became of a step; one that was skipped says why."""

    PASSED = "PASSED"
    FAILED = "FAILED"
    SKIPPED = "SKIPPED"


@dataclass(slots=True, kw_only=True)
class Step:
    """One step of an integration test.

    Args:
        name: Which; names are stable.
        state: What became of it.
        detail: What was found, in a sentence or two; never a key or a value.
        seconds: How long it took.
        counts: Numbers for machines.
    """

    name: str
    state: StepState = StepState.PASSED
    detail: str = ""
    seconds: float = 0.0
    counts: dict[str, int] = field(default_factory=dict)

    def fail(self, detail: str) -> None:
        """Say that the step does not hold; of several faults each is said."""
        faults = [self.detail] if self.state is StepState.FAILED else []
        self.state, self.detail = StepState.FAILED, " ".join([*faults, detail])

    def skip(self, detail: str) -> None:
        """Say why the step does not apply."""
        self.state, self.detail = StepState.SKIPPED, detail


@dataclass(slots=True, kw_only=True)
class IntegrationReport:
    """What an integration test of a feature view found.

    Args:
        view: Name of the feature view.
        kind: `batch` or `stream`.
        events: Where the events came from, per parameter of the view's function: `given`, `generated` or `source`.
        steps: Its steps, in order.
    """

    view: str
    kind: str
    events: dict[str, str] = field(default_factory=dict)
    steps: list[Step] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        """Whether no step failed."""
        return not self.failed

    @property
    def failed(self) -> list[str]:
        """Names of the steps that failed."""
        return [step.name for step in self.steps if step.state is StepState.FAILED]

    def step(self, name: str) -> Step:
        """Return a step by name.

        Raises:
            KeyError: There is none.
        """
        for step in self.steps:
            if step.name == name:
                return step
        raise KeyError(name)

    @contextmanager
    def taking(self, name: str) -> Iterator[Step]:
        """Add a step that takes the body of a `with`; an error in it fails the step and goes no further."""
        step, began = Step(name=name), time.perf_counter()
        self.steps.append(step)
        try:
            yield step
        except FeatureKitError as error:
            step.fail(str(error))
        except Exception as error:  # noqa: BLE001 - it is told by the report, and the other steps are still made
            step.fail(safe_reason(error))
        finally:
            step.seconds = time.perf_counter() - began

    def stats(self) -> dict[str, int]:
        """Return the numbers of steps by what became of them."""
        return {f"steps_{state.value.lower()}": sum(s.state is state for s in self.steps) for state in StepState}

    def record(self) -> dict[str, Any]:
        """Return everything as plain values."""
        steps = [
            {"step": s.name, "state": s.state.value, "seconds": round(s.seconds, 3), "detail": s.detail, **s.counts}
            for s in self.steps
        ]
        own = {"view": self.view, "kind": self.kind, "passed": self.passed, "events": self.events}
        return {**own, "steps": steps}

    def write_junit(self, path: Path) -> None:
        """Write the report as JUnit XML, one test case per step, for the reports of CI servers."""
        from junitparser import Failure, JUnitXml, Skipped, TestCase, TestSuite

        suite = TestSuite(f"integration test, {self.kind}: {self.view}")
        for step in self.steps:
            case = TestCase(step.name, f"featurekit.{self.kind}.{self.view}", round(step.seconds, 3))
            if step.state is StepState.FAILED:
                case.result = [Failure(step.detail, "FAILED")]
            elif step.state is StepState.SKIPPED:
                case.result = [Skipped(step.detail)]
            else:
                case.system_out = step.detail
            suite.add_testcase(case)
        xml = JUnitXml()
        xml.add_testsuite(suite)
        xml.write(str(path), pretty=True)
