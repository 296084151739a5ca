from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import anyio
import pytest

from qwenproxy.accounts.pool import Pool
from qwenproxy.accounts.registry import Registry
from qwenproxy.addresses import file_address
from qwenproxy.caller import ANYBODY, Caller
from qwenproxy.chat import Attachment, Message
from qwenproxy.clock import SystemClock
from qwenproxy.copies import Copies
from qwenproxy.errors import (
    AllWaiting,
    ContextTooLong,
    LimitReached,
    TokenRejected,
    UnknownFile,
    UnsupportedFile,
    UploadFailed,
)
from qwenproxy.file_store import FileStore, StoredFile
from qwenproxy.hosting import PROMPTS, Hosting
from qwenproxy.qwen.files import HostedFile
from tests.scripted_uploads import ScriptedUploads

pytestmark = pytest.mark.anyio
THEIRS = Attachment("image", "https://qwen-webui-prod.oss-accelerate.aliyuncs.com/u/f_a.png")


class House:
    """A hosting with its parts."""

    def __init__(self, folder: Path, copies: Copies) -> None:
        (folder / "tokens.json").write_text(
            json.dumps([{"id": f"a{number}", "token": "t"} for number in range(3)])
        )
        clock = SystemClock()
        registry = Registry(folder, clock)
        self.folder = folder
        self.pool = Pool(registry.accounts(), registry, clock, slots=1, pace_s=0, queue_timeout_s=5)
        self.store = FileStore(folder, clock, most_bytes=30_000_000)
        self.copies = copies
        self.uploads = ScriptedUploads()
        self.hosting = Hosting(self.store, copies, self.uploads, self.pool, clock)

    def bring(self, content: bytes, name: str = "notes.txt", caller: Caller = ANYBODY) -> StoredFile:
        with self.store.incoming() as incoming:
            incoming.write(content)
            return self.store.keep(incoming, name=name, purpose="user_data", caller=caller)

    def documents(self) -> list[StoredFile]:
        return list(self.store.rows(ANYBODY))


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    with closing(Copies(tmp_path, SystemClock())) as copies:
        yield House(tmp_path, copies)


def attachment(file: StoredFile, name: str = "") -> Attachment:
    return Attachment("file", file_address(file.id), name)


async def test_what_is_attached_comes_back_in_its_order(house: House) -> None:
    one, two = house.bring(b"one", "one.txt"), house.bring(b"two", "two.txt")
    given = (attachment(two), THEIRS, attachment(one, "mine.txt"))
    second, theirs, first = await house.hosting.hosted("a0", given)
    assert theirs == THEIRS
    assert isinstance(first, HostedFile)
    assert isinstance(second, HostedFile)
    assert (first.name, second.name, second.user_id) == ("mine.txt", "two.txt", "a0")
    assert sorted(house.uploads.has["a0"]) == [b"one", b"two"]


async def test_content_is_uploaded_once_an_account_whoever_brings_it(house: House) -> None:
    mine, yours = house.bring(b"same"), house.bring(b"same", "other.txt", Caller("k2", "two"))
    for account in ("a0", "a0", "a1"):
        await house.hosting.hosted(account, (attachment(mine), attachment(yours)))
    assert house.uploads.has == {"a0": [b"same"], "a1": [b"same"]}


async def test_requests_at_once_share_one_upload(house: House) -> None:
    file = house.bring(b"same")
    house.uploads.go_on = anyio.Event()
    found: list[tuple[HostedFile | Attachment, ...]] = []

    async def ask() -> None:
        found.append(await house.hosting.hosted("a0", (attachment(file),)))

    async with anyio.create_task_group() as tasks:
        for _ in range(5):
            tasks.start_soon(ask)
        while not house.uploads.begun:
            await anyio.lowlevel.checkpoint()
        house.uploads.go_on.set()
    assert house.uploads.begun == 1
    assert len(set(found)) == 1


async def test_who_leaves_does_not_end_it_for_the_next(house: House) -> None:
    file = house.bring(b"same")
    house.uploads.go_on = anyio.Event()
    with anyio.move_on_after(0.05):
        await house.hosting.hosted("a0", (attachment(file),))
    house.uploads.go_on.set()
    await house.hosting.hosted("a0", (attachment(file),))
    assert house.uploads.has == {"a0": [b"same"]}


async def test_one_failure_is_told_as_it_is(house: House) -> None:
    files = [house.bring(bytes([number])) for number in range(3)]
    house.uploads.ends = [UnsupportedFile("unreadable")] * 3
    with pytest.raises(UnsupportedFile, match="unreadable"):
        await house.hosting.hosted("a0", [attachment(file) for file in files])
    with pytest.raises(UnknownFile):
        await house.hosting.hosted("a0", [Attachment("file", file_address("file-" + "0" * 24))])


async def test_an_address_that_was_signed_anew_is_remembered(house: House) -> None:
    file = house.bring(b"same")
    await house.hosting.hosted("a0", (attachment(file),))
    house.uploads.stale = True
    (hosted,) = await house.hosting.hosted("a0", (attachment(file),))
    assert isinstance(hosted, HostedFile)
    assert hosted.url.endswith("?again")
    assert house.copies.get(file.sha256, "a0") == hosted


async def test_files_are_known_by_the_address_they_are_named_by(house: House) -> None:
    there, gone = house.bring(b"there"), house.bring(b"gone")
    (house.folder / "files" / "content" / gone.sha256).unlink()
    far = f"http://proxy.lan{file_address(there.id)}"
    message = Message("user", "", (Attachment("file", far), attachment(there), attachment(gone), THEIRS))
    assert await house.hosting.files((message,)) == {far: there, file_address(there.id): there}
    assert await house.hosting.files((Message("user", "x"),)) == {}


async def test_the_holder_has_all_of_them_and_is_free(house: House) -> None:
    one, two = house.bring(b"one"), house.bring(b"two")
    both = (attachment(one), attachment(two))
    await house.hosting.hosted("a0", both[:1])
    await house.hosting.hosted("a2", both)
    assert await house.hosting.holder(both) == "a2"
    assert await house.hosting.holder(both[:1]) == "a0"
    assert await house.hosting.holder((THEIRS,)) == ""
    assert await house.hosting.holder(()) == ""
    async with house.pool.lease(prefer="a2"):
        assert await house.hosting.holder(both) == ""


async def test_what_an_account_lost_it_gets_again(house: House) -> None:
    file = house.bring(b"same")
    for _ in range(2):
        await house.hosting.hosted("a0", (attachment(file),))
        assert await house.hosting.forget("a0", (attachment(file), THEIRS))
    await house.hosting.hosted("a1", (attachment(file),))
    await house.hosting.forget_account("a1")
    await house.hosting.hosted("a1", (attachment(file),))
    assert house.uploads.has == {"a0": [b"same"] * 2, "a1": [b"same"] * 2}
    assert not await house.hosting.forget("a0", (THEIRS,))


async def test_a_prompt_is_a_document_as_long_as_somebody_needs_it(house: House) -> None:
    async with house.hosting.document("A long text é") as first, house.hosting.document("A long text é"):
        (file,) = house.documents()
        assert (first.url, first.name) == (file_address(file.id), file.name)
        assert (file.type, file.purpose) == ("text/plain", "message")
        assert file.sha256 == hashlib.sha256("A long text é".encode()).hexdigest()
        await house.hosting.hosted("a0", (first,))
        async with house.hosting.document("A long text é"):
            pass
        assert house.documents() == [file]
    assert house.documents() == []
    assert house.copies.holders(file.sha256) == frozenset()


async def test_a_prompt_of_a_key_is_no_other_keys_file(house: House) -> None:
    async with house.hosting.document("Secret"):
        assert house.store.rows(Caller("k1", "one")) == ()


async def test_what_a_killed_proxy_left_of_prompts_goes(house: House) -> None:
    kept = house.bring(b"mine")
    left = house.bring(b"an old prompt", "Pasted_Text_1.txt", PROMPTS)
    async with house.hosting.document("A new prompt") as document:
        await house.hosting.clear_left_over()
        ids = {file.id for file in house.documents()}
        assert (kept.id in ids, left.id in ids, document.name in {f.name for f in house.documents()}) == (
            True,
            False,
            True,
        )


async def test_who_cannot_clear_up_serves_all_the_same(
    house: House, caplog: pytest.LogCaptureFixture
) -> None:
    (house.folder / "files").write_text("no folder")
    await house.hosting.clear_left_over()
    assert "cannot be removed" in caplog.text


async def test_a_prompt_may_be_too_long_for_a_document(house: House) -> None:
    with pytest.raises(ContextTooLong, match="20971521 bytes; 20 MiB is the most"):
        async with house.hosting.document("x" * 20_971_521):
            raise AssertionError("it is too long")
    assert house.documents() == []


async def test_a_file_is_placed_where_it_is_or_whose_turn_it_is(house: House) -> None:
    one, two = house.bring(b"one"), house.bring(b"two")
    first = await house.hosting.place(one)
    second = await house.hosting.place(two)
    again = await house.hosting.place(one)
    assert (first.user_id, second.user_id) == ("a0", "a1")
    assert again == first


async def test_a_limit_of_one_account_is_another_accounts_turn(house: House) -> None:
    house.uploads.ends = [LimitReached("limit", wait_s=60), TokenRejected("out")]
    assert (await house.hosting.place(house.bring(b"one"))).user_id == "a2"
    house.uploads.ends = [UploadFailed("no")]
    with pytest.raises(UploadFailed):
        await house.hosting.place(house.bring(b"two"))
    house.uploads.ends = [LimitReached("limit", wait_s=60)]
    with pytest.raises(AllWaiting):
        await house.hosting.ticket("a.txt", 3, "file")


async def test_a_ticket_is_any_accounts(house: House) -> None:
    assert await house.hosting.ticket("a.txt", 3, "file") == {
        "account": "a0",
        "name": "a.txt",
        "size": 3,
        "kind": "file",
    }


async def test_the_services_address_of_a_file_of_ours_is_known(house: House) -> None:
    mine = house.bring(b"same", caller=Caller("k1", "one"))
    yours = house.bring(b"same", caller=Caller("k2", "two"))
    hosted = await house.hosting.place(mine)
    assert house.hosting.file_of_path(hosted.path, Caller("k1", "one", frozenset())) == mine
    assert house.hosting.file_of_path(hosted.path, Caller("k2", "two", frozenset())) == yours
    assert house.hosting.file_of_path(hosted.path, Caller("k3", "three", frozenset())) is None
    assert house.hosting.file_of_path("u/f_unknown") is None
