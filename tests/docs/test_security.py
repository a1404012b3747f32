"""What the page on security claims is shown by tests that are there."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "security.md").read_text()
NAMED = re.compile(r"`(tests/[\w/]+\.py)(?:::(\w+))?`")


def test_the_tests_that_it_names_are_there() -> None:
    named = NAMED.findall(PAGE)
    assert len(named) > 40
    for file, test in named:
        text = (ROOT / file).read_text()
        assert "def test_" in text, file
        assert not test or re.search(rf"^(async )?def {test}\(", text, re.MULTILINE), (file, test)


def test_the_modules_that_it_names_are_there() -> None:
    for path in re.findall(r"`((?:service|backers|images|tools)/[\w/.]*)`", PAGE):
        assert (ROOT / path).exists(), path


def test_every_promise_names_a_test() -> None:
    for line in PAGE.split("## What holds")[1].split("## What the process")[0].splitlines():
        if line.startswith("| ") and not line.startswith(("| promise", "|---")):
            assert NAMED.search(line), line
