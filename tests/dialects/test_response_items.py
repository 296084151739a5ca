"""The input of Responses, read as messages, and listed again."""

from __future__ import annotations

import json
from typing import Any

import pytest
from openai.types.responses import ResponseItemList

from qwenproxy.chat import Attachment, Message, ToolCall
from qwenproxy.dialects.response_items import LEFT_OUT, Input, kind_of, listed, read_input
from qwenproxy.errors import CallerError

HELLO = {"role": "user", "content": "Hello"}


def read(*items: Any) -> Input:
    return read_input({"input": list(items)})


def messages(*items: Any) -> tuple[Message, ...]:
    return read(*items).messages


def refused(*items: Any) -> tuple[str, str | None]:
    with pytest.raises(CallerError) as caught:
        read(*items)
    assert caught.value.status == 400
    return caught.value.code, caught.value.param


def call(name: str, arguments: str = "{}", **more: Any) -> dict[str, Any]:
    return {"type": "function_call", "call_id": f"call_{name}", "name": name, "arguments": arguments, **more}


def output(name: str, said: Any) -> dict[str, Any]:
    return {"type": "function_call_output", "call_id": f"call_{name}", "output": said}


def test_a_string_is_the_users() -> None:
    said = read_input({"input": "Hello"})
    assert said.messages == (Message("user", "Hello"),)
    assert said.items == ({"type": "message", "role": "user", "content": "Hello"},)


def test_messages_in_both_forms_and_all_roles() -> None:
    parts = [{"type": "input_text", "text": "one"}, {"type": "input_text", "text": "two"}]
    answer = [{"type": "output_text", "text": "yes", "annotations": []}, {"type": "refusal", "refusal": "no"}]
    assert messages(
        {"role": "system", "content": "a"},
        {"type": "message", "role": "developer", "content": [{"type": "input_text", "text": "b"}]},
        {"type": "message", "role": "user", "content": parts, "id": "msg_1", "status": "completed"},
        {"type": "message", "role": "assistant", "content": answer, "phase": "final_answer"},
        {"role": "assistant", "content": None},
        {"role": "user", "content": [{"type": "text", "text": "as in chat completions"}]},
    ) == (
        Message("system", "a"),
        Message("system", "b"),
        Message("user", "one\ntwo"),
        Message("assistant", "yes\nno"),
        Message("assistant", ""),
        Message("user", "as in chat completions"),
    )


def test_what_a_message_carries() -> None:
    (message,) = messages(
        {
            "role": "user",
            "content": [
                {"type": "input_text", "text": "See"},
                {"type": "input_image", "image_url": "https://example.com/a.png", "detail": "auto"},
                {"type": "input_file", "filename": "a.txt", "file_data": "data:text/plain;base64,QQ=="},
            ],
        }
    )
    assert message.text == "See"
    assert message.attachments == (
        Attachment("image", "https://example.com/a.png"),
        Attachment("file", "data:text/plain;base64,QQ==", "a.txt"),
    )
    assert [attachment.place for attachment in message.attachments] == [
        "input[0].content[1]",
        "input[0].content[2]",
    ]


def test_calls_belong_to_the_assistants_message_before_them() -> None:
    assert messages(
        HELLO,
        {"role": "assistant", "content": "I look."},
        {"type": "reasoning", "id": "rs_1", "summary": []},
        call("a", '{"x":1}'),
        call("b", ""),
        output("a", "one"),
        output("b", [{"type": "input_text", "text": "two"}, {"type": "input_text", "text": "lines"}]),
        call("c"),
        output("c", None),
        {"role": "assistant", "content": "Done."},
    ) == (
        Message("user", "Hello"),
        Message(
            "assistant", "I look.", calls=(ToolCall("call_a", "a", '{"x":1}'), ToolCall("call_b", "b", "{}"))
        ),
        Message("tool", "one", call_id="call_a"),
        Message("tool", "two\nlines", call_id="call_b"),
        Message("assistant", "", calls=(ToolCall("call_c", "c", "{}"),)),
        Message("tool", "", call_id="call_c"),
        Message("assistant", "Done."),
    )


def test_results_alone_are_an_input() -> None:
    assert messages(output("a", "4")) == (Message("tool", "4", call_id="call_a"),)


def test_a_result_may_hold_a_picture() -> None:
    (message,) = messages(output("a", [{"type": "input_image", "image_url": "https://example.com/a.png"}]))
    assert message.attachments == (Attachment("image", "https://example.com/a.png"),)


def test_calls_of_every_kind() -> None:
    custom = {"type": "custom_tool_call", "call_id": "c1", "name": "apply_patch", "input": '"x"\n'}
    search = {"type": "tool_search_call", "call_id": "c2", "arguments": {"query": "q"}, "execution": "client"}
    shell = {"type": "local_shell_call", "call_id": "c3", "action": {"type": "exec", "command": ["ls"]}}
    patch = {"type": "apply_patch_call", "call_id": "c4", "operation": {"type": "delete_file", "path": "a"}}
    (message,) = messages(call("close", namespace="agents"), custom, search, shell, patch)
    assert message.calls == (
        ToolCall("call_close", "agents__close", "{}"),
        ToolCall("c1", "apply_patch", '{"input":"\\"x\\"\\n"}'),
        ToolCall("c2", "tool_search", '{"query":"q"}'),
        ToolCall("c3", "local_shell", '{"type":"exec","command":["ls"]}'),
        ToolCall("c4", "apply_patch", '{"type":"delete_file","path":"a"}'),
    )


def test_results_of_every_kind() -> None:
    shell = {"type": "shell_call_output", "call_id": "c2", "output": [{"stdout": "a", "stderr": ""}]}
    assert messages(
        {"type": "custom_tool_call_output", "call_id": "c1", "output": "ok"},
        shell,
        {"type": "local_shell_call_output", "id": "c3", "output": '{"output":"b"}'},
    ) == (
        Message("tool", "ok", call_id="c1"),
        Message("tool", '[{"stdout":"a","stderr":""}]', call_id="c2"),
        Message("tool", '{"output":"b"}', call_id="c3"),
    )


def test_a_call_of_a_hosted_mcp_server_is_told_with_its_result() -> None:
    item = {"type": "mcp_call", "id": "mcp_1", "server_label": "s", "name": "find", "arguments": '{"q":1}'}
    asked = ToolCall("mcp_1", "find", '{"q":1}')
    assert messages({**item, "output": "found"}) == (
        Message("assistant", "", calls=(asked,)),
        Message("tool", "found", call_id="mcp_1"),
    )
    assert messages({**item, "output": None, "error": "broken"})[1].text == "broken"


def test_tools_that_come_as_items() -> None:
    tool = {"type": "function", "name": "later", "parameters": {}}
    agents = {"type": "namespace", "name": "agents", "tools": [tool]}
    found = read(
        {"type": "additional_tools", "role": "developer", "tools": [tool]},
        HELLO,
        {"type": "tool_search_call", "call_id": "c1", "arguments": {"query": "x"}, "execution": "client"},
        {"type": "tool_search_output", "call_id": "c1", "tools": [tool, {**tool, "name": "other"}, agents]},
        {"type": "tool_search_output", "call_id": "c2", "tools": []},
    )
    assert [(row["name"], place) for row, place in found.tools] == [
        ("later", "input[0].tools[0]"),
        ("later", "input[3].tools[0]"),
        ("other", "input[3].tools[1]"),
        ("agents", "input[3].tools[2]"),
    ]
    assert found.messages[-2:] == (
        Message("tool", "Found: later, other, agents__later", call_id="c1"),
        Message("tool", "Nothing was found.", call_id="c2"),
    )


def test_another_agent_speaks_as_a_user() -> None:
    content = [
        {"type": "input_text", "text": "Done"},
        {"type": "encrypted_content", "encrypted_content": "x"},
    ]
    assert messages({"type": "agent_message", "author": "/root/a", "content": content}) == (
        Message("user", "Done"),
    )


@pytest.mark.parametrize("kind", sorted(LEFT_OUT))
def test_what_other_services_did_is_left_out(kind: str) -> None:
    assert messages(HELLO, {"type": kind, "id": "x"}) == messages(HELLO)


@pytest.mark.parametrize(
    ("item", "param"),
    [
        ("Hello", "input[1]"),
        ({}, "input[1]"),
        ({"type": 5}, "input[1]"),
        ({"type": "smell"}, "input[1]"),
        ({"type": "item_reference", "id": "msg_1"}, "input[1]"),
        ({"id": "msg_1"}, "input[1]"),
        ({"type": "message", "content": "x"}, "input[1].role"),
        ({"role": ["user"], "content": "x"}, "input[1].role"),
        ({"role": "tool", "content": "x"}, "input[1].role"),
        ({"role": "user"}, "input[1].content"),
        ({"role": "user", "content": 5}, "input[1].content"),
        ({"role": "user", "content": ["x"]}, "input[1].content[0]"),
        ({"role": "user", "content": [{"type": "smell"}]}, "input[1].content[0]"),
        ({"role": "user", "content": [{"type": "input_text"}]}, "input[1].content[0]"),
        ({"role": "user", "content": [{"type": "input_image"}]}, "input[1].content[0]"),
        ({"type": "function_call", "call_id": "c"}, "input[1].name"),
        ({"type": "function_call", "call_id": 5, "name": "x"}, "input[1].call_id"),
        ({"type": "function_call", "call_id": "c", "name": "x", "arguments": 5}, "input[1].arguments"),
        ({"type": "custom_tool_call", "call_id": "c", "name": "x", "input": {}}, "input[1].input"),
        ({"type": "function_call_output", "output": [{"type": "smell"}]}, "input[1].output[0]"),
        ({"type": "tool_search_output", "tools": {}}, "input[1].tools"),
        ({"type": "additional_tools"}, "input[1].tools"),
    ],
)
def test_what_cannot_be_read_is_named(item: Any, param: str) -> None:
    assert refused(HELLO, item) == ("invalid_request", param)


@pytest.mark.parametrize("kind", ["compaction", "compaction_trigger", "context_compaction"])
def test_compactions_are_refused(kind: str) -> None:
    assert refused(HELLO, {"type": kind, "encrypted_content": "x"}) == ("unsupported_parameter", "input[1]")


@pytest.mark.parametrize(
    "raw", [None, 5, {}, [], "", [{"role": "system", "content": "x"}], [{**HELLO, "content": ""}]]
)
def test_nothing_to_answer(raw: Any) -> None:
    with pytest.raises(CallerError) as caught:
        read_input({"input": raw})
    assert caught.value.param == "input"


def test_types_that_go_without_saying() -> None:
    assert kind_of({"role": "user"}) == "message"
    assert kind_of({"id": "x"}) == "item_reference"
    assert kind_of({"type": "reasoning"}) == "reasoning"
    assert kind_of({}) == ""


def test_items_are_listed_in_their_full_form() -> None:
    picture = {"type": "input_image", "image_url": "data:image/png;base64,AAAA"}
    address = {"type": "input_image", "image_url": "https://example.com/a.png", "detail": "low"}
    file = {"type": "input_file", "file_data": "QUJD", "filename": "a"}
    found = listed(
        (
            {"type": "message", "role": "user", "content": "Hello"},
            {"role": "assistant", "content": "Hi", "id": "msg_theirs"},
            {"role": "user", "content": [picture, address, file]},
            call("a"),
            output("a", [picture]),
            {"type": "reasoning", "id": "rs_1", "summary": []},
        ),
        "r1",
    )
    ResponseItemList.model_validate(
        {"object": "list", "data": found, "first_id": "a", "last_id": "b", "has_more": False}, strict=True
    )
    assert [item["id"] for item in found] == [
        "msg_r1_in0",
        "msg_theirs",
        "msg_r1_in2",
        "fc_r1_in3",
        "fco_r1_in4",
        "rs_1",
    ]
    assert found[0]["content"] == [{"type": "input_text", "text": "Hello"}]
    assert found[1]["content"] == [{"type": "output_text", "text": "Hi", "annotations": []}]
    assert found[2]["content"] == [
        {"type": "input_image", "image_url": None, "detail": "auto"},
        address,
        {"type": "input_file", "file_data": None, "filename": "a"},
    ]
    assert "base64" not in json.dumps(found)


def test_what_is_no_part_is_listed_as_it_is() -> None:
    (item,) = listed(({"type": "shell_call_output", "id": "x", "output": [{"stdout": "a"}, "b"]},), "r1")
    assert item["output"] == [{"stdout": "a"}, "b"]


def test_names_of_found_tools_that_have_none() -> None:
    output = {"type": "tool_search_output", "tools": [{"type": "namespace", "name": "n", "tools": [5, {}]}]}
    assert messages(output) == (Message("tool", "Nothing was found."),)
