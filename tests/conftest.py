"""Tiny folders that many tests read, each made once by the project's own scripts."""

import hashlib
import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.update(TOKENIZERS_PARALLELISM="false", HF_HUB_OFFLINE="1", WANDB_MODE="offline", TQDM_DISABLE="1")
if not os.environ.get("GPU_TESTS"):
    os.environ["CUDA_VISIBLE_DEVICES"] = ""

from pathlib import Path  # noqa: E402
from types import SimpleNamespace  # noqa: E402

import pytest  # noqa: E402
import running  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]


def pytest_addoption(parser):
    parser.addoption("--ledger", help="file of long tests that have passed on this very tree; they are not run again")


def tree_digest():
    """What the tests depend on: every file of the program, its configs and its tests, committed or not."""
    digest = hashlib.sha256()
    for part in ("code", "conf", "synthetic", "tests", "benchmarks", "tools"):
        for path in sorted((ROOT / part).rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts:
                digest.update(f"{path.relative_to(ROOT)}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def pytest_collection_modifyitems(config, items):
    """An interrupted long suite goes on where it stopped: tests in the ledger are skipped."""
    if (ledger := config.getoption("--ledger")) is None:
        return
    config.podium_tree = tree_digest()
    passed = set(Path(ledger).read_text().splitlines()) if Path(ledger).is_file() else set()
    for item in items:
        if item.get_closest_marker("long") and f"{config.podium_tree} {item.nodeid}" in passed:
            item.add_marker(pytest.mark.skip(reason=f"passed on this tree before ({ledger})"))


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    report = (yield).get_result()
    ledger = item.config.getoption("--ledger")
    if ledger and report.when == "call" and report.passed and item.get_closest_marker("long"):
        Path(ledger).parent.mkdir(parents=True, exist_ok=True)
        with open(ledger, "a") as handle:
            handle.write(f"{item.config.podium_tree} {item.nodeid}\n")


@pytest.fixture(scope="session")
def eedi_dir(tmp_path_factory):
    """An Eedi folder from the built-in bank."""
    from podium.procedural import generate, write_bank

    folder = tmp_path_factory.mktemp("eedi")
    write_bank(generate(80, 16, seed=5), folder)
    return folder


@pytest.fixture(scope="session")
def questions_dir(tmp_path_factory, eedi_dir):
    """Its question table."""
    folder = tmp_path_factory.mktemp("questions")
    running.run("prepare_questions", f"data_dir={eedi_dir}", f"output_dir={folder}")
    return folder


@pytest.fixture(scope="session")
def backbone_dir(tmp_path_factory, questions_dir):
    """A Qwen2 of 2 layers × 32, dropout on, with its tokenizer."""
    import json

    folder = tmp_path_factory.mktemp("backbone")
    running.run(
        "make_tiny_backbone", f"questions_dir={questions_dir}", f"output_dir={folder}", "vocabulary=600",
        "hidden_size=32", "layers=2", "heads=2", "intermediate_size=64", "max_position_embeddings=512",
    )  # fmt: skip
    path = folder / "config.json"
    values = json.loads(path.read_text()) | {"attention_dropout": 0.1}
    path.write_text(json.dumps(values))
    return folder


@pytest.fixture(scope="session")
def tokenizer(backbone_dir):
    from podium import tokenization

    return tokenization.load_tokenizer(backbone_dir)


@pytest.fixture(scope="session")
def tables(questions_dir):
    """The question folder's tables as frames."""
    from podium import contracts

    return SimpleNamespace(
        questions=contracts.read_table(questions_dir / "questions.parquet", contracts.QUESTIONS),
        test=contracts.read_table(questions_dir / "test.parquet", contracts.QUESTIONS),
        catalogue=contracts.read_table(questions_dir / "misconceptions.parquet", contracts.MISCONCEPTIONS),
        rationales=contracts.read_table(questions_dir / "rationales.parquet", contracts.RATIONALES),
    )


@pytest.fixture(scope="session")
def rows(tables):
    """Labelled training rows with their rationales."""
    from podium import questions
    from podium.batching.queries import make_rows

    return make_rows(questions.training_rows(tables.questions), tables.catalogue, tables.rationales)


@pytest.fixture(scope="session")
def generated_dir(tmp_path_factory, tables):
    """A table of "generated" rationales: gold ones would be refused."""
    from podium import contracts

    folder = tmp_path_factory.mktemp("generated")
    written = tables.rationales.assign(model="reasoner")
    contracts.write_table(written, folder / "rationales.parquet", contracts.RATIONALES)
    return folder


@pytest.fixture(scope="session")
def groups_dir(tmp_path_factory, tables):
    """Groups of the gold misconception among six others, with teacher scores."""
    import pandas as pd

    from podium import contracts, rng

    folder = tmp_path_factory.mktemp("groups")
    catalogue = tables.catalogue["misconception_id"].tolist()
    labelled = tables.questions[tables.questions["misconception_id"].notna()]
    rows = []
    for query, gold in zip(labelled["query_id"], labelled["misconception_id"].astype(int), strict=True):
        others = [one for one in (catalogue[at] for at in rng.permutation(len(catalogue), query)) if one != gold][:6]
        at = int(rng.generator(query, "place").integers(7))
        ranked = [*others[:at], gold, *others[at:]]
        rows += [(query, one, rank, one == gold, float(one % 7)) for rank, one in enumerate(ranked, 1)]
    frame = pd.DataFrame(rows, columns=[column.name for column in contracts.GROUPS.columns])
    contracts.write_table(frame.astype({"rank": "Int64"}), folder / "groups.parquet", contracts.GROUPS)
    return folder


@pytest.fixture(scope="session")
def backbones(tmp_path_factory, questions_dir):
    """A Qwen2 with its own head, as the large ones have, and a BERT: 2 layers × 64 (what 4-bit weights need at least)."""
    import torch
    from transformers import BertConfig, BertModel, Qwen2ForCausalLM

    folder = tmp_path_factory.mktemp("backbones")
    running.run(
        "make_tiny_backbone", f"questions_dir={questions_dir}", f"output_dir={folder / 'tied'}", "vocabulary=600",
        "hidden_size=64", "layers=2", "heads=2", "intermediate_size=128", "max_position_embeddings=2048",
    )  # fmt: skip
    from podium import tokenization

    tokenizer = tokenization.load_tokenizer(folder / "tied")
    tied = Qwen2ForCausalLM.from_pretrained(folder / "tied")
    torch.manual_seed(0)
    tied.config.tie_word_embeddings = False
    untied = Qwen2ForCausalLM(tied.config)
    untied.save_pretrained(folder / "untied")
    bert = BertModel(BertConfig(vocab_size=len(tokenizer), hidden_size=64, num_hidden_layers=2, num_attention_heads=2,
                                intermediate_size=128, max_position_embeddings=512))  # fmt: skip
    bert.save_pretrained(folder / "encoder")
    for name in ("untied", "encoder"):
        tokenizer.save_pretrained(folder / name)
    return folder


@pytest.fixture(scope="session")
def pairs_dir(tmp_path_factory):
    """Bank pairs prepared (`pairs/`), and a Qwen2 and a Gemma 2 of 2 layers × 16 for them."""
    from podium.pairwise.bank_pairs import write_bank_pairs

    folder = tmp_path_factory.mktemp("pairs")
    write_bank_pairs(folder / "data", train=40, unjudged=0, test=10, label_noise=0.1, seed=0, constructs=8)
    running.run(
        "prepare_pairs", f"output_dir={folder}/pairs", f"test={folder}/data/test.jsonl",
        f"sources=[{{path:{folder}/data/train.jsonl,name:bank,judged:true}}]",
    )  # fmt: skip
    for name in ("qwen2", "gemma2"):
        running.run(
            "make_tiny_judge", f"pairs_dir={folder}/pairs", f"output_dir={folder}/{name}", f"architecture={name}",
            "vocabulary=500", "hidden_size=16", "layers=2", "heads=2", "intermediate_size=32",
        )  # fmt: skip
    return folder


@pytest.fixture
def trainer(questions_dir, backbone_dir):
    """Overrides that make a trainer run for seconds: `trainer(output_dir, *more)`."""

    def overrides(output_dir: Path, *more: str) -> list[str]:
        return [
            f"output_dir={output_dir}", f"data.questions_dir={questions_dir}", f"model.backbone={backbone_dir}",
            "device=cpu", "data.validation_rows=12", "loop.max_steps=4", "loop.epochs=null", "loop.batch_size=6",
            "loop.save_every_steps=1", *more,
        ]  # fmt: skip

    return overrides
