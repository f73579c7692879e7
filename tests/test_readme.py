"""The README's Python snippets run as they stand, but for the length of the training."""

import re
from pathlib import Path

import pytest

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
SNIPPETS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


@pytest.mark.parametrize("snippet", SNIPPETS, ids=["play", "train", "batch"])
def test_snippet(snippet: str) -> None:
    short = snippet.replace("100_000", "4_096")
    assert "model.learn" not in snippet or short != snippet
    exec(compile(short, "README.md", "exec"), {})


def test_what_the_readme_points_to_exists():
    links = re.findall(r"\]\(([^)#]+)\)", README)
    for link in links:
        if not link.startswith("http"):
            assert (Path(__file__).parent.parent / link).exists(), link
