"""The stand-in's uploads, spoken to by Alibaba's own SDK: what it takes, and what it must not."""

from __future__ import annotations

import base64
import hashlib
import random
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import alibabacloud_oss_v2 as oss  # type: ignore[import-untyped]
import httpx
import pytest

from qwenproxy.standin.signatures import Authorization, Signed, v4_signature
from tests.serve import Standin, running_standin, until
from tests.standin.uploading import parse, put, status, storage, ticket, uploaded
from tests.standin.visitor import Visitor

BODY = b"The quick brown fox"


@pytest.fixture
def visitor(standin: Standin) -> Iterator[Visitor]:
    with Visitor(standin) as found:
        yield found


def code_of(refusal: pytest.ExceptionInfo[oss.exceptions.OperationError]) -> tuple[int, str]:
    error = refusal.value.unwrap()
    assert isinstance(error, oss.exceptions.ServiceError)
    return error.status_code, error.code


def refused(visitor: Visitor, sts: dict[str, Any], **changes: Any) -> tuple[int, str]:
    with pytest.raises(oss.exceptions.OperationError) as refusal:
        put(visitor, sts, BODY, **changes)
    return code_of(refusal)


def test_a_ticket_has_the_fields_that_were_recorded(visitor: Visitor) -> None:
    sts = ticket(visitor, "my report.pdf", "182734")
    user = sts["file_path"].partition("/")[0]
    assert sts["file_path"] == f"{user}/{sts['file_id']}_my report.pdf"
    assert (sts["bucketname"], sts["region"]) == ("qwen-webui-prod", "oss-ap-southeast-1")
    assert sts["endpoint"] == "oss-accelerate.aliyuncs.com"
    assert sts["access_key_id"].startswith("STS.")
    assert sts["file_url"].startswith(f"{visitor.standin.site}/qwen-webui-prod/{user}/{sts['file_id']}_my%20")
    assert "x-oss-expires=300&" in sts["file_url"]
    other = ticket(visitor, "my report.pdf", 182734)
    assert {sts[key] for key in ("file_id", "access_key_secret", "security_token")}.isdisjoint(other.values())


@pytest.mark.parametrize("key", ["filename", "filesize", "filetype"])
def test_a_ticket_needs_all_three(visitor: Visitor, key: str) -> None:
    body = {"filename": "a.txt", "filesize": "3", "filetype": "file"}
    del body[key]
    answer = visitor.call("POST", "/api/v2/files/getstsToken", body).json()
    assert answer["data"] == {"code": "Bad_Request", "details": "Invalid file information!"}


@pytest.mark.parametrize("headers", [[], ["host"]])
def test_what_was_put_is_read_by_its_signed_address(visitor: Visitor, headers: list[str]) -> None:
    sts = ticket(visitor, "Füße & mehr.txt", str(len(BODY)))
    put(visitor, sts, BODY, additional_headers=headers)
    (found,) = visitor.standin.objects()
    assert found["sha256"] == hashlib.sha256(BODY).hexdigest()
    assert (found["account"], found["path"], found["parts"]) == ("one@example.com", sts["file_path"], 0)
    assert httpx.get(sts["file_url"]).content == BODY
    part = httpx.get(sts["file_url"], headers={"range": "bytes=4-8"})
    assert (part.status_code, part.content) == (206, b"quick")
    again = storage(visitor, sts).get_object(oss.GetObjectRequest("qwen-webui-prod", sts["file_path"]))
    assert again.body is not None
    assert again.body.read() == BODY


def test_a_large_file_comes_in_parts(visitor: Visitor, tmp_path: Path) -> None:
    body = random.Random(1).randbytes(5_000_000)
    (tmp_path / "big").write_bytes(body)
    sts = ticket(visitor, "big.bin", str(len(body)))
    uploader = storage(visitor, sts).uploader(part_size=2 << 20, parallel_num=3)
    uploader.upload_file(oss.PutObjectRequest("qwen-webui-prod", sts["file_path"]), str(tmp_path / "big"))
    (found,) = visitor.standin.objects()
    assert (found["size"], found["parts"]) == (len(body), 3)
    assert found["sha256"] == hashlib.sha256(body).hexdigest()


def test_a_part_that_was_never_put_cannot_be_completed(visitor: Visitor) -> None:
    sts = ticket(visitor)
    client, key = storage(visitor, sts), sts["file_path"]
    begun = client.initiate_multipart_upload(oss.InitiateMultipartUploadRequest("qwen-webui-prod", key))
    parts = oss.CompleteMultipartUpload([oss.UploadPart(1, '"ABC"')])
    request = oss.CompleteMultipartUploadRequest(
        "qwen-webui-prod", key, begun.upload_id, complete_multipart_upload=parts
    )
    with pytest.raises(oss.exceptions.OperationError) as refusal:
        client.complete_multipart_upload(request)
    assert code_of(refusal) == (400, "InvalidPart")
    client.abort_multipart_upload(oss.AbortMultipartUploadRequest("qwen-webui-prod", key, begun.upload_id))
    with pytest.raises(oss.exceptions.OperationError) as refusal:
        client.upload_part(oss.UploadPartRequest("qwen-webui-prod", key, 1, begun.upload_id, body=b"x"))
    assert code_of(refusal) == (404, "NoSuchUpload")
    assert visitor.standin.objects() == []


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"secret": "other"}, "SignatureDoesNotMatch"),
        ({"region": "cn-hangzhou"}, "SignatureDoesNotMatch"),
        ({"key_id": "STS.other"}, "InvalidAccessKeyId"),
        ({"token": "other"}, "InvalidSecurityToken"),
        ({"key": "somebody/else_a.txt"}, "AccessDenied"),
    ],
)
def test_nothing_is_put_but_with_the_ticket_for_it(
    visitor: Visitor, changes: dict[str, str], code: str
) -> None:
    assert refused(visitor, ticket(visitor), **changes) == (403, code)
    assert visitor.standin.objects() == []


def test_credentials_end(visitor: Visitor) -> None:
    visitor.standin.options(sts_s=-1)
    assert refused(visitor, ticket(visitor)) == (403, "SecurityTokenExpired")


def test_addresses_end_and_open_nothing_else(visitor: Visitor) -> None:
    file = uploaded(visitor, BODY, "a.txt")
    bare, _, query = file.url.partition("?")
    assert httpx.get(bare).status_code == 403
    assert httpx.get(f"{bare}x?{query}").status_code == 403
    assert httpx.put(file.url, content=b"mine now").status_code == 403
    visitor.standin.options(link_s=-1)
    again = visitor.call("POST", "/api/v2/files/getfilelink", {"fileUrl": file.url}).json()["data"]["fileUrl"]
    assert httpx.get(again).status_code == 403
    visitor.standin.options(link_s=300)
    fresh = visitor.call("POST", "/api/v2/files/getfilelink", {"fileUrl": again}).json()["data"]["fileUrl"]
    assert httpx.get(fresh).content == BODY
    with Visitor(visitor.standin, "two@example.com") as other:
        gone = other.call("POST", "/api/v2/files/getfilelink", {"fileUrl": file.url}).json()
    assert gone["data"]["code"] == "Not_Found"


def test_a_ticket_without_its_object_is_read_as_missing(visitor: Visitor) -> None:
    assert httpx.get(ticket(visitor)["file_url"]).status_code == 404


def test_a_document_is_read_in_a_while(visitor: Visitor) -> None:
    visitor.standin.options(parse_s=1000)
    sts = ticket(visitor)
    unknown = visitor.call("POST", "/api/v2/files/parse", {"file_id": sts["file_id"]}).json()
    assert unknown["data"]["details"].endswith("is not exist.")
    put(visitor, sts, BODY)
    assert parse(visitor, sts["file_id"], "running")["error_msg"] == ""
    visitor.standin.options(parse_s=0)
    assert parse(visitor, sts["file_id"]) == {
        "file_id": sts["file_id"],
        "status": "success",
        "error_msg": "",
        "error_code": None,
        "retry": False,
    }
    assert visitor.standin.objects()[0]["parsed"] == "success"


def test_reading_fails_or_never_ends_when_told(visitor: Visitor) -> None:
    visitor.standin.options(parse_s=0)
    sts = ticket(visitor)
    put(visitor, sts, BODY)
    visitor.standin.fault("parse_failed", on="parse", error="Too many pages.")
    assert parse(visitor, sts["file_id"], "failed")["error_msg"] == "Too many pages."
    visitor.standin.fault("parse_hangs", on="parse")
    parse(visitor, sts["file_id"], "running")
    assert status(visitor, sts["file_id"])["status"] == "running"
    visitor.standin.fault("parse_failed", on="parse")
    visitor.standin.fault("rate_limited", on="parse")
    assert not visitor.call("POST", "/api/v2/files/parse", {"file_id": sts["file_id"]}).json()["success"]


def test_faults_of_tickets_and_storage(visitor: Visitor) -> None:
    visitor.standin.fault("sts_refused", on="sts")
    body = {"filename": "a.txt", "filesize": "3", "filetype": "file"}
    answer = visitor.call("POST", "/api/v2/files/getstsToken", body).json()
    assert (answer["success"], answer["data"]["message"]) == (False, "Upload is not available.")
    sts = ticket(visitor)
    visitor.standin.fault("oss_error", on="storage", status=500, code="InternalError")
    assert refused(visitor, sts) == (500, "InternalError")
    visitor.standin.fault("oss_severed", on="storage")
    with pytest.raises(oss.exceptions.OperationError):
        put(visitor, sts, b"x" * 3_000_000)
    assert visitor.standin.objects() == []
    for name in ("oss_wrong_crc", "oss_slow"):
        visitor.standin.fault(name, on="storage")
        with pytest.raises(oss.exceptions.OperationError):
            put(visitor, sts, BODY, timeout_s=0.2 if name == "oss_slow" else 10)
    visitor.standin.fault("oss_slow", on="storage", s=0.05)
    put(visitor, sts, BODY)
    struck = [each["struck"] for each in visitor.standin.received("/qwen-webui-prod/")]
    assert struck == [["oss_error"], ["oss_severed"], ["oss_wrong_crc"], ["oss_slow"], ["oss_slow"]]


def signed(visitor: Visitor, sts: dict[str, Any], method: str = "PUT", **headers: str) -> dict[str, str]:
    """The headers of a call that the SDK would not make."""
    now = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    known = {
        "x-oss-date": now,
        "x-oss-security-token": sts["security_token"],
        "x-oss-content-sha256": "UNSIGNED-PAYLOAD",
        **{name.replace("_", "-"): value for name, value in headers.items()},
    }
    asked = Authorization(sts["access_key_id"], now[:8], "ap-southeast-1", (), "")
    path = f"/qwen-webui-prod/{sts['file_path']}"
    right = v4_signature(Signed(method, path, "", known), sts["access_key_secret"], asked)
    credential = f"{asked.access_key_id}/{asked.date}/{asked.region}/oss/aliyun_v4_request"
    return {**known, "authorization": f"OSS4-HMAC-SHA256 Credential={credential},Signature={right}"}


def test_calls_that_make_no_sense_are_refused(visitor: Visitor) -> None:
    sts = ticket(visitor)
    url = f"{visitor.standin.site}/qwen-webui-prod/{sts['file_path']}"
    old = httpx.put(url, content=BODY, headers=signed(visitor, sts, x_oss_date="20200101T000000Z"))
    assert (old.status_code, "<Code>RequestTimeTooSkewed</Code>" in old.text) == (403, True)
    never = httpx.put(url, content=BODY, headers=signed(visitor, sts, x_oss_date="now"))
    assert never.status_code == 403
    other = base64.b64encode(hashlib.md5(b"other", usedforsecurity=False).digest()).decode()
    damaged = httpx.put(url, content=BODY, headers=signed(visitor, sts, content_md5=other))
    assert (damaged.status_code, "<Code>InvalidDigest</Code>" in damaged.text) == (400, True)
    assert httpx.delete(url, headers=signed(visitor, sts, "DELETE")).status_code == 405
    assert httpx.put(url, content=BODY).status_code == 403
    assert visitor.standin.objects() == []
    assert httpx.put(url, content=BODY, headers=signed(visitor, sts)).status_code == 200


def test_parts_may_be_put_again_and_are_joined_by_number(visitor: Visitor) -> None:
    sts = ticket(visitor)
    client, key = storage(visitor, sts), sts["file_path"]
    begun = client.initiate_multipart_upload(oss.InitiateMultipartUploadRequest("qwen-webui-prod", key))
    tags = {}
    for number, body in ((2, b"old"), (1, b"one "), (2, b"two ")):
        request = oss.UploadPartRequest("qwen-webui-prod", key, number, begun.upload_id, body=body)
        tags[number] = client.upload_part(request).etag
    for listed in ([], [oss.UploadPart(1, tags[2])]):
        request = oss.CompleteMultipartUploadRequest("qwen-webui-prod", key, begun.upload_id)
        request.complete_multipart_upload = oss.CompleteMultipartUpload(listed)
        with pytest.raises(oss.exceptions.OperationError) as refusal:
            client.complete_multipart_upload(request)
        assert code_of(refusal) == (400, "InvalidPart")
    parts = [oss.UploadPart(number, tags[number]) for number in (1, 2)]
    request.complete_multipart_upload = oss.CompleteMultipartUpload(parts)
    client.complete_multipart_upload(request)
    assert httpx.get(sts["file_url"]).content == b"one two "


def test_nothing_stays_of_an_upload_that_was_cut(tmp_path: Path) -> None:
    kept = tmp_path / "temporary"
    kept.mkdir()
    with running_standin(tmp_path, temporary=kept) as standin, Visitor(standin) as visitor:
        sts = ticket(visitor)
        headers = {**signed(visitor, sts), "content-length": "9000000", "host": "127.0.0.1"}
        lines = [
            f"PUT /qwen-webui-prod/{sts['file_path']} HTTP/1.1",
            *(f"{k}: {v}" for k, v in headers.items()),
        ]
        with socket.create_connection(("127.0.0.1", httpx.URL(standin.site).port or 0)) as wire:
            wire.sendall("\r\n".join([*lines, "", ""]).encode() + b"x" * 3_000_000)
            until(lambda: any(each.is_file() and each.stat().st_size for each in kept.rglob("*")))
        until(lambda: not any(each.is_file() for each in kept.rglob("*")))
        assert standin.objects() == []


def test_the_records_keep_neither_bodies_nor_secrets(visitor: Visitor) -> None:
    file = uploaded(visitor, BODY, "a.txt")
    httpx.get(file.url)
    one, two = visitor.standin.received("/qwen-webui-prod/")
    assert (one["method"], one["body"], two["body"]) == ("PUT", None, None)
    assert "?" not in one["path"] + two["path"]
    assert not {"authorization", "x-oss-security-token"} & {*one["headers"], *two["headers"]}


def test_nothing_stays_on_disk(tmp_path: Path) -> None:
    kept = tmp_path / "temporary"
    kept.mkdir()
    with running_standin(tmp_path, temporary=kept) as standin, Visitor(standin) as visitor:
        uploaded(visitor, BODY, "a.txt")
        assert len([*kept.rglob("*")]) == 2
        standin.reset(sessions=False)
        assert [*kept.iterdir()] == []
        uploaded(visitor, BODY, "b.txt")
        assert [*kept.iterdir()] != []
    assert [*kept.iterdir()] == []
