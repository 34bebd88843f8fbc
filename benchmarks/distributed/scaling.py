"""How many times faster n GPUs are than one, from the bytes of a step, the speed of the link and the time of a step.

    python -m benchmarks.distributed.scaling

A model, not a measurement. Each GPU has one image in a step, which takes it `STEP` seconds; then all add up what has
arrived, in a ring: 2 (n - 1) / n of the payload through the slowest link, and the link's latency for each of the
2 (n - 1) messages of each of `CALLS` sums. Nothing travels while a GPU computes: in truth large tensors do, during the
backward pass, so that this is the least that several GPUs give.
"""

from __future__ import annotations

from pathlib import Path

from benchmarks.runs import described
from medsaga import files

BYTES = Path(__file__).with_name("bytes.json")
LINKS = {"PCIe 3, 10 GB/s": (10e9, 5e-6), "10 Gbit/s Ethernet": (1.1e9, 30e-6), "1 Gbit/s Ethernet": (0.11e9, 50e-6)}
"""Bytes per second, and seconds per message."""
STEP = {"vit_b": 0.25, "vit_h": 1.2}
"""Seconds of one image of 1024 px, forward, recomputed and backward: an assumption, of a card of the T4's kind."""
CALLS = {"vit_b": 60, "vit_h": 160}
"""Tensors large enough to travel alone, and the buffer of all others."""
GPUS = (2, 4, 8, 16, 64)


def times_faster(gpus: int, payload: float, link: tuple[float, float], step: float, calls: int) -> float:
    """Return how many times as many images go through in the same time as on one GPU."""
    speed, latency = link
    travelling = 2 * (gpus - 1) / gpus * payload / speed + 2 * (gpus - 1) * latency * calls
    return gpus * step / (step + travelling)


def main() -> None:
    """Print the table."""
    described(__doc__).parse_args()
    rows = {(row["model"], row["side"], row["precision"], row["rank"]): row for row in files.read_json(BYTES)["rows"]}
    print("| model | link | what travels | " + " | ".join(f"{gpus} GPUs" for gpus in GPUS) + " |")
    print("|---|---|---|" + "---|" * len(GPUS))
    for model, step in STEP.items():
        row = rows[model, 1024, "bf16", 64]
        for name, link in LINKS.items():
            for what, payload in (("rank 64", row["mean"]), ("all gradients", row["ddp"])):
                faster = (times_faster(gpus, payload, link, step, CALLS[model]) for gpus in GPUS)
                print(f"| {model} | {name} | {what} | " + " | ".join(f"{each:.1f}" for each in faster) + " |")


if __name__ == "__main__":
    main()
