"""Typed settings of the pairwise judge's scripts. Each field is a YAML key, as in `podium.settings`."""

from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from podium.pairwise.losses import SoftKind
from podium.pairwise.rows import Layout, Orders
from podium.settings import (
    STRICT,
    Device,
    Fraction,
    Loop,
    Model,
    NotNegative,
    Optimizer,
    Positive,
    Rate,
    Step,
    check_folds,
    check_heads,
)

Ties = Literal["half", "drop"]


@dataclass(config=STRICT, kw_only=True)
class Source:
    """One preference file; `name` is the source of rows that do not name one, `judged: false` hides its winners."""

    path: str
    name: str
    judged: bool


@dataclass(config=STRICT, kw_only=True)
class PreparePairs:
    """code/prepare_pairs.py."""

    sources: Annotated[list[Source], Field(min_length=1)]
    test: str | None
    test_fold: NotNegative | None
    rationales: str | None
    output_dir: str
    folds: Annotated[int, Field(ge=2)]
    seed: int

    def __post_init__(self) -> None:
        if self.test is not None and self.test_fold is not None:
            raise ValueError("give test or test_fold, not both")
        if self.test_fold is not None and self.test_fold >= self.folds:
            raise ValueError(f"test_fold {self.test_fold} is not among folds 0 to {self.folds - 1}")


@dataclass(config=STRICT, kw_only=True)
class PairData:
    """Pair table and which of its folds are trained on."""

    pairs_dir: str
    train_folds: Annotated[list[NotNegative], Field(min_length=1)]
    validation_fold: NotNegative
    validation_rows: Positive | None
    ties: Ties

    def __post_init__(self) -> None:
        check_folds(self.train_folds, self.validation_fold)


@dataclass(config=STRICT, kw_only=True)
class PairLoss:
    """Arguments of `pairwise.losses.preference`."""

    hard_weight: Rate
    soft_weight: Rate
    soft_kind: SoftKind
    cosine_weight: Rate
    temperature: Annotated[float, Field(gt=0)]
    label_smoothing: Fraction

    def __post_init__(self) -> None:
        if self.hard_weight + self.soft_weight + self.cosine_weight == 0:
            raise ValueError("hard_weight, soft_weight and cosine_weight are all 0: nothing would be learnt")


@dataclass(config=STRICT, kw_only=True)
class Head:
    """Form B: classifier on pooled embedding and features; `head: null` is form A (label tokens)."""

    pooling: Literal["mean", "last"]
    with_features: bool
    feature_width: Positive
    hidden_size: Positive
    dropout: Annotated[float, Field(ge=0, lt=1)]
    lr: Rate


@dataclass(config=STRICT, kw_only=True)
class PairRanker:
    """code/train_ranker_pairwise.py."""

    output_dir: str
    use_wandb: bool
    push_to_hub: str | None
    full_fit: bool
    device: Device
    dry_run: bool
    gpu: str | None
    """As in the other training scripts: what a dry run predicts for."""
    data: PairData
    soft_labels: str | None
    rationales: str | None
    rationale_weight: Rate
    privileged_model_names: bool
    model: Model
    head: Head | None
    optimizer: Optimizer
    loop: Loop
    loss: PairLoss
    prompt_style: Literal["plain", "chat"]
    """Of form A; form B has a text of its own."""
    max_length_tokens: Positive
    max_tokens_per_micro_batch: Positive
    orders: Orders
    layout: Layout

    def __post_init__(self) -> None:
        if self.loss.soft_weight + self.loss.cosine_weight > 0 and self.soft_labels is None:
            raise ValueError("loss.soft_weight or loss.cosine_weight above 0 needs soft_labels=<folder>")
        if self.soft_labels is not None and self.loss.soft_weight + self.loss.cosine_weight == 0:
            raise ValueError("soft_labels are given, but loss.soft_weight and loss.cosine_weight are 0")
        if self.privileged_model_names and self.soft_labels is not None:
            raise ValueError(
                "privileged_model_names is for teachers; a student (soft_labels) must not read model names"
            )


@dataclass(config=STRICT, kw_only=True)
class InferLogits:
    """code/infer_logits.py."""

    checkpoints: Annotated[list[str], Field(min_length=1)]
    tables: Annotated[list[str], Field(min_length=1)]
    rows: Literal["all", "judged", "unjudged"]
    output_dir: str
    device: Device
    both_orders: Literal["all", "uncertain", "none"]
    uncertain_share: Fraction
    time_budget_minutes: Annotated[float, Field(gt=0)] | None
    layout: Layout
    max_tokens_per_batch: Positive
    allow_in_sample: bool


@dataclass(config=STRICT, kw_only=True)
class BuildSoftLabels:
    """code/build_soft_labels.py."""

    pairs_dir: str
    judgements: Annotated[list[str], Field(min_length=1)]
    output_dir: str
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)]
    temperature: Annotated[float, Field(gt=0)]
    teacher_share: Fraction


@dataclass(config=STRICT, kw_only=True)
class PredictPairwise:
    """code/predict_pairwise.py."""

    checkpoints: Annotated[list[str], Field(min_length=1)]
    table: str
    output_dir: str
    device: Device
    both_orders: Literal["all", "uncertain", "none"]
    uncertain_share: Fraction
    time_budget_minutes: Annotated[float, Field(gt=0)] | None
    layout: Layout
    max_tokens_per_batch: Positive


@dataclass(config=STRICT, kw_only=True)
class ExplorePairs:
    """code/explore_pairs.py."""

    tables: Annotated[list[str], Field(min_length=1)]
    output_dir: str
    top: Positive


@dataclass(config=STRICT, kw_only=True)
class ReportPairwise:
    """code/report_pairwise.py. `stages` maps the name of a row to the folder of its judgements of test.parquet."""

    pairs_dir: str
    stages: dict[str, str]
    output_dir: str
    train_folds: Annotated[list[NotNegative], Field(min_length=1)]


@dataclass(config=STRICT, kw_only=True)
class DemoPairwise:
    """code/demo_pairwise.py."""

    output_dir: str
    data: str
    train_pairs: Positive
    unjudged_pairs: Positive
    test_pairs: Positive
    constructs: Positive | None
    label_noise: Fraction
    data_seed: int
    seed: int
    fresh: bool
    steps: Annotated[list[Step], Field(min_length=1)]
    adapter: str
    merged: str
    steps_after_merge: Annotated[list[Step], Field(min_length=1)]


@dataclass(config=STRICT, kw_only=True)
class TinyJudge:
    """code/make_tiny_judge.py."""

    pairs_dir: str
    output_dir: str
    architecture: Literal["qwen2", "gemma2"]
    vocabulary: Positive
    hidden_size: Positive
    layers: Positive
    heads: Positive
    intermediate_size: Positive
    max_position_embeddings: Positive
    seed: int

    def __post_init__(self) -> None:
        check_heads(self.hidden_size, self.heads)
