"""Jinja2, set up as `transformers` does it for chat templates."""

import datetime
import json

from jinja2 import nodes
from jinja2.exceptions import TemplateError
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment


class Generation(Extension):
    """`{% generation %}`, which marks what the assistant said and leaves the text as it is."""

    tags = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        return nodes.CallBlock(self.call_method("body"), [], [], body).set_lineno(line)

    def body(self, caller):
        return caller()


def raise_exception(message):
    raise TemplateError(message)


def tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def environment():
    made = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols])
    made.filters["tojson"] = tojson
    made.globals["raise_exception"] = raise_exception
    made.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
    return made


def normalized(message):
    """A message as `transformers` hands it to a template."""
    message = {key: value for key, value in message.items() if value is not None}
    reasoning = next((message[name] for name in ("reasoning_content", "thinking", "reasoning") if name in message), None)
    if reasoning is not None:
        if "thinking" not in message:
            message = {"thinking": reasoning, **message}
        message["reasoning_content"] = reasoning
    return message


def render(template, request, variables):
    """What a template makes of a conversation; none for an error."""
    messages = [normalized(message) for message in request["messages"]]
    variables = {**variables, **request.get("variables", {})}
    try:
        return template.render(
            messages=messages, tools=request.get("tools"), documents=request.get("documents"),
            add_generation_prompt=request.get("add_generation_prompt", False), **variables,
        )  # fmt: skip
    except Exception:
        return None
