"""Inputs of the user network: units, masks and codes of cards, context, answers and numbers.

Inputs that a log does not identify, or that never vary in it, are multiplied by 0 here, both in fitting and
at run time.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from edgerec_gym.answers import (
    CLICK,
    CONTEXT_SIZE,
    DWELL_BUCKETS,
    FOCUSED,
    HOUR,
    LAST_CLICKED,
    LEAVE,
    N_EXPOSURE_ACTIONS,
    N_EXPOSURES,
    N_PAGE_VIEWS,
    PAGE_AGE,
    PAGE_REQUESTED,
    PAGE_SUMMARY,
    PAGE_VIEW,
    PAGE_VIEW_BUCKETS,
    SINCE_PAGE_VIEW,
    SLOT,
    WINDOW,
)
from edgerec_gym.config import FeedConfig
from edgerec_gym.spaces import LEAST_CTR, N_SCALARS
from edgerec_gym.users.learned_layout import N_ACTIONS, N_SIGNS, N_WAVES, PRIOR_CLICKS, PRIOR_VIEWS

# Without the named responses, which follow.
N_ANSWER_CODE = DWELL_BUCKETS + (N_EXPOSURE_ACTIONS - 1) + 1 + PAGE_VIEW_BUCKETS + N_SIGNS
AGES = (
    4.0,
    12.0,
)  # slots; time constants of decay after a page arrived, a page view, and the start of the session
N_FADING = 4 * len(AGES)
N_CONTEXT_CODE = CONTEXT_SIZE + N_FADING + N_WAVES


class SessionBatch(NamedTuple):
    """B padded sessions with T answered slots and F + T features of a card; float32 except `length`.

    Attributes:
        cards: (B, T + 4, F + T) placed cards; column 2 is the card of slot 0; zero where absent.
        context: (B, T, 8) columns of answers.py.
        user: (B, U) what the cloud shipped.
        actions: (B, T, 19 + R) response rows up to and with `leave`, then the named responses.
        length: (B,) int64 answered slots.
        weight: (B,) weight of the session in the loss.
        page: (B, T, 5) summary of the page of each slot (answers.py).
    """

    cards: Tensor
    context: Tensor
    user: Tensor
    actions: Tensor
    length: Tensor
    weight: Tensor
    page: Tensor


def hat(value: Tensor, levels: int) -> Tensor:
    """Return the one-hot code of values stored as level / (levels - 1), (..., 1) to (..., levels)."""
    grid = torch.arange(levels, dtype=torch.float32)
    return torch.relu(1 - (value * (levels - 1) - grid).abs())


def answer_code(actions: Tensor) -> Tensor:
    """Encode answers for the memory, with durations as one-hot levels.

    Args:
        actions: (..., 19 + R) response rows up to and with `leave`, then the named responses.

    Returns:
        (..., N_ANSWER_CODE + R); it does not tell who left.
    """
    opened = hat(actions[..., PAGE_VIEW : PAGE_VIEW + 1], PAGE_VIEW_BUCKETS) * actions[..., CLICK : CLICK + 1]
    dwell = hat(actions[..., :1], DWELL_BUCKETS)
    signs, responses = actions[..., PAGE_VIEW + 1 : N_ACTIONS], actions[..., LEAVE + 1 :]
    return torch.cat([dwell, actions[..., 1:PAGE_VIEW], opened, signs, responses], -1)


def numbers(config: FeedConfig, card: Tensor, user: Tensor, *page: Tensor) -> Tensor:
    """Return the numbers that have bins: of the card, of the user, how the two match, and of the page.

    Args:
        config: config of the feed.
        card: (N, F + T).
        user: (N, U).
        page: nothing, or the summary (N, 5) of the card's page.

    Returns:
        (N, K) scalars and item columns, the profile, the product of both embeddings, the summary.
    """
    d = config.embedding_size
    match = (card[:, :d] * user[:, :d]).sum(1, keepdim=True)
    return torch.cat([card[:, d : config.n_item_features], user[:, d:], match, *page], 1)


class InputEncoder(nn.Module):
    """Units and masks of the inputs, as constants that are saved with the weights.

    Args:
        config: config of the feed; determines sizes and the units of the context.
        unidentified: what the log does not identify (scenario.py).
        behaviour: False hides the context columns that reveal earlier answers.
        bins: bins of each number in :meth:`bin_code`; 0 = numbers are read as they are.
    """

    near: Tensor
    card_scale: Tensor
    ctr_logit: Tensor
    user_scale: Tensor
    context_scale: Tensor
    context_ages: Tensor
    age_shift: Tensor
    context_waves: Tensor
    wave_shift: Tensor
    count_scale: Tensor
    bin_start: Tensor
    bin_factor: Tensor

    def __init__(
        self, config: FeedConfig, unidentified: frozenset[str], behaviour: bool = True, bins: int = 0
    ) -> None:
        super().__init__()
        self.d, self.width = config.embedding_size, config.n_item_features + config.n_types
        self.config = config
        # Cards that are answered at once compete, so what their page holds matters, and what came before it.
        self.reads_page = "order_within_page" in unidentified
        n_numbers = config.n_item_features + config.n_user_features - 2 * self.d + 1
        n_numbers += len(PAGE_SUMMARY) if self.reads_page else 0
        counts = torch.tensor([1 / math.log1p(config.max_slots)] * 2 + [1.0])
        self.n_attributes = self.width - self.d + 1  # scalars, item columns, type, and the logit of base ctr
        near = torch.ones(WINDOW, 1)
        near[FOCUSED + 1 + config.lookahead :] = 0  # not yet placed at the time of the answer
        if "neighbours" in unidentified:
            near[:] = 0
            near[FOCUSED] = 1
        scale = torch.zeros(CONTEXT_SIZE)
        scale[[SLOT, N_EXPOSURES, SINCE_PAGE_VIEW]] = 1 / config.max_slots
        scale[PAGE_AGE], scale[HOUR], scale[N_PAGE_VIEWS] = 1 / config.page_size, 1 / 24, 0.1
        scale[[PAGE_REQUESTED, LAST_CLICKED]] = 1
        ages, shift = torch.zeros(CONTEXT_SIZE, 4, len(AGES)), torch.zeros(4, len(AGES))
        for k, slots in enumerate(AGES):
            ages[PAGE_AGE, :2, k] = ages[SINCE_PAGE_VIEW, 2, k] = ages[SLOT, 3, k] = -1 / slots
        ages[PAGE_REQUESTED, 1], shift[1] = 30, -30  # the age of a requested page; e^-30 for automatic ones
        waves = torch.zeros(CONTEXT_SIZE, 2)
        waves[HOUR] = 2 * math.pi / 24
        hidden = [SLOT, PAGE_AGE, N_EXPOSURES] if "position" in unidentified else []
        hidden += [LAST_CLICKED] if unidentified & {"neighbours", "order_within_page"} else []
        hidden += [] if behaviour else [N_PAGE_VIEWS, SINCE_PAGE_VIEW, LAST_CLICKED]
        for matrix in (scale, ages, waves):
            matrix[hidden] = 0
        for name, value in (
            ("near", near),
            ("card_scale", near.expand(WINDOW, self.width).clone()),
            ("ctr_logit", torch.tensor([-3.0, 1.0])),  # centre, 1 / spread
            ("user_scale", torch.ones(config.n_user_features)),
            ("context_scale", scale),
            ("context_ages", ages.flatten(1)),
            ("age_shift", shift.flatten()),
            ("context_waves", waves),
            ("wave_shift", torch.tensor([0.0, math.pi / 2])),
            ("count_scale", counts if self.reads_page and behaviour else counts[:0]),
            ("bin_start", torch.zeros(n_numbers, bins)),
            ("bin_factor", torch.zeros(n_numbers, bins)),
        ):
            self.register_buffer(name, value)

    @torch.no_grad()
    def set_scales(self, card: Tensor, ctr_logit: Tensor, context: Tensor, user: Tensor) -> None:
        """Set the units of a log; a factor of 0 hides an input that never varies in it.

        Args:
            card: (F + T,) factors of card features.
            ctr_logit: (2,) centre of the logit of base ctr, and its factor.
            context: (8,) 1 or 0 for each column.
            user: (U,) factors of user features.
        """
        self.card_scale.copy_(self.near * card)
        self.ctr_logit.copy_(ctr_logit)
        self.user_scale.copy_(user)
        for matrix in (self.context_scale, self.context_ages, self.context_waves):
            matrix.mul_(context if matrix.ndim == 1 else context[:, None])

    def forward(self, cards: Tensor, context: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Encode windows of cards and their context.

        Args:
            cards: (N, 5, F + T).
            context: (N, 8).

        Returns:
            Scaled cards (N, 5, F + T), attributes (N, 5, n_attributes), context code (N, N_CONTEXT_CODE).
        """
        scaled = cards * self.card_scale
        ctr = cards[:, :, self.d + 1 : self.d + 2].clamp(LEAST_CTR, 1 - LEAST_CTR)
        logit = (torch.log(ctr / (1 - ctr)) - self.ctr_logit[0]) * self.ctr_logit[1] * self.near
        attributes = torch.cat([scaled[:, :, self.d :], logit], 2)
        fading = torch.exp(context @ self.context_ages + self.age_shift)
        waves = torch.sin(context @ self.context_waves + self.wave_shift)
        return scaled, attributes, torch.cat([context * self.context_scale, fading, waves], 1)

    @torch.no_grad()
    def set_bins(self, start: Tensor, factor: Tensor) -> None:
        """Set where the bins of each number start, and 1 over their widths (0 = no bin), (K, bins) each."""
        self.bin_start.copy_(start)
        self.bin_factor.copy_(factor)

    @property
    def n_codes(self) -> int:
        """Number of columns of :meth:`count_code` and :meth:`bin_code`."""
        return len(self.count_scale) + self.bin_start.numel()

    def count_code(self, context: Tensor) -> Tensor:
        """Encode what was seen and clicked before a page, given the context (N, 8) at its start, (N, 3).

        (N, 0) if answers on a page depend on each other, or the network knows no earlier answers.
        """
        if not len(self.count_scale):
            return context[:, :0]
        seen, clicked = context[:, N_EXPOSURES], context[:, N_PAGE_VIEWS]
        rate = (clicked + PRIOR_CLICKS) / (seen + PRIOR_VIEWS)
        return torch.stack([torch.log1p(seen), torch.log1p(clicked), rate], 1) * self.count_scale

    def bin_code(self, card: Tensor, user: Tensor, page: Tensor) -> Tensor:
        """Encode numbers by bins, so that their effect is piecewise linear, as trees' is piecewise constant.

        Piecewise linear encoding (Gorishniy et al., "On Embeddings for Numerical Features in Tabular Deep
        Learning", NeurIPS 2022), here within each bin clipped to 0..1.

        Args:
            card: (N, F + T) focused card.
            user: (N, U).
            page: (N, 5) summary of the card's page.

        Returns:
            (N, K * bins) how far each of the K numbers has come through each bin, 0..1.
        """
        found = numbers(self.config, card, user, *([page] if self.reads_page else []))
        code = (found[:, :, None] - self.bin_start).mul_(self.bin_factor)
        return code.clamp_(0, 1).flatten(1)

    def page_factors(self) -> tuple[Tensor, Tensor]:
        """Return factors and offsets (5,) that convert the summary of a page to the units of its cards."""
        factor, offset = torch.ones(len(PAGE_SUMMARY)), torch.zeros(len(PAGE_SUMMARY))
        logit = PAGE_SUMMARY.index("base_logit")
        factor[:N_SCALARS] = self.card_scale[FOCUSED, self.d : self.d + N_SCALARS]
        factor[logit], offset[logit] = self.ctr_logit[1], -self.ctr_logit.prod()
        return factor, offset
