"""What a training step needs in memory, by part, found by taking the step without data.

The real model is built from its config with tensors that have shapes but no storage (torch's FakeTensorMode), and the
trainer's own micro-step, with one of its real micro-batches, runs forward, backward and the optimizer on it. Every
allocation and release is counted, so attention, checkpointing, LoRA, full logits and whatever the loss keeps are in the
figure without a formula for them. Layers are alike, so deep models are run with 2 and 4 of them and extrapolated.
tests/test_memory.py compares with the peak of real runs on the CPU.
"""

import copy
import dataclasses
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoModel, AutoModelForCausalLM

from podium import modeling, optim
from podium.errors import ArgumentError
from podium.training import Batch, MicroStep

GIB = 2**30
NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)
"""Bytes a weight: 4 bits, an 8-bit scale a block of 64, a 32-bit scale of scales for 256 blocks (Dettmers et al. 2023)."""


@dataclass(frozen=True)
class Gpu:
    """Memory that nvidia-smi reports, in MiB, and whether the chip computes in bf16."""

    mebibytes: int
    bf16: bool = True


GPUS = {
    "p100-16gb": Gpu(16384, bf16=False),
    "v100-16gb": Gpu(16384, bf16=False),
    "v100-32gb": Gpu(32768, bf16=False),
    "t4-16gb": Gpu(15360, bf16=False),
    "rtx3090-24gb": Gpu(24576),
    "rtx4090-24gb": Gpu(24564),
    "a10g-24gb": Gpu(23028),
    "l4-24gb": Gpu(23034),
    "l40s-48gb": Gpu(46068),
    "a100-40gb": Gpu(40960),
    "a100-80gb": Gpu(81920),
    "h100-80gb": Gpu(81559),
    "h100-94gb": Gpu(95830),
    "h200-141gb": Gpu(143771),
}
DEEP = 6
"""Models with more layers are extrapolated from 2 and 4."""
CONTEXT_BYTES = GIB
"""Taken by the driver's context, kernels and the workspaces of cuBLAS before the first tensor."""
USABLE = 0.92
"""Share of the rest that tensors may fill: the caching allocator cannot place them without gaps."""


@dataclass(frozen=True)
class Memory:
    """Bytes by part at the moment of a training step when most is held, on one device."""

    weights: float
    """What is not trained."""
    trained: float
    """Adapters, or the whole model in full training."""
    gradients: float
    optimizer: float
    logits: float
    activations: float
    """Everything else that is alive: saved for backward, masks, temporaries."""

    @property
    def fixed(self) -> float:
        """The parts that do not depend on the batch."""
        return self.weights + self.trained + self.optimizer

    @property
    def total(self) -> float:
        """All parts."""
        return sum(dataclasses.astuple(self))


def _combine(one: Memory, two: Memory, factor: float) -> Memory:
    """Each part of `one` moved by `factor` × the difference to `two`: one + factor × (two − one)."""
    pairs = zip(dataclasses.astuple(one), dataclasses.astuple(two), strict=True)
    return Memory(*(max(0.0, a + factor * (b - a)) for a, b in pairs))


# --- devices ---------------------------------------------------------------------------------------------------------


def parse_gpu(name: str) -> tuple[Gpu, int]:
    """`h100-80gb`, or `h100-80gb/8`: the model sharded over eight of them by FSDP2.

    Raises:
        ArgumentError: unknown name, or what follows the slash is no number of GPUs.
    """
    from podium.config import nearest

    kind, _, shards = name.partition("/")
    if kind not in GPUS:
        raise ArgumentError(f"gpu={name}: unknown; {nearest(kind, list(GPUS))}")
    if shards and (not shards.isdigit() or int(shards) < 1):
        raise ArgumentError(f"gpu={name}: what follows `/` is the number of GPUs that FSDP2 shards over, e.g. {kind}/2")
    return GPUS[kind], int(shards or 1)


def capacity(mebibytes: int) -> float:
    """Bytes that tensors may fill on a GPU with so much memory."""
    return USABLE * (mebibytes * 2**20 - CONTEXT_BYTES)


# --- a model without storage -----------------------------------------------------------------------------------------


class _Dequantised(torch.autograd.Function):
    """x @ W.T with a W that exists during forward and backward only, as bitsandbytes' 4-bit product does it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, shape: tuple[int, int]) -> Tensor:
        ctx.shape = shape
        return F.linear(x, x.new_empty(shape))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return gradient @ gradient.new_empty(ctx.shape), None


class _Nf4Linear(nn.Linear):
    """Takes the memory of a 4-bit layer and computes nothing of use."""

    @classmethod
    def like(cls, layer: nn.Linear, dtype: torch.dtype) -> "_Nf4Linear":
        made = cls(layer.in_features, layer.out_features, bias=layer.bias is not None, dtype=dtype)
        size = round(NF4_BYTES * layer.in_features * layer.out_features)
        made.weight = nn.Parameter(torch.empty(size, dtype=torch.uint8), requires_grad=False)
        made.compute_dtype = dtype  # type: ignore[assignment]
        return made

    def forward(self, x: Tensor) -> Tensor:
        """The product in the compute dtype, returned in that of the input."""
        shape = (self.out_features, self.in_features)
        out = _Dequantised.apply(x.to(self.compute_dtype), shape)  # type: ignore[arg-type]
        return (out if self.bias is None else out + self.bias).to(x.dtype)


def with_layers(config: Any, layers: int) -> Any:
    """A copy of a config with fewer layers."""
    short = copy.deepcopy(config)
    short.num_hidden_layers = layers
    if getattr(short, "layer_types", None):
        short.layer_types = short.layer_types[:layers]
    return short


def fake_model(
    config: Any,
    task: modeling.Task,
    *,
    dtype: torch.dtype,
    attn_implementation: str,
    quantization: str | None,
    gradient_checkpointing: bool,
    lora: dict[str, Any] | None,
) -> nn.Module:
    """The backbone as `modeling.prepare_for_training` makes it, on the meta device."""
    # flash attention keeps the same tensors as sdpa (queries, keys, values, output, one sum a row), and needs a GPU
    attention = "sdpa" if attn_implementation.startswith("flash") else attn_implementation
    loader = AutoModel if task == "embedding" else AutoModelForCausalLM
    with torch.device("meta"):
        model: Any = loader.from_config(config, dtype=dtype, attn_implementation=attention)
        if quantization is not None:
            head = model.get_output_embeddings()
            for name, layer in list(model.named_modules()):
                if type(layer) is nn.Linear and layer is not head:
                    model.set_submodule(name, _Nf4Linear.like(layer, dtype))
            for parameter in model.parameters():
                parameter.requires_grad = False
                if parameter.is_floating_point():  # as peft prepares a 4-bit model: embeddings, norms, head in fp32
                    parameter.data = parameter.data.float()
        if gradient_checkpointing:
            modeling.enable_gradient_checkpointing(model)
        if lora is not None:
            model = modeling.add_lora(model, task, **lora)
    return model


def _without_storage(model: nn.Module) -> nn.Module:
    """Replace meta tensors, which torch treats as a device of its own, and real ones by fake ones on the CPU; ties stay."""
    made: dict[int, Tensor] = {}

    def fake(tensor: Tensor) -> Tensor:
        if id(tensor) not in made:
            empty = torch.empty(tensor.shape, dtype=tensor.dtype)
            is_parameter = isinstance(tensor, nn.Parameter)
            made[id(tensor)] = nn.Parameter(empty, requires_grad=tensor.requires_grad) if is_parameter else empty
        return made[id(tensor)]

    with FakeTensorMode(allow_non_fake_inputs=True):
        for module in model.modules():
            for name, parameter in module._parameters.items():
                module._parameters[name] = None if parameter is None else fake(parameter)  # type: ignore[assignment]
            for name, buffer in module._buffers.items():
                module._buffers[name] = None if buffer is None else fake(buffer)
    return model


# --- counting --------------------------------------------------------------------------------------------------------


class _Ledger(TorchDispatchMode):
    """Counts the bytes of all storages that are alive, and remembers the moment when they were most."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.vocabulary = vocabulary
        self.alive: dict[int, tuple[int, bool]] = {}
        self.total = self.logits = self.gradients = 0
        self.reset()

    def reset(self) -> None:
        """Forget the peak."""
        self.peak = (0, 0, 0)

    def add(self, tensor: Tensor) -> None:
        """Count a tensor's storage unless it is known."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self.alive:
            return
        is_logits = tensor.ndim > 1 and tensor.shape[-1] == self.vocabulary and tensor.is_floating_point()
        self.alive[key] = (storage.nbytes(), is_logits)
        self.total += storage.nbytes()
        self.logits += storage.nbytes() if is_logits else 0
        if self.total > self.peak[0]:
            self.peak = (self.total, self.logits, self.gradients)
        weakref.finalize(storage, self._drop, key)

    def _drop(self, key: int) -> None:
        size, is_logits = self.alive.pop(key)
        self.total -= size
        self.logits -= size if is_logits else 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default and isinstance(args[0], FakeTensor):
            # the value of a figure that is only reported; a check that looks for a fault finds none
            return False if args[0].dtype == torch.bool else 1.0 if args[0].is_floating_point() else 1
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self.add(leaf)
        return result


def _bytes(parameters: list[nn.Parameter]) -> int:
    return sum(one.untyped_storage().nbytes() for one in {id(p): p for p in parameters}.values())


def _optimizer_bytes(optimizer: torch.optim.Optimizer) -> int:
    states = [value for state in optimizer.state.values() for value in state.values() if isinstance(value, Tensor)]
    return sum(value.untyped_storage().nbytes() for value in states)


def _eight_bit_bytes(parameters: list[nn.Parameter]) -> int:
    """Bitsandbytes' AdamW8bit: two bytes a weight and two 32-bit scales a block of 256; small tensors stay in 32 bits."""
    return sum(round(p.numel() * (2 + 8 / 256)) if p.numel() >= 4096 else 8 * p.numel() for p in parameters)


def step_memory(
    model: nn.Module, micro_step: MicroStep, first: list[Batch], batches: list[Batch], optimizer: dict[str, Any], vocabulary: int
) -> Memory:  # fmt: skip
    """Memory of one optimizer step of a model without storage.

    Args:
        model: from `fake_model`, wrapped as the trainer wraps it, without storage.
        micro_step: the trainer's own.
        first: cheap micro-batches of a step that only fills the optimizer's state.
        batches: micro-batches of the step that is measured.
        optimizer: the settings' `optimizer` block.
        vocabulary: tensors with this last dimension are logits.
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    frozen = [p for p in model.parameters() if not p.requires_grad]
    is_eight_bit = optimizer["name"] == "adamw_8bit"
    made = optim.make_optimizer(model, **{**optimizer, **({"name": "adamw"} if is_eight_bit else {})})
    ledger = _Ledger(vocabulary)

    def gradient_arrived(parameter: Tensor) -> None:
        ledger.gradients += parameter.grad.untyped_storage().nbytes()  # type: ignore[union-attr]

    def first_gradients_only(parameter: Tensor) -> None:
        if parameter not in known:
            known.add(parameter)
            gradient_arrived(parameter)

    known: set[Tensor] = set()
    hooks = [parameter.register_post_accumulate_grad_hook(first_gradients_only) for parameter in trained]
    model.train()
    with ledger:
        for parameter in [*trained, *frozen, *model.buffers()]:
            ledger.add(parameter)
        for group in (first, batches):
            ledger.reset()
            for batch in group:
                micro_step(model, {**batch, "step": 0}, 1.0)
            if not is_eight_bit:
                made.step()
            made.zero_grad(set_to_none=True)
            known.clear()
            ledger.gradients = 0
    for hook in hooks:
        hook.remove()
    total, logits, gradients = ledger.peak
    weights, adapters = _bytes([*frozen, *model.buffers()]), _bytes(trained)  # type: ignore[list-item]
    states = _eight_bit_bytes(trained) if is_eight_bit else _optimizer_bytes(made)
    held = weights + adapters + gradients + logits + (0 if is_eight_bit else states)
    return Memory(weights, adapters, gradients, states, logits, max(0, total - held))


@dataclass(frozen=True)
class Plan:
    """How a training run holds its model: what `predict` needs besides the batches."""

    task: modeling.Task
    wrap: Callable[[nn.Module], nn.Module]
    """Makes the trained model of a backbone."""
    model: dict[str, Any]
    """The settings' `model` block."""
    optimizer: dict[str, Any]
    micro_step: MicroStep


def predict(
    plan: Plan, dtype: torch.dtype, first: list[Batch], batches: list[Batch], *, shards: int = 1, replicas: int = 1
) -> Memory:
    """Peak memory of a training step on one device.

    Args:
        plan: model, optimizer and micro-step.
        dtype: of the weights where the config says nothing.
        first: small micro-batches (any).
        batches: micro-batches of the step to measure; two, where a step has several, so that gradients are held meanwhile.
        shards: devices over which FSDP2 shards weights, gradients and optimizer.
        replicas: devices that hold a copy each (DDP); with several, DDP's buckets hold the gradients a second time.
    """
    config = modeling.read_config(plan.model["backbone"])
    depth = config.num_hidden_layers
    options = {key: value for key, value in plan.model.items() if key not in ("backbone", "dtype")}
    chosen = getattr(torch, plan.model["dtype"]) if plan.model["dtype"] else dtype

    def measure(layers: int) -> Memory:
        model = _without_storage(plan.wrap(fake_model(with_layers(config, layers), plan.task, dtype=chosen, **options)))
        return step_memory(model, plan.micro_step, first, batches, plan.optimizer, config.vocab_size)

    if depth <= DEEP:
        memory = measure(depth)
        layer = (memory.weights + memory.trained) / depth
    else:
        two, four = measure(2), measure(4)
        memory = _combine(two, four, (depth - 2) / 2)
        layer = (four.weights + four.trained - two.weights - two.trained) / 2
    if shards > 1:
        # a layer is gathered while the next one's gather is under way
        parts = {name: getattr(memory, name) / shards for name in ("weights", "trained", "gradients", "optimizer")}
        memory = dataclasses.replace(memory, **parts, activations=memory.activations + 2 * layer)
    elif replicas > 1:
        memory = dataclasses.replace(memory, gradients=memory.gradients + memory.trained)
    return memory


def padded_tokens(batch: Batch) -> int:
    """Padded tokens of a micro-batch: every `input_ids` in it."""
    total = batch["input_ids"].numel() if "input_ids" in batch else 0
    return total + sum(padded_tokens(value) for value in batch.values() if isinstance(value, dict))


def largest_tokens(small: tuple[int, Memory], large: tuple[int, Memory], room: float) -> int:
    """Padded tokens of the largest micro-batch that fits `room` bytes, from two measured sizes (memory is affine in it)."""
    (tokens_small, memory_small), (tokens_large, memory_large) = small, large
    if tokens_large == tokens_small:
        slope = (memory_large.logits + memory_large.activations) / tokens_large
    else:
        slope = (memory_large.total - memory_small.total) / (tokens_large - tokens_small)
    return max(0, int(tokens_large + (room - memory_large.total) / max(slope, 1.0)))
