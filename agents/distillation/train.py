"""Distil a teacher's run into a small re-ranker for the phone.

The result is a run of an ordinary re-ranker (`crban`, `dnn`), with `distillation` in its record: it plays, is
evaluated and exported like any other. The teacher's scores are computed once per chunk of the log.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgerec_gym.config import Config, FeedConfig, bounded
from edgerec_gym.errors import InputError, MissingExtraError
from edgerec_gym.files import make_folder, one_writer
from edgerec_gym.logs.store import LogReader
from edgerec_gym.runs import (
    PARAMETERS,
    check_seed,
    check_sizes,
    find_start,
    is_finished,
    model_sizes,
    read_run,
    write_record,
)
from edgerec_gym.scenario import Scenario

try:
    import torch
    from torch import Tensor, nn
except ImportError:
    raise MissingExtraError("training", "train") from None

from edgerec_gym.agents.data.event_sequences import (
    SequenceStream,
    SessionSequences,
    UserHistory,
    split_sequences,
)
from edgerec_gym.agents.data.judged_pages import JudgedPages, click_ndcg, read_pages
from edgerec_gym.agents.data.observed_log import NOT_SHOWN
from edgerec_gym.agents.distillation.losses import (
    confidence,
    embedding_loss,
    interpolated_log_loss,
    relaxed_ranking_loss,
)
from edgerec_gym.agents.learning import parameters
from edgerec_gym.agents.learning.epochs import EpochTrainer, Report, log_record
from edgerec_gym.agents.learning.tensors import to_tensors, torch_seed, torch_threads
from edgerec_gym.agents.registry import find_agent
from edgerec_gym.agents.rerank.reranker import ListScorer, RerankerConfig, pool_present
from edgerec_gym.agents.rerank.train import build
from edgerec_gym.agents.teachers.networks import PageTeacher, pages_of, sequences_of
from edgerec_gym.agents.teachers.train import load_teacher

STUDENTS = ("crban", "dnn")
FIXED = ("agent", "logs", "seed", "hyper", "sizes", "distillation")  # must not change in a resumed run
SCORED = 512  # moments that the teacher scores at once


@dataclass(frozen=True)
class DistillationConfig(Config):
    """Weights of the terms; with all at 0 the student learns from clicks alone."""

    ranking: float = bounded(1.0, 0.0, 1000.0)  # of the relaxed ranking distillation
    top: int = bounded(10, 1, 1000)  # candidates of the teacher whose order counts
    embedding: float = bounded(0.1, 0.0, 1000.0)  # of the match of codes through a linear map
    interpolation: float = bounded(0.5, 0.0, 1.0)  # largest share of the teacher's probability in a label
    by_confidence: int = bounded(1, 0, 1)  # 1 scales that share by the teacher's confidence

    @property
    def teaches(self) -> bool:
        """Whether the student learns anything from the teacher."""
        return max(self.ranking, self.embedding, self.interpolation) > 0


@one_writer("out")
def distil(
    out: str | Path,
    logs: str | Path,
    teacher: str | Path,
    *,
    scenario: str | Scenario | None = None,
    student: str = "crban",
    seed: int = 0,
    resume: bool = False,
    threads: int = 1,
    progress: Report | None = None,
    distillation: dict[str, Any] | None = None,
    **hyper: Any,
) -> dict[str, Any]:
    """Train a student and write the run's folder.

    Days and sessions are split as for teachers and re-rankers. The epoch is chosen by the NDCG@10 of logged
    clicks at the page arrivals of the early-stopping sessions.

    Args:
        out: the run's folder.
        logs: the log that the teacher was trained on, or another of the same feed and items.
        teacher: a run of a teacher.
        scenario: the scenario that the student will serve, whose sizes must be those of the log; None checks
            nothing.
        student: "crban" or "dnn".
        seed: seed of the initial parameters, the moments drawn from each session, and their order.
        resume: continue after the last complete epoch in `out`, if any.
        threads: number of torch threads.
        progress: called with (epochs done, maximum number of epochs, text).
        distillation: fields of :class:`DistillationConfig`.
        **hyper: fields of :class:`~edgerec_gym.agents.rerank.reranker.RerankerConfig`.

    Returns:
        The content of policy.json.

    Raises:
        InputError: if a value is out of range, a run or the log is invalid or does not fit, or `out` is not
            writable or holds another run.
    """
    check_seed(seed)
    if student not in STUDENTS:
        raise InputError(f"student = {student!r}; allowed: {', '.join(STUDENTS)}")
    settings = RerankerConfig.from_dict(hyper)
    terms = DistillationConfig.from_dict(distillation or {})
    reader, source = LogReader(logs), read_run(teacher)
    if scenario is not None:
        place = scenario if isinstance(scenario, Scenario) else Scenario.load(scenario)
        if model_sizes(place.config) != model_sizes(reader.config):
            raise InputError(
                f"{reader.folder} logs a feed of other sizes than the scenario {place.name!r}; a student "
                "serves the feed of its log"
            )
    check_sizes(source, reader.config)
    network = load_teacher(source, reader.config)
    if network.n_items != len(reader.catalog):
        raise InputError(
            f"{source.folder} knows {network.n_items} items, {reader.folder} has {len(reader.catalog)}"
        )
    run = make_folder(out)
    record = log_record(student, "rerank", reader, seed, settings) | {"ndcg": []}
    record["distillation"] = terms.to_dict() | {
        "teacher": source.agent,
        "teacher_sha256": hashlib.sha256(source.parameters.read_bytes()).hexdigest(),
    }
    start = find_start(run, record, resume, FIXED)
    if start is not None and is_finished(run):
        return read_run(run).record
    with torch_threads(threads):
        trainer = DistillationTrainer(reader, record, settings, terms, network)
        trainer.run(run, start, "NDCG@10", progress)
    parameters.save_parameters(run / PARAMETERS, trainer.best)
    write_record(run, trainer.record)
    return trainer.record


class Taught(nn.Module):
    """A student with the linear map from its codes to the teacher's; the map stays in the cloud.

    Args:
        student: scores candidates; the input of its last linear layer are its codes.
        code_size: width of the teacher's codes.
    """

    def __init__(self, student: ListScorer, code_size: int) -> None:
        super().__init__()
        self.student = student
        self.map = nn.Linear(self._last().in_features, code_size)

    def _last(self) -> nn.Linear:
        return [module for module in self.student.modules() if isinstance(module, nn.Linear)][-1]

    def forward(self, observation: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Return logits of the pool rows (B, N) and the mapped codes (B, N, h)."""
        rows = torch.arange(observation["pool"].shape[1]).expand(len(observation["pool"]), -1)
        codes: list[Tensor] = []
        hook = self._last().register_forward_pre_hook(lambda _, inputs: codes.append(inputs[0]))
        try:
            logits = self.student.score_rows(observation, rows)
        finally:
            hook.remove()
        return logits, self.map(codes[0])


@dataclass
class TaughtMoments:
    """Re-ranking moments of a chunk with what the teacher says of their candidates.

    Attributes:
        chunk: the sessions.
        session: (R,) int64 index in the chunk.
        slot: (R,) int64.
        shown: (R, K) int64 pool rows, then -1.
        click: (R, K) float32.
        logits: (R, N) float32 of the teacher.
        codes: (R, N, h) float16, or None if they are not learned.
    """

    chunk: SessionSequences
    session: np.ndarray
    slot: np.ndarray
    shown: np.ndarray
    click: np.ndarray
    logits: np.ndarray
    codes: np.ndarray | None

    def __len__(self) -> int:
        return len(self.session)


class TaughtStream:
    """The training moments of a log, scored by the teacher on first use and then kept in memory.

    Args:
        stream: the training sessions.
        settings: which moments to take, as for re-rankers.
        seed: seed of that draw.
        teacher: scores them.
        with_codes: whether to keep the teacher's codes.
        at_once: whether the log has no information between the cards of a page.
    """

    def __init__(
        self,
        stream: SequenceStream,
        settings: RerankerConfig,
        seed: int,
        teacher: PageTeacher,
        with_codes: bool,
        at_once: bool,
    ) -> None:
        self.stream, self.settings, self.seed = stream, settings, seed
        self.teacher, self.with_codes, self.at_once = teacher.eval(), with_codes, at_once
        self._kept: list[TaughtMoments] | None = None

    def chunks(self) -> Iterator[TaughtMoments]:
        """Yield all chunks, in the order of the log."""
        if self._kept is None:
            self._kept = [self._taught(chunk) for chunk in self.stream.chunks()]
        yield from self._kept

    def _taught(self, chunk: SessionSequences) -> TaughtMoments:
        log, s = chunk.log, self.settings
        session, slot = log.moments(s.no_click, self.at_once)
        rng = np.random.default_rng([self.seed, int(log.sessions.session[0])])
        order = np.lexsort((rng.random(len(session)), session))
        drawn = np.arange(len(session)) - np.searchsorted(session, session) < s.per_session
        chosen = np.sort(order[drawn])
        session, slot = session[chosen], slot[chosen]
        shown, click = log.labels(session, slot, s.horizon)
        some = shown[:, 0] != NOT_SHOWN
        session, slot, shown, click = session[some], slot[some], shown[some], click[some]
        logits, codes = [], []
        for at in range(0, len(session), SCORED):
            part = slice(at, at + SCORED)
            with torch.inference_mode():
                sessions, pages = chunk.moments(session[part], slot[part])
                scores, code = self.teacher.score(sequences_of(sessions), pages_of(pages))
            logits.append(scores.numpy())
            if self.with_codes:
                codes.append(code.numpy().astype(np.float16))
        n_pool = log.config.pool_size
        return TaughtMoments(
            chunk,
            session,
            slot,
            shown,
            click,
            np.concatenate(logits) if logits else np.zeros((0, n_pool), np.float32),
            np.concatenate(codes) if codes else None,
        )


class DistillationTrainer(EpochTrainer[Taught]):
    """Train one student.

    Args:
        reader: the log.
        record: content of policy.json; steps and ndcg are updated.
        settings: hyper-parameters of the student.
        terms: weights of what it learns from the teacher.
        teacher: the teacher.
    """

    figure, sign = "ndcg", 1

    def __init__(
        self,
        reader: LogReader,
        record: dict[str, Any],
        settings: RerankerConfig,
        terms: DistillationConfig,
        teacher: PageTeacher,
    ) -> None:
        student = build_student(record["agent"], reader.config, settings, record["seed"])
        with torch_seed(record["seed"] + 1):
            network = Taught(student, teacher.code_size)
        history = UserHistory.read(reader)
        train_stream, stop, _ = split_sequences(reader, history, teacher.settings.earlier)
        at_once = "order_within_page" in reader.unidentified
        stream = TaughtStream(train_stream, settings, record["seed"], teacher, terms.embedding > 0, at_once)
        super().__init__(network, record, settings, stream)
        self.terms = terms
        self.stopping = read_pages(stop, clicked=True)
        if not self.stopping:
            raise InputError(
                f"{reader.folder} has no page with both a click and a miss among its early-stopping "
                "sessions; a student needs more sessions"
            )

    def kept(self) -> ListScorer:
        """Return the student: the map to the teacher's codes stays behind."""
        return self.network.student

    def loss(self, chunk: TaughtMoments, index: np.ndarray, generator: torch.Generator) -> Tensor:
        """Return the mean loss of the moments `index` (B,) of a chunk."""
        terms = self.terms
        observation = to_tensors(chunk.chunk.log.observations(chunk.session[index], chunk.slot[index]))
        shown, click = torch.from_numpy(chunk.shown[index]), torch.from_numpy(chunk.click[index])
        answered, rows = shown != NOT_SHOWN, shown.clamp(min=0)
        if not terms.teaches:
            student = self.network.student
            return type(student).objective(student.score_rows(observation, rows), click, answered)
        told = torch.from_numpy(chunk.logits[index])
        present = pool_present(observation)
        logits, mapped = self.network(observation)
        sure = confidence(told, present) if terms.by_confidence else torch.ones(len(told))
        total = interpolated_log_loss(
            logits.gather(1, rows), click, answered, told.gather(1, rows), terms.interpolation * sure
        )
        if terms.ranking:
            total = total + terms.ranking * relaxed_ranking_loss(logits, told, present, terms.top)
        if terms.embedding:
            assert chunk.codes is not None
            codes = torch.from_numpy(chunk.codes[index]).to(torch.float32)
            total = total + terms.embedding * embedding_loss(mapped, codes, present)
        return total

    def stopping_figure(self) -> float:
        """Return the NDCG@10 on the early-stopping sessions."""
        student = self.network.student
        return float(np.nanmean(click_ndcg(self.stopping, lambda pages: score_pages(student, pages))))


def score_pages(student: ListScorer, pages: JudgedPages) -> np.ndarray:
    """Return scores of the pool rows, (R, N) float32."""
    student.eval()
    with torch.inference_mode():
        return student.score(to_tensors(pages.observation)).numpy()


def build_student(agent: str, config: FeedConfig, settings: RerankerConfig, seed: int) -> ListScorer:
    """Build a student with parameters from `seed`."""
    network: ListScorer = build(find_agent(agent).code("network"), config, settings, seed)
    return network
