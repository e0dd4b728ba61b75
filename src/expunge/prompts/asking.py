"""Questions to a language model that are answered in JSON: checked, asked again a few times, kept on disk.

Any server that speaks the chat-completions protocol will do. The name of a cached answer is the digest of the model and the
question, and a cached answer is checked like a fresh one.
"""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypeVar
from urllib.parse import urlsplit

from pydantic import Field, field_validator

from expunge.errors import ExpungeError, quoted
from expunge.files import canonical_json, digest_bytes, digest_folder, read_json, write_json
from expunge.schema import OwnPath, Strict

_T = TypeVar("_T")
_OPENAI = "https://api.openai.com/v1"
_SYSTEM = "You write prompts for text-to-image models. Answer with one JSON object and nothing else."


class LlmConfig(Strict):
    """Prompts that a language model writes. The API key is read from the environment (OPENAI_API_KEY) and never written; a
    server of your own needs none.

    Attributes:
        model: the model's name, as the server calls it.
        base_url: the server, up to and with "/v1".
        cache: folder of the answers. With it a run is repeated without asking.
        concepts: a file of kinds, aliases and confusables, or "" for none.
        evaluation_prompts: prompts for each concept that are kept for measuring and never trained on.
        attempts: most requests for one question, whatever they failed at, before the run stops.
        timeout_seconds: how many seconds one answer may take.
    """

    source: Literal["llm"] = "llm"
    model: str = Field(min_length=1)
    base_url: str = Field(_OPENAI, pattern=r"^https?://[^\s/]+")
    cache: OwnPath = Field("prompt-cache", validate_default=True)
    concepts: OwnPath = ""
    evaluation_prompts: int = Field(20, ge=1, le=50)
    attempts: int = Field(4, ge=1)
    timeout_seconds: float = Field(120.0, gt=0)

    @field_validator("base_url")
    @classmethod
    def _can_be_an_address(cls, url: str) -> str:
        try:
            _ = urlsplit(url).port
        except ValueError as error:
            raise ValueError(f"{url!r} is no address ({error}); write it like http://localhost:8000/v1") from error
        return url


class Unusable(Exception):
    """What is wrong with an answer, in words that the model is told."""


class Asking:
    """One model, and the answers that it gave."""

    def __init__(self, config: LlmConfig) -> None:
        self._config, self._cache = config, Path(config.cache)
        self._form: dict[str, Any] = {"response_format": {"type": "json_object"}}
        if self._cache.exists() and not self._cache.is_dir():
            raise ExpungeError(f"prompts.cache ({self._cache}) is a file. Name a folder.")

    @cached_property
    def _client(self) -> Any:
        """Made for the first question that is not cached: with all of them cached no key is needed.

        Raises:
            ExpungeError: without the extra `llm`, or without a key for a server that needs one.
        """
        if importlib.util.find_spec("openai") is None:
            raise ExpungeError('Prompts by a language model need `pip install ".[llm]"`.')
        import openai

        config, key = self._config, os.environ.get("OPENAI_API_KEY", "")
        if not key and config.base_url.rstrip("/") == _OPENAI:
            raise ExpungeError(
                "There is no API key in the environment. Set OPENAI_API_KEY, or prompts.base_url for a server of your own."
            )
        return openai.OpenAI(api_key=key or "none", base_url=config.base_url, timeout=config.timeout_seconds)

    @property
    def digest(self) -> str:
        """Digest of all cached answers."""
        return digest_folder(self._cache, (".json",))

    def ask(self, question: str, check: Callable[[Any], _T]) -> _T:
        """What `check` makes of the answer.

        Args:
            check: takes the decoded JSON object; raises `Unusable` for an answer that will not do.

        Raises:
            ExpungeError: when the server cannot be used, or no answer was usable.
        """
        name = digest_bytes(canonical_json([self._config.model, _SYSTEM, question]).encode()).removeprefix("sha256:")
        file = self._cache / f"{name}.json"
        if file.exists():
            kept = read_json(file)
            try:
                return check(kept["answer"])
            except (KeyError, TypeError, AttributeError, Unusable) as error:
                raise ExpungeError(
                    f"The cached answer {file} cannot be used: {error}. Delete it to ask again."
                ) from error
        messages = [{"role": "system", "content": _SYSTEM}, {"role": "user", "content": question}]
        problem, left = "", self._config.attempts
        while left > 0:
            reply = self._reply(messages, left)
            left -= 1 + reply.retries_taken
            text, problem = _said(reply.http_response.text)
            if not problem:
                try:
                    answer = _decoded(text)
                    result = check(answer)
                except Unusable as error:
                    problem = str(error)
                else:
                    write_json(file, {"model": self._config.model, "question": question, "answer": answer})
                    return result
            retry = f"That answer cannot be used: {problem}. Answer the question again, completely."
            told = [{"role": "assistant", "content": _whole(text)}, {"role": "user", "content": retry}]
            messages = [*messages[:2], *(told if text else [])]
        raise ExpungeError(
            f"{self._config.model} gave no usable answer in {self._config.attempts} attempts. The last one: {problem}. "
            "Try another model, or write the prompts into a folder (docs/prompts.md)."
        )

    def _reply(self, messages: list[dict[str, str]], attempts: int) -> Any:
        """The server's reply, unread. The client asks again where the network or the server failed, and counts.

        A server that refuses such a request may know no `response_format`: from then on it is asked without.
        """
        config, client = self._config, self._client
        import openai

        create = client.with_options(max_retries=attempts - 1).chat.completions.with_raw_response.create
        try:
            try:
                return create(model=config.model, messages=messages, **self._form)
            except (openai.BadRequestError, openai.UnprocessableEntityError):
                if not self._form:
                    raise
                self._form = {}
                return create(model=config.model, messages=messages)
        except openai.APITimeoutError as error:
            raise ExpungeError(
                f"{config.base_url} did not answer within {config.timeout_seconds:g} seconds, in {config.attempts} "
                "attempts. Raise prompts.timeout_seconds, or try later; answers so far are kept."
            ) from error
        except openai.OpenAIError as error:
            raise ExpungeError(f"{config.base_url} cannot be used ({error}). Answers so far are kept.") from error


def _said(body: str) -> tuple[str, str]:
    """The text in the body of a reply, and what is wrong with it ("" where nothing is)."""
    try:
        choice = json.loads(body)["choices"][0]
        content, refusal = choice["message"].get("content"), choice["message"].get("refusal")
    except (ValueError, RecursionError) as error:
        return "", f"the server's reply is not JSON ({error})"
    except (KeyError, IndexError, TypeError, AttributeError):
        return "", f"the server's reply holds no message: {quoted(body)}"
    if isinstance(content, list):  # some servers give a text in parts
        content = "".join(str(p.get("text", "")) for p in content if isinstance(p, dict) and p.get("type") == "text")
    text = content if isinstance(content, str) else ""
    if refusal:
        return text, f"the model refused ({_whole(str(refusal))})"
    if choice.get("finish_reason") == "content_filter":
        return text, "the server filtered it"
    if choice.get("finish_reason") == "length":
        return text, "it was cut off at the server's limit of length"
    return text, "" if text else "it is empty" if content in (None, "") else "it is no text"


def _whole(text: str) -> str:
    """The text as it can be written and sent: half a character (a lone surrogate) becomes a question mark."""
    return text.encode(errors="replace").decode()


def _decoded(text: str) -> Any:
    """The JSON object that `text` is or holds: in a code fence, between prose, after the thoughts of a model that thinks."""
    text = text.rpartition("</think>")[2]
    start, end = text.find("{"), text.rfind("}")
    try:
        answer = json.loads(text[start : end + 1] if 0 <= start < end else text)
        canonical_json(answer).encode()  # half a character and infinity can be read, but not written
    except (ValueError, RecursionError) as error:
        raise Unusable(f"it is not JSON ({error})") from error
    if not isinstance(answer, dict):
        raise Unusable("it is not a JSON object")
    return answer
