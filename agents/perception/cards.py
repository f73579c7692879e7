"""Where the scalars of a card are, and how its base ctr is read; without torch."""

BASE_CTR, BASE_CVR = 1, 2  # indices among the item scalars, after the embedding
LOGIT_SCALE = 3.0  # scales logit(base ctr) to order 1
