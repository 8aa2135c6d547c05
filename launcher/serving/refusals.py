"""Answers to what a server does not do, in the form of OpenAI's errors: a sentence, a type, a parameter, a code."""

from typing import Any

from pydantic import BaseModel, Field


class ErrorDetail(BaseModel):
    message: str = Field(description="what was seen, and what to do")
    type: str = Field(description="invalid_request_error, authentication_error, rate_limit_error or server_error")
    param: str | None = Field(default=None, description="the field of the request that is meant")
    code: str | None = Field(default=None, description="a word for programs")


class ErrorBody(BaseModel):
    error: ErrorDetail


class RefusedError(Exception):
    """A request that is answered with an error. `retry_after_s` says when to ask again."""

    def __init__(
        self,
        status: int,
        message: str,
        code: str,
        param: str | None = None,
        retry_after_s: int | None = None,
    ):
        super().__init__(message)
        self.status = status
        self.code = code
        self.param = param
        self.headers: dict[str, str] = {}
        if retry_after_s is not None:
            self.headers["Retry-After"] = str(retry_after_s)
        if status == 401:
            self.headers["WWW-Authenticate"] = "Bearer"
        if status in (408, 413):
            # The rest of the request is not read.
            self.headers["Connection"] = "close"

    def body(self) -> dict[str, Any]:
        return error_body(self.status, str(self), self.code, self.param)


def error_body(status: int, message: str, code: str | None = None, param: str | None = None) -> dict[str, Any]:
    kind = "invalid_request_error"
    if status == 401:
        kind = "authentication_error"
    elif status == 429:
        kind = "rate_limit_error"
    elif status >= 500:
        kind = "server_error"
    detail = ErrorDetail(message=message, type=kind, param=param, code=code)
    return ErrorBody(error=detail).model_dump()
