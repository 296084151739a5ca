"""Responses through the whole server, most of them asked for by the official `openai` package."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import httpx
import openai
import pytest
from openai import AsyncOpenAI
from openai.types.responses import Response
from pydantic import BaseModel

from qwenproxy.chat import ChatRequest, Finished, Message, Source, Text, Thinking, ToolCall, Usage
from qwenproxy.clock import SystemClock
from qwenproxy.errors import Severed, UnknownPrevious
from qwenproxy.response_store import ResponseStore
from tests.serve import until_async
from tests.server.serving import END, FOREVER, START, Running, ScriptedGateway, Step, running
from tests.server.test_access import bearer, keyed

pytestmark = pytest.mark.anyio

WEATHER: Any = {
    "type": "function",
    "name": "weather",
    "description": "The weather",
    "parameters": {"type": "object", "properties": {"place": {"type": "string"}}},
    "strict": False,
}
CALL = ToolCall("call_1", "weather", '{"place":"Kyiv"}')


def says(*steps: Step) -> ScriptedGateway:
    return ScriptedGateway(lambda request: [START, *steps])


@asynccontextmanager
async def asked(gateway: ScriptedGateway, **settings: Any) -> AsyncIterator[tuple[Running, AsyncOpenAI]]:
    async with (
        running(gateway, **settings) as proxy,
        AsyncOpenAI(base_url=f"{proxy.url}/v1", api_key="any", max_retries=0, timeout=20) as client,
    ):
        yield proxy, client


async def ended(client: AsyncOpenAI, response_id: str) -> Response:
    with anyio.fail_after(10):
        while (found := await client.responses.retrieve(response_id)).status in {"queued", "in_progress"}:
            await anyio.sleep(0.01)
    return found


async def body_of(proxy: Running, path: str, method: str = "GET") -> tuple[int, Any]:
    async with httpx.AsyncClient(base_url=proxy.url, trust_env=False, timeout=10) as http:
        answer = await http.request(method, path)
    return answer.status_code, answer.json()


# ---- asked and fetched ----


async def test_an_answer_is_fetched_as_it_was_given() -> None:
    gateway = says(Thinking("Hm"), Text("Hello"), Finished("stop", Usage(3, 5, 2)))
    async with asked(gateway) as (proxy, client):
        answer = await client.responses.with_raw_response.create(model="qwen", input="Hi")
        found = await client.responses.with_raw_response.retrieve("resp_response-1")
        assert json.loads(found.text) == json.loads(answer.text)
        assert (await body_of(proxy, "/api/responses/resp_response-1"))[1] == json.loads(answer.text)
    response = answer.parse()
    assert (response.output_text, response.status, response.model) == ("Hello", "completed", "qwen3.7-plus")
    assert [item.type for item in response.output] == ["reasoning", "message"]
    assert response.usage is not None
    assert response.usage.output_tokens_details.reasoning_tokens == 2


async def test_what_was_streamed_is_what_is_fetched() -> None:
    gateway = says(Thinking("Hm"), Source(1, "https://example.org", "Page"), Text("See "), Text("[[1]]"), END)
    async with asked(gateway) as (proxy, client):
        async with client.responses.stream(model="qwen", input="Hi") as stream:
            kinds = [event.type async for event in stream]
            final = await stream.get_final_response()
        assert (kinds[0], kinds[1], kinds[-1]) == (
            "response.created",
            "response.in_progress",
            "response.completed",
        )
        _, stored = await body_of(proxy, f"/v1/responses/{final.id}")
    assert final.output_text == "See [[1]]"
    assert Response.model_validate(stored, strict=True).output_text == "See [[1]]"
    assert json.loads(final.model_dump_json(exclude_unset=True))["completed_at"] == stored["completed_at"]


async def test_every_prefix() -> None:
    async with running(ScriptedGateway()) as proxy, httpx.AsyncClient(trust_env=False) as http:
        for prefix in ("/v1", "/api", "/api/v1"):
            answer = await http.post(f"{proxy.url}{prefix}/responses", json={"input": "Hi"})
            assert answer.status_code == 200
            found = await http.get(f"{proxy.url}{prefix}/responses/{answer.json()['id']}")
            assert found.json() == answer.json()


async def test_a_call_and_its_result() -> None:
    def script(request: ChatRequest) -> Sequence[Step]:
        if request.messages[-1].role == "tool":
            return [START, Text("Warm"), END]
        return [START, Text("I look."), CALL, Finished("tool_calls")]

    gateway = ScriptedGateway(script)
    async with asked(gateway) as (_, client):
        first = await client.responses.create(model="qwen", input="Weather?", tools=[WEATHER])
        (call,) = [item for item in first.output if item.type == "function_call"]
        assert (call.name, json.loads(call.arguments), call.call_id) == (
            "weather",
            {"place": "Kyiv"},
            "call_1",
        )
        told: Any = [{"type": "function_call_output", "call_id": call.call_id, "output": "20"}]
        second = await client.responses.create(
            model="qwen", previous_response_id=first.id, input=told, tools=[WEATHER]
        )
        history: Any = [{"role": "user", "content": "Weather?"}, *first.model_dump()["output"], *told]
        third = await client.responses.create(model="qwen", input=history, tools=[WEATHER], store=False)
    assert (second.output_text, third.output_text) == ("Warm", "Warm")
    ref = gateway.asked[1].conversation
    assert ref is not None
    assert (ref.id, ref.appends, ref.is_chat) == ("response-1", True, False)
    assert gateway.asked[2].messages == (
        Message("user", "Weather?"),
        Message("assistant", "I look.", calls=(ToolCall("call_1", "weather", '{"place":"Kyiv"}'),)),
        Message("tool", "20", call_id="call_1"),
    )


async def test_a_streamed_call() -> None:
    async with (
        asked(says(CALL, Finished("tool_calls"))) as (_, client),
        client.responses.stream(model="qwen", input="Weather?", tools=[WEATHER]) as stream,
    ):
        pieces = [
            event.delta async for event in stream if event.type == "response.function_call_arguments.delta"
        ]
    assert "".join(pieces) == CALL.arguments


async def test_a_structured_answer() -> None:
    class Place(BaseModel):
        name: str

    gateway = says(Text('{"name":"Kyiv"}'), END)
    async with asked(gateway) as (_, client):
        answer = await client.responses.parse(model="qwen", input="Where?", text_format=Place)
    assert answer.output_parsed == Place(name="Kyiv")
    form = gateway.asked[0].answer_format
    assert form is not None
    assert form.schema["required"] == ["name"]


async def test_an_answer_that_is_not_to_be_stored() -> None:
    gateway = ScriptedGateway()
    async with asked(gateway) as (_, client):
        answer = await client.responses.create(model="qwen", input="Hi", store=False)
        assert answer.id == "resp_response-1"
        assert not Path("session/responses.sqlite3").exists()
        with pytest.raises(openai.NotFoundError):
            await client.responses.retrieve(answer.id)
    assert not gateway.asked[0].remember


async def test_deleted_is_gone() -> None:
    gateway = ScriptedGateway()
    async with asked(gateway) as (proxy, client):
        answer = await client.responses.create(model="qwen", input="Hi")
        gone = await body_of(proxy, f"/v1/responses/{answer.id}", "DELETE")
        assert gone == (200, {"id": answer.id, "object": "response", "deleted": True})
        assert gateway.forgotten == ["response-1"]
        for call in (client.responses.retrieve, client.responses.delete, client.responses.input_items.list):
            with pytest.raises(openai.NotFoundError) as caught:
                await call(answer.id)
            assert caught.value.code == "response_not_found"


async def test_another_keys_responses_do_not_exist(tmp_path: Path) -> None:
    mine, theirs = bearer("one-key-for-somebody"), bearer("another-key-for-others")
    text = "one-key-for-somebody\nanother-key-for-others scopes=chat"
    async with keyed(tmp_path, text=text) as (proxy, http):
        url = f"{proxy.url}/v1/responses"
        answer = await http.post(url, json={"input": "Hi"}, headers=mine)
        path = f"{url}/{answer.json()['id']}"
        assert (await http.get(path, headers=mine)).json() == answer.json()
        for method, more in (("GET", ""), ("DELETE", ""), ("GET", "/input_items"), ("POST", "/cancel")):
            answered = await http.request(method, path + more, headers=theirs)
            assert (answered.status_code, answered.json()["error"]["code"]) == (404, "response_not_found")
        assert (await http.get(path)).status_code == 401
        assert (await http.get(path, headers=mine)).status_code == 200


async def test_what_is_not_here() -> None:
    async with running(ScriptedGateway()) as proxy:
        assert (await body_of(proxy, "/v1/responses/resp_x"))[0] == 404
        status, body = await body_of(proxy, "/v1/responses/compact", "POST")
        assert (status, body["error"]["code"]) == (404, "not_found")


async def test_a_bug_is_an_internal_error() -> None:
    gateway = ScriptedGateway(responses=None)  # type: ignore[arg-type]
    async with running(gateway) as proxy:
        status, body = await body_of(proxy, "/v1/responses/resp_x")
    assert (status, body["error"]["code"]) == (500, "internal_error")


async def test_a_stream_is_not_taken_up_again() -> None:
    async with asked(ScriptedGateway()) as (proxy, client):
        answer = await client.responses.create(model="qwen", input="Hi")
        status, body = await body_of(proxy, f"/v1/responses/{answer.id}?stream=true")
        assert (status, body["error"]["param"]) == (400, "stream")
        assert (await body_of(proxy, f"/v1/responses/{answer.id}?stream=false"))[0] == 200


# ---- what fails ----


async def test_a_failure_before_the_answer_has_openais_shape() -> None:
    async with asked(ScriptedGateway(lambda request: [Severed("it broke")])) as (_, client):
        for stream in (False, True):
            with pytest.raises(openai.InternalServerError) as caught:
                await client.responses.create(model="qwen", input="Hi", stream=stream)
            assert (caught.value.status_code, caught.value.code) == (502, "upstream_error")


async def test_a_failure_in_mid_stream_is_kept_as_it_was_told() -> None:
    gateway = says(Text("Hel"), 0.05, Severed("it broke"))
    async with asked(gateway) as (proxy, client):
        events = [
            event async for event in await client.responses.create(model="qwen", input="Hi", stream=True)
        ]
        last = events[-1]
        assert last.type == "response.failed"
        assert last.response.error is not None
        assert last.response.error.message == "it broke"
        _, stored = await body_of(proxy, f"/v1/responses/{last.response.id}")
    assert stored["status"] == "failed"
    assert stored["output"][0]["content"][0]["text"] == "Hel"
    assert Response.model_validate(stored).error == last.response.error


async def test_an_unknown_answer_cannot_be_continued() -> None:
    told = UnknownPrevious("there is no such answer", param="previous_response_id")
    async with asked(ScriptedGateway(lambda request: [told])) as (_, client):
        with pytest.raises(openai.BadRequestError) as caught:
            await client.responses.create(model="qwen", input="Hi", previous_response_id="resp_x")
    assert (caught.value.code, caught.value.param) == ("previous_response_not_found", "previous_response_id")


async def test_an_answer_is_given_also_where_it_cannot_be_kept() -> None:
    Path("session").mkdir()
    Path("session/responses.sqlite3").mkdir()
    async with asked(ScriptedGateway()) as (_, client):
        assert (await client.responses.create(model="qwen", input="Hi")).output_text == "Hello, you!"
        with pytest.raises(openai.InternalServerError):
            await client.responses.retrieve("resp_response-1")
        with pytest.raises(openai.InternalServerError):
            await client.responses.create(model="qwen", input="Hi", background=True)


# ---- what was asked ----


async def test_input_items_are_listed() -> None:
    items: Any = [{"role": "user", "content": str(number)} for number in range(5)]
    async with asked(ScriptedGateway()) as (proxy, client):
        answer = await client.responses.create(model="qwen", input=items)
        ids = [f"msg_response-1_in{number}" for number in range(5)]
        newest = await client.responses.input_items.list(answer.id)
        assert [item.id for item in newest.data] == ids[::-1]
        assert not newest.has_more
        page = await client.responses.input_items.list(answer.id, order="asc", limit=2)
        assert ([item.id for item in page.data], page.has_more) == (ids[:2], True)
        assert [
            item.id async for item in client.responses.input_items.list(answer.id, order="asc", limit=2)
        ] == ids
        after = await client.responses.input_items.list(answer.id, order="asc", after=ids[3])
        assert [item.id for item in after.data] == ids[4:]
        _, empty = await body_of(proxy, f"/v1/responses/{answer.id}/input_items?after={ids[0]}")
        assert (empty["data"], empty["first_id"], empty["has_more"]) == ([], "", False)
        for query in ("order=up", "limit=0", "limit=101", "limit=x", "limit=99999999999999", "after=nobody"):
            status, body = await body_of(proxy, f"/v1/responses/{answer.id}/input_items?{query}")
            assert (status, body["error"]["param"]) == (400, query.partition("=")[0])


async def test_stored_items_may_be_referred_to() -> None:
    gateway = says(Thinking("Hm"), Text("Hello"), CALL, Finished("tool_calls"))
    async with asked(gateway) as (_, client):
        first = await client.responses.create(model="qwen", input="Hi", tools=[WEATHER])
        references = [{"type": "item_reference", "id": item.id} for item in first.output]
        said: Any = [
            {"type": "item_reference", "id": "msg_response-1_in0"},
            *references,
            {"id": "rs_gone_0", "type": "item_reference"},
            {"type": "function_call_output", "call_id": "call_1", "output": "20"},
        ]
        await client.responses.create(model="qwen", input=said, tools=[WEATHER])
        lost: Any = [{"type": "item_reference", "id": "msg_gone_0"}, {"role": "user", "content": "Hi"}]
        with pytest.raises(openai.BadRequestError) as caught:
            await client.responses.create(model="qwen", input=lost)
    assert caught.value.param == "input[0]"
    assert gateway.asked[-1].messages == (
        Message("user", "Hi"),
        Message("assistant", "Hello", calls=(CALL,)),
        Message("tool", "20", call_id="call_1"),
    )


# ---- in the background ----


async def test_a_background_answer_is_polled() -> None:
    go, on = anyio.Event(), anyio.Event()
    gateway = ScriptedGateway(lambda request: [go, START, on, Text("Hello"), END])
    async with asked(gateway) as (proxy, client):
        queued = await client.responses.create(model="qwen", input="Hi", background=True)
        assert (queued.status, queued.background, queued.output) == ("queued", True, [])
        assert (await client.responses.retrieve(queued.id)).status == "queued"
        await until_async(lambda: gateway.opened)
        go.set()
        with anyio.fail_after(5):
            while (await client.responses.retrieve(queued.id)).status != "in_progress":
                await anyio.sleep(0.01)
        assert proxy.admission.inside == 1
        on.set()
        done = await ended(client, queued.id)
        assert (done.status, done.output_text, done.background) == ("completed", "Hello", True)
        assert [item.id for item in (await client.responses.input_items.list(queued.id)).data]
        await proxy.empty()
    assert gateway.asked[0].answer_id == queued.id.removeprefix("resp_")


async def test_a_background_answer_is_streamed_and_goes_on_without_its_client() -> None:
    on = anyio.Event()
    gateway = says(Text("Hel"), on, Text("lo"), END)
    async with asked(gateway) as (proxy, client):
        stream = await client.responses.create(model="qwen", input="Hi", background=True, stream=True)
        response_id = ""
        async for event in stream:
            if event.type == "response.created":
                response_id = event.response.id
            if event.type == "response.output_text.delta":
                break
        await stream.close()
        on.set()
        done = await ended(client, response_id)
        assert (done.status, done.output_text) == ("completed", "Hello")
        await proxy.empty()


async def test_a_streamed_background_answer_ends_as_it_is_kept() -> None:
    async with asked(says(Text("Hel"), 0.01, Text("lo"), END)) as (proxy, client):
        stream = await client.responses.create(model="qwen", input="Hi", background=True, stream=True)
        *_, last = [event async for event in stream]
        assert last.type == "response.completed"
        _, stored = await body_of(proxy, f"/v1/responses/{last.response.id}")
    assert Response.model_validate(stored) == last.response


async def test_a_background_answer_is_cancelled() -> None:
    gateway = says(Text("Hel"), FOREVER)
    async with asked(gateway) as (proxy, client):
        queued = await client.responses.create(model="qwen", input="Hi", background=True)
        await until_async(lambda: gateway.given)
        cancelled = await client.responses.cancel(queued.id)
        assert (cancelled.id, cancelled.status) == (queued.id, "cancelled")
        assert (await client.responses.retrieve(queued.id)).status == "cancelled"
        assert (await client.responses.cancel(queued.id)).status == "cancelled"
        await gateway.all_closed(1, 5)
        await proxy.empty()


async def test_whoever_follows_a_cancelled_answer_is_told() -> None:
    gateway = says(Text("Hel"), FOREVER)
    async with asked(gateway) as (_, client):
        stream = await client.responses.create(model="qwen", input="Hi", background=True, stream=True)
        async for event in stream:
            if event.type == "response.created":
                await client.responses.cancel(event.response.id)
        assert event.type == "response.failed"
        assert event.response.error is not None
        assert event.response.error.message == "the response was cancelled"


async def test_a_deleted_background_answer_ends() -> None:
    gateway = says(Text("Hel"), FOREVER)
    async with asked(gateway) as (proxy, client):
        queued = await client.responses.create(model="qwen", input="Hi", background=True)
        await until_async(lambda: gateway.given)
        await client.responses.delete(queued.id)
        await gateway.all_closed(1, 5)
        await proxy.empty()
        with pytest.raises(openai.NotFoundError):
            await client.responses.retrieve(queued.id)


async def test_only_what_is_in_the_background_is_cancelled() -> None:
    async with asked(ScriptedGateway()) as (_, client):
        answer = await client.responses.create(model="qwen", input="Hi")
        with pytest.raises(openai.BadRequestError):
            await client.responses.cancel(answer.id)
        done = await client.responses.create(model="qwen", input="Hi", background=True)
        done = await ended(client, done.id)
        assert (await client.responses.cancel(done.id)).status == "completed"


@pytest.mark.parametrize("steps", [[Severed("it broke")], [START, Text("Hel"), Severed("it broke")]])
async def test_a_background_answer_that_fails(steps: list[Step]) -> None:
    async with asked(ScriptedGateway(lambda request: steps)) as (_, client):
        queued = await client.responses.create(model="qwen", input="Hi", background=True)
        failed = await ended(client, queued.id)
    assert (failed.id, failed.status) == (queued.id, "failed")
    assert failed.error is not None
    assert failed.error.message == "it broke"


async def test_a_bug_does_not_leave_an_answer_in_progress(caplog: pytest.LogCaptureFixture) -> None:
    async with asked(ScriptedGateway(lambda request: [START, ValueError("bug")])) as (_, client):
        queued = await client.responses.create(model="qwen", input="Hi", background=True)
        failed = await ended(client, queued.id)
    assert failed.status == "failed"
    assert "an answer in the background broke" in caplog.text


async def test_what_ran_when_the_proxy_stopped_failed() -> None:
    gateway = says(Text("Hel"), FOREVER)
    async with asked(gateway) as (_, client):
        stopped = await client.responses.create(model="qwen", input="Hi", background=True)
        await until_async(lambda: gateway.given)
    assert gateway.closed == 1
    async with asked(ScriptedGateway()) as (_, client):
        found = await client.responses.retrieve(stopped.id)
    assert found.status == "failed"
    assert found.error is not None
    assert "stopped" in found.error.message


async def test_what_ran_when_the_proxy_was_killed_failed() -> None:
    gateway = says(Text("Hel"), FOREVER)
    async with asked(gateway) as (_, client):
        queued = await client.responses.create(model="qwen", input="Hi", background=True)
        path = Path("session/responses.sqlite3")
        elsewhere = Path("killed")
        elsewhere.mkdir()
        for name in (path.name, f"{path.name}-wal"):
            (elsewhere / name).write_bytes(path.with_name(name).read_bytes())
    store = ResponseStore(elsewhere, SystemClock(), most=50)
    async with asked(ScriptedGateway(responses=store)) as (_, client):
        found = await client.responses.retrieve(queued.id)
        assert (await client.responses.cancel(queued.id)).status == "failed"
    store.close()
    assert found.status == "failed"
    Response.model_validate(json.loads(found.model_dump_json(exclude_unset=True)))


async def test_background_without_a_memory_is_refused() -> None:
    store = ResponseStore(Path("session"), SystemClock(), most=0)
    async with asked(ScriptedGateway(responses=store)) as (_, client):
        with pytest.raises(openai.BadRequestError, match="REMEMBER_ANSWERS"):
            await client.responses.create(model="qwen", input="Hi", background=True)
        with pytest.raises(openai.BadRequestError, match="store"):
            await client.responses.create(model="qwen", input="Hi", background=True, store=False)


async def test_background_with_a_sign_in_of_its_own_is_refused() -> None:
    gateway = ScriptedGateway()
    async with (
        asked(gateway, passthrough_tokens=True) as (proxy, _),
        httpx.AsyncClient(trust_env=False) as http,
    ):
        token = {"Authorization": "Bearer eyJhbGciOiJIUzI1NiJ9.eyJpZCI6IngifQ.c2ln"}
        body = {"input": "Hi", "background": True}
        answer = await http.post(f"{proxy.url}/v1/responses", json=body, headers=token)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "background")
    assert gateway.opened == 0


async def test_as_many_in_the_background_as_may_be_inside() -> None:
    gateway = says(FOREVER)
    async with asked(gateway, max_in_flight=2) as (proxy, client):
        await client.responses.create(model="qwen", input="Hi", background=True)
        await until_async(lambda: gateway.opened)
        with pytest.raises(openai.RateLimitError) as caught:
            await client.responses.create(model="qwen", input="Hi", background=True)
        assert caught.value.code == "queue_full"
        assert proxy.admission.inside == 1
