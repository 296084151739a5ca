"""The house rules that a machine can check."""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from functools import partial
from itertools import takewhile
from pathlib import Path
from typing import Any

import pytest
from starlette.routing import Route

from qwenproxy import errors
from qwenproxy.dialects import (
    anthropic_messages,
    native,
    openai_images,
    openai_responses,
    openai_speech,
    openai_videos,
)
from qwenproxy.dialects.chat_parameters import PARAMETERS
from qwenproxy.engine import engine
from qwenproxy.server.app import OPENAI_PREFIXES, create_app
from qwenproxy.settings import Settings, variable_of

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "qwenproxy"
README = (ROOT / "README.md").read_text("utf-8")

LAYERS = (
    "errors chat caller clock settings addresses accounts.account",
    "audio film public_address data_url dialects.parts dialects.fields "
    "store media_types held_text tool_tags json_text schema_parts "
    "accounts.rows accounts.refusals logs limits activity guests keys account_table transcript said "
    "turn_order qwen.transport qwen.files qwen.research_notes qwen.sse qwen.models qwen.failures "
    "dialects.base browser.install",
    "dialects.chat_parameters dialects.chat_tools "
    "dialects.anthropic_blocks dialects.anthropic_events dialects.anthropic_tools "
    "json_edges misfits coercion tool_list tokens watched_file incoming accounts.healing questions dashboard "
    "database history_index",
    "api_keys model_names file_store video_tasks dialects.openai_videos dialects.openai_speech "
    "media_rows written_calls json_schema tool_names tools "
    "ledger instance exchanges accounts.registry qwen.payload qwen.phases qwen.drift "
    "dialects.openai_chat dialects.anthropic_messages server.responses "
    "dialects.response_tools dialects.response_output",
    "sieve structured "
    "shelf showing dialects.openai_images response_store dialects.response_items dialects.response_events "
    "remote_file qwen.video_service qwen.speech_service "
    "accounts.lessons account_actions qwen.client janitor browser.chromium server.admission server.body "
    "server.connection dialects.native history",
    "tool_calls file_rules server.error_shapes server.anthropic_models dialects.openai_responses "
    "server.background",
    "answering qwen.object_storage copies intake accounts.pool exports server.guard server.attended",
    "qwen.file_uploads words server.forms server.patience server.access library kept_chats",
    "research",
    "hosting errands conversations gateway browser.bridge server.relay checkup live",
    "browser.site_page speaking filming studio",
    "browser.account_context",
    "browser.contexts server.video_routes server.speech_routes server.media_routes server.image_forms "
    "server.status_routes server.account_routes server.chat_routes server.file_routes "
    "server.token_routes server.response_routes",
    "browser.login browser.__main__ server.app engine",
    "enrolment",
    "demo menu",
    "proxy account_commands",
    "doctor",
    "cli",
    "__main__",
)
"""Lowest first. A module imports only from lower layers, so there is no cycle."""

MAY_IMPORT = {
    "accounts": {"accounts"},
    "browser": {"browser", "qwen.transport"},
    "dialects": {"dialects"},
    "qwen": {"qwen"},
}
"""The folders that know only themselves and the modules outside all folders."""

PURE = {
    "account_table",
    "addresses",
    "answering",
    "accounts.account",
    "accounts.rows",
    "caller",
    "chat",
    "dashboard",
    "errors",
    "limits",
    "held_text",
    "json_edges",
    "media_types",
    "said",
    "sieve",
    "tool_tags",
    "written_calls",
    "transcript",
    "qwen.files",
    "qwen.sse",
    "qwen.research_notes",
    "qwen.phases",
    "qwen.drift",
    "qwen.payload",
    "qwen.models",
    "qwen.failures",
    "dialects.base",
    "dialects.openai_chat",
    "dialects.chat_parameters",
    "dialects.chat_tools",
    "dialects.anthropic_blocks",
    "dialects.anthropic_events",
    "dialects.anthropic_messages",
    "dialects.anthropic_tools",
    "dialects.openai_videos",
    "dialects.openai_speech",
    "dialects.native",
    "exports",
    "dialects.parts",
    "dialects.fields",
    "data_url",
    "public_address",
    "json_text",
    "schema_parts",
    "misfits",
    "coercion",
    "json_schema",
    "tool_list",
    "tool_names",
    "tools",
    "tool_calls",
    "structured",
}
IMPURE = {
    *("asyncio", "anyio", "fastapi", "starlette", "uvicorn", "playwright", "filelock", "os", "pathlib"),
    *(
        "socket",
        "ssl",
        "http",
        "urllib.request",
        "subprocess",
        "threading",
        "shutil",
        "tempfile",
        "time",
        "io",
    ),
}

WITHOUT_TEST_FILE = {
    "__main__": "two lines; every test of the command line runs it",
    "clock": "the system's clock and the shape of one",
    "engine": "wiring; tests/e2e and tests/test_demo.py run all of it",
    "qwen.transport": "the shape of a road, no code",
    "browser.__main__": "the first line of tests/check.sh runs it",
}
ONLY_IN = {
    "playwright": ("browser.",),
    "fastapi": ("server.",),
    "starlette": ("server.",),
    "uvicorn": ("server.",),
    "filelock": ("store", "ledger"),
    "questionary": ("questions",),
    "alibabacloud_oss_v2": ("qwen.object_storage",),
    "requests": ("qwen.object_storage",),
    "json_repair": ("json_text",),
    "jsonschema": ("json_schema", "misfits", "dialects.fields"),
    "regex": ("json_schema",),
    "tiktoken": ("tokens",),
    "prompt_toolkit": ("keys", "questions"),
}
"""Libraries whose types do not cross the border of these modules."""

WEAKENING = (
    "--no-sandbox",
    "--disable-web-security",
    "ignore-certificate-errors",
    "remote-debugging",
    "enable-automation",
    "AutomationControlled",
    "user_agent=",
    "verify=False",
)
TYPING = re.compile(r"\.(fill|type|press|press_sequentially|insert_text)\(")


def _name(path: Path) -> str:
    return ".".join(path.relative_to(SOURCE).with_suffix("").parts)


def _files() -> dict[str, Path]:
    """Every module of ours by its name without `qwenproxy.`, the stand-in's apart."""
    paths = (path for path in SOURCE.rglob("*.py") if path.name != "__init__.py")
    return {_name(path): path for path in paths if path.parent.name != "standin"}


FILES = _files()
STANDIN = sorted((SOURCE / "standin").glob("*.py"))
TREES = {name: ast.parse(path.read_text("utf-8")) for name, path in FILES.items()}
RANK = {name: rank for rank, layer in enumerate(LAYERS) for name in layer.split()}


def _imports(tree: ast.AST) -> Iterator[str]:
    """Every imported module; of `from package import name` both readings."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = "qwenproxy.standin." if node.level else ""
            yield package + (node.module or "")
            yield from (f"{package}{node.module}.{alias.name}" for alias in node.names)


def _ours(name: str) -> set[str]:
    """The modules of ours that a module imports, the stand-in's too."""
    found = {imported.removeprefix("qwenproxy.") for imported in _imports(TREES[name])}
    return {other for other in found if other in FILES or other.startswith("standin")}


def test_the_layers_name_the_modules_that_there_are() -> None:
    assert set(RANK) == set(FILES)
    assert len(RANK) == len(" ".join(LAYERS).split())


@pytest.mark.parametrize("name", sorted(FILES))
def test_imports_point_down(name: str) -> None:
    standins = {other for other in _ours(name) if other.startswith("standin")}
    assert not standins or name == "demo"
    for other in _ours(name) - standins:
        assert RANK[other] < RANK[name], f"{name} imports {other}"


@pytest.mark.parametrize("name", sorted(name for name in FILES if name.partition(".")[0] in MAY_IMPORT))
def test_a_folder_knows_only_what_it_may(name: str) -> None:
    allowed = MAY_IMPORT[name.partition(".")[0]]
    for other in _ours(name):
        if "." in other:
            assert {other, other.partition(".")[0]} & allowed, f"{name} imports {other}"


def test_only_the_stand_in_which_could_live_alone_imports_relatively() -> None:
    for name, tree in TREES.items():
        assert not [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.level], name


def test_the_stand_in_imports_nothing_of_ours() -> None:
    assert STANDIN
    for path in STANDIN:
        ours = {name for name in _imports(ast.parse(path.read_text("utf-8"))) if name.startswith("qwenproxy")}
        assert all(name.startswith("qwenproxy.standin") for name in ours), path.name


def test_the_product_never_looks_at_the_stand_ins_marks() -> None:
    from qwenproxy.standin.marks import MARK_OPEN

    for path in [*FILES.values(), *SOURCE.rglob("*.js")]:
        if path.parent.name != "standin" and path.name != "demo.py":
            text = path.read_text("utf-8")
            assert MARK_OPEN not in text, path
            assert "MARK_OPEN" not in text, path


@pytest.mark.parametrize("name", sorted(PURE))
def test_pure_modules_do_no_io(name: str) -> None:
    known = {part for found in _imports(TREES[name]) for part in (found, found.partition(".")[0])}
    assert not known & IMPURE


@pytest.mark.parametrize("library", sorted(ONLY_IN))
def test_libraries_stay_behind_their_border(library: str) -> None:
    for name, tree in TREES.items():
        if not name.startswith(ONLY_IN[library]):
            assert library not in {found.partition(".")[0] for found in _imports(tree)}, name


def test_only_the_settings_read_the_environment() -> None:
    for name, path in FILES.items():
        if name != "settings":
            assert not re.search(r"\benviron\b|\bgetenv\b", path.read_text("utf-8")), name


CONSTANT = re.compile(r"_?[A-Z][A-Z0-9_]*")
ALIAS = re.compile(r"_?[A-Z][A-Za-z]*")
CHANGING = {"append", "add", "update", "pop", "popitem", "clear", "setdefault", "extend", "remove", "discard"}


@pytest.mark.parametrize("name", sorted(FILES))
def test_no_module_keeps_state(name: str) -> None:
    for node in ast.walk(TREES[name]):
        assert not isinstance(node, ast.Global)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            owner = node.func.value
            assert not (
                isinstance(owner, ast.Name) and CONSTANT.fullmatch(owner.id) and node.func.attr in CHANGING
            )
    for node in TREES[name].body:
        for target in _targets(node):
            assert CONSTANT.fullmatch(target) or ALIAS.fullmatch(target) or target in {"log", "__version__"}


def _targets(node: ast.stmt) -> Iterator[str]:
    targets: list[Any] = node.targets if isinstance(node, ast.Assign) else []
    if isinstance(node, ast.AnnAssign | ast.AugAssign):
        targets = [node.target]
    for target in targets:
        yield from (found.id for found in ast.walk(target) if isinstance(found, ast.Name))


def test_nothing_weakens_the_browser_and_nothing_types_into_a_page() -> None:
    for name in (name for name in FILES if name.startswith("browser.")):
        text = FILES[name].read_text("utf-8")
        assert not [switch for switch in WEAKENING if switch in text], name
        assert not TYPING.search(text), name


def test_every_module_has_a_test_file_of_its_name() -> None:
    tests = {path.relative_to(ROOT / "tests").as_posix() for path in (ROOT / "tests").rglob("test_*.py")}
    for name in FILES:
        *folders, module = name.split(".")
        expected = "/".join([*folders, f"test_{module}.py"])
        assert (expected in tests) != (name in WITHOUT_TEST_FILE), f"tests/{expected}"


def test_every_file_name_is_used_once() -> None:
    files = [*SOURCE.rglob("*.py"), *(ROOT / "tests").rglob("*.py")]
    names = Counter(
        path.name for path in files if not path.name.startswith("__") and path.name != "conftest.py"
    )
    assert not [name for name, count in names.items() if count > 1]


def test_no_line_hides_code_far_to_the_right() -> None:
    for folder in (SOURCE, ROOT / "tests"):
        for path in folder.rglob("*"):
            if path.suffix in {".py", ".js", ".sh", ".html", ".css"}:
                longest = max(map(len, path.read_text("utf-8").splitlines()), default=0)
                assert longest <= 1000, path


def _table(name: str) -> list[list[str]]:
    """The rows of the README's table under the comment of that name."""
    lines = README.partition(f"<!-- {name}: ")[2].splitlines()[3:]
    rows = list(takewhile(lambda line: line.startswith("|"), lines))
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", row)[1:-1]] for row in rows]


def _written(default: Any) -> str:
    """A default as a person would write it into `.env`."""
    if isinstance(default, tuple):
        return ",".join(default)
    if isinstance(default, Path):
        return f"./{default}"
    return str(int(default)) if isinstance(default, bool) else str(default)


def test_the_readme_tells_every_setting_and_its_default() -> None:
    told = [(row[0].strip("`"), row[1].strip("`")) for row in _table("settings")]
    fields = Settings.model_fields
    assert told == [(variable_of(name), _written(field.default)) for name, field in fields.items()]


def test_the_readme_tells_what_becomes_of_every_parameter() -> None:
    told = [(row[0].strip("`"), *row[1:]) for row in _table("parameters")]
    assert told == [(name, treatment, why) for name, (treatment, why) in PARAMETERS.items()]


def test_the_readme_tells_the_parameters_of_messages() -> None:
    told = [(row[0].strip("`"), *row[1:]) for row in _table("messages-parameters")]
    assert told == [
        (name, treatment, why) for name, (treatment, why) in anthropic_messages.PARAMETERS.items()
    ]


def test_the_readme_tells_the_parameters_of_drawings() -> None:
    told = [(row[0].strip("`"), *row[1:]) for row in _table("image-parameters")]
    assert told == [(name, treatment, why) for name, (treatment, why) in openai_images.PARAMETERS.items()]


def test_the_readme_tells_the_parameters_of_responses() -> None:
    told = [(row[0].strip("`"), *row[1:]) for row in _table("responses-parameters")]
    assert told == [(name, treatment, why) for name, (treatment, why) in openai_responses.PARAMETERS.items()]


@pytest.mark.parametrize(
    ("table", "parameters"),
    [("video-parameters", openai_videos.PARAMETERS), ("speech-parameters", openai_speech.PARAMETERS)],
)
def test_the_readme_tells_the_parameters_of_videos_and_speech(
    table: str, parameters: Mapping[str, str]
) -> None:
    told = [(row[0].strip("`"), row[1]) for row in _table(table)]
    assert told == list(parameters.items())


def test_the_readme_tells_the_parameters_of_chats() -> None:
    told = [(row[0].strip("`"), row[1]) for row in _table("chat-parameters")]
    assert told == list(native.PARAMETERS.items())


def test_the_readme_tells_every_route() -> None:
    told: set[tuple[str, str]] = set()
    for row in _table("routes"):
        method, path = row[0].strip("`").split()
        _, first, *rest = path.split("/", 2)
        paths = ["/".join([prefix, *rest]) for prefix in OPENAI_PREFIXES] if first == "v1" else [path]
        told |= {(method, re.sub(r"{.*?}", "{}", each)) for each in paths}
    app = create_app(Settings(), partial(engine, Settings()))
    served = {
        (method, re.sub(r"{.*?}", "{}", route.path))
        for route in app.routes
        if isinstance(route, Route)
        for method in (route.methods or set()) - {"HEAD"}
    }
    assert told == served
    assert all(f"`{prefix}`" in README for prefix in OPENAI_PREFIXES)


def test_the_readme_tells_every_error() -> None:
    told = re.findall(r"^\| (\d{3}) \| `(\w+)` \|", README, re.MULTILINE)
    raised = {
        (str(kind.status), kind.code)
        for kind in vars(errors).values()
        if isinstance(kind, type) and issubclass(kind, errors.QwenProxyError)
    }
    assert raised <= set(told)
    assert len(told) == len(set(told))
