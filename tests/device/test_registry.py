"""The phone's models: checked before they run, one kept to return to, none lost when it is switched off."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from broken_devices import change, cut, flip, of_graph, seal, shift_golden, spoil
from killed_models import offer_of
from places import ROOT
from small_devices import crban, exported, one

from edgerec_gym.device import registry as registry_module
from edgerec_gym.device.description import digest_of, feature_digest
from edgerec_gym.device.model_download import Download
from edgerec_gym.device.registry import MOST_REJECTED, ModelRegistry
from edgerec_gym.device.session import DeviceSession, load
from edgerec_gym.errors import InputError, MissingExtraError
from edgerec_gym.protocol.messages import ModelFile, ModelOffer
from edgerec_gym.scenario import Scenario
from edgerec_gym.service.models import OfferedModel
from tests.small_pools import moments

CONFIG = Scenario.load("lite").config
FEATURES = feature_digest(CONFIG)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three models, one of them with other sizes, and one for another feed."""
    folder = tmp_path_factory.mktemp("models")
    for name, network in (("a", crban()), ("b", crban(match=1, layers=2)), ("c", crban())):
        exported(network, folder)
        (folder / "device").rename(folder / name)
    change(folder / "c", scenario="another")
    exported(crban(), folder, config=CONFIG.replace(max_slots=2 * CONFIG.max_slots))
    (folder / "device").rename(folder / "other")
    return folder


def fetched(phone: ModelRegistry, source: Path, digest: str = "") -> ModelOffer:
    """Download a model as it is, whatever that may be."""
    offer = ModelOffer(
        digest or digest_of(source),
        [ModelFile(path.name, path.stat().st_size) for path in sorted(source.iterdir())],
    )
    room = phone.room(offer)
    assert room is not None
    shutil.copytree(source, room, symlinks=True, dirs_exist_ok=True)
    return offer


def taken(phone: ModelRegistry, source: Path) -> str:
    offer = fetched(phone, source)
    phone.receive(offer.digest, offer.files)
    phone.activate(offer.digest)
    return offer.digest


def test_a_model_comes_in_parts_and_the_phone_restarts_in_between(models: Path, tmp_path: Path) -> None:
    phone, offered = ModelRegistry(tmp_path / "models", FEATURES), OfferedModel(models / "a", CONFIG)
    assert phone.load() is None and phone.active == ""
    half = sum(file.bytes for file in offered.offer.files) // 2
    while True:
        room = phone.room(offered.offer)
        assert room == tmp_path / "models" / f".{offered.digest}.part"
        download, got = Download(offered.offer, room), 0
        while (want := download.want()) is not None and got < half:
            chunk = offered.chunk(want)
            assert chunk is not None
            got += len(chunk.data)
            assert download.take(chunk)
        if want is None:
            break
        with pytest.raises(InputError, match="is not complete: .* has .* of"):
            phone.receive(offered.digest, offered.offer.files)
        phone = ModelRegistry(tmp_path / "models", FEATURES)
        assert phone.state.rejected == {}
    model = phone.receive(offered.digest, offered.offer.files)
    assert phone.active == "" and not room.exists()
    phone.activate(offered.digest)
    assert model.folder == tmp_path / "models" / offered.digest
    again = ModelRegistry(tmp_path / "models", FEATURES)
    started = again.load()
    assert started is not None and started.digest == again.active == offered.digest
    assert not again.is_wanted(offered.digest) and again.room(offered.offer) is None


def without(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def linked(folder: Path) -> None:
    (folder / "golden.safetensors").rename(folder.parent / "golden")
    (folder / "golden.safetensors").symlink_to(folder.parent / "golden")


def other_sizes(folder: Path) -> None:
    shutil.copyfile(folder.parent / "b/crban.exposures.onnx", folder / "crban.exposures.onnx")
    seal(folder)


def other_feed(folder: Path) -> None:
    shutil.rmtree(folder)
    shutil.copytree(folder.parent / "other", folder)


WRONG: dict[str, tuple[Callable[[Path], None], str]] = {
    "truncated": (lambda f: cut(f / "crban.scores.onnx"), "crban.scores.onnx is corrupted: it has"),
    "bit-flipped": (lambda f: flip(f / "crban.scores.onnx"), "crban.scores.onnx is corrupted: its content"),
    "golden bit-flipped": (lambda f: flip(f / "golden.safetensors"), "golden.safetensors is corrupted"),
    "device.json bit-flipped": (lambda f: flip(f / "device.json"), "has the digest"),
    "not finite": (lambda f: spoil(f, "crban.scores.onnx"), "scores.onnx gives values that are not finite"),
    "other sizes": (other_sizes, "crban.exposures.onnx: input 'hidden' is"),
    "wrong golden": (lambda f: shift_golden(f, "crban.scores/1/out/scores"), "differs from its golden"),
    "other features": (other_feed, "reads other features than this feed"),
    "wrong protocol": (lambda f: change(f, protocol=[7, 9]), "protocol is 7 to 9; this version speaks"),
    "unknown engine": (lambda f: of_graph(f, "crban.scores", engine="abacus"), "engine is 'abacus'; allowed"),
    "a file missing": (without("crban.scores.onnx"), "crban.scores.onnx does not exist"),
    "a file more": (lambda f: (f / "more.onnx").touch(), "more.onnx does not belong to the model"),
    "a link": (linked, "golden.safetensors"),
    "no model": (lambda f: (f / "device.json").write_text("[]"), "has the digest"),
}  # fmt: skip


@pytest.mark.parametrize("kind", WRONG)
def test_a_wrong_model_is_rejected_and_the_old_one_plays_on(kind: str, models: Path, tmp_path: Path) -> None:
    """The cloud tells the digest of what it meant to send, be it wrong itself or spoilt on its way."""
    spoil_it, message = WRONG[kind]
    for name in ("b", "c", "other"):
        shutil.copytree(models / name, tmp_path / name)
    phone = ModelRegistry(tmp_path / "models", FEATURES)
    old = taken(phone, models / "a")
    model = phone.load()
    assert model is not None
    session, untouched = DeviceSession(model), DeviceSession(load(models / "a"))
    candidate = tmp_path / "c"
    spoil_it(candidate)
    told = (
        digest_of(candidate)
        if kind not in ("device.json bit-flipped", "no model")
        else digest_of(models / "c")
    )
    offer = fetched(phone, candidate, told)
    with pytest.raises(InputError) as raised:
        phone.receive(told, offer.files)
    line = str(raised.value)
    assert message in line and "\n" not in line and phone.said == line == phone.state.rejected[told]
    for again in (phone, ModelRegistry(tmp_path / "models", FEATURES)):
        assert again.active == old and not again.is_wanted(told) and again.room(offer) is None
        with pytest.raises(InputError, match="was rejected before"):
            again.receive(told, offer.files)
        started = again.load()
        assert started is not None and started.digest == old
    assert {path.name for path in (tmp_path / "models").iterdir()} == {"active.json", old}
    for k, alone in enumerate(one(moments(2), k) for k in range(2)):
        for each in (session, untouched):
            each.append("exposures", np.full(each.model.sizes["exposures"][1], 0.1 * (k + 1), np.float32))
        assert np.array_equal(session.scores(alone), untouched.scores(alone))


def test_only_the_digest_that_the_cloud_tells_counts(models: Path, tmp_path: Path) -> None:
    phone = ModelRegistry(tmp_path / "models")
    offer = fetched(phone, models / "a", digest_of(models / "b"))
    with pytest.raises(InputError, match=f"has the digest {digest_of(models / 'a')}; expected"):
        phone.receive(offer.digest, offer.files)
    for wrong in ("../../etc", "", "0" * 63, "A" * 64):
        with pytest.raises(InputError, match="allowed: a sha256"):
            phone.receive(wrong, [])
        assert phone.room(ModelOffer(wrong, offer.files)) is None
        phone.reject(wrong, "no digest")
    assert list(phone.state.rejected) == [offer.digest]
    assert ModelRegistry(tmp_path / "models").said == ""


def test_a_version_that_the_model_does_not_serve(models: Path, tmp_path: Path) -> None:
    """It is no fault of the model: another connection may speak one that it serves."""
    phone, folder = ModelRegistry(tmp_path / "models"), tmp_path / "old"
    shutil.copytree(models / "a", folder)
    change(folder, protocol=[1, 1])
    offer = fetched(phone, folder)
    with pytest.raises(InputError, match="serves versions 1 to 1 of the protocol; 2 is spoken"):
        phone.receive(offer.digest, offer.files, version=2)
    with pytest.raises(InputError, match="has not passed its tests"):
        phone.activate(offer.digest)
    assert phone.holds(offer.digest)
    phone.receive(offer.digest, [], version=1)
    phone.activate(offer.digest)
    assert phone.active == offer.digest


def test_a_missing_engine_rejects_nothing(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(*_: object) -> None:
        raise MissingExtraError("engine 'mnn'", "mnn")

    phone = ModelRegistry(tmp_path / "models")
    offer = fetched(phone, models / "a")
    with monkeypatch.context() as patch:
        patch.setattr(registry_module, "load", missing)
        with pytest.raises(MissingExtraError):
            phone.receive(offer.digest, offer.files)
    assert phone.is_wanted(offer.digest) and phone.holds(offer.digest)
    phone.receive(offer.digest, offer.files)


def test_the_model_before_is_kept_and_returned_to(models: Path, tmp_path: Path) -> None:
    phone = ModelRegistry(tmp_path / "models")
    with pytest.raises(InputError, match="no model to return to"):
        phone.rollback()
    a, b = taken(phone, models / "a"), taken(phone, models / "b")
    assert (phone.active, phone.previous) == (b, a)
    assert phone.rollback("slower than a") == a and phone.previous == ""
    assert phone.state.rejected == {b: "slower than a"} and not phone.holds(b)
    with pytest.raises(InputError, match="no model to return to"):
        phone.rollback()
    c = taken(phone, models / "c")
    other = taken(phone, models / "other")
    assert (phone.active, phone.previous) == (other, c)
    assert {path.name for path in (tmp_path / "models").iterdir()} == {"active.json", other, c}
    phone.reject(c, "found\nwrong  later")
    assert (phone.active, phone.previous) == (other, "") and phone.said == "found wrong later"
    phone.reject(other, "as well")
    assert phone.active == "" and phone.load() is None
    for k in range(MOST_REJECTED):
        phone.reject(f"{k:064x}", "one of many")
    assert len(phone.state.rejected) == MOST_REJECTED and phone.is_wanted(b)


def test_there_is_room_for_one_download(models: Path, tmp_path: Path) -> None:
    phone = ModelRegistry(tmp_path / "models")
    a = taken(phone, models / "a")
    for name in ("b", "c"):
        offer = fetched(phone, models / name)
        assert {path.name for path in (tmp_path / "models").iterdir() if path.is_dir()} == {
            a, f".{offer.digest}.part"
        }  # fmt: skip
    phone.receive(offer.digest, offer.files)  # and waits to take over
    assert ModelRegistry(tmp_path / "models").holds(offer.digest)
    fetched(phone, models / "b")
    assert not phone.holds(offer.digest)


def test_files_that_change_on_the_disk_may_come_again(models: Path, tmp_path: Path) -> None:
    phone = ModelRegistry(tmp_path / "models", FEATURES)
    a, b = taken(phone, models / "a"), taken(phone, models / "b")
    flip(phone.place(b) / "crban.scores.onnx")
    phone = ModelRegistry(tmp_path / "models", FEATURES)
    started = phone.load()
    assert started is not None and started.digest == phone.active == a and "is corrupted" in phone.said
    assert phone.is_wanted(b) and not phone.holds(b) and phone.state.rejected == {}
    shutil.rmtree(phone.place(a))
    phone = ModelRegistry(tmp_path / "models", FEATURES)
    assert phone.load() is None and phone.active == ""
    assert taken(phone, models / "a") == a


@pytest.mark.parametrize(
    "text", ["", "{", '{"active": 3}', '{"active": "../x"}', '{"schema_version": 2}', '{"x": ""}']
)
def test_a_broken_state_is_told_and_nothing_is_downloaded_twice(
    text: str, models: Path, tmp_path: Path
) -> None:
    a = taken(ModelRegistry(tmp_path / "models"), models / "a")
    (tmp_path / "models/active.json").write_text(text)
    phone = ModelRegistry(tmp_path / "models")
    assert "active.json" in phone.said and phone.said.endswith("the phone starts without a model")
    assert phone.load() is None and phone.is_wanted(a) and phone.holds(a)
    phone.receive(a, [])
    phone.activate(a)
    again = ModelRegistry(tmp_path / "models")
    assert again.active == a and not again.said


def test_a_full_disk_leaves_the_old_model(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    phone = ModelRegistry(tmp_path / "models")
    a = taken(phone, models / "a")
    offer = fetched(phone, models / "b")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(InputError, match="cannot be written: No space left"):
            phone.receive(offer.digest, offer.files)
    assert phone.is_wanted(offer.digest), "it is no fault of the model"
    phone.receive(offer.digest, offer.files)
    with monkeypatch.context() as patch:
        patch.setattr(registry_module, "write_json", full)
        with pytest.raises(InputError, match="active.json cannot be written: No space left"):
            phone.activate(offer.digest)
        assert phone.active == a
        phone.reject(offer.digest, "slow")
    assert not phone.is_wanted(offer.digest) and ModelRegistry(tmp_path / "models").active == a


def test_a_phone_that_is_killed_at_any_step_goes_on(models: Path, tmp_path: Path) -> None:
    script = Path(__file__).with_name("killed_models.py")
    done = subprocess.run(
        [sys.executable, script, models, tmp_path],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 15


def test_an_offer_is_that_of_the_service(models: Path) -> None:
    """Both sides mean the same by the files of a model."""
    assert offer_of(models / "a") == OfferedModel(models / "a", CONFIG).offer
