"""A phone that is killed at every step at which its folder of models changes, one after the other.

python killed_models.py MODELS WORK: MODELS holds the folders a, b and c. Prints the number of steps.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from edgerec_gym.device import registry
from edgerec_gym.device.description import digest_of, read_description
from edgerec_gym.device.registry import ModelRegistry, recorded_files
from edgerec_gym.protocol.messages import ModelFile, ModelOffer

KILLED = 9
STEPS = (
    (os, "replace"),
    (os, "unlink"),
    (os, "rmdir"),
    (Path, "rename"),
    (Path, "write_text"),
)


def load(folder: Path, digest: str) -> Any:
    """Load without an engine, so that a process without threads can be forked."""
    assert digest_of(folder) == digest
    return SimpleNamespace(described=read_description(folder), folder=folder)


def offer_of(folder: Path) -> ModelOffer:
    return ModelOffer(digest_of(folder), [ModelFile(*file) for file in recorded_files(folder).items()])


def live(models: Path, place: Path) -> ModelRegistry:
    """a, then b, back to a, then c; what is there already is not done again."""
    phone = ModelRegistry(place)
    phone.load()
    a, b, c = (models / name for name in "abc")
    for folder in (a, b, c):
        offer = offer_of(folder)
        if phone.is_wanted(offer.digest) and not (folder == a and phone.active):
            room = phone.room(offer)
            if room is not None:
                room.mkdir(exist_ok=True)
                for file in offer.files:
                    shutil.copyfile(folder / file.name, room / file.name)
            phone.receive(offer.digest, offer.files)
            phone.activate(offer.digest)
        if folder == b and phone.active == offer.digest:
            phone.rollback("slower")
    return phone


def die_at(step: int) -> None:
    """End this process at the step-th change of a file, before or after it is made."""
    passed = [0]
    for owner, name in STEPS:
        kept = getattr(owner, name)

        def change(*args: Any, kept: Any = kept, **options: Any) -> Any:
            passed[0] += 1
            if passed[0] == step:
                os._exit(KILLED)
            return kept(*args, **options)

        setattr(owner, name, change)


def main(models: Path, work: Path) -> int:
    registry.load, registry._sync = load, lambda path: None
    digests = {digest_of(models / name): name for name in "abc"}
    step = 0
    while True:
        step += 1
        place = work / str(step)
        child = os.fork()
        if child == 0:
            die_at(step)
            live(models, place)
            os._exit(0)
        ended = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if ended == 0:
            return step - 1
        assert ended == KILLED, f"step {step} ended with {ended}"
        found = ModelRegistry(place)
        kept = [digests[digest] for digest in (found.active, found.previous) if digest]
        assert kept in ([], ["a"], ["b", "a"], ["c", "a"]), (step, kept)
        assert not found.said
        for name in kept:
            assert recorded_files(place / digest_of(models / name)) == recorded_files(models / name)
        assert len([path for path in place.iterdir() if path.is_dir()]) <= 3, sorted(place.iterdir())
        ended_well = live(models, place)
        assert digests[ended_well.active] == "c" and digests[ended_well.previous] == "a", step
        assert list(ended_well.state.rejected.values()) == ["slower"]
        assert {path.name for path in place.iterdir()} == {
            "active.json", ended_well.active, ended_well.previous
        }, (step, sorted(place.iterdir()))  # fmt: skip
        shutil.rmtree(place)


if __name__ == "__main__":
    print(main(Path(sys.argv[1]), Path(sys.argv[2])))
