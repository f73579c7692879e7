"""Train a teacher on the cloud's logs, and load it back.

A run is a folder as in :mod:`edgerec_gym.agents.rerank.train`; `network` in its record holds the number of
items that its ids stand for. A teacher ranks pages in the cloud; it does not play.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from edgerec_gym.config import FeedConfig
from edgerec_gym.errors import InputError, MissingExtraError
from edgerec_gym.files import make_folder, one_writer
from edgerec_gym.logs.store import LogReader
from edgerec_gym.runs import (
    PARAMETERS,
    Run,
    check_seed,
    check_sizes,
    find_start,
    is_finished,
    read_run,
    write_record,
)

try:
    import torch
    from torch import Tensor, nn
    from torch.nn import functional
except ImportError:
    raise MissingExtraError("training", "train") from None

from edgerec_gym.agents.data.event_sequences import SessionSequences, UserHistory, split_sequences
from edgerec_gym.agents.data.judged_pages import JudgedPages, click_ndcg, read_pages
from edgerec_gym.agents.learning import parameters
from edgerec_gym.agents.learning.epochs import EpochTrainer, Report, log_record
from edgerec_gym.agents.learning.tensors import torch_seed, torch_threads
from edgerec_gym.agents.registry import find_agent
from edgerec_gym.agents.teachers.light_gcn import EdgeSampler, LightGCN, normalised_adjacency, train_epoch
from edgerec_gym.agents.teachers.networks import (
    LightGCNTeacher,
    PageTeacher,
    Sequences,
    TeacherConfig,
    pages_of,
    sequences_of,
)
from edgerec_gym.logs.sessions import split_sessions

FIXED = ("agent", "logs", "seed", "hyper", "sizes", "network")  # must not change in a resumed run


@one_writer("out")
def train(
    out: str | Path,
    logs: str | Path,
    *,
    agent: str,
    network: type[PageTeacher],
    seed: int = 0,
    resume: bool = False,
    threads: int = 1,
    progress: Report | None = None,
    **hyper: Any,
) -> dict[str, Any]:
    """Train a teacher and write the run's folder.

    The last seventh of the days is held out. A tenth of the other sessions is not trained on; the epoch is
    chosen by the NDCG@10 of their logged clicks at page arrivals.

    Args:
        out: the run's folder.
        logs: a log folder (:class:`~edgerec_gym.logs.store.LogReader`).
        agent: name of the agent.
        network: class of the teacher.
        seed: seed of the initial parameters, the order of sessions, and what dropout hides.
        resume: continue after the last complete epoch in `out`, if any.
        threads: number of torch threads.
        progress: called with (epochs done, maximum number of epochs, text).
        **hyper: fields of :class:`~edgerec_gym.agents.teachers.networks.TeacherConfig`.

    Returns:
        The content of policy.json.

    Raises:
        InputError: if a value is out of range, the log is invalid or has no clicks to learn from, or `out`
            is not writable or holds another run.
    """
    check_seed(seed)
    settings = TeacherConfig.from_dict(hyper)
    reader = LogReader(logs)
    run = make_folder(out)
    record = log_record(agent, "rerank", reader, seed, settings) | {"ndcg": []}
    record["network"] = {"items": len(reader.catalog)}
    start = find_start(run, record, resume, FIXED)
    if start is not None and is_finished(run):
        return read_run(run).record  # finished with the same settings
    kind = GraphTrainer if issubclass(network, LightGCNTeacher) else TeacherTrainer
    with torch_threads(threads):
        trainer = kind(reader, record, settings, network)
        trainer.run(run, start, "NDCG@10", progress)
    parameters.save_parameters(run / PARAMETERS, trainer.best)
    write_record(run, trainer.record)
    return trainer.record


class TeacherTrainer(EpochTrainer[Any]):
    """Train one teacher, with early stopping by NDCG@10 of logged clicks at page arrivals.

    Args:
        reader: the log.
        record: content of policy.json; steps and ndcg are updated.
        settings: hyper-parameters.
        kind: class of the teacher.
    """

    figure, sign = "ndcg", 1

    def __init__(
        self, reader: LogReader, record: dict[str, Any], settings: TeacherConfig, kind: type[PageTeacher]
    ) -> None:
        network = build(kind, reader.config, settings, record["network"]["items"], record["seed"])
        # What a user clicked on earlier days is known by then, whichever part those sessions belong to.
        history = UserHistory.read(reader)
        train_stream, self.stop, _ = split_sequences(reader, history, settings.earlier)
        super().__init__(network, record, settings, train_stream)
        self.stopping = read_pages(self.stop, clicked=True)
        if not self.stopping:
            raise InputError(
                f"{reader.folder} has no page with both a click and a miss among its early-stopping "
                "sessions; a teacher needs more sessions"
            )

    def loss(self, chunk: SessionSequences, index: np.ndarray, generator: torch.Generator) -> Tensor:
        """Return the mean loss of the sessions `index` (B,) of a chunk."""
        with torch_seed(int(torch.randint(2**31 - 1, (), generator=generator))):
            return self.network.loss(sequences_of(chunk.batch(index)))

    def stopping_figure(self) -> float:
        """Return the NDCG@10 on the early-stopping sessions."""
        network = self.kept()
        return float(np.nanmean(click_ndcg(self.stopping, lambda pages: score_pages(network, pages))))

    def kept(self) -> PageTeacher:
        """Return the teacher."""
        teacher: PageTeacher = self.network
        return teacher


class WithGraph(nn.Module):
    """A teacher with the graph that its item embeddings come from; the graph is for training alone."""

    def __init__(self, teacher: LightGCNTeacher, graph: LightGCN) -> None:
        super().__init__()
        self.teacher, self.graph = teacher, graph


class GraphTrainer(TeacherTrainer):
    """Train LightGCN on who clicked what in the training sessions.

    Scale and offset of its score are the two coefficients of a logistic regression on the early-stopping
    sessions: in the training sessions, every click is part of the graph that would predict it.
    """

    def __init__(
        self, reader: LogReader, record: dict[str, Any], settings: TeacherConfig, kind: type[PageTeacher]
    ) -> None:
        super().__init__(reader, record, settings, kind)
        part, _, _ = split_sessions(reader, reader.provenance.get("first_validation_day"))
        users, items = [], []
        for table in reader.batches(["session", "user", "day", "item", "click"], part.days):
            chosen = table["click"].fill_null(False).to_numpy()
            if part.keep is not None:
                chosen = chosen & part.keep(table["session"].to_numpy())
            users.append(table["user"].to_numpy()[chosen])
            items.append(table["item"].to_numpy()[chosen])
        _, user = np.unique(np.concatenate(users), return_inverse=True)
        item = np.concatenate(items).astype(np.int64)
        if not len(item):
            raise InputError(f"{reader.folder} has no click in its training sessions")
        n_users, n_items = int(user.max()) + 1, len(reader.catalog)
        with torch_seed(record["seed"]):
            adjacency = normalised_adjacency(user, item, n_users, n_items)
            graph = LightGCN(adjacency, n_users, settings.dim, settings.layers)
        self.sampler = EdgeSampler(user, item, n_items)
        self.network = WithGraph(self.network, graph)
        self.optimizer = torch.optim.Adam(graph.parameters(), lr=settings.learning_rate)

    def kept(self) -> PageTeacher:
        """Return the teacher, without the graph."""
        return self.network.teacher if isinstance(self.network, WithGraph) else self.network

    def run_epoch(self) -> None:
        """Train on every click once, then fit the scale."""
        epoch = self.record["steps"]
        rng = np.random.default_rng([self.seed, epoch])
        for group in self.optimizer.param_groups:
            group["lr"] = self._learning_rate(epoch)
        s = self.settings
        train_epoch(self.network.graph, self.sampler, self.optimizer, rng, s.batch_size, s.weight_decay)
        self._take_items()
        self._keep_best(epoch)

    def _take_items(self) -> None:
        network = self.network.teacher
        with torch.no_grad():
            network.items.weight[1:] = self.network.graph()[1]
        network.eval()
        dots, base, clicks = self._stopping_slots(network)
        weights = torch.zeros(2, requires_grad=True)
        optimizer = torch.optim.LBFGS([weights], max_iter=50, line_search_fn="strong_wolfe")

        def closure() -> Tensor:
            optimizer.zero_grad()
            logit = weights[0] * dots + weights[1] + base
            loss = functional.binary_cross_entropy_with_logits(logit, clicks)
            loss.backward()
            return loss

        optimizer.step(closure)
        with torch.no_grad():
            network.scale.copy_(weights[0])
            network.offset.copy_(weights[1])

    def _stopping_slots(self, network: LightGCNTeacher) -> tuple[Tensor, Tensor, Tensor]:
        """Return products, base logits and clicks of the answered goods of the early-stopping sessions."""
        parts: list[tuple[Tensor, Tensor, Tensor]] = []
        network.scale.data.fill_(1.0)
        network.offset.data.fill_(0.0)
        with torch.no_grad():
            for chunk in self.stop.chunks():
                for at in range(0, len(chunk), 256):
                    part = sequences_of(chunk.batch(np.arange(at, min(at + 256, len(chunk)))))
                    parts.append(_slots(network, part))
        dots, base, clicks = (torch.cat(values) for values in zip(*parts, strict=True))
        return dots, base, clicks


def _slots(network: LightGCNTeacher, part: Sequences) -> tuple[Tensor, Tensor, Tensor]:
    row, slot = torch.nonzero(part.target, as_tuple=True)
    state = network.states(part)[row, part.known[row, slot]]
    ids, cards = part.ids[row, slot].unsqueeze(1), part.cards[row, slot].unsqueeze(1)
    context = part.context[row, slot]
    dots, _ = network.judge(state, ids, cards, context)
    logits, _ = network.logits(state, ids, cards, context)
    return dots[:, 0], (logits - dots)[:, 0], part.click[row, slot]


def score_pages(network: PageTeacher, pages: JudgedPages) -> np.ndarray:
    """Return logits of the pool rows, (R, N) float32; those of used-up rows are arbitrary."""
    network.eval()
    with torch.inference_mode():
        logits, _ = network.score(sequences_of(pages.sessions), pages_of(pages.pages))
    return logits.numpy()


def build(
    kind: type[PageTeacher], config: FeedConfig, settings: TeacherConfig, n_items: int, seed: int = 0
) -> PageTeacher:
    """Build a teacher with parameters from `seed`, leaving the global generator unchanged."""
    with torch_seed(seed):
        return kind(config, settings, n_items)


def load_teacher(folder: str | Path | Run, config: FeedConfig) -> PageTeacher:
    """Load a teacher from a run; raise InputError if it holds none, files are broken or sizes differ."""
    run = read_run(folder)
    kind = find_agent(run.agent).code("network")
    if not (isinstance(kind, type) and issubclass(kind, PageTeacher)):
        raise InputError(f"{run.folder} holds the agent {run.agent!r}, which is no teacher")
    check_sizes(run, config)
    items = run.record.get("network", {}).get("items")
    if not isinstance(items, int) or items < 1:
        raise InputError(f"{run.folder}: the record's network.items is {items!r}, not a number of items")
    settings = TeacherConfig.from_dict(run.record["hyper"])
    network = build(kind, config, settings, items)
    parameters.load_parameters(run.parameters, network)
    return network.eval()
