"""Hand-made features of a slot, for models without memory: what is known before its answer.

The cards of the window and the context are those that the user network gets (InputEncoder), with the same
inputs hidden where a log lacks them. Decayed sums replace the network's memory.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from edgerec_gym.answers import CLICK, FOCUSED, PAGE_VIEW, WINDOW
from edgerec_gym.logs.sessions import SCALAR_COLUMNS, LoggedSessions
from edgerec_gym.simulator.dataset import padded
from edgerec_gym.simulator.inputs import N_ACTIONS, InputEncoder, SessionBatch, answer_code
from edgerec_gym.simulator.model import DECAYS, page_starts

BLOCK = 256  # sessions worked on at a time, to bound memory
SIGNALS = 4  # weights of the sums: shown, dwell, click, duration of the page view


@torch.no_grad()
def slot_features(sessions: LoggedSessions, encoder: InputEncoder, frozen_pages: bool) -> np.ndarray:
    """Features of every answered slot.

    Args:
        sessions: S sessions with N answered slots.
        encoder: encoder with the units of the log.
        frozen_pages: the order of answers within a page is not known; only behaviour before its start counts.

    Returns:
        (N, k) float32, the slots of all sessions in order: scalars and types of the window's cards; context
        (slot, page age, hour, counts of views and clicks, ...); profile; match of the focused card with the
        user's long-term estimate, with its neighbours (embedding, type), and with the sums of
        :func:`_behaviour`.
    """
    index = np.flatnonzero(sessions.answered > 0)
    blocks = [index[at : at + BLOCK] for at in range(0, len(index), BLOCK)]
    return np.concatenate(
        [_block(padded(sessions, b, np.ones(len(b))), encoder, frozen_pages).numpy() for b in blocks]
    )


@torch.no_grad()
def own_answers(sessions: LoggedSessions) -> np.ndarray:
    """What was done at every answered slot, durations as one-hot levels, (N, k) float32.

    Input of models of leaving, which comes after the rest of the slot's answer.
    """
    rows = sessions.answered_rows(np.arange(len(sessions)))
    return answer_code(torch.from_numpy(sessions.actions[rows, :N_ACTIONS])).numpy()


def _block(batch: SessionBatch, encoder: InputEncoder, frozen_pages: bool) -> Tensor:
    d, slots = encoder.d, batch.context.shape[1]
    mask = torch.arange(slots) < batch.length[:, None]  # (B, T)
    at = torch.arange(slots).expand(mask.shape)
    known = page_starts(batch.context) if frozen_pages else at  # slot up to which answers are known, (B, T)
    told = batch.context.gather(1, known[:, :, None].expand_as(batch.context))
    cards = batch.cards.unfold(1, WINDOW, 1)[mask].transpose(1, 2)  # (N, 5, F + T)
    scaled, attributes, context = encoder(cards, told[mask])
    user = batch.user * encoder.user_scale
    focused, types = scaled[:, FOCUSED, :d], scaled[:, :, d + len(SCALAR_COLUMNS) :]
    beside = [k for k in range(WINDOW) if k != FOCUSED]
    alike = (scaled[:, beside, :d] * focused[:, None]).sum(2)
    same_type = (types[:, beside] * types[:, FOCUSED : FOCUSED + 1]).sum(2)
    long_term = (user[:, None, :d].expand(-1, slots, -1)[mask] * focused).sum(1, keepdim=True)
    profile = user[:, None, d:].expand(-1, slots, -1)[mask]
    shown = batch.cards[:, FOCUSED : FOCUSED + slots, :d] * encoder.card_scale[FOCUSED, :d]  # (B, T, d)
    behaviour = _behaviour(shown, batch.actions, known == at)[mask]
    return torch.cat([attributes.flatten(1), context, profile, long_term, alike, same_type, behaviour], 1)


def _behaviour(shown: Tensor, actions: Tensor, updates: Tensor) -> Tensor:
    """Match of each card with what was shown, looked at, clicked and read before it.

    Args:
        shown: (B, T, d) embeddings.
        actions: (B, T, 19).
        updates: (B, T) bool; other slots use what was known at the last such slot.

    Returns:
        (B, T, 4 * 16): product and cosine of the card with sums of the embeddings before it, norm of these
        sums, and sums of the weights alone; 4 signals at 4 decays.
    """
    signals = torch.stack(
        [torch.ones_like(updates, dtype=torch.float32), *(actions[:, :, k] for k in (0, CLICK, PAGE_VIEW))], 2
    )
    weight = signals.repeat(1, 1, len(DECAYS))  # (B, T, K)
    decay = torch.tensor(DECAYS).repeat_interleave(SIGNALS)
    # The sum of the weights alone is the sum of an extra coordinate that is always 1.
    vectors = torch.nn.functional.pad(shown, (0, 1), value=1.0)
    sums = torch.zeros(len(shown), len(decay), vectors.shape[2])
    known, features = sums, []
    for t in range(shown.shape[1]):
        known = torch.where(updates[:, t, None, None], sums, known)
        match = (known[:, :, :-1] @ shown[:, t, :, None])[:, :, 0]
        length = known[:, :, :-1].norm(dim=2)
        features.append(torch.cat([match, match / length.clamp(min=1e-6), length, known[:, :, -1]], 1))
        sums = decay[:, None] * sums + weight[:, t, :, None] * vectors[:, t, None]
    return torch.stack(features, 1)
