"""nnU-Net's own trainer, driven by a loop that ends with the CPU seconds: a script for nnU-Net's environment.

    nnUNet_raw=... nnUNet_preprocessed=... nnUNet_results=... python nnunet_training.py FACTS.json --cpu-seconds N

It can import nothing of this repository. Network, loss, optimizer, patches, batches and augmentation are nnU-Net's. Its
polynomial schedule goes over CPU seconds in place of epochs, at every iteration. There are no epochs, and so no
validation between them, which on fold ``all`` would be one on the training images, and chooses nothing.

The trainer is not a subclass that nnU-Net's commands find by its name, because that search imports all of nnU-Net's
trainers first, some of which need packages that the default one does not.
"""

from __future__ import annotations

import argparse
import json
import resource
from pathlib import Path

import torch
from nnunetv2.run.run_training import get_trainer_from_args  # type: ignore[import-not-found]

_EXPONENT = 0.9
"""Of nnU-Net's polynomial schedule."""


def cpu_seconds() -> float:
    """Return what this process and the children that it waited for have taken, imports included."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def train(allowed: float) -> dict[str, float]:
    """Train until so many CPU seconds are used up, one iteration at least, and write ``checkpoint_final.pth``.

    Returns:
        the number of steps (nnU-Net calls them iterations), the first and the last loss.
    """
    trainer = get_trainer_from_args("1", "2d", "all", device=torch.device("cpu"))
    trainer.on_train_start()
    trainer.network.train()
    losses: list[float] = []
    while not losses or cpu_seconds() < allowed:
        left = max(0.0, 1 - cpu_seconds() / allowed)
        for group in trainer.optimizer.param_groups:
            group["lr"] = trainer.initial_lr * left**_EXPONENT
        losses.append(float(trainer.train_step(next(trainer.dataloader_train))["loss"]))
    trainer.on_train_end()
    return {"steps": len(losses), "first_loss": losses[0], "last_loss": losses[-1]}


def main() -> None:
    """Do it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("facts", type=Path)
    parser.add_argument("--cpu-seconds", type=float, required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    arguments.facts.write_text(json.dumps(train(arguments.cpu_seconds)))


if __name__ == "__main__":
    main()
