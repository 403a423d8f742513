"""A judge of either form behind one interface: built for training, loaded from its folder, asked for margins."""

import dataclasses
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import scipy.special
import torch
from torch import Tensor, nn

from podium import contracts, modeling, rng, tokenization
from podium.engines.transformers import progress
from podium.errors import DataError
from podium.modeling import LabelScorer
from podium.pairwise import features, head, prompts
from podium.pairwise.features import FeatureSet
from podium.pairwise.head import PairClassifier
from podium.pairwise.rows import Layout, PairRenderer, PairRows, inference_batches
from podium.pairwise.settings import Head
from podium.training import to_device

STAGE = "pairwise"


@dataclass
class Judge:
    """A model with what it needs to read a pair."""

    model: nn.Module
    renderer: PairRenderer
    label_ids: list[int]
    """The two label tokens (form A); empty in form B."""
    feature_set: FeatureSet | None
    meta: contracts.CheckpointMeta | None = None
    """What the checkpoint says about itself; None while it is being trained."""

    def vectors(self, rows: PairRows) -> np.ndarray | None:
        """(N, F) standardised features of form B."""
        return None if self.feature_set is None else pair_vectors(self.feature_set, rows)


def pair_vectors(feature_set: FeatureSet, rows: PairRows) -> np.ndarray:
    """(N, F) standardised features of rows, in the given order."""
    return feature_set.standardised(rows.prompt, rows.response_a, rows.response_b, rows.language)


def row_logits(model: nn.Module, batch: dict[str, Any], label_ids: list[int]) -> tuple[Tensor, Tensor | None]:
    """(N, 2) scores of the first and the second response of every row: label tokens (form A) or 0 and z (form B);
    and the (M, V) logits of the explanations' tokens, where the batch has any.

    Cross-entropy of (0, z) is binary cross-entropy with logit z, so both forms share one loss and one reading.
    """
    if not label_ids:
        z_N = model(batch["input_ids"], batch["attention_mask"], batch.get("features"))
        return torch.stack([torch.zeros_like(z_N), z_N], dim=-1), None
    labels = torch.tensor(label_ids, device=batch["input_ids"].device)
    lm_read = batch["lm_read"] if len(batch["lm_read"]) else None
    return model(  # type: ignore[no-any-return]
        batch["input_ids"],
        label_read=batch["label_read"],
        label_ids=labels,
        lm_read=lm_read,
        layout=batch.get("layout"),
    )


def possible_layout(model: nn.Module, wanted: Layout) -> Layout:
    """The wanted layout, or padded rows for models that cannot read packed ones."""
    return wanted if isinstance(model, LabelScorer) and model.packing_refusal is None else "padded"


def wrap(backbone: Any, own: Head | None, seed: int) -> LabelScorer | PairClassifier:
    """The model that is trained on a backbone: form A, or form B with the settings' `head` block and its own seed."""
    if own is None:
        return LabelScorer(backbone)
    made = head.build_head(
        backbone, with_features=own.with_features, feature_width=own.feature_width, hidden_size=own.hidden_size,
        dropout=own.dropout, seed=rng.torch_seed(seed, "head"),
    )  # fmt: skip
    return PairClassifier(backbone, own.pooling, made)


def load(folder: str | Path, device: torch.device, dtype: str | None = None) -> Judge:
    """Load a pairwise checkpoint of either form, whatever its kind (full, adapter, merged), for inference.

    Raises:
        MissingFileError, DataError: no such checkpoint, of another stage, or damaged.
    """
    folder = Path(folder)
    meta = contracts.read_meta(folder, STAGE)
    tokenizer = tokenization.load_tokenizer(folder)
    own = Head(**meta.extra["head"]) if meta.extra.get("head") else None
    backbone, _ = modeling.load_checkpoint(folder, "embedding" if own else "causal_lm", dtype=dtype)
    model, feature_set = wrap(backbone, own, seed=0), None
    if own is not None and isinstance(model, PairClassifier):
        head.load_head(folder, model.head)
        if own.with_features:
            path = folder / head.FEATURES
            feature_set = features.from_json(contracts.read_json(path, "feature statistics"), str(path))
    style: Any = meta.prompt_style
    renderer = PairRenderer(
        tokenizer, style, meta.max_length_tokens, bool(meta.extra.get("privileged_model_names")), meta.label_token_ids
    )
    return Judge(model.to(device).eval(), renderer, meta.label_token_ids, feature_set, meta)


@dataclass
class Margins:
    """Log-odds of response_a in the given (ab) and the swapped (ba) order; nan where an order was not read."""

    ab: np.ndarray
    ba: np.ndarray

    def probability(self) -> np.ndarray:
        """(N,) probability of response_a, averaged over the orders that were read."""
        stacked = np.stack([self.ab, self.ba])
        return np.nanmean(scipy.special.expit(stacked), axis=0)

    def logits(self) -> np.ndarray:
        """(N, 2) logs of the averaged probabilities of response_a and response_b, without loss for sure ones."""
        stacked = np.stack([self.ab, self.ba])
        read = ~np.isnan(stacked)
        known = np.where(read, stacked, 0.0)
        with np.errstate(divide="ignore", invalid="ignore"):  # rows that were not read at all come out as nan
            share = np.log(read.sum(axis=0))
            sides = [np.where(read, -np.logaddexp(0, -sign * known), -np.inf) for sign in (1, -1)]
            return np.stack([np.logaddexp(*side) - share for side in sides], axis=-1)

    def agree(self) -> np.ndarray:
        """Whether both orders prefer the same response, for the rows that were read in both."""
        read = ~np.isnan(self.ba)
        return (self.ab > 0)[read] == (self.ba > 0)[read]


@torch.inference_mode()
def read_orders(
    judge: Judge,
    rows: PairRows,
    indices: list[int],
    which: tuple[bool, ...],
    *,
    layout: Layout,
    max_tokens_per_batch: int,
    deadline: float | None = None,
    quiet: bool = False,
) -> Margins:
    """Margins of the pairs `indices` in the given orders; the rest of the rows stays nan.

    Args:
        judge: in eval mode.
        rows: pairs.
        indices: what to read; with a deadline, in batches by length until `time.monotonic()` passes it.
        which: (False,), (True,) or both.
        layout: packed reads both orders of a pair behind their shared prefix (form A only).
        max_tokens_per_batch: padded tokens of one forward.
        deadline: on the monotonic clock; None reads everything.
        quiet: no progress bar.
    """
    device = next(judge.model.parameters()).device
    vectors = judge.vectors(rows)
    result = Margins(np.full(len(rows), np.nan), np.full(len(rows), np.nan))
    layout = possible_layout(judge.model, layout)
    with progress(len(indices), "judge", "pair", quiet) as bar:
        batches = inference_batches(rows, judge.renderer, indices, which, layout, max_tokens_per_batch)
        for chunk, batch, turned in batches:
            if deadline is not None and time.monotonic() > deadline:
                break
            at = np.repeat([indices[one] for one in chunk], len(which))
            if vectors is not None:
                batch["features"] = torch.tensor(features.oriented(vectors[at], turned), dtype=torch.float32)
            scores, _ = row_logits(judge.model, to_device(batch, device), judge.label_ids)
            logits = scores.double().cpu().numpy()
            first = logits[:, 0] - logits[:, 1]
            result.ab[at[~turned]] = first[~turned]
            result.ba[at[turned]] = -first[turned]
            bar.update(len(chunk))
    return result


def ask(
    judge: Judge,
    rows: PairRows,
    *,
    both_orders: str,
    uncertain_share: float,
    time_budget_minutes: float | None,
    layout: Layout,
    max_tokens_per_batch: int,
    quiet: bool = False,
) -> Margins:
    """Judge every pair in the given order, and all, some or none of them in the swapped one as well.

    With both_orders "uncertain", the share of pairs whose first margin is nearest 0 is read again, most uncertain
    first, until the time budget (counted from here, the first reading included) is used up.
    """
    started = time.monotonic()
    options: dict[str, Any] = {"layout": layout, "max_tokens_per_batch": max_tokens_per_batch, "quiet": quiet}
    everything = list(range(len(rows)))
    if both_orders == "all":
        return read_orders(judge, rows, everything, (False, True), **options)
    margins = read_orders(judge, rows, everything, (False,), **options)
    if both_orders == "uncertain":
        count = int(round(uncertain_share * len(rows)))
        chosen = np.argsort(np.abs(margins.ab), kind="stable")[:count].tolist()
        deadline = None if time_budget_minutes is None else started + 60 * time_budget_minutes
        # in portions, so that the most uncertain ones come first although a batch is made by length
        for start in range(0, count, 256):
            if deadline is not None and time.monotonic() > deadline:
                break
            part = chosen[start : start + 256]
            again = read_orders(judge, rows, part, (True,), deadline=deadline, **{**options, "quiet": True})
            margins.ba[part] = again.ba[part]
        read = int((~np.isnan(margins.ba)).sum())
        print(f"{read} of {len(rows)} pairs were read in both orders ({count} were uncertain)", flush=True)
    return margins


def refuse_privileged(judge: Judge, folder: str) -> None:
    """Refuse a teacher that reads model names where they are not known.

    Raises:
        DataError: naming the folder.
    """
    if judge.renderer.with_model_names:
        raise DataError(
            f"{folder} reads the models' names, which no test row has; use it as a teacher in infer_logits.py"
        )


def with_label_ids(renderer: PairRenderer, style: prompts.PairStyle) -> tuple[PairRenderer, list[int]]:
    """The renderer with the label tokens of its style, which are checked to be single tokens."""
    ids = tokenization.label_token_ids(renderer.tokenizer, prompts.LABELS[style]) if prompts.LABELS[style] else []
    return dataclasses.replace(renderer, label_ids=ids), ids
