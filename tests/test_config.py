"""Configs: every YAML composes, every key is read, nothing wrong is accepted."""

import ast
import copy
import dataclasses
import inspect
import math
import re
import textwrap
import types
import typing

import pytest
import running
import yaml
from annotated_types import Ge, Gt, Le, Lt

from podium import config
from podium.errors import ArgumentError, DataError

OTHER_KINDS = {"accelerate", "synthetic"}
"""Folders read by accelerate itself, and by scripts with plain flags."""
GIVEN = {
    "analyze_math": {"runs": {"plain": "folder"}},
    "prepare_pairs": {"sources": [{"path": "file.jsonl", "name": "some", "judged": True}]},
}
"""Values that a user must give, besides those written `???`."""
HARD = {"candidates": "folder", "per_query": 2, "top": 8, "refresh_every_steps": None}
LORA = {"rank": 4, "alpha": 8.0, "dropout": 0.1, "target_modules": ["q_proj"], "modules_to_save": None}


def decorated(path):
    """(settings name, stage) of a script's @config.app, or None."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("config.app", "app"):
            return ast.unparse(node.args[0]), ast.literal_eval(node.args[1])
    return None


APPS = {
    found[1]: path.stem
    for path in sorted(running.CODE.glob("*.py"))
    if (found := decorated(path)) and (config.CONF / found[1]).is_dir()
}
YAMLS = sorted(p for p in config.CONF.rglob("*.yaml") if p.relative_to(config.CONF).parts[0] not in OTHER_KINDS)


def annotations(settings):
    """Field name -> annotation with its bounds."""
    hints = typing.get_type_hints(settings, include_extras=True)
    return {field.name: hints[field.name] for field in dataclasses.fields(settings)}


def nested(annotation):
    """The settings block inside an annotation, or None."""
    base, _, _ = unwrap(annotation)
    return base if dataclasses.is_dataclass(base) else None


def composed(stage, name):
    """Plain values of a YAML with its required keys filled in."""
    values = config._compose(stage, name, []) | GIVEN.get(stage, {})
    values |= {key: "folder" for key in ("rationales",) if key in values}

    def fill(settings, block):
        for key, annotation in annotations(settings).items():
            if block.get(key) == "???":
                origin = typing.get_origin(unwrap(annotation)[0])
                block[key] = ["given"] if origin is list else {"given": "given"} if origin is dict else "given"
            elif isinstance(block.get(key), dict) and (inner := nested(annotation)):
                fill(inner, block[key])

    fill(running.script(APPS[stage]).main.settings, values)
    return values


def test_every_yaml_composes():
    count = 0
    for path in YAMLS:
        stage = path.parent.name
        assert stage in APPS, f"{path}: no script reads conf/{stage}"
        settings = running.script(APPS[stage]).main.settings
        assert config.build(settings, composed(stage, path.stem), str(path))
        count += 1
    assert count == len(YAMLS) == sum(len(config.config_names(stage)) for stage in APPS)
    assert count >= len(APPS) >= 6


def test_every_script_finds_its_default_config():
    for path in running.CODE.glob("*.py"):
        if (found := decorated(path)) is not None:
            assert config.config_names(found[1]), f"{path.name} reads conf/{found[1]}, which has no YAML"
            default = [k for k in ast.walk(ast.parse(path.read_text())) if isinstance(k, ast.keyword)]
            names = [
                ast.literal_eval(k.value) for k in default if k.arg == "default" and isinstance(k.value, ast.Constant)
            ]
            assert all(name in config.config_names(found[1]) for name in names or ["base"])


# --- every key is read -----------------------------------------------------------------------------------------------


def tree_of(function):
    return ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(function))))


def resolve(name, scope):
    """The object a dotted name means in a module, or None."""
    parts = name.split(".")
    found = scope.get(parts[0])
    for part in parts[1:]:
        found = getattr(found, part, None)
    return found


def chain(node, aliases):
    """Dotted key that an expression reads from the settings object, or None."""
    if isinstance(node, ast.Attribute) and (base := chain(node.value, aliases)) is not None:
        return f"{base}.{node.attr}".lstrip(".")
    return aliases.get(node.id) if isinstance(node, ast.Name) else None


def find_aliases(tree, aliases):
    """Names bound to the settings object or its blocks, tuple assignments included."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign):
            for target in node.targets:
                pairs = (
                    zip(target.elts, node.value.elts, strict=True)
                    if isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple)
                    else [(target, node.value)]
                )
                for left, right in pairs:
                    if isinstance(left, ast.Name) and (found := chain(right, aliases)):
                        aliases[left.id] = found
    return aliases


def parameters_read(function):
    """Parameters of a function that its body loads, following `**mapping` into the functions it calls."""
    tree, signature = tree_of(function), inspect.signature(function)
    loaded = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)}
    read = {name for name in signature.parameters if name in loaded}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            for keyword in node.keywords:
                if keyword.arg is None and isinstance(keyword.value, ast.Name):
                    callee = resolve(ast.unparse(node.func), function.__globals__)
                    inner = parameters_read(callee) if inspect.isfunction(callee) else set()
                    kind = signature.parameters.get(keyword.value.id)
                    is_var = kind is not None and kind.kind is inspect.Parameter.VAR_KEYWORD
                    read |= inner if is_var else {f"{keyword.value.id}.{one}" for one in inner}
    return read


def keys_read(tree, scope, aliases):
    """Dotted keys that code reads: attributes, blocks expanded by `**as_dict(block)`, blocks passed on whole."""
    aliases = find_aliases(tree, dict(aliases))
    read = {key for node in ast.walk(tree) if (key := chain(node, aliases))}
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        callee = resolve(ast.unparse(node.func), scope)
        if not inspect.isfunction(inspect.unwrap(callee) if callable(callee) else callee):
            continue
        callee = inspect.unwrap(callee)
        for keyword in node.keywords:
            if keyword.arg is None and isinstance(keyword.value, ast.Call) and "as_dict" in ast.unparse(keyword.value):
                block = chain(keyword.value.args[0], aliases)
                read |= {f"{block}.{one}" for one in parameters_read(callee)}
        parameters = inspect.signature(callee).parameters
        names = list(parameters)
        passed = [*zip(names, node.args, strict=False), *((k.arg, k.value) for k in node.keywords if k.arg)]
        for name, value in passed:
            kind = parameters[name].annotation if name in parameters else None
            is_block = any(dataclasses.is_dataclass(one) for one in (kind, *typing.get_args(kind)))
            is_whole = name in ("cfg", "settings") or is_block or isinstance(value, ast.Name)
            if is_whole and (key := chain(value, aliases)) is not None and callee.__module__ != "podium.config":
                read |= keys_read(tree_of(callee), callee.__globals__, {name: key})
    return read


@pytest.mark.parametrize("stage", sorted(APPS))
def test_every_key_is_read(stage):
    module = running.script(APPS[stage])
    read = keys_read(tree_of(module.main.body), vars(module), {"cfg": ""})
    keys = config.all_keys(module.main.settings)
    read |= {
        key for path in (config.CONF / stage).glob("*.yaml") for key in re.findall(r"\$\{([\w.]+)\}", path.read_text())
    }
    blocks = {key for key in keys if any(other.startswith(f"{key}.") for other in keys)}
    unread = [key for key in keys if key not in blocks and key not in read]
    assert not unread, f"code/{APPS[stage]}.py never reads {unread}"
    own = {key for key in keys_read(tree_of(module.main.body), {}, {"cfg": ""}) if key}
    unknown = [key for key in own if not any(key == known or key.startswith(f"{known}.") for known in keys)]
    assert not unknown, f"code/{APPS[stage]}.py reads {unknown}, which its settings do not have"


def test_the_key_reader_notices_a_dead_key():
    def body(cfg):
        print(cfg.used)

    assert keys_read(tree_of(body), {}, {"cfg": ""}) == {"used"}


# --- nothing wrong is accepted ---------------------------------------------------------------------------------------


def unwrap(annotation):
    """(base type, bounds, is optional) of a field's annotation."""
    bounds, optional = [], False
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        optional = type(None) in typing.get_args(annotation)
        annotation = next(one for one in typing.get_args(annotation) if one is not type(None))
    if typing.get_origin(annotation) is typing.Annotated:
        annotation, *extra = typing.get_args(annotation)
        for one in extra:
            bounds += getattr(one, "metadata", [])
        inner = unwrap(annotation)
        return inner[0], bounds + inner[1], optional or inner[2]
    return annotation, bounds, optional


def wrong_values(annotation):
    """Values that a field of this type must refuse."""
    if sum(one is not type(None) for one in typing.get_args(annotation)) > 1 and not hasattr(
        annotation, "__metadata__"
    ):
        if typing.get_origin(annotation) in (typing.Union, types.UnionType):
            return [{"unknown": 1}, 0.5]
    base, bounds, optional = unwrap(annotation)
    wrong = [] if optional else [None]
    if dataclasses.is_dataclass(base):
        return [*wrong, 5, "text", [1], True]
    origin = typing.get_origin(base) or base
    if origin is dict:
        return [*wrong, 5, "text", [1]]
    wrong += [{"unknown": 1}]
    if origin is typing.Literal:
        return [*wrong, "no_such_choice", 7, True, ["sdpa"]]
    if origin is list:
        return [
            *wrong,
            5,
            "text",
            True,
            [{}],
            [None],
            *([["text"], [1.5]] if typing.get_args(base)[0] is not str else [[5]]),
        ]
    wrong += [["text"]]
    if origin is bool:
        return [*wrong, 1, 0.5, "true", "yes"]
    if origin is str:
        return [*wrong, 5, 0.5, True]
    assert origin in (int, float), base
    wrong += ["text", "5", True, math.nan, math.inf, -math.inf, *([1.5] if origin is int else [])]
    for bound in bounds:
        wrong += [bound.gt, bound.gt - 1] if isinstance(bound, Gt) else []
        wrong += [bound.ge - 1] if isinstance(bound, Ge) else []
        wrong += [bound.lt, bound.lt + 1] if isinstance(bound, Lt) else []
        wrong += [bound.le + 1] if isinstance(bound, Le) else []
    return wrong


def mutations(settings, values, path=()):
    """(what, dotted key, mutated values) of every single mistake in a tree of values."""

    def changed(key, value):
        tree = copy.deepcopy(values)
        block = tree
        for part in path:
            block = block[part]
        if value is KeyError:
            del block[key]
        else:
            block[key] = value
        return tree

    block = values
    for part in path:
        block = block[part]
    fields = {field.name: field for field in dataclasses.fields(settings)}
    for key, annotation in annotations(settings).items():
        dotted = ".".join([*path, key])
        if fields[key].default is dataclasses.MISSING and fields[key].default_factory is dataclasses.MISSING:
            yield "missing", dotted, changed(key, KeyError)
        tree = changed(key, KeyError)
        target = tree
        for part in path:
            target = target[part]
        misspelt = key[:-1] + "z" + key[-1]
        target[misspelt] = block[key]
        yield "misspelt", ".".join([*path, misspelt]), tree
        for wrong in wrong_values(annotation):
            yield f"{wrong!r}", dotted, changed(key, wrong)
        if isinstance(block[key], dict) and (inner := nested(annotation)):
            yield from mutations(inner, values, (*path, key))


def example(annotation):
    """Some value that a field of this type takes."""
    base, bounds, _ = unwrap(annotation)
    if dataclasses.is_dataclass(base):
        return {key: example(one) for key, one in annotations(base).items()}
    origin = typing.get_origin(base) or base
    if origin is typing.Literal:
        return typing.get_args(base)[0]
    if origin is list:
        return [example(typing.get_args(base)[0])]
    ceiling = min([1, *(getattr(bound, "le", 1) for bound in bounds)])
    return {str: "given", int: 1, float: ceiling / 2, bool: False}.get(origin, {})


def with_blocks(settings, values):
    """The values with every null block filled in, so that its keys are mutated too."""
    filled = dict(values)
    for key, annotation in annotations(settings).items():
        if (inner := nested(annotation)) is not None:
            block = values.get(key)
            filled[key] = example(annotation) if block is None else with_blocks(inner, block)
    return filled


EITHER = {"llm_reasoner": [{"data": None}, {"instructions": None}]}
"""Blocks of which one has to be null."""


def test_no_single_mistake_is_accepted():
    count, out_of_range, accepted, unclear = 0, 0, [], []
    for stage, name, without in ((*app, one) for app in sorted(APPS.items()) for one in EITHER.get(app[0], [{}])):
        settings = running.script(name).main.settings
        values = with_blocks(settings, composed(stage, "base")) | without
        config.build(settings, values, stage)
        for what, dotted, tree in mutations(settings, values):
            count += 1
            try:
                config.build(settings, tree, f"conf/{stage}/base.yaml")
            except DataError as error:
                out_of_range += " than " in str(error)
                last = dotted.rsplit(".", 1)[-1]
                if last not in str(error) and dotted.split(".")[0] not in str(error):
                    unclear.append((stage, what, dotted, str(error)))
            else:
                accepted.append((stage, what, dotted))
    assert not accepted
    assert not unclear
    assert count >= 500
    assert out_of_range >= 50, "bounds are among the mistakes"


CONFLICTS = {
    "llm_reasoner": [
        {"model.quantization": "nf4"},
        {"loop.epochs": None, "loop.max_steps": None},
        {"data.validation_fold": 1},
        {"data.train_folds": []},
        {"optimizer.betas": [0.9, 1.5]},
        {"optimizer.betas": [-0.1, 0.9]},
        {"max_new_tokens": 512},
    ],
    "llm_embedding": [
        {"hard_negatives": {**HARD, "candidates": None}},
        {"hard_negatives": {**HARD, "refresh_every_steps": 5}, "loop.num_workers": 2},
        {"model.lora": {**LORA, "target_modules": []}},
    ],
    "generate_reasoner": [{"samples": 2}, {"tables": []}],
    "mine_candidates": [{"views": ["rationale"], "rationales": None}, {"views": []}, {"views": ["plain", "plain"]}],
    "prepare_pairs": [{"test": "t.csv", "test_fold": 1}, {"test_fold": 5}, {"sources": []}],
    "ranker_pairwise": [
        {"loss.hard_weight": 0.0},
        {"loss.soft_weight": 1.0},
        {"soft_labels": "folder"},
        {"soft_labels": "folder", "loss.soft_weight": 1.0, "privileged_model_names": True},
        {"data.validation_fold": 1},
    ],
    "tiny_judge": [{"hidden_size": 30, "heads": 4}],
    "tiny_backbone": [{"hidden_size": 30}, {"hidden_size": 6, "heads": 2}],
}


@pytest.mark.parametrize("stage", sorted(CONFLICTS))
def test_conflicting_values_are_refused(stage):
    settings = running.script(APPS[stage]).main.settings
    for conflict in CONFLICTS[stage]:
        values = composed(stage, "base")
        for dotted, value in conflict.items():
            *path, last = dotted.split(".")
            block = values
            for part in path:
                block = block[part]
            block[last] = value
        with pytest.raises(DataError):
            config.build(settings, values, stage)


# --- command line ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "neighbour"),
    [("loop.sed=1", "loop.seed"), ("optimizer.learning_rate=1", "optimizer."), ("ful_fit=true", "full_fit"),
     ("+loop.epoch=1", "loop.epochs"), ("data.question_dir=x", "data.questions_dir")],
)  # fmt: skip
def test_a_misspelt_override_names_its_neighbour(override, neighbour):
    with pytest.raises(ArgumentError, match=neighbour):
        running.settings("train_llm_reasoner", override)


@pytest.mark.parametrize(
    "override", ["loop.seed", "~loop.seed", "loop.seed.deep=1", "=5", "loop.seed=[1", "loop.seed=${nope}"]
)
def test_a_malformed_override_is_refused(override):
    with pytest.raises((ArgumentError, DataError)):
        running.settings("train_llm_reasoner", "data.questions_dir=q", "model.backbone=b", override)


def test_missing_keys_are_named_wherever_they_are():
    with pytest.raises(ArgumentError, match=r"data\.questions_dir=… and model\.backbone=…"):
        running.settings("train_llm_reasoner")


def test_an_unknown_config_name_names_its_neighbour():
    with pytest.raises(ArgumentError, match="did you mean `base`"):
        running.settings("train_llm_reasoner", config_name="bas")


def test_exit_code_2_and_one_line_from_a_real_process():
    done = running.process("prepare_questions", "data_dir=x", "outputdir=y")
    assert done.returncode == 2
    assert done.stderr.splitlines() == ["error: command line: unknown key `outputdir`; did you mean `output_dir`?"]


def test_cfg_job_shows_the_config(monkeypatch, capfd):
    for form in (["--cfg", "job", "folds=7"], ["--cfg=job", "folds=7"], ["folds=7", "--cfg", "job"]):
        assert running.command_line(monkeypatch, "prepare_questions", *form) == 0
        shown = yaml.safe_load(capfd.readouterr().out)
        assert shown["folds"] == 7 and shown["data_dir"] == "???"


def test_multirun_runs_every_combination(monkeypatch, capfd, eedi_dir, tmp_path):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    code = running.command_line(
        monkeypatch, "prepare_questions", "-m", f"data_dir={eedi_dir}", f"output_dir={tmp_path}/${{seed}}", "seed=1,2"
    )
    assert code == 0
    assert (tmp_path / "1" / "manifest.json").is_file() and (tmp_path / "2" / "manifest.json").is_file()
    assert not list((tmp_path / "here").iterdir()), "nothing is left in the working folder"


def test_multirun_refuses_a_missing_key(monkeypatch, capfd, tmp_path):
    assert running.command_line(monkeypatch, "prepare_questions", "-m", f"output_dir={tmp_path}", "seed=1,2") == 2
    assert "data_dir=…" in capfd.readouterr().err


def test_config_path_is_refused_with_the_remedy(monkeypatch, capfd):
    assert running.command_line(monkeypatch, "prepare_questions", "--config-path", "x.yaml") == 2
    assert "--config-name" in capfd.readouterr().err


def test_load_file_is_as_strict(tmp_path):
    settings = running.script("make_tiny_backbone").main.settings
    values = composed("tiny_backbone", "base")
    path = tmp_path / "own.yaml"
    path.write_text(yaml.safe_dump(values))
    assert config.load_file(settings, path, ["layers=3"]).layers == 3
    with pytest.raises(ArgumentError, match="did you mean `layers`"):
        config.load_file(settings, path, ["layer=3"])
    for text in ("a: [1", "layers: 3\nnope: 1", "", "- 1\n- 2", "\x00", b"\xff\xfe"):
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        with pytest.raises(DataError):
            config.load_file(settings, path)
    path.write_text(yaml.safe_dump({**values, "questions_dir": "???"}))
    with pytest.raises(ArgumentError, match="questions_dir=…"):
        config.load_file(settings, path)
