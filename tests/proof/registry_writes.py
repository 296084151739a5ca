"""The registry under kills, failing system calls and many writers, checked against a model of it.

.venv/bin/python -m tests.proof.registry_writes [--kills 500] [--every 1] [--writers 4] [--writes 300]

Kills: a process changes the accounts at random and tells of every change before and after; it is killed -9 at
a random moment, now and then while it starts on a registry that somebody else cut short. Then every change
that it told as done must be there after a start, the one under way as a whole or not at all, every file
readable, and no temporary file left.
Calls: the same changes once each, with the k-th call of a kind failing (strace), or all from the k-th on, for
every k; of all these runs every `--every`-th. A change is told as done and is there, or it is told as failed
and is there as a whole or not at all.
Writers: processes that count up one account's label at once.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from qwenproxy.accounts.account import SignIn
from qwenproxy.accounts.registry import Registry
from qwenproxy.clock import SystemClock
from qwenproxy.errors import QwenProxyError

KINDS = (
    "openat",
    "write",
    "fsync",
    "rename",
    "renameat",
    "close",
    "unlink",
    "unlinkat",
    "rmdir",
    "mkdir",
    "utimensat",
)
PR_SET_PTRACER = 0x59616D61
ERRORS = ("EIO", "ENOSPC", "EACCES")
MOST_ACCOUNTS = 6
DAMAGED = 0.1
"""How many of the rounds start with a registry that somebody else cut short."""

Known = tuple[str, str, bool]
"""What the model holds of an account: the mark of its token and its browser state, label, invalid."""
Model = dict[str, Known]


@dataclass(frozen=True)
class Op:
    """One change, as the changing process tells it before it begins."""

    name: str
    account_id: str
    mark: str

    def of(self, model: Model, made: str = "") -> Model:
        """The model after it; `made` is the id of a new account."""
        after = dict(model)
        mark, label, invalid = model.get(self.account_id, ("", "", False))
        match self.name:
            case "add":
                after[made] = (self.mark, "", False)
            case "sign_in_again":
                after[self.account_id] = (self.mark, label, False)
            case "keep_state":
                after[self.account_id] = (self.mark, label, invalid)
            case "update":
                after[self.account_id] = (mark, self.mark, True)
            case "remove":
                del after[self.account_id]
        return after


def browser(mark: str) -> dict[str, Any]:
    """Some kilobytes, as real ones are."""
    cookies = [
        {"name": "token", "value": mark, "expires": 1_900_000_000},
        {"name": "pad", "value": "x" * 5000},
    ]
    return {"cookies": cookies, "origins": []}


def perform(registry: Registry, op: Op) -> str:
    """Gives the id of a new account."""
    sign_in = SignIn(op.mark, browser(op.mark), user_id=op.mark)
    match op.name:
        case "add":
            return registry.add(sign_in)[0].id
        case "sign_in_again":
            registry.sign_in_again(op.account_id, sign_in)
        case "keep_state":
            registry.browser_state(op.account_id)
            assert registry.keep_state(op.account_id, browser(op.mark))
        case "update":
            changed = registry.update(
                op.account_id, lambda known: replace(known, label=op.mark, invalid=True)
            )
            assert changed is not None
        case "remove":
            assert registry.remove(op.account_id)
    return ""


def choose(luck: random.Random, accounts: list[str], mark: str) -> Op:
    names = ["add"] if not accounts else ["update", "keep_state", "sign_in_again", "remove"]
    if 0 < len(accounts) < MOST_ACCOUNTS:
        names += ["add", "add"]
    name = luck.choice(names)
    return Op(name, "" if name == "add" else luck.choice(accounts), mark)


def look(folder: Path, *, damaged: bool = False) -> Model:
    """What a fresh start finds; fails when a file is torn or left over. `damaged`: somebody else did."""
    registry = Registry(folder, SystemClock())
    said = registry.open()
    assert len(said) <= damaged, said
    found: Model = {}
    for account in registry.accounts():
        token = registry.token(account.id)
        assert registry.browser_state(account.id) == browser(token), "of another sign-in"
        assert (folder / "accounts" / account.id / "token.txt").read_text() == token
        found[account.id] = (token, account.label, account.invalid)
    both = [folder / name for name in ("tokens.json", "tokens.json.bak")]
    assert len({path.read_bytes() for path in both if path.exists()}) <= 1
    for path in folder.rglob("*"):
        assert not path.name.endswith(".tmp"), path.name
        assert path.name != "sign-in.json"
        if path.suffix == ".json":
            json.loads(path.read_text())
    return found


def explained(found: Model, model: Model, under_way: Op | None) -> bool:
    """Whether the disk holds what was told as done, and the change under way wholly or not at all."""
    if found == model:
        return True
    if under_way is None:
        return False
    made = next(iter(found.keys() - model.keys()), "")
    return found == under_way.of(model, made)


@dataclass
class Tally:
    rounds: int = 0
    done: int = 0
    failed: int = 0
    cut: Counter[str] = field(default_factory=Counter)
    """Changes that were under way, by name and by whether they are there."""


def forked(run: Callable[[], object]) -> int:
    child = os.fork()
    if child == 0:
        status = 1
        with suppress(BaseException):
            run()
            status = 0
        os._exit(status)
    return child


# --- kills


def changing(folder: Path, seed: int, tell: int) -> None:
    """Changes accounts for ever and tells of it."""
    luck = random.Random(seed)
    registry = Registry(folder, SystemClock())
    os.write(tell, b"starts\n")
    registry.open()
    for number in range(1_000_000):
        op = choose(luck, [account.id for account in registry.accounts()], f"{seed}-{number}")
        os.write(tell, f"begin {op.name} {op.account_id or '-'} {op.mark}\n".encode())
        made = perform(registry, op)
        os.write(tell, f"done {made or '-'}\n".encode())


def told(lines: list[str], model: Model, tally: Tally) -> tuple[Model, Op | None]:
    """The model after all that was told as done, and what had only begun."""
    under_way: Op | None = None
    for line in lines:
        word, *rest = line.split()
        if word == "begin":
            name, account_id, mark = rest
            under_way = Op(name, "" if account_id == "-" else account_id, mark)
        elif under_way is not None:
            model = under_way.of(model, rest[0])
            under_way = None
            tally.done += 1
    return model, under_way


def kill_once(folder: Path, seed: int, model: Model, tally: Tally) -> Model:
    luck = random.Random(~seed)
    damaged = bool(model) and luck.random() < DAMAGED
    if damaged:  # by somebody else: the start that puts it right is killed too
        os.truncate(folder / "tokens.json", luck.randrange((folder / "tokens.json").stat().st_size))
    reading, writing = os.pipe()
    child = forked(lambda: changing(folder, seed, writing))
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        lines = [pipe.readline() for _ in range(luck.randrange(1, 12) if not damaged else 1)]
        time.sleep(luck.uniform(0, 0.02))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        lines += pipe.readlines()
    assert lines[0], "the changing process ended by itself"
    model, under_way = told([line.decode() for line in lines if line.endswith(b"\n")], model, tally)
    found = look(folder, damaged=damaged)
    assert explained(found, model, under_way), f"round {seed}: {under_way}\ntold  {model}\nfound {found}"
    for aside in folder.glob("*.corrupt-*"):
        assert damaged, "put aside what nobody damaged"
        aside.unlink()
    tally.rounds += 1
    if under_way is not None:
        tally.cut[f"{under_way.name} {'there' if found != model else 'not there'}"] += 1
    return found


def kills(rounds: int) -> Tally:
    tally, model = Tally(), Model()
    with TemporaryDirectory() as top:
        for seed in range(rounds):
            model = kill_once(Path(top) / "session", seed, model, tally)
    return tally


# --- failing system calls


def scripted(accounts: list[str]) -> Iterator[Op]:
    """Every change once."""
    first, second = accounts
    yield Op("update", first, "labelled")
    yield Op("keep_state", first, "renewed")
    yield Op("add", "", "added")
    yield Op("sign_in_again", first, "again")
    yield Op("remove", second, "")
    yield Op("update", first, "labelled again")


def following(folder: Path, parent: socket.socket) -> None:
    """Makes the scripted changes when told to. Tells by `sendto`, which is not made to fail."""
    registry = Registry(folder, SystemClock())
    accounts = [account.id for account in registry.accounts()]
    if sys.platform == "linux":  # many systems let a process be traced by its parents alone
        ctypes.CDLL(None).prctl(PR_SET_PTRACER, ctypes.c_ulong(-1))
    parent.sendall(b"!")
    parent.recv(1)
    for op in scripted(accounts):
        try:
            made = perform(registry, op)
            parent.sendall(f"done {made or '-'}\n".encode())
        except (QwenProxyError, OSError):
            parent.sendall(b"failed -\n")
    parent.sendall(b"end -\n")


def fresh(folder: Path) -> Model:
    registry = Registry(folder, SystemClock())
    for mark in ("one", "two"):
        registry.add(SignIn(mark, browser(mark), user_id=mark))
    return look(folder)


def traced(folder: Path, *options: str) -> list[list[str]]:
    """What a process that makes the scripted changes tells, while strace treats its calls as in `options`."""
    here, there = socket.socketpair()
    child = forked(lambda: following(folder, there))
    there.close()
    try:
        assert here.recv(1), "the changing process did not start"
        command = ["strace", "-f", "-p", str(child)]
        for option in options:
            command += [option] if option.startswith("-") or command[-1] == "-o" else ["-e", option]
        with subprocess.Popen(command, stderr=subprocess.PIPE) as tracer:
            assert tracer.stderr is not None
            line = tracer.stderr.readline()
            if b"attached" not in line:
                raise SystemExit(f"strace cannot be used here: {line.decode().strip()}")
            here.sendall(b"!")
            with here.makefile("r") as lines:
                answers = [line.split() for line in lines]
    finally:
        here.close()
        os.waitpid(child, 0)
    return answers


def fail_once(folder: Path, inject: str, tally: Tally) -> None:
    model = fresh(folder)
    answers = traced(folder, f"trace={inject.partition(':')[0]}", f"inject={inject}", "-o", os.devnull)
    check_told(folder, answers, model, inject, tally)


def check_told(folder: Path, answers: list[list[str]], model: Model, inject: str, tally: Tally) -> None:
    """Every failed change may be there as a whole or not: all ways that this can have gone are followed."""
    ways = [model]
    assert answers[-1:] == [["end", "-"]], f"{inject}: a change neither succeeded nor failed"
    found = look(folder)
    made = next(iter(found.keys() - model.keys()), "")
    for op, (word, new) in zip(scripted(list(model)), answers[:-1], strict=True):
        if word == "done":
            tally.done += 1
            ways = [op.of(way, new) for way in ways if op.name == "add" or op.account_id in way]
        else:
            tally.failed += 1
            possible = op.name != "add" or made
            ways += [
                op.of(way, made) for way in ways if possible and (op.name == "add" or op.account_id in way)
            ]
    assert found in ways, f"{inject}: {answers}\nfound {found}\nbut   {ways}"
    tally.rounds += 1


def calls_made(folder: Path) -> Counter[str]:
    """How many calls of each kind the scripted changes make."""
    fresh(folder)
    trace = folder.parent / "trace"
    kinds = ",".join(f"?{kind}" for kind in KINDS)
    answers = traced(folder, f"trace={kinds}", "-o", str(trace))
    assert [word for word, _ in answers] == ["done"] * 6 + ["end"]
    return Counter(re.findall(r"^\d+ +(\w+)\(", trace.read_text(), re.MULTILINE))


def injections(made: Counter[str]) -> Iterator[str]:
    """Every call failing once, and from every call on all of its kind, with every error."""
    for kind, count in sorted(made.items()):
        for k in range(1, count + 1):
            for error in ERRORS:
                yield f"{kind}:error={error}:when={k}"
                if kind != "close":  # a close that fails leaves its file open: no disk does so for ever
                    yield f"{kind}:error={error}:when={k}+"


def failing_calls(every: int) -> tuple[Tally, Counter[str]]:
    tally = Tally()
    with TemporaryDirectory() as top:
        made = calls_made(Path(top) / "session")
        for number, inject in enumerate(list(injections(made))[::every]):
            folder = Path(top) / str(number)
            fail_once(folder, inject, tally)
            shutil.rmtree(folder)
    return tally, made


# --- many writers


def counting(folder: Path, account_id: str, writes: int) -> None:
    registry = Registry(folder, SystemClock())
    for _ in range(writes):
        registry.update(account_id, lambda known: replace(known, label=str(int(known.label or "0") + 1)))


def many_writers(writers: int, writes: int) -> tuple[int, float]:
    """The count in the end, and how long it took."""
    with TemporaryDirectory() as top:
        registry = Registry(Path(top), SystemClock())
        account, _ = registry.add(SignIn("one", None))
        began_s = time.monotonic()
        children = [forked(lambda: counting(Path(top), account.id, writes)) for _ in range(writers)]
        for child in children:
            assert os.waitpid(child, 0)[1] == 0
        return int(registry.accounts()[0].label), time.monotonic() - began_s


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=500)
    parser.add_argument("--every", type=int, default=1, help="0: no failing calls")
    parser.add_argument("--writers", type=int, default=4)
    parser.add_argument("--writes", type=int, default=300)
    wanted = parser.parse_args()

    killed = kills(wanted.kills)
    cut = ", ".join(f"{count} × {name}" for name, count in sorted(killed.cut.items()))
    print(f"kills: {killed.rounds}; changes told as done: {killed.done}, all there; cut short: {cut}")

    if wanted.every and shutil.which("strace"):
        failed, made = failing_calls(wanted.every)
        counts = ", ".join(f"{count} {kind}" for kind, count in sorted(made.items()))
        print(
            f"failing calls: {failed.rounds} runs over {sum(made.values())} calls ({counts}); "
            f"told as done: {failed.done}, as failed: {failed.failed}; none torn, none lost"
        )
    elif wanted.every:
        print("failing calls: not tried, there is no strace")

    if wanted.writers:
        count, took_s = many_writers(wanted.writers, wanted.writes)
        print(f"writers: {count} of {wanted.writers * wanted.writes} changes there, in {took_s:.1f} s")
        if count != wanted.writers * wanted.writes:
            raise SystemExit("changes were lost")


if __name__ == "__main__":
    main()
