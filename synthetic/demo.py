"""The whole synthetic pipeline on one machine, without key or network, in about a minute.

    python synthetic/demo.py [outputs/demo_synthetic]

A local fake server plays both vendors, with the built-in bank as author, and misbehaves now and then: rate limits, lost
batches, broken JSON, refusals. One run is killed half way and started again. Ends with the funnel and summary.json:
planned, kept, failed, unknown, usd_spent (the ledger's bill), usd_cap, paid_twice (as the server counted).
"""

import importlib
import json
import os
import runpy
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

from podium import contracts, procedural
from podium.config import exit_codes
from podium.errors import PodiumError
from podium.synthetic.costs import summarise
from podium.synthetic.prices import read_price

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
KEY = "demo-key-4f1c0b7a93e5d826"
USD_CAP = 10.0
FAULTS = {
    "http_429_after": 0.03,
    "http_529": 0.02,
    "http_500": 0.01,
    "wrong_schema": 0.02,
    "max_tokens": 0.01,
    "refusal": 0.005,
    "line_errored": 0.02,
    "line_expired": 0.02,
    "line_duplicate": 0.01,
    "line_unknown": 0.01,
    "batch_create_500_made": 0.2,
    "results_reset": 0.1,
}


def talk(url: str, value: dict | None = None) -> dict:
    """GET, or POST a value, as JSON."""
    data = None if value is None else json.dumps(value).encode()
    with urllib.request.urlopen(url, data, timeout=10) as response:
        return json.load(response)


def command(script: str, config: str, *overrides: str) -> list[str]:
    """A script of this folder with its published config and overrides."""
    return [str(HERE / script), "--config-path", str(ROOT / "conf" / "synthetic" / config), *overrides]


def start(arguments: list[str], quiet: bool = False) -> int:
    """Run a script with its command line in a child that has our imports already; returns its process id."""
    sys.stdout.flush()
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        if quiet:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        sys.argv = arguments
        runpy.run_path(arguments[0], run_name="__main__")
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def step(arguments: list[str]) -> None:
    """Run one script to its end.

    Raises:
        PodiumError: it failed (partial success is success enough for a demonstration with faults).
    """
    shown = [str(Path(path).relative_to(ROOT)) for path in (arguments[0], arguments[2])]
    print(f"\n$ python {shown[0]} --config-path {shown[1]} ({len(arguments) - 3} overrides)", flush=True)
    code = os.waitstatus_to_exitcode(os.waitpid(start(arguments), 0)[1])
    if code not in (0, 7):
        raise PodiumError(f"{shown[0]} ended with exit code {code}; see its message above")


def kill_half_way(arguments: list[str], stats_url: str) -> None:
    """Start a script and kill it, as kill -9 does, once the server has its first batch."""
    print("\n$ the same, and kill -9 as soon as the server has its first batch", flush=True)
    child = start(arguments, quiet=True)
    limit = time.monotonic() + 30
    while time.monotonic() < limit and talk(stats_url)["batches"] < 1:
        time.sleep(0.02)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


def run(output: Path) -> None:
    """Everything."""
    started = time.monotonic()
    if output.exists():
        if not (output / "data" / "train.csv").is_file() and any(output.iterdir()):
            raise PodiumError(f"{output} holds something else; give another folder")
        shutil.rmtree(output)
    data = output / "data"
    procedural.write_bank(procedural.generate(500, 100, 7), data)
    author = ROOT / "tests" / "fake_llm_server.py"
    server = subprocess.Popen([sys.executable, str(author)], stdout=subprocess.PIPE, text=True)
    try:
        said = (server.stdout.readline() if server.stdout else "").strip()
        if not said.startswith("listening on "):
            raise PodiumError(f"{author} did not start; run it by hand to see why")
        url = said.removeprefix("listening on ")
        pipeline(output, data, url)
        summary = summarise_run(output, url)
    finally:
        server.terminate()
        server.wait()
    summary["seconds"] = round(time.monotonic() - started, 1)
    contracts.write_json(output / "summary.json", summary)
    funnel = contracts.read_json(output / "silver" / "report.json", "report")["funnel"]
    print("\nfunnel")
    for row in funnel:
        print(f"  {row['step']:28} {row['left']:6}")
    print(json.dumps(summary))


def pipeline(output: Path, data: Path, url: str) -> None:
    """Clusters, questions, judgements, curation, rationales, cost."""
    prices = ROOT / "conf" / "synthetic" / "prices.yaml"
    models = {"claude": ("anthropic", "claude-sonnet-5-5"), "gpt": ("openai", "gpt-5.4-mini")}
    for world, (provider, model) in models.items():
        row = read_price(prices, provider, model, batch=True)
        names = ("input", "output", "cache_read", "cache_write_5m", "cache_write_1h", "batch_factor")
        price = {name: getattr(row, name) for name in names}
        config = {"seed": 11, "rates": FAULTS, "prices": price, "key": KEY, "author": "bank", "batch_seconds": 0.3}
        talk(f"{url}/n/{world}/_config", config)
    os.environ["PODIUM_DEMO_KEY"] = KEY
    for module in ("anthropic", "openai", "sklearn.feature_extraction.text", "sklearn.manifold"):
        importlib.import_module(module)
    shared = [
        f"max_usd={USD_CAP}",
        f"ledger={output / 'ledger.sqlite'}",
        f"prices={prices}",
        "endpoint.api_key_env=PODIUM_DEMO_KEY",
        "endpoint.timeout_seconds=10.0",
        "pace.poll_seconds=0.1",
        "pace.first_backoff_seconds=0.05",
        "pace.max_backoff_seconds=0.5",
        "pace.reconcile_grace_seconds=1.0",
        "pace.max_batch_requests=40",
    ]
    claude = [*shared, f"endpoint.base_url={url}/n/claude"]
    gpt = [*shared, f"endpoint.base_url={url}/n/gpt/v1"]
    step(
        command(
            "cluster_misconceptions.py", "conf_clusters.yaml", f"data_dir={data}", f"output_dir={output / 'clusters'}"
        ),
    )
    generate = command(
        "generate_claude.py",
        "conf_gen_claude.yaml",
        f"data_dir={data}",
        f"clusters={output / 'clusters' / 'diverse_clusters.json'}",
        f"output_dir={output / 'drafts'}",
        "target_unseen=2",
        "target_seen=2",
        "max_rounds=2",
        "many_shot_examples=20",
        *claude,
    )
    step([*generate, "plan=true"])
    kill_half_way(generate, f"{url}/n/claude/_stats")
    step(generate)
    step(
        command(
            "judge_oai.py",
            "conf_eval_oai.yaml",
            f"data_dir={data}",
            f"drafts={output / 'drafts' / 'drafts.parquet'}",
            f"output_dir={output / 'judgements'}",
            *gpt,
        ),
    )
    step(
        command(
            "curate.py",
            "conf_curate.yaml",
            f"data_dir={data}",
            f"drafts={output / 'drafts' / 'drafts.parquet'}",
            f"judgements={output / 'judgements' / 'judgements.parquet'}",
            f"ledger={output / 'ledger.sqlite'}",
            f"output_dir={output / 'silver'}",
        ),
    )
    step(
        command(
            "prepare_cot.py",
            "conf_prepare_cot.yaml",
            f"data_dir={output / 'silver'}",
            "validation_fold=null",
            "most_rows=150",
            f"output_dir={output / 'cot_input'}",
        ),
    )
    step(
        command(
            "cot_claude.py",
            "conf_cot_claude.yaml",
            f"cot_input={output / 'cot_input' / 'cot_input.parquet'}",
            f"output_dir={output / 'rationales'}",
            "mode=realtime",
            *claude,
        ),
    )
    cost = [f"ledger={output / 'ledger.sqlite'}", f"output={output / 'cost.json'}"]
    step(command("cost.py", "conf_cost.yaml", *cost))


def summarise_run(output: Path, url: str) -> dict:
    """The figures of summary.json, from the ledger and from the server's own count."""
    costs = summarise(output / "ledger.sqlite")
    states: dict[str, int] = {}
    for row in costs["stages"]:
        for state, count in row["states"].items():
            states[state] = states.get(state, 0) + count
    stats = [talk(f"{url}/n/{world}/_stats") for world in ("claude", "gpt")]
    manifest = contracts.read_json(output / "silver" / "manifest.json", "manifest")
    found = [str(path) for path in output.rglob("*") if path.is_file() and KEY.encode() in path.read_bytes()]
    if found:
        raise PodiumError(f"the API key is on disk in {found}; please report this")
    return {
        "planned": sum(states.values()),
        "kept": manifest["rows"]["questions"],
        "failed": states.get("failed", 0) + states.get("refused", 0),
        "unknown": states.get("unknown", 0),
        "usd_spent": round(costs["usd_total"], 6),
        "usd_cap": USD_CAP,
        "paid_twice": sum(times - 1 for one in stats for times in one["paid_twice"].values()),
        "usd_billed_by_server": round(sum(one["paid_nano"] for one in stats) / 1e9, 6),
    }


if __name__ == "__main__":
    with exit_codes():
        run(Path(sys.argv[1] if len(sys.argv) > 1 else "outputs/demo_synthetic").resolve())
