"""Hot swap: a wrong model is refused in one line while the old one plays on; a right one takes over."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from broken_devices import change, cut, flip, of_graph, seal, shift_golden, spoil
from small_devices import crban, exported, one, pointer

from edgerec_gym.device.description import digest_of
from edgerec_gym.device.engines import engine as engines
from edgerec_gym.device.session import DeviceSession, load
from edgerec_gym.errors import InputError, MissingExtraError
from edgerec_gym.scenario import Scenario
from tests.small_pools import moments


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """CRBANs of several sizes, and one for another feed."""
    folder = tmp_path_factory.mktemp("models")
    exported(crban(), folder / "old")
    exported(crban(match=1, layers=2), folder / "new")
    exported(pointer(), folder / "pointer")
    config = Scenario.load("lite").config
    exported(crban(), folder / "other", config=config.replace(max_slots=2 * config.max_slots))
    return folder


def rows_of(session: DeviceSession, count: int, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        name: rng.uniform(0.1, 0.9, (count, session.model.sizes[name][1])).astype(np.float32)
        for name in ("exposures", "page_views")
    }


def follow(session: DeviceSession, rows: dict[str, np.ndarray]) -> None:
    for name, several in rows.items():
        for row in several:
            session.append(name, row)


def load_session(folder: Path) -> DeviceSession:
    return DeviceSession(load(folder / "device"))


def forget_mnn(folder: Path) -> None:
    of_graph(folder, "crban.scores", engine="mnn")


def other_graph(folder: Path) -> None:
    """A graph with two layers in the place of one with one, recorded as it is."""
    shutil.copyfile(folder.parents[1] / "new/device/crban.exposures.onnx", folder / "crban.exposures.onnx")
    seal(folder)


WRONG: dict[str, tuple[Callable[[Path], None], str]] = {
    "missing": (lambda f: shutil.rmtree(f), "device.json does not exist"),
    "truncated": (lambda f: cut(f / "crban.scores.onnx"), "crban.scores.onnx is corrupted: it has"),
    "bit-flipped": (lambda f: flip(f / "crban.scores.onnx"), "crban.scores.onnx is corrupted: its content"),
    "golden bit-flipped": (lambda f: flip(f / "golden.safetensors"), "golden.safetensors is corrupted"),
    "not finite": (lambda f: spoil(f, "crban.scores.onnx"), "scores.onnx gives values that are not finite"),
    "other sizes": (other_graph, "crban.exposures.onnx: input 'hidden' is"),
    "other schema": (lambda f: change(f, schema_version=1), "has schema version 1; this version reads 2"),
    "unknown engine": (lambda f: of_graph(f, "crban.scores", engine="abacus"), "engine is 'abacus'; allowed"),
    "engine missing": (forget_mnn, "engine 'mnn' needs an extra"),
    "other answers": (
        lambda f: shift_golden(f, "crban.scores/1/out/scores"),
        "differs from its golden output",
    ),
}


@pytest.mark.parametrize("kind", WRONG)
def test_a_wrong_model_is_refused_and_the_old_one_plays_on(
    folders: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = engines.find_spec
    monkeypatch.setattr(engines, "find_spec", lambda name: None if name == "MNN" else find(name))
    spoil_it, message = WRONG[kind]
    candidate = folders / "candidate" / "device"
    shutil.copytree(folders / "old" / "device", candidate)
    try:
        spoil_it(candidate)
        session, untouched = load_session(folders / "old"), load_session(folders / "old")
        model, rows = session.model, rows_of(session, 30)
        for each in (session, untouched):
            follow(each, rows)
        with pytest.raises((InputError, MissingExtraError)) as raised:
            session.swap(candidate)
        assert message in str(raised.value) and "\n" not in str(raised.value)
        assert_same(session, untouched)
        assert session.model is model
    finally:
        shutil.rmtree(folders / "candidate", ignore_errors=True)


def assert_same(session: DeviceSession, other: DeviceSession) -> None:
    """Both play on in the same way."""
    for k, alone in enumerate(one(moments(3), k) for k in range(3)):
        more = rows_of(session, 2, seed=10 + k)
        for each in (session, other):
            follow(each, more)
        assert np.array_equal(session.scores(alone), other.scores(alone))
        assert session.rerank(alone).tolist() == other.rerank(alone).tolist()


def test_another_digest_or_other_features_are_refused(folders: Path) -> None:
    session, untouched = load_session(folders / "old"), load_session(folders / "old")
    with pytest.raises(InputError, match=f"has the digest {digest_of(folders / 'new/device')}; expected 00"):
        session.swap(folders / "new/device", digest="00")
    with pytest.raises(InputError, match="reads other features than"):
        session.swap(folders / "other/device")
    assert_same(session, untouched)


@pytest.mark.parametrize("count", [0, 3, 60])
def test_the_new_model_has_seen_the_last_events(folders: Path, count: int) -> None:
    """After a swap the session is that of the new model which has followed them, and goes on counting."""
    session = load_session(folders / "old")
    rows = rows_of(session, count)
    follow(session, rows)
    session.swap(folders / "new/device", digest=digest_of(folders / "new/device"))
    fresh = load_session(folders / "new")
    follow(fresh, {name: several[-session.model.sizes[name][0] :] for name, several in rows.items()})
    assert session.count == {"exposures": count, "page_views": count}
    assert_same(session, fresh)
    session.swap(folders / "pointer/device")
    assert session.model.agent == "pointer"
    assert sorted(session.rerank(one(moments(1), 0))) == sorted(set(session.rerank(one(moments(1), 0))))


def test_a_swap_after_a_restart_replays_the_same_events(folders: Path, tmp_path: Path) -> None:
    session = load_session(folders / "old")
    follow(session, rows_of(session, 33))
    session.save(tmp_path / "state")
    restarted = load_session(folders / "old")
    restarted.restore(tmp_path / "state")
    for each in (session, restarted):
        each.swap(folders / "new/device")
    assert restarted.count == session.count
    assert_same(session, restarted)


def test_a_state_of_another_model_is_refused(folders: Path, tmp_path: Path) -> None:
    """Even of one with the same sizes: its codes would mean something else."""
    shutil.copytree(folders / "old/device", tmp_path / "device")
    change(tmp_path / "device", scenario="another")
    session = load_session(folders / "old")
    session.save(tmp_path / "state")
    other = load_session(tmp_path)
    with pytest.raises(InputError, match="tensor 'model' does not fit; another model saved it"):
        other.restore(tmp_path / "state")
