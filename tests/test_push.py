"""push_to_hub: asked about before the work, done once after it, never at the cost of the local result. The Hub is a local server."""

import base64
import http.server
import json
import sys
import threading

import pytest
import running

from podium import contracts, modeling, sharing, tokenization
from podium.errors import DataError, PrerequisiteError


@pytest.fixture
def hub():
    """As much of the Hub's protocol as an upload of small files asks for; `.files` is what a commit brought."""

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            self.answer()

        def do_POST(self):
            self.answer()

        def answer(self):
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            path = self.path.split("?")[0]
            server.asked.append(path)
            status = next((status for part, status in server.refused.items() if part in path), 200)
            found = {}
            if self.headers.get("Authorization") != "Bearer hf_canary":
                status = 401
            elif path.endswith("/whoami-v2"):
                found = {"type": "user", "name": "someone", "auth": {"accessToken": {"role": "write"}}}
            elif path.endswith("/repos/create"):
                server.created.append(json.loads(body))
                found = {"url": f"{server.url}/someone/model", "id": "someone/model"}
            elif "/preupload/" in path:
                asked = json.loads(body)["files"]
                found = {
                    "files": [{"path": one["path"], "uploadMode": "regular", "shouldIgnore": False} for one in asked]
                }
            elif "/commit/" in path and status == 200:
                lines = [json.loads(line) for line in body.splitlines()]
                new = {one["value"]["path"]: one["value"]["content"] for one in lines if one["key"] == "file"}
                server.files |= {name: base64.b64decode(content) for name, content in new.items()}
                found = {"commitUrl": f"{server.url}/someone/model/commit/1", "commitOid": "1" * 40, "success": True}
            elif path == "/api/validate-yaml":
                card = json.loads(body)["content"]
                server.cards.append(card)
                base = [line for line in card.splitlines() if line.startswith("base_model:")]
                if base and base[0].count("/") != 1:  # the real one refuses folders
                    status, found = 400, {"errors": [{"message": "base_model is no model id"}], "warnings": []}
                else:
                    found = {"errors": [], "warnings": []}
            elif path.startswith("/api/models/"):
                found = {"id": "someone/model", "sha": "0" * 40, "siblings": [], "private": True, "tags": []}
            data = json.dumps(found if status == 200 or found else {"error": "refused"}).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.asked, server.created, server.files, server.cards, server.refused = [], [], {}, [], {}
    server.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def online(hub, monkeypatch, tmp_path):
    """This process's Hub is the local server, with a login."""
    from huggingface_hub import constants

    for name, value in (("ENDPOINT", hub.url), ("HF_HUB_OFFLINE", False), ("HF_HUB_DISABLE_XET", True),
                        ("HF_TOKEN_PATH", str(tmp_path / "no token"))):  # fmt: skip
        monkeypatch.setattr(constants, name, value)
    monkeypatch.setenv("HF_TOKEN", "hf_canary")
    return hub


def test_names_and_logins_are_checked_before_anything(tmp_path, monkeypatch):
    assert sharing.check_push(None) is None and sharing.push(tmp_path, None) is None
    for name in ("not a name!!", "/tmp/folder", "a/b/c"):
        with pytest.raises(DataError, match="push_to_hub"):
            sharing.check_push(name)
    with pytest.raises(PrerequisiteError, match="HF_HUB_OFFLINE"):  # as the tests are
        sharing.check_push("someone/model")
    with pytest.raises(PrerequisiteError, match="HF_HUB_OFFLINE"):
        running.run(
            "train_llm_embedding", f"output_dir={tmp_path / 'new'}", "data.questions_dir=/nowhere", "model.backbone=/nowhere",
            "push_to_hub=someone/model",
        )  # fmt: skip
    assert not (tmp_path / "new").exists(), "refused before the folder was claimed"


def test_a_training_run_arrives_once_and_a_failure_keeps_it(online, trainer, tmp_path, capsys):
    hub = online
    folder = tmp_path / "retriever"
    given = [*trainer(folder, "max_length_tokens=400"), "push_to_hub=someone/model"]
    hub.refused["/commit/"] = 403
    with pytest.raises(PrerequisiteError) as failed:
        running.run("train_llm_embedding", *given)
    line = str(failed.value)
    assert f"{folder} is complete" in line and f"hf upload someone/model {folder} ." in line and "403" in line
    assert contracts.read_manifest(folder) and contracts.read_meta(folder).kind == "full" and not hub.files
    steps = (folder / "metrics.jsonl").read_text()
    hub.refused.clear()
    capsys.readouterr()
    running.run("train_llm_embedding", *given)
    again = capsys.readouterr().out
    assert "nothing to do" in again and f"pushed {folder} to someone/model" in again
    assert (folder / "metrics.jsonl").read_text() == steps, "nothing was trained again"
    assert hub.created[-1]["name"] == "model" and hub.created[-1]["visibility"] == "private"
    there = {
        "model.safetensors",
        "config.json",
        "tokenizer.json",
        "meta.json",
        "README.md",
        "modules.json",
        "config.yaml",
    }
    assert there <= set(hub.files)
    assert not [name for name in hub.files if name.startswith("state/") or "lock" in name or name == "run.json"]
    assert hub.files["model.safetensors"] == (folder / "model.safetensors").read_bytes()
    assert hub.cards, "the Hub has checked the card"


def test_the_hub_is_asked_before_training(online, trainer, tmp_path, monkeypatch):
    given = [*trainer(tmp_path / "retriever"), "push_to_hub=someone/model"]
    for token, reason in (("", "hf auth login"), ("hf_wrong", "401")):
        monkeypatch.setenv("HF_TOKEN", token)
        with pytest.raises(PrerequisiteError, match=reason):
            running.run("train_llm_embedding", *given)
    assert not (tmp_path / "retriever").exists()


def test_merging_and_quantising_take_it_too(online, backbone_dir, tmp_path, monkeypatch, capsys):
    backbone = modeling.load_backbone(backbone_dir, "causal_lm")
    adapter = tmp_path / "adapter"
    modeling.add_lora(backbone, "causal_lm", rank=2, alpha=4.0, dropout=0.0, target_modules=["q_proj"]).save_pretrained(
        adapter
    )
    tokenization.load_tokenizer(backbone_dir).save_pretrained(adapter)
    given = ["--adapter_path", adapter, "--save_dir", tmp_path / "merged", "--push_to_hub", "someone/model"]
    assert running.command_line(monkeypatch, "merge_adapter", *given) == 0
    assert online.files["model.safetensors"] == (tmp_path / "merged" / "model.safetensors").read_bytes()
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    assert running.command_line(monkeypatch, "merge_adapter", *given) == 3
    assert "nothing was computed yet" in capsys.readouterr().err
    monkeypatch.syspath_prepend(str(running.ROOT))
    import awq_quantization

    monkeypatch.setattr(
        sys, "argv", ["awq_quantization.py", "--model_path", "m", "--quant_path", "q", "--calib_data", "c", "--push_to_hub", "a/b"]
    )  # fmt: skip
    with pytest.raises(SystemExit) as stop:
        awq_quantization.main()
    assert stop.value.code == 3 and "nothing was computed yet" in capsys.readouterr().err
