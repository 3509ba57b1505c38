"""The page in English and 简体中文: by the browser's language, and by a switch that wins over it.

Three ways to a translated text, by where it stands:

* `t("page.run")` for anything static that Gradio draws: labels, button values, tab labels, info, placeholders,
  Markdown, and the names of choices, as ("name", value) pairs: `choices=[(t("page.auto"), "auto"), …]`.
* `both("page.heard")` inside own HTML: both languages are there and the style sheet shows one.
* `say(name, language_of(request), **facts)` for what a handler says.

The language is decided once, on the server, for page and handlers alike: `?language=zh`, else the switch's cookie, else
what the server was started with (--language), else what the browser asks for. Gradio picks its translations by
navigator.language before any head script of an app runs, so `LanguageMiddleware` puts the decision into the page.
"""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any
from urllib.parse import parse_qs

import gradio as gr
from gradio.i18n import I18nData
from starlette.requests import Request as HttpRequest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from models.text import LANGUAGES, say, sentences

COOKIE = "parley_language"
LOCALES = {"en": "en", "zh": "zh-CN"}  # our language → Gradio's name of it
_set: str | None = None  # --language
_used: dict[str, Mapping[str, str]] = {}  # key → {language: text}


def set_default_language(language: str) -> None:
    """The language of who has not chosen one: "en", "zh", or "auto" for the browser's."""
    global _set
    _set = language if language in LANGUAGES else None


def t(name: str) -> I18nData:
    """The sentence `name` ("file.key"), translated by Gradio in the browser. KeyError where there is none."""
    if name not in sentences():
        raise KeyError(name)
    _used[name] = sentences()[name]
    return I18nData(name)


def phrase(en: str, zh: str) -> I18nData:
    """Like `t`, for a text that is put together from data (a voice's name and language) and stands in no file."""
    _used[en] = {"en": en, "zh": zh}
    return I18nData(en)


def both(name: str, **facts: Any) -> str:
    """HTML with the sentence `name` in every language; parley.css shows the page's own."""
    return "".join(f'<span lang="{code}">{escape(say(name, code, **facts))}</span>' for code in LANGUAGES)


def translations() -> gr.I18n:
    """What `launch(i18n=…)` takes: every sentence that `t` was asked for until now."""
    return gr.I18n(**{LOCALES[code]: {name: text[code] for name, text in _used.items()} for code in LANGUAGES})


def choose(query: Mapping[str, str], cookies: Mapping[str, str], headers: Mapping[str, str]) -> str:
    """ "en" or "zh", from a request's query, cookies and Accept-Language."""
    for wish in (query.get("language"), cookies.get(COOKIE), _set):
        if wish in LANGUAGES:
            return str(wish)
    for part in headers.get("accept-language", "").split(","):
        code = part.split(";")[0].strip().lower().split("-")[0]
        if code in LANGUAGES:
            return code
    return "en"


def language_of(request: gr.Request | None) -> str:
    """The language of the person who sent `request`; that of --language where there is no browser."""
    http = getattr(request, "request", None)
    if http is None:
        return _set or "en"
    query = dict(http.query_params)
    if "language" not in query:  # an event's own address has no query; the page's address is its referer
        referer = http.headers.get("referer", "")
        query = {key: values[-1] for key, values in parse_qs(referer.partition("?")[2]).items()}
    return choose(query, http.cookies, http.headers)


class LanguageMiddleware:
    """Writes the chosen language into the page, before Gradio's own scripts run."""

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "GET":
            return await self.app(scope, receive, send)
        request = HttpRequest(scope)
        language = choose(request.query_params, request.cookies, request.headers)
        start: Message | None = None
        body = b""

        async def rewrite(message: Message) -> None:
            nonlocal start, body
            if message["type"] == "http.response.start":
                headers = dict(message["headers"])
                if headers.get(b"content-type", b"").startswith(b"text/html"):
                    start = message  # held back until the length is known
                    return
            elif start is not None:
                body += message.get("body", b"")
                if message.get("more_body"):
                    return
                body = body.replace(b"<head>", b"<head>" + _script(language).encode(), 1)
                kept = [pair for pair in start["headers"] if pair[0] not in (b"content-length", b"vary")]
                length = (b"content-length", str(len(body)).encode())
                await send({**start, "headers": [*kept, length, (b"vary", b"Cookie, Accept-Language")]})
                return await send({"type": "http.response.body", "body": body})
            await send(message)

        await self.app(scope, receive, rewrite)


def _script(language: str) -> str:
    """The inline script that tells Gradio (by navigator.language), the style sheet and our scripts the language."""
    locale = LOCALES[language]
    return (
        "<script>"
        f"Object.defineProperty(navigator,'language',{{get:()=>'{locale}'}});"
        f"Object.defineProperty(navigator,'languages',{{get:()=>['{locale}']}});"
        f"document.documentElement.lang='{locale}';document.documentElement.dataset.language='{language}';"
        "</script>"
    )
