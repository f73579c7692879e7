"""Offline RL on logs: TorchRL trains a conservative Q-learner on a Minari data set, which is judged twice.

Logs with few random requests are exported. From them alone, discrete CQL (Kumar et al., NeurIPS 2020) learns
when to request a page. Its value is estimated off-policy from a second log, and measured by playing.

    pip install '.[train,offline]'
"""

import argparse
from pathlib import Path

import minari
import numpy as np
import torch
from tensordict import TensorDict
from torchrl.data import LazyTensorStorage, TensorDictReplayBuffer
from torchrl.modules import QValueActor
from torchrl.objectives import DiscreteCQLLoss, SoftUpdate

from edgerec_gym.agents.baselines import Keep
from edgerec_gym.agents.data.logged_decisions import read_decisions
from edgerec_gym.agents.data.minari import export_minari
from edgerec_gym.agents.requests.moments import AtMoments
from edgerec_gym.evaluation.off_policy import off_policy_estimates
from edgerec_gym.evaluation.play import play
from edgerec_gym.logs.collect import collect
from edgerec_gym.logs.store import LogReader
from edgerec_gym.policy import Observation

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--out", type=Path, default=Path("runs/offline"))
parser.add_argument("--sessions", type=int, default=5000, help="sessions of each log, and to play")
parser.add_argument("--updates", type=int, default=3000)
parser.add_argument("--seed", type=int, default=0)
arguments = parser.parse_args()
ENV_ID, NAME, MOMENTS = "EdgeFeedRequest-v0", "edgefeed-request-v0", 3

# 1. Two logs: one to learn from, one to judge by. The first becomes a Minari data set.
for seed, name in enumerate(("learn", "judge")):
    collect(
        arguments.out / name,
        preset_name="lite",
        sessions=arguments.sessions,
        seed=arguments.seed + seed,
        randomise=["request"],
        moments=MOMENTS,
    )
root = arguments.out / "minari"
if not (root / NAME).exists():
    export_minari(arguments.out / "learn", root / NAME, env_id=ENV_ID)

# 2. TorchRL's replay buffer takes the episodes. The state is the context, which matters most for requests.
# (TorchRL 0.14's own MinariExperienceReplay does not support int8 spaces, and action_mask is one.)
dataset = minari.MinariDataset(root / NAME / "data")
steps = TensorDictReplayBuffer(storage=LazyTensorStorage(dataset.total_steps), batch_size=512)
for episode in dataset.iterate_episodes():
    context = torch.from_numpy(episode.observations["context"])
    ends = {"terminated": episode.terminations, "truncated": episode.truncations}
    ends |= {"done": episode.terminations | episode.truncations, "reward": episode.rewards.astype(np.float32)}
    following = {name: torch.from_numpy(values)[:, None] for name, values in ends.items()}
    steps.extend(
        TensorDict(
            {
                "context": context[:-1],
                "action": torch.from_numpy(episode.actions),
                "next": {"context": context[1:], **following},
            },
            batch_size=len(episode),
        )
    )
print(f"{len(steps):,} steps of {dataset.total_episodes:,} episodes from {root / NAME}")

# 3. Train.
torch.manual_seed(arguments.seed)
network = torch.nn.Sequential(torch.nn.Linear(context.shape[1], 64), torch.nn.ReLU(), torch.nn.Linear(64, 2))
actor = QValueActor(network, in_keys=["context"], action_space="categorical")
loss = DiscreteCQLLoss(actor, loss_function="smooth_l1", action_space="categorical")
loss.make_value_estimator(gamma=0.97)
target = SoftUpdate(loss, eps=0.99)
optimizer = torch.optim.Adam(loss.parameters(), lr=1e-3)
for update in range(1, arguments.updates + 1):
    batch = steps.sample()
    losses = loss(batch)
    total = losses["loss_qvalue"] + losses["loss_cql"]
    optimizer.zero_grad()
    total.backward()
    optimizer.step()
    target.step()
    if update % max(1, arguments.updates // 5) == 0:
        print(f"update {update:5d}: loss {total.item():.4f}")


# 4. Judge it at the moments that the log covers: first without playing, then by playing.
class OfflinePolicy:
    name = "offline cql"
    stateless = True

    def reset(self, mask: np.ndarray) -> None:
        pass

    def act(self, observation: Observation) -> np.ndarray:
        with torch.inference_mode():
            value = network(torch.from_numpy(np.ascontiguousarray(observation["context"]))).numpy()
        return np.where(observation["action_mask"][:, 1] > 0, value.argmax(axis=1), 0)


reader = LogReader(arguments.out / "judge")
for policy in (Keep(), OfflinePolicy()):
    found = off_policy_estimates(read_decisions(reader, policy, at_moments=True))["dr"]
    played = play(
        AtMoments(policy, reader.config, MOMENTS),
        env_id=ENV_ID,
        scenario="lite",
        users="synthetic",
        sessions=arguments.sessions,
        seed=arguments.seed + 2,
        split="log",
    )
    low, high = found["low"], found["high"]
    print(
        f"{policy.name:12s} estimated from the log {found['mean']:.3f} [{low:.3f}, {high:.3f}],"
        f" played {played['value'].mean():.3f} with {played['requests'].mean():.2f} requests a session"
    )
