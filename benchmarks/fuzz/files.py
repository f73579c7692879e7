"""Read thousands of corrupted files in worker processes, and count how each attempt ends."""

from __future__ import annotations

import os
import shutil
import sys
import time
import traceback
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.fuzz.workers import HANG, SIGNAL, START_LIMIT, Lost, Service, ask_all

REFUSED, ACCEPTED, HARM, LONG = "refused", "accepted", "harmful", "not one line"
TRACEBACK = "traceback"
OUTCOMES = (REFUSED, ACCEPTED, HARM, LONG, TRACEBACK, SIGNAL, HANG)
FAULTS = OUTCOMES[2:]
LIMIT = 30.0  # seconds for one file
MEMORY = 3 * 2**30  # bytes that one file may take
LONGEST = 1000  # characters of a message
RENEWED = ", hash renewed"
SEALED = 0.7  # share of variants whose hash is recorded anew
ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Case:
    """One variant of one document; `number` -1 is the healthy file."""

    document: str
    number: int


@dataclass
class Result:
    """How the attempt to read a variant ended."""

    case: Case
    how: str  # what was corrupted, and how
    outcome: str
    message: str = ""
    where: str = ""  # place in the package that let an exception pass
    seconds: float = 0.0


@dataclass
class Tally:
    """Results of a run."""

    results: list[Result] = field(default_factory=list)

    def counts(self) -> dict[str, Counter[str]]:
        """Outcomes by document."""
        found: dict[str, Counter[str]] = defaultdict(Counter)
        for result in self.results:
            found[result.case.document][result.outcome] += 1
        return dict(found)

    def faults(self) -> list[Result]:
        """Results that must not be."""
        return [result for result in self.results if result.outcome in FAULTS]

    def grouped_faults(self) -> list[dict[str, Any]]:
        """One entry for each place where faults of one outcome arise, the most frequent first."""
        groups: dict[tuple[str, str], list[Result]] = defaultdict(list)
        for result in self.faults():
            unknown = result.case.document if result.outcome in (HANG, SIGNAL, HARM) else ""
            kind = result.message.partition(":")[0] if result.outcome == TRACEBACK else ""
            groups[result.outcome, f"{result.where} {kind}{unknown}".strip()].append(result)
        ordered = sorted(groups.items(), key=lambda item: -len(item[1]))
        return [
            {
                "outcome": outcome,
                "where": where,
                "count": len(own),
                "documents": sorted({result.case.document for result in own}),
                "examples": [
                    f"--only '{r.case.document}' --case {r.case.number}: {r.how}: {r.message}"
                    for r in own[:3]
                ],
            }
            for (outcome, where), own in ordered
        ]

    def accepted(self) -> dict[str, dict[str, int]]:
        """How often each corruption of each document was accepted."""
        found: dict[str, Counter[str]] = defaultdict(Counter)
        for result in self.results:
            if result.outcome == ACCEPTED:
                found[result.case.document][result.how.removesuffix(RENEWED)] += 1
        return {name: dict(counted.most_common()) for name, counted in sorted(found.items())}


# --- in the worker --------------------------------------------------------------------------------------


def read_case(case: Case, seed: int, templates: Path, folder: Path, say: Any) -> Result:
    """Corrupt a copy of a healthy folder and read it; `say` hears how it was corrupted before it is read."""
    from benchmarks.fuzz.checks import Harm
    from benchmarks.fuzz.documents import DOCUMENTS
    from edgerec_gym.errors import InputError

    how, place, out = _corrupted(case, seed, templates, folder)
    say(how)
    start = time.monotonic()
    result = Result(case, how, ACCEPTED)
    try:
        DOCUMENTS[case.document].read(place, out)
    except InputError as error:
        text = str(error)
        result.outcome, result.message = REFUSED, text
        if "\n" in text or len(text) > LONGEST or not text.strip():
            result.outcome, result.where = LONG, _where(error)
    except Harm as error:
        result.outcome, result.message, result.where = HARM, str(error), "value"
    except BaseException as error:  # noqa: B036 - a panic in Rust is a BaseException
        result.outcome, result.where = TRACEBACK, _where(error)
        result.message = f"{type(error).__name__}: {error}"
    result.message = result.message.replace(str(place), "FOLDER").replace(str(out), "OUT")[:300]
    result.seconds = time.monotonic() - start
    return result


def _corrupted(case: Case, seed: int, templates: Path, folder: Path) -> tuple[str, Path, Path]:
    """Corrupt a copy of a healthy folder; returns in words how, the copy, and a folder to write into."""
    from benchmarks.fuzz.corruption import corrupt
    from benchmarks.fuzz.documents import DOCUMENTS

    document = DOCUMENTS[case.document]
    rng = np.random.default_rng([seed, zlib.crc32(case.document.encode()), case.number + 1])
    place, out = folder / "in", folder / "out"
    shutil.copytree(template(templates, case.document), place, copy_function=os.link)
    out.mkdir()
    how = "untouched"
    if case.number >= 0:
        file = place / document.file
        others = sorted(path for path in templates.rglob("*") if path.suffix == file.suffix)
        how = corrupt(file, document.form, rng, others)
        if document.seal is not None and rng.random() < SEALED:
            how += RENEWED
            try:
                if file.is_file() and not file.is_symlink():
                    for sealed in place.glob("*.json"):
                        _unlink_shared(sealed)
                    document.seal(place)
            except (OSError, ValueError, KeyError):
                pass
    return how, place, out


def template(templates: Path, document: str) -> Path:
    """The healthy folder of a document; documents made by the same function share it."""
    from benchmarks.fuzz.documents import DOCUMENTS

    makers = list(dict.fromkeys(known.make for known in DOCUMENTS.values()))
    return templates / f"{makers.index(DOCUMENTS[document].make):02d}"


def make_templates(templates: Path, documents: Iterable[str]) -> None:
    """Write the healthy folders that these documents need."""
    from benchmarks.fuzz.documents import DOCUMENTS

    for document in documents:
        folder = template(templates, document)
        if not folder.exists():
            DOCUMENTS[document].make(folder)


def _unlink_shared(file: Path) -> None:
    """Break a hard link, so that writing leaves the healthy file alone."""
    content = file.read_bytes()
    file.unlink()
    file.write_bytes(content)


def _where(error: BaseException) -> str:
    """The innermost line of the package that the exception passed."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if str(ROOT) in f.filename and "/fuzz/" not in f.filename]
    if not own:
        return "outside the package"
    return f"{Path(own[-1].filename).resolve().relative_to(ROOT)}:{own[-1].lineno} in {own[-1].name}"


def _load() -> None:
    """Load everything before the clock runs."""
    import torch

    from benchmarks.fuzz import documents  # noqa: F401

    torch.set_num_threads(1)


def _answer(seed: int, templates: Path, case: Case, folder: Path, tell: Callable[[str], None]) -> Result:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return read_case(case, seed, templates, folder, tell)


# --- in the parent --------------------------------------------------------------------------------------


def run(
    cases: Sequence[Case],
    seed: int,
    folder: Path,
    workers: int = 2,
    progress: Callable[[int, Result], None] | None = None,
    end: float | None = None,
) -> Tally:
    """Read cases in worker processes.

    Args:
        cases: what to read.
        seed: seed of the corruption.
        folder: an existing folder to work in.
        workers: number of processes.
        progress: called with the number of results and the last one.
        end: time, as time.monotonic counts it, from which no more files are read; None for never.
    """
    tally, templates = Tally(), folder / "healthy"
    templates.mkdir(exist_ok=True)
    make_templates(templates, dict.fromkeys(case.document for case in cases))

    def take(case: Case, answer: Any) -> None:
        if isinstance(answer, Lost):
            where = answer.message if answer.outcome == SIGNAL else ""
            answer = Result(case, answer.news, answer.outcome, answer.message, where, answer.seconds)
        tally.results.append(answer)
        if progress:
            progress(len(tally.results), answer)

    service = Service(_load, partial(_answer, seed, templates), MEMORY)

    def enough() -> bool:
        return end is not None and time.monotonic() > end

    ask_all(service, cases, folder, lambda c: LIMIT if c.number >= 0 else START_LIMIT, take, workers, enough)
    tally.results.sort(key=lambda r: (r.case.document, r.case.number))
    return tally


def plan(total: int, only: str | None = None) -> list[Case]:
    """At least `total` variants, equally many of every document, preceded by the healthy files."""
    from benchmarks.fuzz.documents import DOCUMENTS

    names = [name for name in DOCUMENTS if only is None or only in name]
    if not names:
        sys.exit(f"error: no document {only!r}; documents are {', '.join(DOCUMENTS)}")
    each = -(-total // len(names))
    return [Case(name, k) for k in range(-1, each) for name in names]


def keep(case: Case, seed: int, folder: Path) -> None:
    """Write the corrupted files of a case to a folder, for a look at them."""
    templates = folder / "healthy"
    templates.mkdir(parents=True)
    make_templates(templates, [case.document])
    how, _, _ = _corrupted(case, seed, templates, folder)
    print(f"{folder / 'in'}: {how}")
