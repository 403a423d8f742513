"""Turning a merged checkpoint into a small one that transformers and vLLM load, and measuring what it costs.

The work is llmcompressor's (the vLLM project's successor to AutoAWQ); it is imported here only. Formats are those of
compressed-tensors. AWQ: Lin et al. 2024; GPTQ: Frantar et al. 2023; W8A8 with SmoothQuant: Xiao et al. 2023.
"""

import contextlib
import dataclasses
import gc
import importlib.metadata
import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn

from podium import (
    config,
    contracts,
    datasets,
    intake,
    metrics,
    modeling,
    ranker_data,
    ranking,
    settings,
    sharing,
    tables,
    tokenization,
)
from podium.batching.padding import by_length, pad
from podium.batching.queries import QueryRows
from podium.errors import DataError, MissingFileError, PodiumError, PrerequisiteError, sample
from podium.modeling import LabelScorer

METHODS = ("awq", "gptq", "rtn", "w8a8", "fp8", "autoround")
GROUPED = ("awq", "gptq", "rtn", "autoround")
"""Methods with 4-bit weights in groups that share a scale."""
DATA_FREE = ("rtn", "fp8")
"""Methods that look at the weights alone."""
SUFFIXES = (".parquet", ".csv", ".jsonl", ".txt")
REPORT = "parity.json"
MAP = "map@25"
INSTALL = (
    "pip install -c constraints.txt -e '.[quantise]' (not in vLLM's environment: they pin compressed-tensors apart)"
)


def calibration_texts(source: str, rows: int, stage: str | None = None) -> list[str]:
    """Texts from a file of ours, any parquet, CSV, JSON lines or text file, or a data set on the Hub or Kaggle.

    Of a table the column `text` is read, else its only text column; of a folder with several tables the one named like
    the checkpoint's stage. The first `rows` are taken.

    Raises:
        MissingFileError: neither a file nor a data set that can be reached.
        DataError: several tables to choose from, no column of texts, or none with content.
    """
    path = Path(source)
    if not path.exists():
        path = _download(source)
    if path.is_dir():
        inside = sorted(one for one in path.rglob("*") if one.suffix in SUFFIXES and one.is_file())
        named = [one for one in inside if one.stem == stage]
        if len(named or inside) != 1:
            which = f" or one named {stage}" if stage else ""
            there = sample(str(one.relative_to(path)) for one in inside)
            raise DataError(f"{source}: needs one table of texts{which}, found {there}; name the file")
        (path,) = named or inside
    try:
        if path.suffix == ".txt":
            frame = pd.DataFrame({"text": path.read_text().splitlines()})
        elif path.suffix == ".csv":
            frame = intake.read_csv(path, [])
        elif path.suffix == ".jsonl":
            frame = pd.read_json(path, lines=True)
        else:
            frame = pd.read_parquet(path)
    except (ValueError, OSError) as error:
        raise DataError(f"{path}: cannot be read as a table of texts ({' '.join(str(error).split())[:200]})") from None
    columns = [name for name in frame if len(frame) and frame[name].map(lambda one: isinstance(one, str)).all()]
    column = "text" if "text" in columns else columns[0] if len(columns) == 1 else None
    if column is None:
        raise DataError(f"{path}: needs a column `text`; it has text in {columns or 'no column'}")
    texts = [text for text in frame[column] if text.strip()][:rows]
    if not texts:
        raise DataError(f"{path}: column {column} holds no text")
    return texts


def _download(name: str) -> Path:
    """The folder of a data set given by name: one of `datasets.DATASETS`, else of the Hub, else of Kaggle."""
    import huggingface_hub

    if datasets.by_name(name) is not None:
        return datasets.resolve(name)
    remedy = "make some with code/export_published.py (calibration/*.parquet)"
    if not re.fullmatch(r"[\w-]+/[\w.-]+", name) or Path(name).suffix in SUFFIXES:
        raise MissingFileError(f"calibration data {name}: no such file or folder; {remedy}")
    try:
        return Path(huggingface_hub.snapshot_download(name, repo_type="dataset"))
    except (OSError, ValueError) as error:
        hub = str(error).splitlines()[0]
    on_kaggle = datasets.Source(name.split("/")[1], name, "dataset", "", "calibration texts")
    try:
        return datasets.cached(on_kaggle) or datasets.download(on_kaggle)
    except PodiumError as error:
        raise MissingFileError(
            f"calibration data {name}: no such file; on the Hub: {hub}; on Kaggle: {error}; {remedy}"
        ) from None


def recipe(method: str, group_size: int, layers: nn.Module) -> list[Any]:
    """The llmcompressor modifiers of a method; the output head is left as it is.

    Raises:
        DataError: a layer's width is no multiple of the group size.
    """
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
    from llmcompressor.modifiers.quantization import GPTQModifier, QuantizationModifier

    if method in GROUPED and (odd := sorted({m.in_features for n, m in layers.named_modules()
                                   if isinstance(m, nn.Linear) and "lm_head" not in n and m.in_features % group_size})):  # fmt: skip
        raise DataError(f"layers of width {odd} cannot be cut into groups of {group_size}; give another --group_size")
    weights = QuantizationArgs(
        num_bits=4, type="int", symmetric=method not in ("awq", "rtn"), strategy="group", group_size=group_size
    )
    groups = {"group_0": QuantizationScheme(targets=["Linear"], weights=weights)}
    ignore = ["lm_head"]
    if method == "awq":
        from llmcompressor.modifiers.transform.awq import AWQModifier

        return [AWQModifier(), QuantizationModifier(config_groups=groups, ignore=ignore)]
    if method == "gptq":
        return [GPTQModifier(config_groups=groups, ignore=ignore)]
    if method == "rtn":
        return [QuantizationModifier(config_groups=groups, ignore=ignore)]
    if method == "autoround":
        from llmcompressor.modifiers.autoround import AutoRoundModifier

        return [AutoRoundModifier(config_groups=groups, ignore=ignore)]
    if method == "w8a8":
        from llmcompressor.modifiers.transform.smoothquant import SmoothQuantModifier

        return [
            SmoothQuantModifier(smoothing_strength=0.8),
            GPTQModifier(targets="Linear", scheme="W8A8", ignore=ignore),
        ]
    return [QuantizationModifier(targets="Linear", scheme="FP8_DYNAMIC", ignore=ignore)]


def quantise(
    model_path: str, quant_path: str, texts: list[str], max_length: int, method: str, group_size: int,
    eval_queries: int = 0,
) -> dict[str, Any]:  # fmt: skip
    """Quantise a whole checkpoint, layer by layer, and report how far the result is from it.

    A fifth of the texts (one at least) is held out of the calibration for the report. The whole model, the one being
    quantised and the result are loaded one after another. Both passes of the report are spread over the GPUs and, where
    these are too small, the CPU's memory; the calibration holds one layer and its activations on the GPU at a time.

    Args:
        model_path: full or merged checkpoint, or any causal language model.
        quant_path: written; must not hold a model yet.
        texts: calibration prompts.
        max_length: tokens of a prompt, cut on the left, where a ranker's label is not.
        method: one of METHODS.
        group_size: weights that share a scale.
        eval_queries: of a ranker, queries of its own validation lists that MAP@25 is measured on, before and after.

    Returns:
        the parity report, as written to quant_path/parity.json and, in words, into the model card.

    Raises:
        DataError: an adapter folder, an occupied target, or a width that does not fit the groups.
        MissingFileError: no such checkpoint.
        PrerequisiteError: llmcompressor is not installed.
    """
    modeling.refuse_adapter(model_path)
    if (Path(quant_path) / "config.json").exists():
        raise DataError(f"{quant_path} already holds a model; choose another --quant_path or delete it")
    if importlib.util.find_spec("llmcompressor") is None:
        raise PrerequisiteError(f"quantisation needs llmcompressor: {INSTALL}")
    if method == "autoround" and importlib.util.find_spec("auto_round") is None:
        raise PrerequisiteError("--method autoround needs auto-round: pip install auto-round==0.15.1")
    held = max(1, len(texts) // 5)
    if len(texts) <= held:
        raise DataError(f"{len(texts)} calibration text is too few: one at least must be held out; give more")
    from datasets import Dataset
    from llmcompressor import oneshot

    tokenizer = tokenization.load_tokenizer(model_path)
    tokens = [ids[-max_length:] for ids in tokenization.encode(tokenizer, texts)]
    meta = contracts.read_meta(model_path) if (Path(model_path) / contracts.META).is_file() else None
    lists = own_lists(model_path, meta, eval_queries) if meta else "not a checkpoint of this project"
    if isinstance(lists, str):
        print(f"MAP@25 will not be measured: {lists}")

    def measure(folder: str | Path) -> tuple[torch.Tensor, dict[str, float]]:
        model = LabelScorer(modeling.load_backbone(folder, "causal_lm", spread=True)).eval()
        figures = {} if meta is None or isinstance(lists, str) else own_figures(model, folder, meta, tokenizer, lists)
        return last_logits(model, tokens[:held]), figures

    before, map_before = measure(model_path)
    model: Any = modeling.load_backbone(model_path, "causal_lm")
    with _on_this_machine():
        oneshot(
            model=model, tokenizer=tokenizer, recipe=recipe(method, group_size, model), max_seq_length=max_length,
            dataset=Dataset.from_dict({"input_ids": tokens[held:], "attention_mask": [[1] * len(one) for one in tokens[held:]]}),
            num_calibration_samples=len(tokens) - held, pipeline="datafree" if method in DATA_FREE else "sequential",
        )  # fmt: skip
    with contracts.output_folder(quant_path) as folder:
        model.save_pretrained(folder, save_compressed=True)
        tokenizer.save_pretrained(folder)
        hidden_size = model.config.hidden_size
        del model
        gc.collect()
        if meta is not None:
            sharing.copy_companions(Path(model_path), folder)
        after, map_after = measure(folder)
        report = {
            "model": model_path, "method": method, "group_size": group_size if method in GROUPED else None,
            "max_length_tokens": max_length, "calibration_texts": 0 if method in DATA_FREE else len(tokens) - held,
            **parity(before, after, meta.label_token_ids if meta else []),
            **map_parity(lists, map_before, map_after, meta),
            "bytes_before": weight_bytes(Path(model_path)), "bytes_after": weight_bytes(folder),
            "versions": {name: importlib.metadata.version(name) for name in
                         ("llmcompressor", "compressed-tensors", "transformers", "torch")},
        }  # fmt: skip
        contracts.write_json(folder / REPORT, report)
        if meta is not None:
            meta = dataclasses.replace(
                meta, kind="quantised", best_metric={k: v for k, v in map_after.items() if k == MAP}
            )
            sharing.describe(folder, meta, hidden_size, "awq_quantization", notes=in_words(report))
        contracts.write_manifest(
            folder, stage="awq_quantization", config_digest="", inputs={"model": model_path} if Path(model_path).exists() else {}
        )  # fmt: skip
    return report


@dataclasses.dataclass
class OwnLists:
    """The ranked validation lists that a ranker was evaluated on while it was trained."""

    rows: QueryRows
    lists: ranking.Lists
    seen: set[int]
    use_rationale: bool
    max_tokens: int


def own_lists(folder: str, meta: contracts.CheckpointMeta, queries: int) -> OwnLists | str:
    """The validation lists named in a ranker's config.yaml, the first `queries` of them; or why there are none."""
    if not queries:
        return "not asked for (--eval_queries)"
    if meta.stage not in ("pointwise", "listwise"):
        return f"a {meta.stage} checkpoint ranks nothing by label tokens"
    path = Path(folder) / "config.yaml"
    if not path.is_file():
        return f"{path} is not there; it names the tables of the training run"
    try:
        cfg = config.load_file(settings.Ranker, path)
    except DataError as error:  # a checkpoint of another version of this project can be quantised all the same
        return str(error)
    tables_needed = [cfg.data.questions_dir, cfg.groups, *([cfg.rationales] if cfg.rationales else [])]
    if absent := [one for one in tables_needed if not Path(one).exists()]:
        return f"tables of the training run ({path}) are not here: {', '.join(absent)}"
    # nothing is trained here, so leaking training rows do not matter
    block = settings.as_dict(cfg.data, leaking_rows="drop")
    data = tables.read_training_tables(**block, full_fit=False, rationales=cfg.rationales)
    groups = contracts.read_table(f"{cfg.groups}/groups.parquet", contracts.GROUPS)
    rows, lists = ranker_data.validation_lists(data.validation, groups, cfg.validation_depth)
    return OwnLists(rows, lists[:queries], data.seen, cfg.rationales is not None, cfg.max_tokens_per_micro_batch)


def own_figures(
    model: LabelScorer, folder: str | Path, meta: contracts.CheckpointMeta, tokenizer: Any, own: OwnLists
) -> dict[str, float]:
    """MAP@25 of the lists reordered by a ranker, as its training run measured it."""
    scores = ranking.score(
        model, folder, meta, tokenizer, own.rows, own.lists, use_rationale=own.use_rationale,
        max_tokens_per_batch=own.max_tokens,
    )  # fmt: skip
    return metrics.list_figures(own.lists, scores, own.rows.label, own.seen)


def map_parity(
    lists: OwnLists | str, before: dict[str, float], after: dict[str, float], meta: contracts.CheckpointMeta | None
) -> dict[str, Any]:
    """The part of the report about MAP@25; where it was not measured, why not."""
    if isinstance(lists, str):
        return {"map_not_measured": lists}
    return {
        "map_queries": len(lists.lists), "map_before": before, "map_after": after,
        "map_in_sample": bool(meta and meta.extra.get("validation_in_sample")),
    }  # fmt: skip


def in_words(report: dict[str, Any]) -> str:
    """The parity report for people: a section of the model card, also printed."""
    lines = [
        f"Method {report['method']}, {report['calibration_texts']} calibration texts of at most {report['max_length_tokens']} tokens.",
        f"On {report['held_out_prompts']} prompts that the calibration did not see, before and after:",
        "",
        f"- relative error of the logits: {report['relative_logit_error']:.4f}",
        f"- same likeliest token: {report['top1_agreement']:.1%}",
    ]
    if "label_top1_agreement" in report:
        tau = report["score_kendall_tau"]
        lines += [
            f"- same likeliest label: {report['label_top1_agreement']:.1%}; largest difference of a label's logit:"
            f" {report['label_logit_max_difference']:.3f}",
            f"- Kendall's tau of the scores: {'undefined' if tau is None else f'{tau:.3f}'}",
        ]
    if "map_before" in report:
        lines.append(
            f"- MAP@25 of {report['map_queries']} validation lists: {report['map_before'][MAP]:.4f} before,"
            f" {report['map_after'][MAP]:.4f} after{' (in-sample)' if report['map_in_sample'] else ''}"
        )
    else:
        lines.append(f"- MAP@25 was not measured: {report['map_not_measured']}")
    sizes = f"- weights: {report['bytes_after'] / 1e6:.1f} MB"
    lines.append(f"{sizes}, {report['bytes_before'] / 1e6:.1f} MB before" if report["bytes_before"] else sizes)
    return "\n## Beside the model it was made from\n\n" + "\n".join(lines) + "\n"


@contextlib.contextmanager
def _on_this_machine() -> Iterator[None]:
    """Let llmcompressor's AWQ run without an accelerator: its cache pins memory for one that is not there."""
    pinned = torch.Tensor.pin_memory
    if not torch.accelerator.is_available():
        torch.Tensor.pin_memory = lambda tensor, *_, **__: tensor  # type: ignore[method-assign,assignment]
    try:
        yield
    finally:
        torch.Tensor.pin_memory = pinned  # type: ignore[method-assign]


def weight_bytes(folder: Path) -> int | None:
    """Bytes of a folder's weights; None for a Hub id."""
    return sum(path.stat().st_size for path in folder.glob("*.safetensors")) if folder.is_dir() else None


@torch.inference_mode()
def last_logits(model: LabelScorer, tokens: list[list[int]], max_tokens: int = 16384) -> torch.Tensor:
    """(N, V) logits after the last token of each prompt, fp32 on the CPU."""
    device = next(model.parameters()).device
    parts: dict[int, torch.Tensor] = {}
    for chunk in by_length([len(ids) for ids in tokens], max_tokens):
        ids_BT, _ = pad([tokens[at] for at in chunk], 0)
        ends = torch.tensor([(row, len(tokens[at]) - 1) for row, at in enumerate(chunk)])
        _, logits_BV = model(ids_BT.to(device), lm_read=ends.to(device))
        parts |= dict(zip(chunk, logits_BV.float().cpu(), strict=True))
    return torch.stack([parts[at] for at in range(len(tokens))])


def parity(before_NV: torch.Tensor, after_NV: torch.Tensor, label_ids: list[int]) -> dict[str, Any]:
    """How two models' logits after the same prompts differ.

    Args:
        before_NV: of the whole model.
        after_NV: of the quantised one.
        label_ids: a ranker's label tokens; figures on them are added. Empty for other models.

    Returns:
        relative logit error, top-1 agreement and, over the labels, largest difference, Kendall tau of the prompts' scores
        (first label minus second) and agreement on the best label.
    """
    from scipy.stats import kendalltau

    figures: dict[str, Any] = {
        "held_out_prompts": len(before_NV),
        "relative_logit_error": float((after_NV - before_NV).norm() / before_NV.norm()),
        "top1_agreement": float((after_NV.argmax(-1) == before_NV.argmax(-1)).float().mean()),
    }
    if label_ids:
        old_NL, new_NL = before_NV[:, label_ids].numpy(), after_NV[:, label_ids].numpy()
        figures["label_logit_max_difference"] = float(np.abs(new_NL - old_NL).max())
        figures["label_top1_agreement"] = float((new_NL.argmax(-1) == old_NL.argmax(-1)).mean())
        tau = kendalltau(old_NL[:, 0] - old_NL[:, 1], new_NL[:, 0] - new_NL[:, 1]).statistic
        figures["score_kendall_tau"] = None if np.isnan(tau) else float(tau)
    return figures
