"""What a user may type wrongly: each is one message with field, value, what is expected and a remedy."""

import copy
import errno
import math
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import is_dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from tests.commands import environment
from tests.forked import run
from trainer import checks
from trainer.config import (
    CONFIG_DIR,
    EvaluateConfig,
    ExportConfig,
    IndexConfig,
    PlanConfig,
    PrepareConfig,
    QueryTowerConfig,
    RecommendConfig,
    ReplayConfig,
    TrainConfig,
    register_configs,
    typed,
)
from trainer.config.refusals import explained
from trainer.errors import UserError, user_errors
from trainer.recommend import _read_query

SOURCES = ("citeulike", "foreign", "generated", "movielens", "tabular", "user_item_lists")
COMMANDS: dict[str, tuple[type, list[str], Callable[[Any], None] | None]] = {
    "train": (TrainConfig, ["data.dir=d", "run.dir=r"], checks.check_train_config),
    "evaluate": (EvaluateConfig, ["run.dir=r"], checks.check_evaluate_config),
    "export": (ExportConfig, ["run.dir=r"], checks.check_export_config),
    "index": (IndexConfig, ["run.dir=r"], checks.check_index_config),
    "query_tower": (QueryTowerConfig, ["run.dir=r"], checks.check_query_tower_config),
    "recommend": (RecommendConfig, ["run.dir=r", "recommend.user=1"], checks.check_recommend_config),
    "replay": (ReplayConfig, ["run.dir=r"], checks.check_replay_config),
    "plan": (PlanConfig, ["data.dir=d"], checks.check_plan_config),
} | {f"prepare {source}": (PrepareConfig, [f"data={source}"], None) for source in SOURCES}


@pytest.fixture(name="_hydra", scope="module", autouse=True)
def hydra() -> Iterator[None]:
    register_configs()
    with initialize_config_dir(CONFIG_DIR, version_base="1.3"):
        yield


def composed(command: str, *overrides: str) -> DictConfig:
    config = compose(command.split()[0], [*COMMANDS[command][1], *overrides])
    for name in OmegaConf.missing_keys(config):
        OmegaConf.update(config, name, "given")
    return config


def refusal(command: str, *overrides: str) -> str | None:
    """What the command says of overrides before it opens anything; None where it has nothing to say."""
    kind, _, check = COMMANDS[command]
    try:
        found = typed(composed(command, *overrides), kind)
        if check is not None:
            check(found)
    except UserError as error:
        return str(error)
    except (HydraException, OmegaConfBaseException) as error:
        return explained(error)
    return None


def leaves(config: DictConfig, prefix: str = "") -> Iterator[tuple[str, str, Any]]:
    """Names of fields, where each is declared, and their nodes, which know their types."""
    for name in config:
        node = config._get_node(name)
        if isinstance(node, DictConfig) and is_dataclass(OmegaConf.get_type(node)) and not node._is_none():
            yield from leaves(node, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", f"{OmegaConf.get_type(config)}.{name}", node


@cache
def declarations(command: str) -> frozenset[str]:
    return frozenset(declared for _, declared, _ in leaves(composed(command)))


def fields(command: str) -> list[tuple[str, Any]]:
    """Those that no command before it has too."""
    others = list(COMMANDS)[: list(COMMANDS).index(command)]
    known = frozenset[str]().union(*map(declarations, others))
    return [(name, node) for name, declared, node in leaves(composed(command)) if declared not in known]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_field_refuses_what_is_of_another_type(command: str) -> None:
    for name, node in fields(command):
        value = "[[1]]" if isinstance(node, DictConfig | ListConfig) else "{a: 1}"
        told = refusal(command, f"{name}={value}")
        assert told is not None and told.startswith(name) and "Remedy: " in told, (name, value, told)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_number_is_finite_and_every_text_says_something(command: str) -> None:
    whole = composed(command)

    def refused(name: str, value: object, expected: str) -> None:
        config = copy.deepcopy(whole)
        OmegaConf.update(config, name, value)
        with pytest.raises(UserError) as raised:
            typed(config, COMMANDS[command][0])
        assert (raised.value.field, raised.value.expected) == (name, expected)

    for name, node in fields(command):
        kind = str(node._metadata.ref_type)
        if "float" in kind:
            for value in (math.nan, math.inf, -math.inf):
                refused(name, value, "a number that is finite")
        elif kind == "<class 'int'>":
            refused(name, 2**63, "a number of at most 64 bits")
        elif kind == "<class 'str'>":
            refused(name, " ", "text")


@pytest.mark.parametrize(
    ("command", "override", "told"),
    [
        ("train", "run.epoch=3", "run.epoch: RunConfig has no field epoch. Remedy: epochs is meant?"),
        ("train", "rum.epochs=3", "rum: TrainConfig has no field rum. Remedy: run is meant?"),
        ("prepare generated", "data.lines=3", "data.lines: GeneratedConfig has no field lines. Remedy: items is"),
        ("train", "run.epochs=ten", "run.epochs=ten: expected another type (Value 'ten' of type 'str' could not be"),
        ("train", "run.epochs=null", "run.epochs=null: expected another type (field 'run.epochs' is not Optional"),
        ("train", "run=3", "run=3: expected another type (Invalid type assigned: int is not a subclass of RunConfig"),
        ("train", "model=towers", "model=towers: expected one of dssm, factorization_machine, matrix_factorization,"),
        ("prepare generated", "data=movie", "Remedy: set data=movielens."),
        ("train", "run.epochs", "run.epochs: expected field=value. Remedy: correct it"),
        ("train", "run.epochs=[1", "an override cannot be read: "),
        ("train", "data.dir=a=b", "into quotes of its own, as in \"data.dir='a=b'\"."),
        ("train", "+run.x=1", "run.x=given: expected a field of TrainConfig."),
        ("train", "model.query.features=[a,a]", "expected each value once, and a is there twice. Remedy: leave one a"),
        ("evaluate", "evaluate.k=[10,20,10]", "evaluate.k=[10, 20, 10]: expected each value once, and 10 is there"),
        ("evaluate", "evaluate.slices=[age,age]", "evaluate.slices=['age', 'age']: expected each value once"),
        ("index", "index.nprobe=[4,4]", "index.nprobe=[4, 4]: expected each value once"),
        ("index", "index.seed=-1", "index.seed=-1: expected 0 or more. Remedy: set index.seed=0."),
        ("query_tower", "tower.without=[a,a]", "tower.without=['a', 'a']: expected each value once"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_told_with_a_remedy(command: str, override: str, told: str) -> None:
    found = refusal(command, override)
    assert found is not None and told in found and "Remedy: " in found and "\n" not in found


def test_what_is_right_is_let_pass() -> None:
    assert refusal("train", "model.query.hidden=[256,256]", "model.query.features=[a,b]", "run.epochs=3") is None
    assert refusal("evaluate", "evaluate.k=[10,20]", "evaluate.baselines=[]") is None


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('{"history": [1], "history": [2]}', "history is there twice"),
        ('{"a": {"b": 1, "b": 2}}', "b is there twice"),
        ("[1]", "one JSON object of features by name"),
        ("", "a query as JSON"),
        ("\ufeff{}", "a query as JSON"),
        ('{"history": [1]', "a query as JSON"),
    ],
)
def test_a_query_that_is_not_one_json_object(tmp_path: Path, text: str, told: str) -> None:
    path = tmp_path / "query.json"
    path.write_text(text)
    with pytest.raises(UserError, match=told) as raised:
        _read_query(str(path))
    assert raised.value.field == "recommend.query" and raised.value.value == str(path)


@pytest.mark.parametrize("number", [errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.ENAMETOOLONG, errno.EROFS])
def test_a_path_that_cannot_be_is_one_message(number: int, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended, user_errors():
        raise OSError(number, "refused", "a/path")
    assert ended.value.code == 2
    assert "error: a/path: refused. Remedy: " in capsys.readouterr().err


def test_what_the_file_system_does_not_refuse_stays_a_traceback() -> None:
    with pytest.raises(OSError, match="broken"), user_errors():
        raise OSError(errno.EIO, "broken", "a/path")


def test_a_line_is_told_in_one_write_lest_ranks_mix_theirs() -> None:
    """Each write of the process is a message of its own here; Python is unbuffered, as containers have it."""
    reading, writing = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with reading, writing:
        code = "from trainer.errors import end_with; end_with('told')"
        done = subprocess.run([sys.executable, "-u", "-c", code], stderr=writing, env=environment(), check=False)
        assert (done.returncode, reading.recv(1000)) == (2, b"error: told\n")


def test_out_of_memory_is_told_with_what_to_lower(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit), user_errors():
        torch.empty(1 << 60)
    assert "Remedy: more ranks" in capsys.readouterr().err
    with pytest.raises(SystemExit), user_errors():
        raise MemoryError
    assert "error: out of memory (no more to be had). Remedy: more ranks" in capsys.readouterr().err
    with pytest.raises(RuntimeError, match="a bug"), user_errors():
        raise RuntimeError("a bug")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "overrides"),
    [
        ("prepare", ["data=generated", "data.users=50", "data.items=20", "data.dir={file}"]),
        ("prepare", ["data=generated", "data.users=50", "data.items=20", "data.dir={file}/below"]),
        ("train", ["data.dir={file}", "run.dir={folder}/run"]),
        ("evaluate", ["run.dir={file}"]),
        ("export", ["run.dir={file}/below"]),
        ("index", ["run.dir={folder}"]),
        ("query_tower", ["run.dir={link}"]),
        ("recommend", ["run.dir={folder}", "recommend.user=1"]),
        ("replay", ["run.dir={link}"]),
        ("plan", ["data.dir={link}"]),
    ],
)
def test_a_file_or_nothing_in_the_place_of_a_folder(tmp_path: Path, command: str, overrides: list[str]) -> None:
    """One line on stderr, and nothing written."""
    places = {"file": tmp_path / "file", "folder": tmp_path / "folder", "link": tmp_path / "link"}
    places["file"].write_text("text")
    places["folder"].mkdir()
    places["link"].symlink_to(tmp_path / "nowhere")
    done = run(f"trainer.{command}", *(override.format(**places) for override in overrides))
    lines = [line for line in done.stderr.strip().splitlines() if "it/s" not in line]
    assert done.returncode == 2 and lines[-1].startswith("error: ") and "Remedy: " in lines[-1], done.stderr
    assert "Traceback" not in done.stderr
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "folder", "link"]
    assert places["file"].read_text() == "text"
