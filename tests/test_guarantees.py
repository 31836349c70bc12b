"""What ``docs/guarantees.md`` names is there, and so is what ``make`` calls."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_every_promise_names_tests_that_exist() -> None:
    rows = [line for line in (ROOT / "docs" / "guarantees.md").read_text().splitlines() if line.startswith("| ")][2:]
    assert len(rows) > 30
    for row in rows:
        file = ""
        named = re.findall(r"`(?:(test_\w+\.py))?(?:::(test_\w+))?`", row)
        assert any(name or test for name, test in named) or "make test" in row, row
        for name, test in named:
            file = name or file
            if file:
                content = (ROOT / "tests" / file).read_text()
                assert not test or f"def {test}(" in content, f"{file}::{test}"
