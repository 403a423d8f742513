"""The one loss of the pairwise judge: hard labels, soft labels and a cosine term, weighed by settings.

The published recipes are settings of it: stage 1 is hard_weight 1; stage 2 of the 5th place of WSDM is soft_weight 1;
the 1st place's student is hard 0.5, soft 1 (kl), cosine 1. The weights are divided by their sum.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from podium.losses import Loss

SoftKind = Literal["ce", "kl"]


def preference(
    logits_N2: Tensor,
    hard_N: Tensor,
    soft_N2: Tensor,
    *,
    hard_weight: float,
    soft_weight: float,
    soft_kind: SoftKind,
    cosine_weight: float,
    temperature: float,
    label_smoothing: float,
) -> Loss:
    """Loss of judged rows (a row is one pair in one order).

    Args:
        logits_N2: scores of the first and the second response.
        hard_N: 1 where the first one won, 0 where the second, 0.5 for a tie, nan where nobody judged: the hard term
            of such a row is 0.
        soft_N2: log-probabilities of both responses, nan where a row has none.
        hard_weight: of the cross-entropy against hard_N.
        soft_weight: of the soft term.
        soft_kind: ce, or kl (equal gradients; kl is 0 at its best).
        cosine_weight: of 1 − cos(student's probabilities, target's).
        temperature: divides soft_N2 before its softmax.
        label_smoothing: share of the hard target spread over both responses.

    Returns:
        sum over rows, number of rows, {"accuracy": hits among rows with a winner}.

    Raises:
        ValueError: no positive weight, a soft term without soft label, or a row without any target.
    """
    total = hard_weight + soft_weight + cosine_weight
    if min(hard_weight, soft_weight, cosine_weight) < 0 or total == 0:
        raise ValueError("hard_weight, soft_weight and cosine_weight must not be negative, nor all of them 0")
    log_N2 = torch.log_softmax(logits_N2.float(), dim=-1)
    judged_N = ~torch.isnan(hard_N)
    win_N = torch.nan_to_num(hard_N, nan=0.5)
    hard_N2 = torch.stack([win_N, 1 - win_N], dim=-1)
    loss_N = torch.zeros_like(hard_N)
    if hard_weight:
        target_N2 = (1 - label_smoothing) * hard_N2 + label_smoothing / 2
        hard_term_N = -(target_N2 * log_N2).sum(-1)
        loss_N = loss_N + hard_weight * torch.where(judged_N, hard_term_N, torch.zeros_like(hard_term_N))
    if soft_weight or cosine_weight:
        if torch.isnan(soft_N2).any():
            missing = int(torch.isnan(soft_N2).any(-1).sum())
            raise ValueError(f"{missing} rows have no soft label, but soft_weight or cosine_weight is above 0")
        soft_log_N2 = torch.log_softmax(soft_N2.float() / temperature, dim=-1)
        soft_target_N2 = soft_log_N2.exp()
        soft_term_N = -(soft_target_N2 * log_N2).sum(-1)
        if soft_kind == "kl":
            soft_term_N = soft_term_N + (soft_target_N2 * soft_log_N2).sum(-1)
        cosine_N = F.cosine_similarity(log_N2.exp(), soft_target_N2, dim=-1)
        loss_N = loss_N + soft_weight * soft_term_N + cosine_weight * (1 - cosine_N)
    elif (~judged_N).any():
        raise ValueError(f"{int((~judged_N).sum())} rows have neither a winner nor a soft term; leave them out")
    decided_N = judged_N & (win_N != 0.5)
    hits = (((logits_N2[:, 0] > logits_N2[:, 1]) == (win_N > 0.5)) & decided_N).float().sum().item()
    return loss_N.sum() / total, float(len(hard_N)), {"accuracy": hits}
