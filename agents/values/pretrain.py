"""Start the value network from a log, before it learns from learned users.

The network learns the click on the card that was shown at every slot, and the purchase after a click. Clicks
are rare, and a slot tells of one card only. Three auxiliary losses therefore also teach the state of a slot.
Their heads are linear:

- *clicks ahead*: the clicks on the cards of the next :data:`AHEAD` slots, without the slot to be filled. A
  card is known by its embedding only: the logit is q . embedding + b, with q and b from the state;
- *looks ahead*: likewise, which of these cards got a long look (:data:`LONG_LOOK`);
- *change of mood*: whether the cards liked in the next :data:`AHEAD` slots differ from those liked in the
  last ones, that is, whether the cosine of their mean embeddings is below 0. A card is liked if it got a
  click or a long look. Slots without liked cards on one side are left out. In a log of the lite preset, one
  cosine in six is below 0; a median instead would call half of all slots a change, whatever the log.

Long looks are more frequent than clicks, so they teach at least as much. The heads are thrown away: the
network keeps its parameters and their format.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cosine_similarity

from edgerec_gym.agents.data.log_stream import LogStream, split_stream
from edgerec_gym.agents.data.observed_log import OBSERVED_COLUMNS, ObservedLog
from edgerec_gym.agents.learning.epochs import EpochTrainer, Report
from edgerec_gym.agents.learning.tensors import torch_threads
from edgerec_gym.agents.values.network import ValueNetwork
from edgerec_gym.agents.values.play import SessionSlots, session_states
from edgerec_gym.answers import BUY, CLICK, LEAVE, PAGE_VIEW
from edgerec_gym.config import Config, bounded
from edgerec_gym.errors import InputError
from edgerec_gym.logs.store import LogReader
from edgerec_gym.runs import check_seed, model_sizes

AHEAD = 10  # k, slots that the auxiliary heads look ahead and back
LONG_LOOK = 0.5  # e1 in 0..1 above which a look is long: 4 s or more
PRIORS = (-3.0, -1.5, -1.5)  # initial logits of a click, a long look, and a change of mood
BLOCK = 4096  # observations read at once
MOST_HELD = 5000  # early-stopping sessions kept in memory, about 0.2 GB with the paper's sizes
HELD_BATCH = 128  # sessions scored at once


@dataclass(frozen=True)
class PretrainConfig(Config):
    """Settings of the start from a log."""

    epochs: int = bounded(3, 1, 10_000)  # maximum number of epochs
    auxiliary: float = bounded(0.3, 0.0, 1000.0)  # weight of the auxiliary losses; 0 leaves them out
    learning_rate: float = bounded(2e-3, 1e-7, 1.0)  # of Adam, in the first epoch
    final_rate: float = bounded(0.05, 0.0, 1.0)  # share of it left in the last epoch; linear decay
    batch_size: int = bounded(32, 1, 100_000)  # sessions per gradient step
    patience: int = bounded(2, 1, 10_000)  # epochs without a smaller log-loss after which training stops
    weight_decay: float = bounded(0.0, 0.0, 1e3)
    max_grad_norm: float = bounded(1.0, 1e-3, 1e6)


@dataclass(frozen=True)
class LoggedSlots(SessionSlots):
    """Sessions of a log, up to the last answered slot of any; zero where a session has fewer.

    Attributes:
        bought: (B, T) bool.
    """

    bought: Tensor


class WholeSessions:
    """The sessions of one chunk of a log, with what the device saw at their slots, batched on demand.

    Args:
        log: the chunk.
    """

    def __init__(self, log: ObservedLog) -> None:
        self.sessions, self.exposures = log.sessions, log.exposures
        sessions = log.sessions
        session = np.repeat(np.arange(len(sessions)), np.diff(sessions.starts))
        slot = np.arange(len(session)) - sessions.starts[session]
        seen = []
        for at in range(0, len(session), BLOCK):
            found = log.observations(session[at : at + BLOCK], slot[at : at + BLOCK])
            seen.append((found["context"], found["screen"]))
        self.context, self.screen = (np.concatenate(part) for part in zip(*seen, strict=True))

    def __len__(self) -> int:
        return len(self.sessions)

    def batch(self, index: np.ndarray) -> LoggedSlots:
        """Build the batch of the sessions `index` (B,)."""
        sessions = self.sessions
        count = sessions.answered[index]
        slot = np.arange(max(1, count.max(initial=0)))
        answered = slot < count[:, None]
        rows = np.where(answered, sessions.starts[index][:, None] + slot, 0)

        def kept(values: np.ndarray) -> Tensor:
            absent = ~answered.reshape(*answered.shape, *[1] * (values.ndim - 2))
            return torch.from_numpy(np.where(absent, np.float32(0), values))

        actions = kept(sessions.actions[rows])
        return LoggedSlots(
            user=torch.from_numpy(sessions.user[index]),
            context=kept(self.context[rows]),
            screen=kept(self.screen[rows]),
            cards=kept(sessions.cards(rows)),
            exposures=kept(self.exposures[rows]),
            page_views=actions[..., PAGE_VIEW:LEAVE],
            clicked=actions[..., CLICK] > 0,
            bought=(actions[..., CLICK] > 0) & (actions[..., BUY] > 0),
            answered=torch.from_numpy(answered),
        )


class SessionLog(LogStream[WholeSessions]):
    """The whole sessions of some days of a log."""

    columns = OBSERVED_COLUMNS
    cached_slots = 2_000_000  # about 1 GB

    def _chunk(self, table: pa.Table, log: ObservedLog, rng: np.random.Generator) -> WholeSessions:
        return WholeSessions(log)


class AuxiliaryHeads(nn.Module):
    """What is to come, linear from the state of a slot.

    Args:
        hidden: width of the state.
        embedding_size: d.
    """

    def __init__(self, hidden: int, embedding_size: int) -> None:
        super().__init__()
        self.d = embedding_size
        with torch.random.fork_rng(devices=[]):  # layers draw from the global generator
            self.ahead = nn.Linear(hidden, 2 * (embedding_size + 1))  # q and b, of clicks and of long looks
            self.change = nn.Linear(hidden, 1)
        for parameter in self.parameters():
            nn.init.zeros_(parameter)  # silent at first
        with torch.no_grad():
            self.ahead.bias.view(2, -1)[:, -1] = torch.tensor(PRIORS[:2])
            self.change.bias.fill_(PRIORS[2])

    def forward(self, state: Tensor, sessions: LoggedSlots) -> Tensor:
        """Return the losses of clicks ahead, looks ahead and change of mood, (3,), in nats.

        Args:
            state: (B, T, hidden).
            sessions: B sessions from a log.
        """
        answered, embeddings = sessions.answered, sessions.cards[..., : self.d]
        slot = torch.arange(state.shape[1])
        distance = slot - slot.view(-1, 1)  # (T, S)
        ahead = (distance >= 1) & (distance <= AHEAD)
        look = sessions.exposures[..., 0] > LONG_LOOK

        heads = self.ahead(state).unflatten(-1, (2, -1)).transpose(1, 2)  # (B, 2, T, d + 1)
        logits = heads[..., : self.d] @ embeddings.transpose(1, 2).unsqueeze(1) + heads[..., self.d :]
        happened = torch.stack((sessions.clicked, look), 1).unsqueeze(2)  # (B, 2, 1, S)
        pairs = (ahead & answered.unsqueeze(1)).unsqueeze(1)  # all slots before an answered one are answered
        losses = _mean_loss(logits, happened.expand_as(logits), pairs, (0, 2, 3))

        changed, known = mood_changes(embeddings, sessions.clicked | look, ahead)
        change = _mean_loss(self.change(state).squeeze(-1), changed, known, (0, 1))
        return torch.cat((losses, change.view(1)))


def mood_changes(embeddings: Tensor, liked: Tensor, ahead: Tensor) -> tuple[Tensor, Tensor]:
    """Tell at which slots the cards liked next differ from those liked last.

    Args:
        embeddings: (B, T, d) float32 of the shown cards.
        liked: (B, T) bool.
        ahead: (T, T) bool, which slots (columns) are next at a slot (rows); transposed, which are last.

    Returns:
        Whether the cosine of the two mean embeddings is below 0, and whether both sides have a card, (B, T)
        bool each.
    """
    weight = liked.to(embeddings.dtype).unsqueeze(-1)
    marked = torch.cat((embeddings * weight, weight), -1)
    # Sums have the direction of means.
    following, last = (side.to(embeddings.dtype) @ marked for side in (ahead, ahead.T))
    cosine = cosine_similarity(following[..., :-1], last[..., :-1], dim=-1)
    return cosine < 0, (following[..., -1] > 0) & (last[..., -1] > 0)


def _mean_loss(logits: Tensor, happened: Tensor, known: Tensor, over: tuple[int, ...]) -> Tensor:
    """Return the mean log-loss where `known` (broadcast), over some dimensions; 0 where nothing is."""
    loss = binary_cross_entropy_with_logits(logits, happened.to(logits.dtype), reduction="none")
    return (loss * known).sum(over) / known.sum().clamp(min=1)


def shown_logits(network: ValueNetwork, sessions: LoggedSlots) -> tuple[Tensor, Tensor]:
    """Return logits of click and of purchase after a click for the R answered cards, and the states.

    Args:
        network: the value network.
        sessions: B sessions of up to T slots from a log.

    Returns:
        Logits (R, 2) and states (B, T, hidden).
    """
    state, vectors = session_states(network, sessions)
    at = sessions.answered
    cards = network.cards(sessions.cards[at].unsqueeze(1))
    return network.logits(cards, state[at], vectors[at])[:, 0], state


class Pretrainer(EpochTrainer[nn.ModuleList]):
    """Training from a log, with early stopping by the log-loss of clicks.

    Args:
        network: trained in place.
        settings: settings of the training.
        seed: seed of the order of the sessions.
        stream: sessions to learn from.
        stopping: sessions that decide when to stop, not trained on.

    Attributes:
        losses: main loss and sum of the auxiliary losses of every gradient step of this epoch.
    """

    figure, sign = "held_out", -1

    def __init__(
        self,
        network: ValueNetwork,
        settings: PretrainConfig,
        seed: int,
        stream: SessionLog,
        stopping: list[LoggedSlots],
    ) -> None:
        self.values, self.stopping = network, stopping
        self.heads = AuxiliaryHeads(network.settings.hidden, network.config.embedding_size)
        record = {"seed": seed, "steps": 0, self.figure: []}
        super().__init__(nn.ModuleList((network, self.heads)), record, settings, stream)
        self.losses: list[tuple[float, float]] = []

    def loss(self, chunk: WholeSessions, index: np.ndarray, generator: torch.Generator) -> Tensor:
        """Return the loss of the sessions `index` (B,) of a chunk."""
        sessions = chunk.batch(index)
        logits, state = shown_logits(self.values, sessions)
        click, buys = (part[sessions.answered].float() for part in (sessions.clicked, sessions.bought))
        missed = binary_cross_entropy_with_logits(logits, torch.stack((click, buys), -1), reduction="none")
        weight = self.values.settings.purchase_weight
        main = (missed[:, 0] + weight * click * missed[:, 1]).sum() / max(1, len(click))
        auxiliary = self.heads(state, sessions).sum() if self.settings.auxiliary else main.new_zeros(())
        self.losses.append((main.item(), auxiliary.item()))
        total: Tensor = main + self.settings.auxiliary * auxiliary
        return total

    def stopping_figure(self) -> float:
        """Return the mean log-loss of clicks in the early-stopping sessions, in nats per answered slot."""
        self.network.eval()
        total = slots = 0.0
        with torch.inference_mode():
            for sessions in self.stopping:
                logits, _ = shown_logits(self.values, sessions)
                click = sessions.clicked[sessions.answered].float()
                total += binary_cross_entropy_with_logits(logits[:, 0], click, reduction="sum").item()
                slots += len(click)
        return total / slots


def held_sessions(stream: SessionLog, most: int = MOST_HELD) -> list[LoggedSlots]:
    """Read the first `most` sessions of a stream, in batches of similar length."""
    batches: list[LoggedSlots] = []
    for chunk in stream.chunks():
        count = min(most, len(chunk))
        order = np.argsort(chunk.sessions.answered[:count], kind="stable")
        batches += [chunk.batch(order[at : at + HELD_BATCH]) for at in range(0, count, HELD_BATCH)]
        most -= count
        if not most:
            break
    return batches


def pretrain(
    network: ValueNetwork,
    logs: LogReader | str | Path,
    *,
    epochs: int,
    auxiliary: float,
    learning_rate: float,
    batch_size: int,
    seed: int,
    progress: Report | None = None,
) -> dict[str, list[float]]:
    """Train a value network on a log in place, and leave it as after its best epoch.

    The last seventh of the days is held out, as for all that learns from logs. A tenth of the other sessions
    is used for early stopping by the log-loss of clicks. The same arguments give the same parameters on the
    same machine and library versions. Purchases count by the network's own `purchase_weight`.

    Args:
        network: the network; its settings also give the purchase weight, the share of the learning rate that
            is left in the last epoch, and the largest norm of a gradient.
        logs: a log or its folder.
        epochs: maximum number of epochs, at least 1.
        auxiliary: weight of the sum of the auxiliary losses relative to the main loss, 0..1000; 0 leaves them
            out.
        learning_rate: of Adam in the first epoch, above 0 and at most 1.
        batch_size: sessions per gradient step, at least 1.
        seed: seed of the order of the sessions.
        progress: called with (epochs done, maximum number of epochs, text).

    Returns:
        A number for every epoch, in nats: "loss", the mean main loss of the gradient steps; "auxiliary", the
        mean sum of the auxiliary losses, 0 if they are left out; "held_out", the log-loss of clicks in the
        early-stopping sessions.

    Raises:
        InputError: if a value is out of range, the log is invalid, made for other sizes than the network, or
            too small.
    """
    settings = PretrainConfig(
        epochs=epochs,
        auxiliary=auxiliary,
        learning_rate=learning_rate,
        final_rate=network.settings.final_rate,
        batch_size=batch_size,
        max_grad_norm=network.settings.max_grad_norm,
    )
    check_seed(seed)
    reader = logs if isinstance(logs, LogReader) else LogReader(logs)
    _check_fit(network, reader)
    stream, stop, _ = split_stream(SessionLog, reader, None, seed=seed, cached_slots=None)
    stopping = held_sessions(stop)
    if not any(sessions.clicked.any() for sessions in stopping) or next(stream.chunks(), None) is None:
        raise InputError(
            f"{reader.folder} holds too few sessions: the value network needs some to learn from, and a "
            "click among those that decide when to stop"
        )
    found: dict[str, list[float]] = {"loss": [], "auxiliary": [], "held_out": []}
    training = network.training
    with torch_threads(1):
        trainer = Pretrainer(network, settings, seed, stream, stopping)
        while not trainer.done:
            trainer.run_epoch()
            main, other = np.mean(trainer.losses, axis=0)
            trainer.losses.clear()
            figure = trainer.record[trainer.figure][-1]
            for name, number in zip(found, (main, other, figure), strict=True):
                found[name].append(float(number))
            if progress:
                progress(len(found["loss"]), epochs, f"click log-loss {figure:.4f}")
    trainer.network.load_state_dict(trainer.best.state_dict())
    network.train(training)
    return found


def _check_fit(network: ValueNetwork, reader: LogReader) -> None:
    """Raise InputError if a log was made for observations of other sizes than the network's."""
    wanted = model_sizes(network.config)
    for key, size in model_sizes(reader.config).items():
        if wanted[key] != size:
            raise InputError(f"{reader.folder} has {key} {size}; the value network reads {wanted[key]}")
