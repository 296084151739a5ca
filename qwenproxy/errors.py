"""Every error the proxy raises on purpose, with the HTTP status and the `code` a client sees.

QwenProxyError                      500 internal_error
├── CallerError                     400 invalid_request        the request itself is at fault; never retried
│   ├── BadRequest                  400 invalid_request
│   │   └── FileGone                400 invalid_request        the account has no such file (any more)
│   ├── UnsupportedParameter        400 unsupported_parameter
│   ├── ContentBlocked              400 content_blocked        the service's moderation refused it
│   ├── ContextTooLong              400 context_length_exceeded
│   ├── OriginRefused               403 origin_refused         a web page or a foreign host name
│   ├── NotAllowed                  403 not_allowed
│   ├── InvalidKey                  401 invalid_api_key        no key, or not one of ours
│   ├── UnknownModel                404 model_not_found
│   ├── UnknownChat                 404 chat_not_found         no such chat or message, or another key's
│   ├── ChatDamaged                 409 chat_damaged           its file is there and cannot be read
│   ├── UnknownFile                 404 file_not_found         no such file, or another key's
│   ├── UnsupportedFile             400 unsupported_file       the model or the service takes no such file
│   ├── NotFetched                  400 url_not_fetched        an address in the request that gives no file
│   ├── UnknownTask                 404 task_not_found         no such video, or another key's
│   ├── UnknownResponse             404 response_not_found     no such stored response, or another key's
│   ├── UnknownPrevious             400 previous_response_not_found   what a request goes on from is not known
│   ├── KeyLimit                    429 key_limit              this key asks too often, or too much at once
│   ├── NotFound                    404 not_found
│   ├── MethodNotAllowed            405 method_not_allowed
│   ├── TooLarge                    413 too_large
│   └── WrongMediaType              415 unsupported_media_type
├── AccountsError                                              no account can answer now
│   ├── NoAccount                   503 no_account
│   ├── AllWaiting                  429 all_accounts_waiting
│   ├── QueueFull                   429 queue_full
│   ├── AccountGone                 503 no_account             its owner has deleted it
│   └── SignInFailed                503 no_account             nobody got signed in, and why
├── UpstreamError                   502 upstream_error         Qwen Chat, or the road to it, failed
│   ├── TokenRejected               503 no_account             this account's sign-in is gone     → INVALID
│   ├── LimitReached                429 all_accounts_waiting   this account met a usage limit     → WAIT
│   │   └── ParallelLimited         429 all_accounts_waiting   too many answers at once             → WAIT
│   ├── NeedsHuman                  503 human_check_required   a verification stands in the way   → WAIT
│   ├── ChatBusy                    409 chat_busy              the chat's last answer is not settled
│   ├── ChatGone                    404 chat_not_found         the upstream chat or parent is missing
│   ├── EmptyAnswer                 502 empty_upstream_reply
│   ├── Severed                     502 upstream_error         the answer broke off
│   ├── Unreachable                 502 upstream_unreachable
│   ├── ProtocolChanged             502 protocol_changed
│   ├── UploadFailed                502 upload_failed          its storage did not take a file
│   ├── GenerationFailed            502 generation_failed      a picture, video or speech did not come about
│   ├── InvalidToolCall             502 invalid_tool_call      the model wrote no usable call, twice
│   ├── InvalidAnswer               502 invalid_structured_output   its answer does not fit the format, twice
│   └── UpstreamTimeout             504 upstream_timeout
├── BrowserError                    503 browser_unavailable
│   ├── BrowserMissing              503 browser_unavailable    no Chromium on this computer; how to get one
│   └── BrowserLost                 503 browser_unavailable    page, browser or driver died under a call
├── StoreError                      500 internal_error         the session folder
│   ├── SessionDamaged              500 internal_error         a file is there and cannot be read
│   └── SessionLocked               500 internal_error         another program holds it
├── Cancelled                       409 cancelled              a response in the background was ended
└── ShuttingDown                    503 shutting_down

A message is for people: it never holds a token, a path of this computer or upstream HTML.
"""

from __future__ import annotations


class QwenProxyError(Exception):
    status = 500
    code = "internal_error"
    retry_after_s: float | None = None
    """Seconds after which trying again makes sense; becomes `Retry-After`."""
    conversation_id: str = ""
    """The chat of ours in which it happened, where there is one."""
    ends_connection = False
    """Whether the rest of what the client sends is not waited for."""


class CallerError(QwenProxyError):
    status = 400
    code = "invalid_request"

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param
        """The field of the request that is at fault, where one is."""


class BadRequest(CallerError):
    pass


class FileGone(BadRequest):
    pass


class UnsupportedParameter(CallerError):
    code = "unsupported_parameter"


class ContentBlocked(CallerError):
    code = "content_blocked"


class ContextTooLong(CallerError):
    code = "context_length_exceeded"


class OriginRefused(CallerError):
    status = 403
    code = "origin_refused"


class NotAllowed(CallerError):
    status = 403
    code = "not_allowed"


class InvalidKey(CallerError):
    status = 401
    code = "invalid_api_key"


class UnknownChat(CallerError):
    status = 404
    code = "chat_not_found"


class ChatDamaged(CallerError):
    status = 409
    code = "chat_damaged"


class UnknownFile(CallerError):
    status = 404
    code = "file_not_found"


class UnsupportedFile(CallerError):
    code = "unsupported_file"


class NotFetched(CallerError):
    code = "url_not_fetched"


class UnknownTask(CallerError):
    status = 404
    code = "task_not_found"


class UnknownResponse(CallerError):
    status = 404
    code = "response_not_found"


class UnknownPrevious(CallerError):
    code = "previous_response_not_found"


class KeyLimit(CallerError):
    status = 429
    code = "key_limit"

    def __init__(self, message: str, *, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class UnknownModel(CallerError):
    status = 404
    code = "model_not_found"


class NotFound(CallerError):
    status = 404
    code = "not_found"


class MethodNotAllowed(CallerError):
    status = 405
    code = "method_not_allowed"


class TooLarge(CallerError):
    status = 413
    code = "too_large"


class WrongMediaType(CallerError):
    status = 415
    code = "unsupported_media_type"


class AccountsError(QwenProxyError):
    pass


class NoAccount(AccountsError):
    status = 503
    code = "no_account"


class AllWaiting(AccountsError):
    status = 429
    code = "all_accounts_waiting"

    def __init__(self, message: str, *, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class QueueFull(AccountsError):
    status = 429
    code = "queue_full"
    retry_after_s = 5.0


class AccountGone(AccountsError):
    status = 503
    code = "no_account"


class SignInFailed(AccountsError):
    status = 503
    code = "no_account"


class UpstreamError(QwenProxyError):
    status = 502
    code = "upstream_error"


class TokenRejected(UpstreamError):
    status = 503
    code = "no_account"


class LimitReached(UpstreamError):
    """This account, or only the asked model on it, may not be used for `wait_s` seconds (protocol §6.2)."""

    status = 429
    code = "all_accounts_waiting"

    def __init__(self, message: str, *, wait_s: float, model_only: bool = False) -> None:
        super().__init__(message)
        self.wait_s = wait_s
        self.retry_after_s = wait_s
        self.model_only = model_only


class ParallelLimited(LimitReached):
    pass


class NeedsHuman(UpstreamError):
    status = 503
    code = "human_check_required"


class ChatBusy(UpstreamError):
    status = 409
    code = "chat_busy"
    retry_after_s = 4.0


class ChatGone(UpstreamError):
    status = 404
    code = "chat_not_found"


class EmptyAnswer(UpstreamError):
    code = "empty_upstream_reply"


class Severed(UpstreamError):
    pass


class Unreachable(UpstreamError):
    code = "upstream_unreachable"


class ProtocolChanged(UpstreamError):
    """The answer has a shape we do not know.

    `seen` is its first 80 characters, for the log and not for the client.
    """

    code = "protocol_changed"

    def __init__(self, message: str, *, seen: str = "") -> None:
        super().__init__(message)
        self.seen = seen[:80]


class UploadFailed(UpstreamError):
    code = "upload_failed"


class GenerationFailed(UpstreamError):
    code = "generation_failed"


class InvalidToolCall(UpstreamError):
    code = "invalid_tool_call"


class InvalidAnswer(UpstreamError):
    code = "invalid_structured_output"


class UpstreamTimeout(UpstreamError):
    status = 504
    code = "upstream_timeout"


class BrowserError(QwenProxyError):
    status = 503
    code = "browser_unavailable"
    retry_after_s = 5.0


class BrowserMissing(BrowserError):
    pass


class BrowserLost(BrowserError):
    pass


class StoreError(QwenProxyError):
    pass


class SessionDamaged(StoreError):
    pass


class SessionLocked(StoreError):
    pass


class Cancelled(QwenProxyError):
    status = 409
    code = "cancelled"


class ShuttingDown(QwenProxyError):
    status = 503
    code = "shutting_down"
    retry_after_s = 5.0
