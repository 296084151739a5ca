"""Signing in and renewing, in both eras (protocol §1.2–1.3)."""

from __future__ import annotations

import time

import httpx
import jwt
import pytest

from tests.serve import Standin
from tests.standin.visitor import Visitor, hashed, new_body

HEADERS = {"version": "0.3.12", "source": "web", "x-request-origin": "http://127.0.0.1"}


def sign_in(standin: Standin, password: str = "secret", email: str = "one@example.com") -> httpx.Response:
    host = standin.auth if standin.era == "C" else standin.site
    body = {"email": email, "password": password if len(password) == 64 else hashed(password)}
    return httpx.post(f"{host}/api/v2/auths/signin", json=body, headers=HEADERS)


def me(standin: Standin, token: str) -> httpx.Response:
    return httpx.get(f"{standin.auth}/api/v2/auths/", headers={"authorization": f"Bearer {token}"})


def test_a_sign_in_gives_a_short_token_and_a_hidden_cookie(standin: Standin) -> None:
    answer = sign_in(standin)
    token = answer.json()["data"]["access_token"]
    claims = jwt.decode(token, options={"verify_signature": False})
    assert claims["exp"] - claims["iat"] == 900
    assert claims["type"] == "access_token"
    assert "HttpOnly" in answer.headers["set-cookie"]
    assert me(standin, token).json()["data"]["email"] == "one@example.com"


@pytest.mark.parametrize("standin", ["B"], indirect=True)
def test_an_older_sign_in_gives_a_long_token_in_a_cookie(standin: Standin) -> None:
    answer = sign_in(standin)
    token = answer.json()["data"]["token"]
    assert answer.cookies["token"] == token
    assert jwt.decode(token, options={"verify_signature": False})["exp"] > time.time() + 29 * 86_400
    flat = httpx.get(f"{standin.site}/api/v1/auths/", cookies={"token": token}).json()
    assert (flat["email"], flat["role"]) == ("one@example.com", "user")
    assert httpx.get(f"{standin.site}/api/v1/auths/").status_code == 401


def test_bad_sign_ins(standin: Standin) -> None:
    assert sign_in(standin, "wrong").json()["data"]["code"] == "INVALID_CRED"
    body = {"email": "one@example.com", "password": "unhashed"}
    url = f"{standin.auth}/api/v2/auths/signin"
    assert httpx.post(url, json=body, headers=HEADERS).json()["data"]["code"] == "INVALID_CRED"
    bare = httpx.post(url, json=body, headers={"version": "1"}).json()
    assert bare["data"]["details"] == "Invalid request header"


def test_an_address_that_is_not_confirmed_is_refused_or_waits(standin: Standin) -> None:
    email = "pending@example.com"
    standin.options(pending="refused")
    assert sign_in(standin, email=email).json()["data"]["code"] == "ACCOUNT_PENDING"
    standin.options(pending="overlay")
    token = sign_in(standin, email=email).json()["data"]["access_token"]
    assert me(standin, token).json()["data"]["role"] == "pending"
    standin._control("POST", "activate", {"account": email})
    assert me(standin, token).json()["data"]["role"] == "user"
    standin.options(pending="refused")
    assert sign_in(standin, email=email).json()["success"] is True


def test_a_refresh_token_may_be_good_for_one_renewal(standin: Standin) -> None:
    standin.options(rotate_refresh=True)
    url = f"{standin.auth}/api/v2/auths/refresh"
    first = sign_in(standin).cookies
    answer = httpx.get(url, cookies=first, headers=HEADERS)
    second = answer.cookies
    assert answer.json()["data"]["refresh_token"] == second["refresh_token"] != first["refresh_token"]
    assert "HttpOnly" in answer.headers["set-cookie"]
    assert httpx.get(url, cookies=first, headers=HEADERS).json()["data"]["code"] == "Unauthorized"
    assert httpx.get(url, cookies=second, headers=HEADERS).json()["success"] is True
    assert me(standin, answer.json()["data"]["access_token"]).json()["success"] is True


def test_a_renewal_needs_the_session_alone(standin: Standin) -> None:
    cookies = sign_in(standin).cookies
    url = f"{standin.auth}/api/v2/auths/refresh"
    renewed = httpx.get(url, cookies=cookies, headers=HEADERS).json()["data"]["access_token"]
    assert me(standin, renewed).json()["success"] is True
    standin.expire()
    gone = me(standin, renewed)
    assert (gone.status_code, gone.headers["x-actual-status-code"]) == (200, "401")
    assert gone.json()["data"] == {"code": "Unauthorized", "details": "401 Unauthorized"}
    again = httpx.get(url, cookies=cookies, headers=HEADERS).json()["data"]["access_token"]
    assert me(standin, again).json()["success"] is True
    standin.revoke("one@example.com")
    assert me(standin, again).headers["x-actual-status-code"] == "401"
    assert httpx.get(url, cookies=cookies, headers=HEADERS).json()["data"]["code"] == "Unauthorized"


def test_a_token_expires_by_itself(standin: Standin) -> None:
    standin.options(access_token_s=0.0)
    with Visitor(standin, booted=False) as visitor:
        answer = visitor.call("POST", "/api/v2/chats/new", new_body())
    assert answer.json()["data"]["code"] == "Unauthorized"
    assert answer.headers["x-actual-status-code"] == "401"


def test_real_statuses_can_be_put_on_the_wire(standin: Standin) -> None:
    standin.options(real_statuses=True)
    assert me(standin, "nobody's").status_code == 401


def test_the_auth_host_shares_with_the_site_alone(standin: Standin) -> None:
    url = f"{standin.auth}/api/v2/auths/refresh"
    asked = {"origin": standin.site, "access-control-request-headers": "version,x-request-origin"}
    preflight = httpx.options(url, headers=asked)
    assert preflight.status_code == 204
    assert preflight.headers["access-control-allow-origin"] == standin.site
    assert preflight.headers["access-control-allow-credentials"] == "true"
    assert preflight.headers["access-control-allow-headers"] == "version,x-request-origin"
    other = httpx.get(url, headers={"origin": "http://evil.example"})
    assert "access-control-allow-origin" not in other.headers


def test_site_and_auth_host_are_two_hosts(standin: Standin) -> None:
    assert httpx.get(f"{standin.auth}/").status_code == 404
    there = httpx.get(f"{standin.site}/api/v2/auths/refresh")
    assert there.json()["data"]["code"] == "Not_Found"


def test_signing_out_ends_the_session(standin: Standin) -> None:
    token = sign_in(standin).json()["data"]["access_token"]
    httpx.get(f"{standin.auth}/api/v2/auths/signout", headers={"authorization": f"Bearer {token}"})
    assert me(standin, token).headers["x-actual-status-code"] == "401"
