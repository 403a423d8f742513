"""What every benchmark shares: models of one shape, interleaved timing, peak memory, the JSON it writes.

All arms of a row run in one process, on the same weights, token ids and dtype, interleaved, after a warm-up; the figure
is the median. Only ratios count on a shared CPU. A limit counts the floating-point operations of linear layers and head.
"""

import argparse
import ctypes
import gc
import json
import os
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.update(TOKENIZERS_PARALLELISM="false", HF_HUB_OFFLINE="1", WANDB_DISABLED="true", CUDA_VISIBLE_DEVICES="")

import torch  # noqa: E402
from tokenizers import Tokenizer, models, pre_tokenizers  # noqa: E402
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM  # noqa: E402

from podium.batching.padding import pad  # noqa: E402

LAYERS, WIDTH, HEADS, KV_HEADS, INTERMEDIATE = 6, 384, 6, 2, 1024
YES, NO = 5, 6
LABELS = torch.tensor([YES, NO])
FIRST_WORD = 10
TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # of malloc.h


@dataclass
class Arm:
    """One way to do the row's work: `run` does it and returns what is compared between arms, or None."""

    name: str
    run: Callable[[], Any]
    tokens: int
    flops: float
    """Of linear layers and head, forward and backward where there is one."""


def arguments(description: str | None) -> argparse.Namespace:
    """--quick, --json, --repeats; two threads, seed 0."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small shapes, at most 50 seconds on 2 cores")
    parser.add_argument("--smoke", action="store_true", help="a model of one narrow layer: shows that all arms run")
    parser.add_argument("--json", type=Path, help="write the results here")
    parser.add_argument("--repeats", type=int, default=None, help="timed runs of every arm (5; 3 with --quick)")
    parsed = parser.parse_args()
    if parsed.smoke:
        global LAYERS, WIDTH, INTERMEDIATE
        LAYERS, WIDTH, INTERMEDIATE = 1, 48, 64
        parsed.quick, parsed.repeats = True, 1
    parsed.repeats = parsed.repeats or (3 if parsed.quick else 5)
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
    torch.manual_seed(0)
    return parsed


def make_model(vocabulary: int = 2048) -> Qwen2ForCausalLM:
    """Random Qwen2 of the benchmarks' shape, fp32."""
    config = Qwen2Config(
        vocab_size=vocabulary, hidden_size=WIDTH, num_hidden_layers=LAYERS, num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS, intermediate_size=INTERMEDIATE, max_position_embeddings=4096,
        pad_token_id=0, bos_token_id=1, eos_token_id=2, tie_word_embeddings=True,
    )  # fmt: skip
    torch.manual_seed(0)
    return Qwen2ForCausalLM(config).eval()


def body_parameters() -> int:
    """Weights that every token passes through, embeddings and head left out."""
    return LAYERS * (2 * WIDTH * WIDTH + 2 * WIDTH * WIDTH * KV_HEADS // HEADS + 3 * WIDTH * INTERMEDIATE)


def flops(tokens: int, head_rows: int, vocabulary: int, factor: float = 2.0) -> float:
    """Operations of a pass: factor × weights × rows (2 forward, 6 with backward, 4 with frozen weights, 8 recomputed)."""
    return factor * (tokens * body_parameters() + head_rows * WIDTH * vocabulary)


def make_tokenizer(vocabulary: int, padding_side: str = "right") -> PreTrainedTokenizerFast:
    """A tokenizer of whole words w10, w11 … split at spaces, so that peers that want text see the same token ids."""
    words = {"<pad>": 0, "<bos>": 1, "<eos>": 2, "<unk>": 3, "yes": YES, "no": NO}
    words |= {f"w{number}": number for number in range(FIRST_WORD, vocabulary)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>", bos_token="<bos>",
        model_max_length=4096, padding_side=padding_side,
    )  # fmt: skip


def words(ids: Sequence[int]) -> str:
    """Token ids as the text that `make_tokenizer` gives them back for."""
    return " ".join(f"w{number}" for number in ids)


def random_ids(count: int, vocabulary: int) -> list[int]:
    """Random words."""
    return torch.randint(FIRST_WORD, vocabulary, (count,)).tolist()


def group_of(prefix: int, suffix: int, candidates: int, vocabulary: int) -> tuple[list[int], list[list[int]]]:
    """A context and its candidates' suffixes of `suffix` ± a quarter tokens, distinct from their first token on."""
    context = random_ids(prefix, vocabulary)
    spread = suffix // 4
    lengths = [suffix - spread + int(at) for at in torch.randint(0, 2 * spread + 1, (candidates,))]
    return context, [[FIRST_WORD + at, *random_ids(length - 1, vocabulary)] for at, length in enumerate(lengths)]


def texts(ids: list[list[int]]) -> dict[str, torch.Tensor]:
    """Right-padded ids and mask."""
    input_ids, mask = pad(ids, 0)
    return {"input_ids": input_ids, "attention_mask": mask}


def _memory(field: str) -> float:
    """VmHWM (peak) or VmRSS of this process in MB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) / 1024
    return 0.0


def with_peak(run: Callable[[], Any]) -> tuple[Any, float | None]:
    """What a run gives, and the memory that its tensors add at their peak, in MB.

    The runs are made in a thread of their own, whose allocator has no free blocks, and gives back at once what is freed.
    Memory is None where the kernel or the C library does not let it be measured.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", lambda *_: None)

    def measured() -> tuple[Any, float | None]:
        result = run()  # it makes what stays, such as gradients
        gc.collect()
        try:
            ctypes.CDLL(None).malloc_trim(0)
            Path("/proc/self/clear_refs").write_text("5")
        except (AttributeError, OSError):
            return result, None
        before = _memory("VmRSS")
        run()
        return result, round(max(0.0, _memory("VmHWM") - before), 1)

    mallopt(MMAP_THRESHOLD, 2**16)
    with ThreadPoolExecutor(1) as thread:
        found = thread.submit(measured).result()
    # where the C library's own thresholds end up in a process that works with large blocks
    mallopt(MMAP_THRESHOLD, 2**25)
    mallopt(TRIM_THRESHOLD, 2**26)
    return found


def difference(one: Any, two: Any) -> float | None:
    """Largest absolute difference of two arms' results."""
    if one is None or two is None:
        return None
    return float((torch.as_tensor(one).detach() - torch.as_tensor(two).detach()).abs().max())


def met(entry: dict[str, Any]) -> bool | None:
    """Whether an entry reaches its target; None without one, or where memory could not be measured."""
    ours, theirs = (arm["peak_mb"] for arm in entry["arms"].values())
    reached = {"ratio": entry["ratio"], "of_limit": entry["ratio"] / entry["limit"]}
    if ours and theirs:
        reached["memory"] = theirs / ours
    target = entry["target"]
    if not target or not set(target) <= set(reached):
        return None
    return all(reached[name] >= least for name, least in target.items())


def compare(
    row: str, ours: Arm, peers: Sequence[Arm], repeats: int, limits: dict[str, float] | None = None,
    target: dict[str, dict[str, float]] | None = None,
) -> list[dict[str, Any]]:  # fmt: skip
    """Time all arms of a row; print and return one entry a peer.

    Args:
        row: what is measured.
        ours: our arm.
        peers: the others.
        repeats: timed runs; of two runs before them one is compared, the other measures memory.
        limits: of the ratio, by peer; by default that of the operations.
        target: what was promised, by peer: at least this "ratio", share "of_limit", or times less "memory".
    """
    arms = [ours, *peers]
    results, memory = {}, {}
    for arm in arms:
        results[arm.name], memory[arm.name] = with_peak(arm.run)
    seconds: dict[str, list[float]] = {arm.name: [] for arm in arms}
    for turn in range(repeats):
        for arm in arms if turn % 2 == 0 else arms[::-1]:
            started = time.perf_counter()
            arm.run()
            seconds[arm.name].append(time.perf_counter() - started)
    figures = {
        arm.name: {
            "seconds": statistics.median(seconds[arm.name]), "tokens": arm.tokens, "peak_mb": memory[arm.name],
            "gflop": round(arm.flops / 1e9, 3),
        }
        for arm in arms
    }  # fmt: skip
    print(f"\n{row}")
    for name, one in figures.items():
        print(
            f"  {name:58} {one['seconds']:9.4f} s {one['tokens']:8d} tokens {one['gflop']:9.2f} GFLOP {one['peak_mb']} MB"
        )
    entries = []
    for peer in peers:
        # ratios of runs side by side: what slows the machine for a while slows both
        ratio = statistics.median(b / a for a, b in zip(seconds[ours.name], seconds[peer.name], strict=True))
        limit = (limits or {}).get(peer.name, peer.flops / ours.flops if ours.flops else 1.0)
        apart = difference(results[ours.name], results[peer.name])
        entries.append(
            {
                "row": f"{row} | {peer.name}", "arms": {name: figures[name] for name in (ours.name, peer.name)},
                "ratio": round(ratio, 4), "limit": round(limit, 4), "max_abs_diff": apart,
                "target": (target or {}).get(peer.name, {}),
            }
        )  # fmt: skip
        entries[-1]["met"] = met(entries[-1])
        print(
            f"  ratio to {peer.name}: {ratio:.2f} of a limit of {limit:.2f} ({ratio / limit:.2f}), difference {apart}"
        )
    return entries


def write(path: Path | None, entries: list[dict[str, Any]]) -> None:
    """Write the entries as JSON, if asked to."""
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(entries, indent=1) + "\n")
