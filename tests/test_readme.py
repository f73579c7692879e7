"""The README is short, and its Python snippets run as they stand, but for the length of the training."""

import re
from pathlib import Path

import pytest
from places import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
SNIPPETS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
MOST_WORDS = 700  # what does not fit belongs in docs/


@pytest.mark.parametrize("snippet", SNIPPETS, ids=["play", "train"])
def test_snippet(snippet: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    short = snippet.replace("100_000", "4_096")
    assert "model.learn" not in snippet or short != snippet
    exec(compile(short, "README.md", "exec"), {})


def test_it_is_short():
    assert len(README.split()) <= MOST_WORDS


def test_what_the_readme_points_to_exists():
    links = [*re.findall(r"\]\(([^)#]+)[^)]*\)", README), *re.findall(r'src="([^"]+)"', README)]
    for link in links:
        if not link.startswith("http"):
            assert (ROOT / link).exists(), link
