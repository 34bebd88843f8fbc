"""Where the class tokens of a run start: at what the encoder already makes of each class.

Weights that were pre-trained on episodes of few-shot segmentation know a class by its mean embedding
(``benchmarks/starter``). A run on a few labelled images begins with these means instead of learning tokens from
nothing: it segments before its first step.
"""

from __future__ import annotations

import numpy as np
import torch
from torch.nn import functional as F

from medsaga.data.samples import Samples
from medsaga.models.base import SegmentationModel

MOST_SAMPLES = 256
"""Labelled slices that are looked at, evenly spaced: a mean over more is the same, and takes longer to find."""


@torch.no_grad()
def start_class_tokens(model: SegmentationModel, samples: Samples) -> None:
    """Add to each class's mask token the mean embedding of the class's pixels in the samples.

    A class that occurs in none of the samples that are looked at keeps its mask token as it is. Images go through the
    encoder one by one, so that the result is the same bits whatever a run's micro-batch.

    Args:
        model: with class tokens, on its device.
        samples: to train on.
    """
    labelled = np.flatnonzero(samples.foreground)
    rows = labelled[np.unique(np.linspace(0, len(labelled) - 1, MOST_SAMPLES).round().astype(int))]
    tokens = model.class_tokens
    assert tokens is not None
    sums = torch.zeros(tokens.shape, device=tokens.device)
    sizes = torch.zeros(len(tokens), 1, device=tokens.device)
    classes = torch.arange(model.classes, device=tokens.device)[:, None, None]
    for row in rows:
        images, labels = (tensor.to(tokens.device) for tensor in samples.batch([row]))
        encoded, _ = model.encoded_and_logits(images.float(), decode=False)
        embeddings = encoded[:, : tokens.shape[1]].float()
        shares = F.adaptive_avg_pool2d((labels[:, None] == classes).float(), embeddings.shape[-1])
        sums += torch.einsum("bkhw,bchw->kc", shares, embeddings)
        sizes += shares.sum((0, 2, 3))[:, None]
    tokens += (sums / sizes.clamp(min=torch.finfo(torch.float32).tiny)).to(tokens.dtype)
