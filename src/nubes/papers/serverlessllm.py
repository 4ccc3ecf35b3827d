"""ServerlessLLM: models start from near checkpoints, and running requests make room; simulated, and loaded live."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from nubes.llm.policies.serverlessllm import PAPER
from nubes.papers import Claim, Context, Result, above, at_least, at_most, between, reproduction
from nubes.papers.serving import requests, words

if TYPE_CHECKING:
    from nubes.drivers.sim.llm.startup import Started
    from nubes.llm.cluster.startup import Checkpointed, Server
    from nubes.workloads.llm import LLMWorkload

RAW = Claim(
    "The loader keeps the disk busy.",
    "bandwidth from a cold page cache, ours / a plain loop of direct reads",
    "a plain loop",
    at_least(0.85),
)
TORCH = Claim(
    "Checkpoints load faster than PyTorch's.",
    "seconds from a cold page cache, torch.load / ours",
    "torch.load",
    at_least(2.0),
    "3.6 to 8.2 times",
)
SAFE = Claim(
    "And than safetensors that are copied.",
    "seconds from a cold page cache, safetensors / ours",
    "safetensors",
    above(1.0),
    "3.6 to 8.2 times",
)
WARM = Claim(
    "What is in the pool is there at once.",
    "seconds, cold / from the pool",
    "cold",
    at_least(5.0),
)
SAME = Claim(
    "An answer that moves by its tokens is the same.",
    "share of greedy answers that are token for token what they are without moving",
    "no migration",
    at_least(1.0),
)
BYTES = Claim(
    "Only tokens cross the network.",
    "bytes sent / bytes of its KV",
    "KV",
    at_most(0.01),
)
STOP = Claim(
    "It stops for one short prefill.",
    "largest number of tokens to compute when the source stops",
    "none",
    at_most(21.0),
)
USE = Claim(
    "(The servers are as busy as they should be for the next claims.)",
    "share of GPU time in use under serverlessllm",
    "none",
    between(0.7, 0.9),
)
LOCAL = Claim(
    "Models start sooner where what runs can move than where it is waited for.",
    "mean time to start a model, locality / serverlessllm",
    "locality",
    above(1.0),
)
LUCK = Claim(
    "Where servers are taken by chance it takes longer still.",
    "mean time to start a model, random / locality",
    "random",
    above(1.0),
)
CHANCE = Claim(
    "The gain over chance is large.",
    "mean time to start a model, random / serverlessllm",
    "random",
    at_least(3.0),
)
REMOTE = Claim(
    "Without checkpoints on servers every start is a download.",
    "mean time to start a model, remote / serverlessllm",
    "remote",
    at_least(10.0),
    "10 to 200 times",
)
CLAIMS = (RAW, TORCH, SAFE, WARM, SAME, BYTES, STOP, USE, LOCAL, LUCK, CHANCE, REMOTE)

SERVERS, GPUS, MODELS, COPIES = 4, 4, 32, 2
MEMORY, DISK = 256e9, 600e9  # bytes a server
LINKS = {"memory": 20e9, "disk": 6e9, "remote": 1.25e9}
# Bytes, GPUs, and seconds for a prompt's token, to begin and for an answer's token: DistServe's fits for opt-13b and
# opt-66b, the others in proportion. Of eight models three are of the first size, three of the second, and one each.
KINDS = (
    (13e9, 1, 0.00006, 0.012, 0.013),
    (26e9, 1, 0.0001, 0.018, 0.021),
    (60e9, 1, 0.0003, 0.040, 0.046),
    (132e9, 2, 0.00027, 0.043, 0.049),
)
MIXTURE = (0, 0, 0, 1, 1, 1, 2, 3)
RATE = 0.85
SKEW = 0.8  # of Zipf's law, by which models are asked for


@reproduction(PAPER, claims=CLAIMS, area="llm", seam="startup, migration", mode="both")
def run(ctx: Context) -> Iterator[Result]:
    """Loads and moves on this machine, then servers in simulation."""
    from nubes.papers.serverlessllm_loading import by_tokens, loading

    yield from loading(ctx, RAW, TORCH, SAFE, WARM)
    yield from by_tokens(ctx, SAME, BYTES, STOP)
    yield from servers(ctx)


def servers(ctx: Context) -> Iterator[Result]:
    count = ctx.pick(700, 4000)
    use, local, luck, chance, remote = [], [], [], [], []
    work = None
    for seed in ctx.each("models that start"):
        work = offered(ctx, seed, count)
        took: dict[str, Started] = {}
        for policy in ("serverlessllm", "locality", f"random(seed={seed})", f"remote(seed={seed})"):
            took[policy.partition("(")[0]] = started(work, seed, policy)
        mean = {policy: float(outcome.startup_s.mean()) for policy, outcome in took.items()}
        use.append(took["serverlessllm"].busy)
        local.append(mean["locality"] / mean["serverlessllm"])
        luck.append(mean["random"] / mean["locality"])
        chance.append(mean["random"] / mean["serverlessllm"])
        remote.append(mean["remote"] / mean["serverlessllm"])
    assert work is not None
    about = (
        f"{words(work)} {MODELS} models of 13 to 132 GB, each at first on {COPIES} of {SERVERS} servers: {GPUS} GPUs, "
        f"{MEMORY / 1e9:.0f} GB of memory and {DISK / 1e9:.0f} GB of disk; 20, 6 and 1.25 GB/s."
    )
    yield ctx.result(USE, use, about, "simulated")
    yield ctx.result(LOCAL, local, about, "simulated")
    yield ctx.result(LUCK, luck, about, "simulated")
    yield ctx.result(CHANCE, chance, about, "simulated")
    yield ctx.result(REMOTE, remote, about, "simulated")


def offered(ctx: Context, seed: int, count: int) -> LLMWorkload:
    """Real lengths and arrivals of one service, at the rate that keeps the servers busy; another part for each seed."""
    import numpy as np

    work = requests(ctx, "azure-llm-2023", f"chat-like(rate={RATE},length={2 * count / RATE}s)", seed)
    begin = seed * count % max(1, work.requests - count)
    part = work.taking(np.arange(begin, min(begin + count, work.requests)))
    first = float(part.arrival_s[0])
    long_s = float(part.arrival_s[-1]) - first
    stretch = part.requests / RATE / long_s
    return part.taking(
        np.arange(part.requests), arrival_s=(part.arrival_s - first) * stretch, seconds=long_s * stretch, session=None,
        think_s=None,
    )  # fmt: skip


def started(work: LLMWorkload, seed: int, policy: str) -> Started:
    """On fresh servers."""
    import numpy as np

    from nubes.drivers.sim.llm.startup import simulate_startup
    from nubes.kernel.policy import make
    from nubes.workloads.draws import generator

    usual = float(work.output.mean())
    draw = generator(seed, "serverlessllm", "models")
    popular = 1 / np.arange(1, MODELS + 1) ** SKEW
    draw.shuffle(popular)
    which = draw.choice(MODELS, work.requests, p=popular / popular.sum()).tolist()
    models = [model(number, usual) for number in range(MODELS)]
    return simulate_startup(work, models, which, fresh(models), make("startup", policy))


def model(number: int, usual: float) -> Checkpointed:
    from nubes.llm.cluster.startup import Checkpointed

    size, gpus, prefill_s, fixed_s, token_s = KINDS[MIXTURE[number % len(MIXTURE)]]
    return Checkpointed(number, size, gpus, prefill_s, fixed_s, token_s, usual * token_s)


def fresh(models: list[Checkpointed]) -> list[Server]:
    """Servers with checkpoints dealt out to their disks, and nothing in memory."""
    from nubes.llm.cluster.startup import Server

    made = [Server(number, GPUS, MEMORY, DISK, LINKS) for number in range(SERVERS)]
    for each in models:
        for copy in range(COPIES):
            made[(each.name + copy) % SERVERS].disk[each.name] = each.size_bytes
    return made
