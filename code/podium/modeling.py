"""Backbones (fp32 | bf16 | nf4, full or LoRA) and the two models built on them: Embedder and LabelScorer."""

import importlib.util
import itertools
import os
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, CompressedTensorsConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

from podium import attention, contracts, rng
from podium.batching.padding import by_length, by_tokens
from podium.errors import DataError, MissingFileError, PrerequisiteError, sample

Task = Literal["embedding", "causal_lm"]
Pooling = Literal["last", "mean", "cls"]

# --- loading ---------------------------------------------------------------------------------------------------------


def check_attention(attn_implementation: str) -> None:
    """Refuse flash attention, with the install line, where it cannot run.

    Raises:
        PrerequisiteError: no GPU, or neither `kernels` nor `flash-attn` is installed.
    """
    if not attn_implementation.startswith("flash_attention"):
        return
    if not torch.cuda.is_available():
        raise PrerequisiteError(f"attn_implementation={attn_implementation} needs a GPU; use attn_implementation=sdpa")
    if not (importlib.util.find_spec("kernels") or importlib.util.find_spec("flash_attn")):
        raise PrerequisiteError(
            f"attn_implementation={attn_implementation} needs an extra: pip install -e '.[gpu]' (transformers[kernels]);"
            f" or use attn_implementation=sdpa"
        )


def refuse_adapter(source: str | Path) -> None:
    """Refuse to start from an adapter folder, naming the command that merges it.

    Raises:
        DataError: `source` holds adapter weights.
    """
    if (Path(source) / "adapter_config.json").is_file():
        raise DataError(
            f"{source} holds an adapter, not a whole model; merge it first: python code/merge_adapter.py"
            f" --adapter_path {source} --save_dir {source}_merged"
        )


def refuse_pickles(source: str | Path) -> None:
    """Refuse a folder whose weights exist as pickles only: unpickling runs whatever code they carry.

    Raises:
        DataError: `source` has .bin, .pt or .pth files and no .safetensors.
    """
    folder = Path(source)
    pickles = sorted(path.name for path in folder.glob("*") if path.suffix in (".bin", ".pt", ".pth", ".ckpt"))
    if pickles and not any(folder.glob("*.safetensors")):
        raise DataError(f"{source} holds weights as pickles only ({sample(pickles)}), which are not loaded; convert them to"
                        " safetensors, e.g. with huggingface.co/spaces/safetensors/convert")  # fmt: skip


def read_config(source: str | Path, attn_implementation: str | None = None) -> Any:
    """The backbone's config, from a folder, the Hub or its cache.

    Raises:
        MissingFileError: not there.
        DataError: not a config.
    """
    try:
        return AutoConfig.from_pretrained(str(source), attn_implementation=attn_implementation)
    except OSError as error:
        raise MissingFileError(
            f"backbone {source}: no config.json ({str(error).splitlines()[0]}); check the name, or run `hf download"
            f" {source}` on a machine with network"
        ) from None
    except ValueError as error:
        reason = " ".join(str(error).split())
        raise DataError(f"backbone {source}: config.json cannot be read ({reason[:200]}); get it again") from None


def check_positions(source: str | Path, max_length_tokens: int) -> None:
    """Refuse prompts longer than the backbone's positions, before anything is computed with them.

    Raises:
        MissingFileError, DataError: no readable config, or `max_length_tokens` exceeds its positions.
    """
    config = read_config(source)
    positions = getattr(config.get_text_config(), "max_position_embeddings", None)
    if positions is not None and "roberta" in config.model_type:
        positions -= config.pad_token_id + 1  # its first positions belong to padding
    if positions is not None and max_length_tokens > positions:
        raise DataError(
            f"max_length_tokens={max_length_tokens} is more than the {positions} positions of {source}; lower it"
        )


def default_dtype() -> torch.dtype:
    """bf16 on GPUs that have it, fp16 on older ones, fp32 on CPU."""
    if not torch.cuda.is_available():
        return torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16


def load_backbone(
    source: str | Path,
    task: Task,
    *,
    dtype: str | None = None,
    attn_implementation: str = "sdpa",
    quantization: Literal["nf4"] | None = None,
    spread: bool = False,
) -> PreTrainedModel:
    """Load a transformers model from a Hub id, a local folder, or one of our full or merged checkpoints.

    Args:
        source: Hub id or folder.
        task: "embedding" loads the body alone, "causal_lm" the body with its LM head.
        dtype: float32 | bfloat16 | float16; None takes `default_dtype`.
        attn_implementation: as in transformers.
        quantization: "nf4" loads 4-bit NormalFloat weights with double quantisation (QLoRA, Dettmers et al. 2023).
        spread: for inference, place the layers on all GPUs and, where these are too small, in the CPU's memory.

    Raises:
        MissingFileError: no such folder, and not in the Hub or its cache.
        DataError: an adapter folder, damaged files, or a checkpoint whose weights do not cover the model.
        PrerequisiteError: a package or device for the requested options is missing.
    """
    refuse_adapter(source)
    refuse_pickles(source)
    check_attention(attn_implementation)
    chosen = getattr(torch, dtype) if dtype else default_dtype()
    options: dict[str, Any] = {
        "dtype": chosen, "attn_implementation": attn_implementation, "use_safetensors": True,
    }  # fmt: skip
    if spread and torch.cuda.is_available():
        options["device_map"] = "auto"
    if quantization == "nf4":
        if importlib.util.find_spec("bitsandbytes") is None:
            raise PrerequisiteError("quantization nf4 needs bitsandbytes: pip install bitsandbytes==0.50.2")
        from transformers import BitsAndBytesConfig

        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=chosen,
            # FSDP2 shards floating tensors only: the packed 4-bit weights then travel as such
            bnb_4bit_quant_storage=chosen if os.environ.get("ACCELERATE_USE_FSDP") == "true" else None,
            llm_int8_skip_modules=["lm_head"],
        )
    loader = AutoModel if task == "embedding" else AutoModelForCausalLM
    try:
        if (method := _quantised_by(AutoConfig.from_pretrained(str(source)))) == "compressed-tensors":
            # unpacked now: left to transformers that happens in the first call of the whole model, and we call its body
            options["quantization_config"] = CompressedTensorsConfig(dequantize=True)
        model, info = loader.from_pretrained(str(source), output_loading_info=True, **options)  # type: ignore[misc]
    except ImportError as error:
        raise PrerequisiteError(
            f"{source} holds weights quantised by {method}: {' '.join(str(error).split())}"
        ) from None
    except OSError as error:
        first = str(error).splitlines()[0]
        raise MissingFileError(
            f"backbone {source}: not a model folder, and not in the Hub or its cache ({first}); check the name, run"
            f" `hf download {source}` on a machine with network, or make one with code/make_tiny_backbone.py"
        ) from None
    except (SafetensorError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise DataError(
            f"backbone {source}: config.json and weights cannot be read or do not fit each other ({reason[:200]}); get"
            " or produce it again"
        ) from None
    if missing := sorted(info["missing_keys"]):
        # poolers of encoders are never used here, so a checkpoint may lack them
        missing = [key for key in missing if "pooler" not in key]
        if missing:
            raise DataError(
                f"{source}: weights lack {sample(missing)}; is it a checkpoint for another task than {task}?"
            )
    return model


def _quantised_by(config: Any) -> str | None:
    """The quantisation library that a checkpoint's config names."""
    block = getattr(config, "quantization_config", None) or {}
    return block.get("quant_method") if isinstance(block, dict) else getattr(block, "quant_method", None)


def add_lora(
    model: PreTrainedModel,
    task: Task,
    *,
    rank: int,
    alpha: float,
    dropout: float,
    target_modules: list[str],
    modules_to_save: list[str] | None = None,
) -> nn.Module:
    """Wrap a backbone in LoRA adapters (Hu et al. 2021); only they, and `modules_to_save`, stay trainable.

    Raises:
        DataError: `target_modules` names layers that the backbone does not have.
    """
    from peft import LoraConfig, TaskType, get_peft_model, prepare_model_for_kbit_training

    leaves = {name.rsplit(".", 1)[-1] for name, _ in model.named_modules()}
    if absent := [name for name in target_modules if name not in leaves]:
        raise DataError(f"lora.target_modules {sample(absent)} are no layers of {model.config.model_type}")
    if getattr(model, "is_loaded_in_4bit", False):
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    wrapped = get_peft_model(
        model,
        LoraConfig(
            r=rank,
            lora_alpha=alpha,  # type: ignore[arg-type]
            lora_dropout=dropout,
            target_modules=target_modules,
            modules_to_save=modules_to_save,
            task_type=TaskType.FEATURE_EXTRACTION if task == "embedding" else TaskType.CAUSAL_LM,
        ),
    )
    # peft holds the names in a set, whose order in the saved file would differ from process to process
    adapter: Any = wrapped.peft_config["default"]
    adapter.target_modules = sorted(target_modules)
    return wrapped


def enable_gradient_checkpointing(model: Any) -> None:
    """Recompute activations in backward; inputs get gradients so that frozen embeddings do not cut the graph."""
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.enable_input_require_grads()


def prepare_for_training(
    backbone: str,
    task: Task,
    *,
    dtype: str | None,
    attn_implementation: str,
    quantization: Literal["nf4"] | None,
    gradient_checkpointing: bool,
    lora: dict[str, Any] | None,
    seed: int,
) -> nn.Module:
    """Backbone as the `model` block of a training config describes it: loaded, adapted, checkpointed.

    `seed` is of the adapters' first weights, which must be the same in every start of a run.

    Raises:
        MissingFileError, DataError, PrerequisiteError: as `load_backbone` and `add_lora`.
    """
    model: Any = load_backbone(
        backbone, task, dtype=dtype, attn_implementation=attn_implementation, quantization=quantization
    )
    if gradient_checkpointing:
        enable_gradient_checkpointing(model)
    torch.manual_seed(rng.torch_seed(seed, "adapters"))
    return model if lora is None else add_lora(model, task, **lora)


def load_checkpoint(folder: str | Path, task: Task, **options: Any) -> tuple[nn.Module, contracts.CheckpointMeta]:
    """Load a checkpoint folder for inference, whatever its kind: full and merged as they are, adapters on their base.

    Args:
        folder: written by a training script.
        task: as in `load_backbone`.
        options: passed to `load_backbone`.
    """
    meta = contracts.read_meta(folder)
    if meta.kind != "adapter":
        return load_backbone(folder, task, **options).eval(), meta
    return attach_adapter(load_backbone(meta.base_model, task, **options), folder).eval(), meta


def attach_adapter(base: PreTrainedModel, folder: str | Path) -> Any:
    """The backbone with a saved adapter on it.

    Raises:
        MissingFileError: no adapter weights in safetensors.
        DataError: they are damaged, or of another backbone.
    """
    from peft import PeftModel

    refuse_pickles(folder)
    contracts.require_file(Path(folder) / "adapter_model.safetensors", "the adapter's weights")
    try:
        return PeftModel.from_pretrained(base, str(folder))
    except (SafetensorError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"adapter {folder}: its weights cannot be read or do not fit the backbone ({reason[:200]}); get or"
                        " produce it again") from None  # fmt: skip


def is_encoder(config: Any) -> bool:
    """True for bidirectional (masked-language-model) backbones, which need a padding mask."""
    return config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES


# --- models ----------------------------------------------------------------------------------------------------------


def pool(hidden_BTD: Tensor, mask_BT: Tensor, pooling: Pooling) -> Tensor:
    """(B, D) last, mean or first hidden state of the unmasked positions; padding is on the right."""
    if pooling == "last":
        last_B = mask_BT.sum(1) - 1
        return hidden_BTD[torch.arange(len(last_B), device=last_B.device), last_B]
    if pooling == "mean":
        weight_BT1 = mask_BT[..., None].to(hidden_BTD.dtype)
        return (hidden_BTD * weight_BT1).sum(1) / weight_BT1.sum(1)
    return hidden_BTD[:, 0]


class Embedder(nn.Module):
    """A backbone and a pooling; texts in, unit-length embeddings out."""

    def __init__(self, backbone: Any, pooling: Pooling, max_tokens: int | None = None) -> None:
        """Keep the backbone; `max_tokens` is the size of one pass through it (None: a batch in one pass)."""
        super().__init__()
        self.backbone = backbone
        self.pooling: Pooling = pooling
        self.max_tokens = max_tokens
        self.needs_mask = is_encoder(backbone.config)
        base = backbone.get_base_model() if hasattr(backbone, "peft_config") else backbone
        self.packing_refusal = attention.install(base)
        """Why texts are padded; None where each pass is one row without padding."""
        self._no_split_modules = backbone._no_split_modules  # accelerate asks the outermost module what FSDP2 shards

    def forward(self, *batches: dict[str, Tensor]) -> list[Tensor]:
        """Embed several right-padded batches in one call (DDP wants a single forward a step).

        Args:
            batches: each {"input_ids": (B, T), "attention_mask": (B, T)}.

        Returns:
            one (B, D) tensor of unit length a batch, at least fp32.
        """
        return [self._embed(batch["input_ids"], batch["attention_mask"]) for batch in batches]

    def _embed(self, input_ids_BT: Tensor, mask_BT: Tensor) -> Tensor:
        """Texts of similar length go through the backbone together: less padding, or none; same result."""
        lengths = mask_BT.sum(1).tolist()
        packed = self.packing_refusal is None
        chunks = [list(range(len(lengths)))]
        if self.max_tokens is not None:
            chunks = list((by_tokens if packed else by_length)(lengths, self.max_tokens))
        parts = []
        for chunk in chunks:
            width = max(lengths[row] for row in chunk)
            ids_bt, mask_bt = input_ids_BT[chunk, :width], mask_BT[chunk, :width]
            if packed:
                parts.append(self._packed(ids_bt[mask_bt.bool()], [lengths[row] for row in chunk]))
            else:
                parts.append(self._padded(ids_bt, mask_bt))
        order = torch.tensor([row for chunk in chunks for row in chunk], device=mask_BT.device)
        return torch.cat(parts)[order.argsort()]

    def _padded(self, input_ids_BT: Tensor, mask_BT: Tensor) -> Tensor:
        # With padding on the right a causal model needs no mask, and without one sdpa takes its fast causal path.
        mask = {"attention_mask": mask_BT} if self.needs_mask else {}
        hidden_BTD = self.backbone(input_ids=input_ids_BT, **mask).last_hidden_state
        return self._unit(pool(hidden_BTD, mask_BT, self.pooling))

    def _packed(self, input_ids_T: Tensor, lengths: list[int]) -> Tensor:
        layout = attention.to_device(attention.make_layout([(length, ()) for length in lengths]), input_ids_T.device)
        options = attention.body_options(self.backbone.config, layout, input_ids_T, None)
        hidden_TD = self.backbone(input_ids=input_ids_T[None], use_cache=False, **options).last_hidden_state[0]
        if self.pooling == "mean":
            return self._unit(torch.stack([part.mean(0) for part in hidden_TD.split(lengths)]))
        ends = list(itertools.accumulate(lengths))
        return self._unit(hidden_TD[[end - (1 if self.pooling == "last" else n) for end, n in zip(ends, lengths)]])

    @staticmethod
    def _unit(vectors_BD: Tensor) -> Tensor:
        return F.normalize(vectors_BD.to(torch.promote_types(vectors_BD.dtype, torch.float32)), dim=-1)


def can_pack(backbone: str, attn_implementation: str) -> bool:
    """True where the backbone's prompts are trained on as packed rows, told by its config alone."""
    return attention.refusal(read_config(backbone, attn_implementation)) is None


def packing_note(model: Any, lora_dropout: float = 0.0) -> str:
    """One line for the log: whether prompts share prefixes and rows, and what follows for dropout."""
    if model.packing_refusal is not None:
        return f"rows are padded, one prompt each: {model.packing_refusal}"
    note = "rows are packed: no padding, and a context that prompts share is computed once"
    return f"{note}; LoRA dropout draws one mask for it, not one a candidate" if lora_dropout else note


class LabelScorer(nn.Module):
    """A causal LM read at chosen positions: label-token logits (all rankers) and full logits (reasoner, auxiliary)."""

    max_logits = 2**25
    """Entries of the largest logits that are kept for backward (128 MB in fp32)."""

    def __init__(self, backbone: Any) -> None:
        super().__init__()
        self.backbone = backbone
        self.packing_refusal = attention.install(self._causal_lm())
        """Why packed rows cannot be used; None where they can."""
        self._no_split_modules = backbone._no_split_modules  # accelerate asks the outermost module what FSDP2 shards

    def _causal_lm(self) -> Any:
        """The transformers model inside, LoRA layers included, under a PEFT wrapper or not."""
        return self.backbone.get_base_model() if hasattr(self.backbone, "peft_config") else self.backbone

    def forward(
        self,
        input_ids: Tensor,
        position_ids: Tensor | None = None,
        mask: Tensor | None = None,
        label_read: Tensor | None = None,
        label_ids: Tensor | None = None,
        lm_read: Tensor | None = None,
        layout: attention.Layout | None = None,
        lm_target: Tensor | None = None,
    ) -> tuple[Tensor | None, Any]:
        """Run the body once and the head only where it is read.

        Args:
            input_ids: (B, T), padded on the right.
            position_ids: (B, T), needed with `mask`.
            mask: (B, 1, T, T) bool, True where position q may see position k; None is plain causal.
            label_read: (N, 2) row and column whose next token is a label.
            label_ids: (L,) the label tokens.
            lm_read: (M, 2) row and column read over the whole vocabulary.
            layout: of the one packed row in `input_ids`, from `attention.make_layout`; replaces `mask`.
            lm_target: (M,) token that should follow each `lm_read`; losses are then returned in place of logits.

        Returns:
            label logits (N, L) and vocabulary logits (M, V), None where not asked for; at least fp32. With `lm_target`
            (M,) cross-entropies and (M,) 1.0 where the target is the likeliest token, in place of the latter.

        Raises:
            ValueError: a layout or mask that the backbone's attention would ignore without a word.
        """
        model = self._causal_lm()
        options: dict[str, Any] = {}
        if self.packing_refusal is not None and (
            layout is not None or (mask is not None and "flash" in model.config._attn_implementation)
        ):
            raise ValueError(f"packed rows and masks cannot be used: {self.packing_refusal}")
        if layout is not None:
            options = attention.body_options(model.config, layout, input_ids, position_ids)
        if mask is not None:
            blocked = torch.finfo(model.dtype).min
            options = {
                "attention_mask": torch.zeros_like(mask, dtype=model.dtype).masked_fill(~mask, blocked),
                "position_ids": position_ids,
            }
        body = getattr(model, model.base_model_prefix)
        hidden_BTD = body(input_ids=input_ids, use_cache=False, **options).last_hidden_state
        labels_NL = logits_MV = None
        if label_read is not None:
            labels_NL = self._logits(hidden_BTD[label_read[:, 0], label_read[:, 1]], label_ids)
        if lm_read is not None and lm_target is not None:
            return labels_NL, self._token_losses(hidden_BTD[lm_read[:, 0], lm_read[:, 1]], lm_target)
        if lm_read is not None:
            logits_MV = self._logits(hidden_BTD[lm_read[:, 0], lm_read[:, 1]], None)
        return labels_NL, logits_MV

    def _token_losses(self, hidden_MD: Tensor, target_M: Tensor) -> tuple[Tensor, Tensor]:
        """Cross-entropies and hits; of long batches in chunks whose logits are made again in backward, never kept."""
        rows = max(1, self.max_logits // self._causal_lm().config.vocab_size)
        if len(target_M) <= rows:
            return self._chunk_losses(hidden_MD, target_M)
        parts = [
            checkpoint(self._chunk_losses, hidden, target, use_reentrant=False)
            for hidden, target in zip(hidden_MD.split(rows), target_M.split(rows), strict=True)
        ]
        return torch.cat([loss for loss, _ in parts]), torch.cat([hit for _, hit in parts])

    def _chunk_losses(self, hidden_MD: Tensor, target_M: Tensor) -> tuple[Tensor, Tensor]:
        logits_MV = self._logits(hidden_MD, None)
        hit_M = (logits_MV.detach().argmax(-1) == target_M).to(logits_MV.dtype)
        return F.cross_entropy(logits_MV, target_M, reduction="none"), hit_M

    def _logits(self, hidden_ND: Tensor, columns: Tensor | None) -> Tensor:
        """Head logits of the given vocabulary columns (all when None), soft cap and scale of the model applied."""
        model = self._causal_lm()
        head = model.get_output_embeddings()
        if columns is not None and type(head) is nn.Linear:
            bias = head.bias[columns] if head.bias is not None else None
            logits = F.linear(hidden_ND, head.weight[columns], bias)
        else:
            # a wrapped head (LoRA, quantised, modules_to_save) is asked whole, on the read positions only
            logits = head(hidden_ND)
            logits = logits if columns is None else logits[:, columns]
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        if scale := getattr(model.config, "logit_scale", None):
            logits = logits * scale
        if divisor := getattr(model.config, "logits_scaling", None):
            logits = logits / divisor
        if cap := getattr(model.config, "final_logit_softcapping", None):
            logits = torch.tanh(logits / cap) * cap
        return logits
