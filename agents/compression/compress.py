"""Compress a trained agent for a device: prune, fine-tune under rounding, and export with few bits.

Between the run and the device model stands another run, an ordinary one: policy.json tells the smaller
`network` and the `compression`, and `edgerec evaluate` and `edgerec export` take it as any other.
"""

from __future__ import annotations

import copy
import hashlib
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from edgerec_gym.errors import InputError, MissingExtraError

try:
    import torch  # noqa: F401
except ImportError:
    raise MissingExtraError("compression", "train") from None

from edgerec_gym.agents.compression.fine_tuning import TuningConfig, make_tuner
from edgerec_gym.agents.compression.pruning import norms, pruned, sensitivities, smaller_settings
from edgerec_gym.agents.compression.rounding import round_in_place, round_kept_state
from edgerec_gym.agents.export.export import check_exported, export
from edgerec_gym.agents.export.quantised import check_bits, quantised_for
from edgerec_gym.agents.learning import parameters
from edgerec_gym.agents.learning.epochs import Report
from edgerec_gym.agents.learning.tensors import torch_threads
from edgerec_gym.agents.registry import LOGS, find_agent
from edgerec_gym.device.engines.engine import REFERENCE
from edgerec_gym.files import make_folder, one_writer
from edgerec_gym.logs.store import LogReader
from edgerec_gym.runs import (
    CHECKPOINTS,
    PARAMETERS,
    RECORD,
    Run,
    check_seed,
    check_sizes,
    find_start,
    is_finished,
    read_run,
    versions,
    write_record,
)
from edgerec_gym.scenario import Scenario

KEPT_KEYS = (  # of the record that the compressed run inherits
    "schema_version", "agent", "track", "scenario", "users", "logs", "based_on", "identified", "price",
    "figures", "seed", "hyper", "network", "sizes",
)  # fmt: skip
FIXED = ("agent", "seed", "hyper", "network", "compression", "sizes")  # in a resumed run
NAMES = ("dnn", "crban", "distilled-values", "values-pg")  # agents whose networks can be trained here


@dataclass(frozen=True)
class Compression:
    """How to compress.

    Attributes:
        bits: of the weights: 4, 8, or 32, which keeps them.
        prune: share of the hidden units to remove, 0 to below 1.
        qat: fine-tune while weights and kept state are rounded. Without it, weights are rounded at export
            only; after pruning, the network is fine-tuned in any case.
        importance: what tells a unit's worth: "taylor" (first-order change of a loss) or "norm".
        tuning: hyper-parameters of the fine-tuning.
    """

    bits: int = 8
    prune: float = 0.0
    qat: bool = True
    importance: Literal["taylor", "norm"] = "taylor"
    tuning: TuningConfig = TuningConfig()

    def __post_init__(self) -> None:
        check_bits(self.bits)
        if not 0 <= self.prune < 1:
            raise InputError(f"prune = {self.prune:g} is out of range; allowed: 0 to below 1")
        if self.importance not in ("taylor", "norm"):
            raise InputError(f"importance = {self.importance!r} is unknown; allowed: taylor, norm")

    @property
    def rounds(self) -> bool:
        """Whether numbers are rounded in training."""
        return self.qat and self.bits < 32

    @property
    def trains(self) -> bool:
        """Whether anything is trained."""
        return self.rounds or self.prune > 0

    def told(self, base: str) -> dict[str, Any]:
        """What policy.json tells of it; `base` is the digest of the parameters before."""
        return {
            "base": base,
            "bits": self.bits if self.rounds else 32,
            "kept_bits": 8 if self.rounds else 32,
            "prune": self.prune,
            "importance": self.importance,
            "tuning": self.tuning.to_dict(),
        }


def compress(
    run: str | Path,
    out: str | Path,
    how: Compression,
    *,
    scenario: str | Scenario = "default",
    logs: str | Path | None = None,
    work: str | Path | None = None,
    engine: str = REFERENCE.name,
    places: int | None = None,
    seed: int = 0,
    threads: int = 1,
    progress: Report | None = None,
) -> dict[str, Any]:
    """Write the compressed device model of a run.

    Args:
        run: folder of a run whose agent can be exported.
        out: folder of the device model; an earlier one there is replaced.
        how: bits, share pruned, fine-tuning.
        scenario: the scenario that the phone serves. Without logs, its learned users are played to fine-tune.
        logs: a log folder to fine-tune a re-ranker on.
        work: folder of the compressed run, if anything is trained; default `out` with "-run". A finished or
            interrupted one is taken up again.
        engine: engine that runs the graphs on the phone.
        places: maximum number of cards in a list; default: the scenario's slate_size.
        seed: seed of the fine-tuning.
        threads: torch threads.
        progress: called with (epochs done, maximum number of epochs, text).

    Returns:
        The content of device.json.

    Raises:
        InputError: an agent that cannot be exported or, if anything is to be trained, not compressed; values
            out of range; files that are missing, broken or of other sizes; `work` holds another run.
        MissingExtraError: the engine is not installed.
    """
    place = scenario if isinstance(scenario, Scenario) else Scenario.load(scenario)
    base = read_run(run)
    check_exported(base)
    if logs is not None and not how.trains:
        raise InputError("without pruning and QAT nothing is fine-tuned; leave --logs out")
    packer = quantised_for(engine, how.bits)  # fails before the work starts
    source: str | Path = run
    if how.trains:
        source = Path(out).with_name(f"{Path(out).name}-run") if work is None else work
        train_smaller(
            source, base, how, scenario=place, logs=logs, seed=seed, threads=threads, progress=progress
        )
    return export(source, out, scenario=place, places=places, pack=packer)


@one_writer("out")
def train_smaller(
    out: str | Path,
    base: Run,
    how: Compression,
    *,
    scenario: Scenario,
    logs: str | Path | None = None,
    seed: int = 0,
    threads: int = 1,
    progress: Report | None = None,
) -> dict[str, Any]:
    """Prune and fine-tune a run, and write the new run's folder; the arguments are those of :func:`compress`.

    The network after the best epoch is kept, or the one before the first, if that has the better figure
    (`before` in the record). The same arguments give the same parameters on the same machine and library
    versions, also if the training was interrupted.

    Returns:
        The content of policy.json.
    """
    check_seed(seed)
    if base.agent not in NAMES:
        raise InputError(
            f"{base.folder} holds the agent {base.agent!r}, which cannot be pruned or fine-tuned; allowed: "
            f"{', '.join(NAMES)}, or any other without --prune and with --no-qat"
        )
    agent = find_agent(base.agent)
    if logs is not None and agent.learns_from != (LOGS,):
        raise InputError(f"agent {agent.name!r} is fine-tuned on sessions that it plays; leave --logs out")
    check_sizes(base, scenario.config)
    network = agent.code("load_network")(base, scenario.config)
    reader = None if logs is None else LogReader(logs)
    run = make_folder(out)
    record = {key: base.record[key] for key in KEPT_KEYS if key in base.record}
    record |= {
        "seed": seed,
        "network": smaller_settings(network, how.prune).to_dict(),
        "compression": how.told(_digest(base)),
        "steps": 0,
        "versions": versions("torch", "numpy"),
    }
    start = find_start(run, record, True, FIXED)
    if start is not None and is_finished(run):
        return read_run(run).record  # finished with the same settings
    with torch_threads(threads):
        tune = make_tuner(base, network, record, how.tuning, scenario, reader)
        if how.prune:
            worth = norms(network)
            if how.importance == "taylor":
                worth = sensitivities(network, tune(network, 32).probes())
            network = pruned(network, how.prune, worth)
        if how.rounds:
            round_kept_state(network)
        untrained = copy.deepcopy(network)
        trainer = tune(network, how.bits if how.rounds else 32)
        before = trainer.stopping_figure()
        trainer.run(run, start, trainer.figure, progress)
    found = trainer.record | {"before": before}
    after = max(trainer.sign * figure for figure in found[trainer.figure])
    best = trainer.best if after > trainer.sign * before else untrained
    if how.rounds:
        round_in_place(best, how.bits)
    _copy_parts(base.root, run)
    parameters.save_parameters(run / PARAMETERS, best)
    write_record(run, found)
    return found


def _copy_parts(base: Path, run: Path) -> None:
    """Copy what else belongs to a run, such as the run of an uplift estimator."""
    for path in base.iterdir():
        if path.name in (RECORD, PARAMETERS, CHECKPOINTS) or path.name.startswith("."):
            continue
        if path.is_dir():
            shutil.copytree(path, run / path.name, dirs_exist_ok=True)
        else:
            shutil.copyfile(path, run / path.name)


def _digest(run: Run) -> str:
    return hashlib.sha256(run.parameters.read_bytes()).hexdigest()
