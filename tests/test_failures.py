"""When something fails: full disks, locks, leftovers, signals, and errors on their way between processes."""

from __future__ import annotations

import errno
import json
import os
import pickle
import platform
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import safetensors.numpy
import safetensors.torch
import torch
from places import ROOT

from edgerec_gym import errors, files
from edgerec_gym.agents.lists.evaluator_training import train_judge
from edgerec_gym.agents.registry import AGENTS
from edgerec_gym.compiled import jit
from edgerec_gym.errors import InputError, MissingExtraError, UnknownOptionError
from edgerec_gym.files import atomic_folder, atomic_path, make_folder, only_writer, remove_folder
from edgerec_gym.logs.collect import collect
from edgerec_gym.logs.ebnerd import convert_ebnerd
from edgerec_gym.logs.table import import_table
from edgerec_gym.simulator.fit import fit, work_folder

resource = pytest.importorskip("resource")

NOBODY = 2**22 + 1  # above the largest process id


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


VALUES = np.random.default_rng(0).random(4000).astype(np.float32)
WRITERS: dict[str, Callable[[Path], Any]] = {
    "text": lambda path: path.write_text("0" * 9000, encoding="utf-8"),
    "polars": lambda path: pl.DataFrame({"a": VALUES}).write_parquet(path),
    "pyarrow": lambda path: pq.write_table(pa.table({"a": VALUES}), path),
    "safetensors": lambda path: safetensors.numpy.save_file({"a": VALUES}, path),
    "safetensors-torch": lambda path: safetensors.torch.save_file({"a": torch.from_numpy(VALUES)}, path),
}


@pytest.mark.parametrize("size", [0, 1000, 8000])
@pytest.mark.parametrize("writer", WRITERS)
def test_a_full_disk_is_one_error_that_names_the_file(writer: str, size: int, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with file_size_limit(size), pytest.raises(OSError, match="cannot be written: File too large") as caught:
        with atomic_path(path) as temporary:
            WRITERS[writer](temporary)
    assert (caught.value.errno, caught.value.filename) == (errno.EFBIG, str(path))
    assert os.listdir(tmp_path) == ["file"] and path.read_text() == "old"


def test_a_folder_that_cannot_be_written_stays_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "folder"
    with atomic_folder(path) as temporary:
        (temporary / "a").write_text("old")
    with file_size_limit(10), pytest.raises(OSError, match="cannot be written"):
        with atomic_folder(path) as temporary:
            (temporary / "a").write_text("new and longer")
    assert os.listdir(tmp_path) == ["folder"] and (path / "a").read_text() == "old"
    with atomic_folder(path) as temporary:
        (temporary / "b").write_text("new")
    assert os.listdir(tmp_path) == ["folder"] and os.listdir(path) == ["b"]


def test_errors_of_other_files_keep_their_name(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught, atomic_path(tmp_path / "file"):
        (tmp_path / "source").read_text()
    assert caught.value.filename == str(tmp_path / "source")


def test_no_room_is_told_before_it_is_needed(tmp_path: Path) -> None:
    file = tmp_path / "data"
    file.write_bytes(bytes(600))
    with file_size_limit(1000):
        files.check_room(tmp_path, 400, file)
        with pytest.raises(OSError, match="cannot be written: File too large"):
            files.check_room(tmp_path, 401, file)
    assert os.listdir(tmp_path) == ["data"]


def test_leftovers_of_dead_processes_are_removed(tmp_path: Path) -> None:
    def name(file: str, process: int, end: str = "tmp") -> Path:
        return tmp_path / f".{file}.{platform.node()}.{process}.{end}"

    kept = [name("a", os.getpid()), tmp_path / f".a.elsewhere.{NOBODY}.tmp", tmp_path / "a.tmp"]
    for path in (*kept, name("a", NOBODY)):
        path.touch()
    name("folder", NOBODY).mkdir()
    name("replaced", NOBODY, "old.tmp").mkdir()  # killed after it was moved away ...
    name("whole", NOBODY, "old.tmp").mkdir()  # ... or after the new one was there
    (tmp_path / "whole").mkdir()
    make_folder(tmp_path)
    assert set(tmp_path.iterdir()) == {*kept, tmp_path / "replaced", tmp_path / "whole"}


def test_a_folder_is_removed_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").mkdir()
    monkeypatch.setattr(files.shutil, "rmtree", lambda *_, **__: None)  # killed before it did anything
    remove_folder(tmp_path / "a")
    assert not (tmp_path / "a").exists()


def test_a_folder_has_one_writer(tmp_path: Path) -> None:
    with only_writer(tmp_path), pytest.raises(InputError, match="another process is writing to"):
        with only_writer(tmp_path):
            pass
    with only_writer(tmp_path):
        pass
    assert not os.listdir(tmp_path)


HELD = """
import os, sys
from edgerec_gym.files import only_writer
with only_writer(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_killed_writer_gives_the_folder_back(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HELD, str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == b"held\n"
        with pytest.raises(InputError, match="another process"), only_writer(tmp_path):
            pass
        holder.kill()
    with only_writer(tmp_path):
        pass


def test_every_command_that_resumes_locks_its_folder(tmp_path: Path) -> None:
    trainers = {agent.code("train") for agent in AGENTS.values()}
    with only_writer(tmp_path):
        for start in (
            lambda: collect(tmp_path, preset_name="lite"),
            lambda: import_table("table.csv", "mapping.json", tmp_path),
            lambda: convert_ebnerd("bundle", tmp_path),
            lambda: fit("logs", tmp_path),
            lambda: train_judge(*(tmp_path,) * 6, seed=0, resume=True, threads=1, progress=None),  # type: ignore[arg-type]
        ):
            with pytest.raises(InputError, match="another process is writing to"):
                start()
    unlocked = {
        train.__module__.rpartition("edgerec_gym.")[2]
        for train in trainers
        if not hasattr(train, "__wrapped__")
    }
    assert unlocked == {"agents.lists.evaluator_training", "agents.insertion.train"}  # they call train_judge


def test_a_file_system_without_locks_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(files.fcntl, "flock", refuse)
    with pytest.warns(UserWarning, match="cannot be locked on this file system"), only_writer(tmp_path):
        pass


def test_users_of_another_log_are_not_overwritten(tmp_path: Path) -> None:
    logs, out = tmp_path / "logs", tmp_path / "out"
    collect(logs, preset_name="lite", sessions=20)
    out.mkdir()
    earlier = {"logs": json.loads((logs / "logs.json").read_text())["provenance"] | {"seed": 1}}
    (out / "scenario.json").write_text(json.dumps({"provenance": earlier}))
    with pytest.raises(InputError, match="fitted on another log, which differs from .* in seed; choose"):
        fit(logs, out)
    work_folder(out, {"seed": 0, "log": "a"})
    with pytest.raises(InputError, match="holds an unfinished fit of another log"):
        work_folder(out, {"seed": 0, "log": "b"})


def test_errors_survive_pickling() -> None:
    made = {
        InputError: InputError("a line"),
        UnknownOptionError: UnknownOptionError("a line"),
        MissingExtraError: MissingExtraError("a policy", "train"),
    }
    own = {kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, Exception)}
    assert own == made.keys()
    for kind, error in made.items():
        again = pickle.loads(pickle.dumps(error))
        assert type(again) is kind and str(again) == str(error)
    assert str(made[MissingExtraError]) == "a policy needs an extra: pip install 'edgerec_gym[train]'"


def test_kernels_compile_where_nothing_can_be_cached(monkeypatch: pytest.MonkeyPatch) -> None:
    def njit(cache: bool = False, **_: Any) -> Callable[[Any], Any]:
        if cache:
            raise RuntimeError("cannot cache function 'f': no locator available for file 'f.py'")
        return lambda function: function

    monkeypatch.setattr(jit, "njit", njit)
    jit._say_uncached.cache_clear()
    with pytest.warns(RuntimeWarning, match="NUMBA_CACHE_DIR") as caught:
        assert [jit.entry_point(abs)(-1), jit.cached()(abs)(-2)] == [1, 2]
    assert len(caught) == 1


def command(code: str) -> subprocess.CompletedProcess[str]:
    begin = "import signal, sys; sys.argv = ['edgerec', '--version']\n"
    return subprocess.run([sys.executable, "-c", begin + code], cwd=ROOT, capture_output=True, text=True)


LOADING = """
class Finder:
    def find_spec(self, name, *_):
        if name == {module!r}:
            signal.raise_signal(signal.{sent})
sys.meta_path.insert(0, Finder())
from edgerec_gym.cli import main
main()
"""


@pytest.mark.parametrize(("sent", "code"), [("SIGINT", 130), ("SIGTERM", 143)])
@pytest.mark.parametrize("module", ["edgerec_gym.registration", "typer", "edgerec_gym.commands.users"])
def test_a_signal_while_loading(module: str, sent: str, code: int) -> None:
    done = command(LOADING.format(module=module, sent=sent))
    assert (done.returncode, done.stderr, done.stdout) == (code, "interrupted\n", "")


WORKING = """
from edgerec_gym import cli
from edgerec_gym.commands import console

class Finalised:
    def __del__(self):
        signal.raise_signal(signal.{sent})

def work():
    with console.interruptible("all is kept"):
        {work}

cli.app.command("work")(work)
sys.argv[1:] = ["work"]
cli.main()
"""
WORK = {
    "plain": "signal.raise_signal(signal.{sent})",
    "turned into another error": """
        try:
            signal.raise_signal(signal.{sent})
        except BaseException:
            raise ImportError("numpy failed") from None
""",
    "swallowed by a finaliser": """
        Finalised()
        while True: pass
""",
}


@pytest.mark.parametrize(("sent", "code"), [("SIGINT", 130), ("SIGTERM", 143)])
@pytest.mark.parametrize("work", WORK)
def test_a_signal_while_working(work: str, sent: str, code: int) -> None:
    done = command(WORKING.format(work=WORK[work].strip().format(sent=sent), sent=sent))
    assert (done.returncode, done.stderr) == (code, "interrupted: all is kept\n")


def test_a_program_that_imports_the_package_keeps_its_handlers() -> None:
    code = "sys.argv = ['train.py']; import edgerec_gym\n"
    code += "print(signal.getsignal(signal.SIGINT) is signal.default_int_handler)"
    assert command(code).stdout == "True\n"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux")
def test_results_that_cannot_be_printed() -> None:
    with Path("/dev/full").open("w") as full:
        program = [sys.executable, "-m", "edgerec_gym.cli", "--version"]
        done = subprocess.run(program, cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (2, "error: [Errno 28] No space left on device\n")
