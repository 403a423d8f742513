"""Form B: a pooled embedding of the whole pair, a branch for engineered features, and a classifier on both."""

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save
from torch import Tensor, nn

from podium import contracts
from podium.errors import DataError
from podium.modeling import Pooling, is_encoder, pool
from podium.pairwise import features
from podium.pairwise.features import FeatureSet

HEAD, FEATURES = "head.safetensors", "features.json"
"""Files of form B beside the backbone's; merging an adapter carries them along."""


class FeatureHead(nn.Module):
    """Features through a linear layer, joined with the embedding, two linear layers to one logit.

    The embedding enters with unit length times √D, so that both branches have values of the order of 1 whatever the
    backbone's scale is.
    """

    def __init__(self, embedding_width: int, feature_count: int, feature_width: int, hidden_size: int, dropout: float):
        super().__init__()
        self.scale = embedding_width**0.5
        self.features = nn.Linear(feature_count, feature_width) if feature_count else None
        width = embedding_width + (feature_width if feature_count else 0)
        self.hidden = nn.Linear(width, hidden_size)
        self.dropout = nn.Dropout(dropout)
        self.output = nn.Linear(hidden_size, 1)
        for layer in (self.features, self.hidden, self.output):
            if layer is not None:
                nn.init.xavier_uniform_(layer.weight)
                nn.init.zeros_(layer.bias)
        # undecided at first: with random weights here, the first steps only unlearn random verdicts (loss .84 to .69)
        nn.init.zeros_(self.output.weight)

    def forward(self, embedding_ND: Tensor, features_NF: Tensor | None) -> Tensor:
        """(N,) logit that the second response is preferred."""
        joined = [F.normalize(embedding_ND, dim=-1) * self.scale]
        if self.features is not None and features_NF is not None:
            joined.append(F.relu(self.features(features_NF)))
        return self.output(self.dropout(F.relu(self.hidden(torch.cat(joined, dim=-1)))))[:, 0]


class PairClassifier(nn.Module):
    """A backbone, its pooling and the head. Parameters of the head are named `head.…`."""

    def __init__(self, backbone: Any, pooling: Pooling, head: FeatureHead) -> None:
        super().__init__()
        self.backbone = backbone
        self.pooling: Pooling = pooling
        self.head = head
        self.needs_mask = is_encoder(backbone.config)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, features: Tensor | None) -> Tensor:
        """(N,) fp32 logit that the second response is preferred.

        Args:
            input_ids: (N, T), padded on the right.
            attention_mask: (N, T), 1 on real tokens.
            features: (N, F) standardised, or None for a head without features.
        """
        mask = {"attention_mask": attention_mask} if self.needs_mask else {}
        hidden_NTD = self.backbone(input_ids=input_ids, **mask).last_hidden_state
        return self.head(pool(hidden_NTD.float(), attention_mask, self.pooling), features)


def build_head(
    backbone: Any, *, with_features: bool, feature_width: int, hidden_size: int, dropout: float, seed: int
) -> FeatureHead:
    """A head for a backbone, its first weights drawn from the seed."""
    width = backbone.config.get_text_config().hidden_size
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return FeatureHead(width, len(features.NAMES) if with_features else 0, feature_width, hidden_size, dropout)


def save_head(folder: Path, model: PairClassifier, feature_set: FeatureSet | None) -> None:
    """Write head weights and feature statistics into a checkpoint folder."""
    with contracts.atomic_file(folder / HEAD) as handle:
        handle.write(save({name: one.detach().cpu().contiguous() for name, one in model.head.state_dict().items()}))
    if feature_set is not None:
        contracts.write_json(folder / FEATURES, feature_set.as_json())


def load_head(folder: Path, head: FeatureHead) -> None:
    """Load head weights into a head of the same sizes.

    Raises:
        MissingFileError: no head in the folder.
        DataError: a head of other sizes.
    """
    tensors = load_file(contracts.require_file(folder / HEAD, "the head of a pairwise checkpoint"))
    try:
        head.load_state_dict(tensors)
    except RuntimeError as error:
        raise DataError(f"{folder / HEAD}: does not fit the sizes in meta.json ({error}); export it again") from None
