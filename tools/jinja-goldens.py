#!/usr/bin/env python3
"""Writes crates/basert-text/tests/data/jinja.json: expressions and statements of Jinja, and what Jinja2 makes of them in
the environment of `transformers`. Null is an error. It needs Python's jinja2 3.1.6.

What minijinja is known to do otherwise is not in it: `encode`, `pprint`, `attr` of dictionaries, `urlize`, `lipsum`, `urlencode` of
mappings, `!r` in formats, keys that are equal but of two types, `range` and generators printed as such, `max` of equal items, `arguments` of a
macro with `varargs`, HTML by `autoescape`, and what is undefined in a list.

    tools/jinja-goldens.py
"""

import json
import pathlib

from jinja_environment import environment

OUTPUT = pathlib.Path(__file__).parent.parent / "crates/basert-text/tests/data/jinja.json"
VARIABLES = {
    "s": "a b,c", "text": "Hello, World", "lines": "one\ntwo\r\n\nthree\n", "html": '<a href="x">&\'</a>', "empty": "", "spaces": "  x y  ",
    "unicode": "Straße ÇA été 漢字", "n": None, "t": True, "f": False, "i": 7, "neg": -7, "x": 2.5, "tiny": 1e-7, "huge": 1e16, "whole": 3.0,
    "l": [3, 1, 2, 1], "words": ["b", "A", "c", "a"], "nested": [[1, 2], [3]], "d": {"b": 1, "a": "x", "c": None}, "deep": {"k": {"l": [1, {"m": "v"}]}},
    "people": [{"name": "Ann", "age": 30, "tags": ["x"]}, {"name": "bob", "age": 25}, {"name": "Cy", "age": 30, "tags": []}],
    "numbers": [0.1, 1.0, 1e-7, 1e16, 123456789.125, -0.5, 1e22, 12345678901234567890], "tools": None, "format": "%s is %d",
}  # fmt: skip
# Each is the inside of an expression.
EXPRESSIONS = r"""
s.partition(' ')
s.partition(' ')[2]
s.partition('x')
s.rpartition(',')
s.rpartition('x')
s.rsplit(',', 1)[0]
s.rsplit(' ')
s.rsplit()
'a b c d'.rsplit(' ', 2)
' a  b c '.rsplit(None, 1)
'a,b,c'.split(',', maxsplit=1)
'a,b,c'.rsplit(',', maxsplit=1)
' a  b c '.split(None, 1)
'a,b,c'.split(sep=',')
'chat_x'.removeprefix('chat_')
'a.md'.removesuffix('.md')
'abc'.removeprefix('x')
'abc'.removesuffix('')
l.index(1)
l.index(9)
l.count(1)
words.index('c')
s.index('b')
s.index('zz')
s.rindex(' ')
'banana'.find('na', 3)
'banana'.rfind('na')
'banana'.count('a')
'banana'.count('a', 2)
'banana'.find('x')
s|replace('a', 'x', 1)
'aaa'|replace('a', 'b', 2)
'aaa'|replace('a', 'b', count=1)
'aaa'.replace('a', 'b', 2)
'abc'.replace('', '-')
text.swapcase()
unicode.casefold()
unicode.upper()
unicode.lower()
unicode.title()
unicode.capitalize()
unicode|title
unicode|capitalize
"they're bill's".title()
"they're bill's-x y_z"|title
'x'.center(7)
'x'.center(6, '*')
'x'|center(7)
'x'.ljust(4) ~ '|'
'x'.rjust(4, '.')
'42'.zfill(5)
'-42'.zfill(5)
'a\tb'.expandtabs(4)
lines.splitlines()
lines.splitlines(true)
'abc'.startswith('b', 1)
'abc'.startswith(('x', 'a'))
'abc'.endswith(('x', 'c'))
'abc'.isidentifier()
'Abc Def'.istitle()
'1²'.isdigit()
'½'.isnumeric()
'12'.isdecimal()
'½'.isdecimal()
'ab'.isprintable()
'a\n'.isprintable()
''.isalpha()
'-'.join(words)
'-'.join([])
'-'.join([1, 2])
'{} and {}'.format(1, 'a')
'{1} {0}'.format('a', 'b')
'{name}: {age}'.format(name='x', age=3)
'{:>5}|{:<5}|{:^5}'.format('a', 'b', 'c')
'{:05.2f}'.format(3.14159)
'{:,}'.format(1234567)
'{0[a]} {1.x}'.format({'a': 1}, {'x': 2})
'%s has %d' % (s, 3)
'%s' % s
'%d%%' % 7
'%5.2f|%-5s|%05d' % (3.14159, 'a', 42)
'%(a)s and %(b)d' % {'a': 'x', 'b': 2}
'%x %X %o %e %g' % (255, 255, 8, 12345.678, 0.0001)
format % ('a', 3)
format % (s, i)
i % 4
neg % 4
2 * i % 5
x % 2
i % 2 == 1 and 'odd'
'%s' % s|upper
('%s' ~ '!') % s
'%s' % [1, 2]
'%c' % 'x'
format|format('a', 3)
'%s'|format(s)
'a'.strip('a') ~ '|'
'xxaxx'.lstrip('x')
'xxaxx'.rstrip('x')
s[0]
s[-1]
s[1:]
s[:-1]
s[::2]
s[::-1]
s[10:]
s[10]
l[1:3]
l[::-1]
l[-1]
l[5:]
l[10]
l[::2]
l + [9]
l * 2
[1, 2] == [1, 2]
[1, 2] < [1, 3]
(1, 2)
(1,)
()
(1, 2)[0]
(1, 2) + (3,)
[1, 2][:1] + [3]
d.items()|list
d.keys()|list
d.values()|list
d.get('zz')
d.get('zz', 5)
d.get('c', 5)
d['b']
d.b
d.zz
d['zz']
d.copy()
d.pop('b')
d.update({'z': 1})
d.setdefault('b', 1)
'b' in d
'zz' in d
'zz' not in d
d == {'a': 'x', 'b': 1, 'c': None}
d|length
d|list
d|dictsort
d|dictsort(by='value')
{'B': 1, 'a': 2}|dictsort(case_sensitive=true)
{'B': 1, 'a': 2}|dictsort
{'b': 1, 'a': 2}|dictsort(reverse=true)
{}
d
deep
deep.k.l[1].m
dict(a=1, b=2)
dict(d, e=5)
l.append(1)
l|sort
l|sort(reverse=true)
words|sort
words|sort(case_sensitive=true)
people|sort(attribute='age')|map(attribute='name')|list
people|sort(attribute='age,name')|map(attribute='name')|list
people|map(attribute='tags', default='none')|list
people|map('length')|list
words|map('upper')|list
words|map('replace', 'a', 'z')|join
people|selectattr('tags')|map(attribute='name')|list
people|selectattr('tags', 'defined')|list|length
people|rejectattr('tags')|map(attribute='name')|list
people|selectattr('age', 'gt', 26)|map(attribute='name')|join(', ')
people|selectattr('age', '>', 26)|list|length
people|selectattr('age', 'in', [25])|map(attribute='name')|first
people|selectattr('name', 'equalto', 'Ann')|list|length
people|groupby('age')|list|length
people|groupby('age')|map('first')|list
people|map(attribute='name')|join('/')
people|join(', ', attribute='name')
people|sum(attribute='age')
nested|sum(start=[])
nested|map('sum')|list
nested|map('join', '+')|list
l|select('gt', 1)|list
l|reject('eq', 1)|list
l|select('odd')|list
[0, 1, none, 'a', '']|select|list
[0, 1, none, 'a', '']|reject|list
l|unique|list
words|unique|list
l|max
l|min
words|max
[]|max
l|first
[]|first
l|last
[]|last
l|sum
l|reverse|list
'abc'|reverse
l|batch(3)|list
l|batch(3, 0)|list
l|slice(3)|list
l|join
l|join(', ')
[1, 'a', none, 2.5, true]|join('-')
l|length
l|count
missing|length
missing|count
d.zz|length
n|length
i|length
missing|list
missing|join('x')
missing|upper
missing|first
missing|tojson
missing|string
missing|int
missing|default('x')
n|default('x')
n|default('x', true)
empty|default('x', boolean=true)
missing ~ 'x'
missing + 'x'
missing.a
missing[0]
missing == missing
missing == none
missing is none
missing in [1]
1 in missing
not missing
missing or 'x'
missing and 'x'
n ~ ''
n|string
n|upper
n.x
n == none
t ~ f ~ n
t + 1
t == 1
i / 2
i // 2
neg // 2
i ** 2
2 ** -1
2 ** 0.5
6 / 2
7.0 // 2
-i
1 / 0
1 // 0
i % 0
1_000
0x1f
0b101
1e3
1.5e-3
1e-7
1e16
tiny
huge
whole
x
x * 2
0.1 + 0.2
numbers
tiny|string
'%s' % tiny
huge|int
x|int
x|round
3.5|round
2.567|round(1)
2.567|round(2, 'floor')
2.512|round(1, 'ceil')
i|round
'12'|int
'0x1A'|int(0, 16)
'12.7'|int
'x'|int(9)
none|int
'1.5'|float
'x'|float
neg|abs
i|float
i|string ~ 1
html|e
html|escape
html|safe
html|forceescape
(html|e)|e
html|striptags
html|urlencode
'a b/c?d=é'|urlencode
text|length
unicode|length
text|wordcount
text|truncate(8)
text|truncate(8, true)
text|truncate(8, true, '..')
text|truncate(20)
text|center(20)|length
text|trim('Hd')
spaces|trim ~ '|'
lines|indent
lines|indent(2, true)
lines|indent(2, blank=true)
lines|indent('> ')
text|list
text|first
text|last
text|upper|lower
1000000|filesizeformat
1024|filesizeformat(true)
{'a': [1, 'b', none, true, 1.5]}|tojson
d|tojson(indent=2)
deep|tojson(indent=4)
d|tojson(sort_keys=true)
unicode|tojson
unicode|tojson(ensure_ascii=true)
html|tojson
[1, 2]|tojson(separators=(',', ':'))
(1, 2)|tojson
[]|tojson(indent=2)
{}|tojson(indent=2)
numbers|tojson
d|items|list
text is string
n is none
n is not none
missing is defined
missing is undefined
i is number
t is number
t is boolean
f is false
t is true
1 is true
i is integer
t is integer
x is float
i is float
l is iterable
s is iterable
n is iterable
i is iterable
missing is iterable
tools is iterable
d is iterable
l is sequence
d is sequence
s is sequence
n is sequence
i is sequence
missing is sequence
(1, 2) is sequence
range(3) is sequence
range(3) is iterable
d is mapping
l is mapping
n is mapping
missing is mapping
missing is string
range is callable
s is callable
raise_exception is callable
dict is callable
i is divisibleby(7)
i is divisibleby 7
i is odd
i is even
i is eq 7
i is equalto(7)
i is ne 7
i is gt 6
i is greaterthan 6
i is ge 7
i is lt 8
i is lessthan 8
i is le 7
i is in [7]
'a' is in 'abc'
i is not in [7]
'abc' is lower
'ABC' is upper
'1' is lower
n is sameas none
f is sameas false
html is escaped
(html|e) is escaped
'upper' is filter
'nope' is filter
'odd' is test
'nope' is test
range(3)|list
range(1, 10, 4)|list
range(5, 0, -2)|list
range(3)|length
range(3)[1]
namespace(a=1).a
cycler is defined
joiner is defined
'a' if t
'a' if f
'a' if f else 'b'
('a' if f) ~ 'x'
t and 'x' or 'y'
not t and f
1 < 2 < 3
1 < 3 < 2
1 == 1.0
'a' < 'b'
'1' == 1
'a' * 3
3 * 'a'
'a' + 'b'
'a' + 1
'a' 'b'
"it's"
'it\'s \"x\"'
['it\'s', "a\"b", "both ' and \"", 'é', '\n', '\t', '\\', '\x07', '漢']
[n, t, x, whole]
['a', ['b', {'c': 'd'}]]
'\u00e9\x41'
"a\
b"
(l|length > 2) and (d is mapping)
l[0] if l else 'none'
(people|first).name
people[0]['name']
people[-1].tags
people[0].name[0]
people|map(attribute='name')|map('lower')|list
people|selectattr('tags', 'undefined')|map(attribute='name')|list
text.split(', ')[1].lower()
text.split(',')|map('trim')|list
'a' in text
'Hello' in text and 'x' not in text
loop is defined
caller is defined
l|map('string')|list
l|map('float')|list
l|sort|join(',')
d.items()|map('first')|list
d.items()|sort
d.keys()|sort
d.values()|list|length
d.items()|list|first
text|replace('l', '')
text[:5] ~ '...'
text.upper().split('O')
text.find('World') != -1
'abc' > 'abd'
[1] + d.keys()|list
namespace() is defined
(1, 'a', none)|list
[(1, 2), (3, 4)]|map('last')|list
l.copy()
'a' is eq('a') and 'b' is ne('a')
text|map('upper')|join
text|unique|join
text|select('in', 'lo')|join
nested|map('first')|sum
l|map('abs')|sum
l|tojson|length
s.title() ~ s.isupper()
strftime_now('%Y')|length
strftime_now('%d %b %Y')|length
strftime_now('%-d')|int > 0
'%r' % 'a'
'%r' % ("it's",)
'%r %r' % ('a"b', 1.0)
'%r' % [[1, 'a', none]]
'%a' % 'é'
'%5.2f|%-5d|%05d|%+d|%x|%X|%o|%%' % (2.345, 3, 4, 5, 255, 255, 8)
'%e %E %.2e %g %G %g %g' % (12345.678, 0.00012, 5, 1e-5, 1e20, 100000, 1234567)
'%.0f %.3f %f %F' % (2.5, 1, 1e16, 0.1)
'%c%c' % ('x', 97)
'%(a)s-%(b)03d' % {'a': 1, 'b': 2}
'%s' % [1, 'a']
'%s %s' % (huge, [tiny])
'%i %u' % (3, 4)
'%#x %#o' % (255, 8)
'% d' % 5
'%.3s|%5s|%-5s|' % ('abcdef', 'a', 'b')
'%*d' % (5, 3)
'%d' % 3.7
'%d' % true
'%s' % none
'%s %s' % (1,)
'%s' % (1, 2)
'%d' % 'a'
'%z' % 1
'%'|format
'%s and %r'|format('a', 'b')
'%(x)s'|format(x=1)
'%-10s|'|format('a')
{'a': 1, 'b': none, 'c': 'x"'}|xmlattr
{'a': 1}|xmlattr(false)
{'a': 1}|xmlattr(autospace=false)
{}|xmlattr
{'a b': 1}|xmlattr
tiny ~ ''
huge ~ 'x' ~ tiny
'a' ~ [tiny, 1.0] ~ {'k': huge}
1 ~ 2 * 3 ~ 4
-1 ~ 2
2 ** 3 ~ 'x'
(1 ~ 2)|int + 1
1 ~ 2 == '12'
not t ~ 'x'
'a' ~ l[0] ~ d.b ~ s.split(' ')[0]|upper ~ 'z' if t else 'n'
'a' ~ (tiny if t else 1) ~ 'b'
[tiny ~ 'a', 'b' ~ tiny]
{'k': tiny ~ 'a'}.k
dict(a=tiny ~ 'x').a
'x' ~ missing ~ none ~ t
numbers|join(' ')
[tiny, [huge]]|join(',')
people|map(attribute='age')|join('+')
tiny|upper
tiny|string|length
tiny|trim
huge|replace('e', 'E')
+5
-(+5)
3 - +2
'a'|pprint
words|max(case_sensitive=true)
words|min(case_sensitive=true)
'a b c d e f'|wordwrap(5)
'a b c'|wordwrap(3, wrapstring='/')
'abcdefgh ij'|wordwrap(4, false)
l|sum(start=10)
people|sum('age', 1)
{'b': 1, 'A': 2}|dictsort
{'b': 1, 'A': 2}|dictsort(true)
{'b': 1, 'A': 2}|dictsort(reverse=true)
1000|filesizeformat
1500000|filesizeformat
'a b/c'|urlencode
'<b>x</b> y'|striptags
5 is integer
2.0 is float
html|safe is escaped
7 // 2
-7 // 2
7.5 // 2
l[-2:]
'abc'[::-1]
'abc'[1:]
words|unique|join(',')
words|sort(reverse=true)
people|sort(attribute='name')|map(attribute='name')|list
people|groupby('age')
(people|groupby('age'))[0].grouper
l|slice(2)|list
3.7|int
'12'|int + 1
'z'|int(5)
'ff'|int(base=16)
2.5|round
2.567|round(1, 'floor')
25|round(-1)
7|abs
l|list
'abc'|list
'Hello'|replace('l', 'L', 1)
'x'|center(5)
'hello world'|title
"it's they're"|title
'a-b c_d'|title
s|reverse
'abc'|last
'a' in d
1 in d
d == {'a': 'x', 'b': 1, 'c': none}
[1, (2, 'x')]
{'a': (1,)}
{1: 'a', 'b': 2}
{true: 1}
joiner is callable
none|default('x')
none|default('x', true)
'%s' is string
l|map('upper')|list
words|map('upper')|join
words|select('eq', 'a')|list
l|reject('odd')|list
people|selectattr('age', 'gt', 26)|map(attribute='name')|list
people|map(attribute='tags.0')|list
'a,b'.split(',')|map('upper')|list
'x'.join(['a', 'b'])
'{} {}'.format(1, 'a')
'{0}{1}{0}'.format('a', 'b')
'{a}'.format(a=1)
'{:>5}|{:<5}|{:^5}|'.format('a', 'b', 'c')
'{:.2f} {:05d} {:,}'.format(2.345, 42, 1234567)
'{}'.format(tiny)
'a'.upper().lower().strip()
'  a '.strip() ~ '|' ~ ' a '.lstrip() ~ '|' ~ ' a '.rstrip()
'aXbX'.replace('X', '-')
'abc'.find('c')
'a\nb'.splitlines()
d.get('a')
d.get('z', 1)
'12'.isdigit()
'ab'.isalpha()
'a1'.isalnum()
'A'.isupper()
'a'.islower()
' '.isspace()
'a b'.title()
'abc'.count('b')
'abc'.index('b')
l.index(3)
'a'.zfill(3)
'tab\there'.expandtabs(4)
1.0 ~ ''
1e-5
123456789012345678
0b11
'a' if missing
[1] * 2
'ab' * 2
1 == true
'x' is string and 1 is number
1.5 is number
none is none
3 is divisibleby 3
l is sameas l
1 is eq 1
1 is ne 2
2 is gt 1
1 is lt 2
'A' is upper
'a' is lower
1 is in l
""".strip().split("\n")
# Whole templates.
STATEMENTS = [
    "a\r\nb\r\n{% if true %}\r\nc{% endif %}\r\n", "a\rb{% if true %}\r  c{% endif %}",
    "{% macro m() %}q{% endmacro %}[{{ m is callable }}]{{ m() }}{{ m.name }}",
    "{% macro m(a, b='x', c=none) %}{{ a }}{{ b }}{{ c }}|{% endmacro %}{{ m(1) }}{{ m(1, 2) }}{{ m(1, c=3) }}{{ m(b=2, a=1) }}{{ m() }}",
    "{% macro m(a) %}{{ a }}{% if a > 0 %}{{ m(a - 1) }}{% endif %}{% endmacro %}{{ m(3) }}",
    "{% macro m() %}{{ caller(1, 2) }}{% endmacro %}{% call(a, b) m() %}[{{ a }}{{ b }}]{% endcall %}",
    "{% macro m() %}{{ x }}{{ y is defined }}{% endmacro %}{% set y = 1 %}{{ m() }}",
    "{%- macro tool(t, pad='  ') -%}{{ pad }}- {{ t.name }}{%- endmacro -%}{% for p in people %}{{ tool(p) }}\n{% endfor %}",
    "{% set ns = namespace(found=false, list=[]) %}{% for p in people %}{% if p.age == 25 %}{% set ns.found = p.name %}{% endif %}{% set ns.list = ns.list + [p.name] %}{% endfor %}{{ ns.found }}{{ ns.list }}",
    "{% set ns = namespace() %}{% set ns.a = 1 %}{{ ns.a }}{{ ns.b is defined }}", "{% set ns = namespace({'a': 1}) %}{{ ns.a }}", "{% set ns = namespace(a=1) %}{{ ns['a'] }}",
    "{% set a, b = (1, 2) %}{{ a }}{{ b }}", "{% set a = b = 1 %}", "{% set x = 5 %}{% if true %}{% set x = 6 %}{% endif %}{{ x }}",
    "{% set x %}a{{ i }}{% endset %}{{ x|upper }}{{ x is string }}", "{% set x | upper %}abc{% endset %}{{ x }}", "{% filter upper|trim %} abc {% endfilter %}",
    "{% for a in l %}{{ loop.index }}{{ loop.index0 }}{{ loop.revindex }}{{ loop.revindex0 }}{{ loop.first }}{{ loop.last }}{{ loop.length }}{{ loop.depth }}{{ loop.depth0 }}{{ loop.cycle('x', 'y') }}{{ loop.previtem }}{{ loop.nextitem }}{{ loop.changed(a) }};{% endfor %}",
    "{% for k, v in d.items() %}{{ k }}={{ v }}{{ ',' if not loop.last }}{% endfor %}", "{% for k in d %}{{ k }}{% endfor %}", "{% for c in 'abc' %}{{ c }}-{% endfor %}", "{% for x in none %}{% endfor %}", "{% for x in missing %}a{% else %}b{% endfor %}", "{% for x in 5 %}{% endfor %}",
    "{% for a in l if a > 1 %}{{ loop.index }}/{{ loop.length }}:{{ a }} {% endfor %}", "{% for a in l recursive %}{{ a }}{% endfor %}",
    "{% for a in [[1, [2]], [3]] recursive %}{% if a is iterable %}[{{ loop(a) }}]{% else %}{{ a }}{% endif %}{% endfor %}",
    "{% for a in l %}{% if a == 2 %}{% break %}{% endif %}{% if a == 1 %}{% continue %}{% endif %}{{ a }}{% endfor %}", "{% for a in l -%} {{ a }} {%- if a == 1 %}{% break %}{% endif %} {%- endfor %}",
    "{% for a in l %}{% for b in l %}{{ loop.index }}{% set outer = loop %}{% endfor %}{{ loop.index }};{% endfor %}", "{% for a, b in [(1, 2), [3, 4]] %}{{ a }}{{ b }}{% endfor %}", "{% for a, (b, c) in [(1, (2, 3))] %}{{ a }}{{ b }}{{ c }}{% endfor %}", "{% for m in people[1:] %}{{ m.name }}{% endfor %}", "{% for m in people|reverse %}{{ m.name }}{% endfor %}",
    "{% if l %}1{% elif d %}2{% else %}3{% endif %}", "{% if not n and not empty and not missing and not [] and not {} and not 0 %}none{% endif %}",
    "{% with a = 1, b = 2 %}{{ a }}{{ b }}{% endwith %}{{ a is defined }}", "{% raw %}{{ x }}{% endraw %}", "{# c #}{{ 1 }}{#- c -#}  x", "{{- ' a ' -}}  b", "  {%- set x = 1 +%}\n{{ x }}", "{%+ if t %}a{% endif %}", "a {%- if t -%} b {%- endif -%} c",
    "  {% set x = 1 %}  \n{{ x }}", "{{ 1 }}\n{{ 2 }}\n", "\n\n{{ 1 }}\n\n", "{% if t %}\n\n a\n{% endif %}\n", "  {# c #}\n x", "{% block a %}x{% endblock %}", "{% do l.append(1) %}", "{% include 'x' %}", "{% import 'x' as y %}", "{% extends 'x' %}",
    "{{ raise_exception('no') }}", "{% if false %}{{ raise_exception('no') }}{% endif %}ok", "{{ undefined_function() }}", "{{ s.nothing() }}", "{{ s.nothing }}", "{{ l.nothing }}", "{{ missing.a.b }}", "{{ d.zz.yy }}", "{{ '%d' % 'a' }}", "{{ s|nothing }}", "{{ s is nothing }}",
    "{% generation %}x{{ i }}{% endgeneration %}", "{% for m in people %}{%- generation -%} {{ m.name }} {%- endgeneration -%}{% endfor %}",
    "{% set items = [] %}{% for p in people %}{% set items = items + [p.name] %}{% endfor %}{{ items }}", "{% set x = people|map(attribute='name')|list %}{{ x|tojson }}", "{% set x = {'a': 1} %}{{ x.a }}{{ x['a'] }}{{ x|tojson }}",
    "{%- for p in people %}\n{{- p.name }}\n{%- if not loop.last %}, {% endif %}\n{%- endfor %}", "{{ (people|selectattr('age', 'equalto', 30)|first).name }}", "{% set j = joiner(', ') %}{% for a in l %}{{ j() }}{{ a }}{% endfor %}",
    "{% macro f(o, depth=0) %}{% if o is mapping %}{ {%- for k, v in o.items() %}{{ k }}: {{ f(v, depth + 1) }}{% endfor -%} }{% elif o is iterable and o is not string %}[{% for v in o %}{{ f(v, depth + 1) }}{% endfor %}]{% else %}{{ o }}{% endif %}{% endmacro %}{{ f(deep) }}",
    "{%- set fmt = '%s: %s' -%}{% for k, v in d.items() %}{{ fmt % (k, v) }};{% endfor %}", "{% for a in l %}{{ 'even' if loop.index % 2 == 0 else 'odd' }}{% endfor %}", "{{ ('user' if (loop_index|default(3)) % 2 else 'assistant') }}", "{% if (2 % 2 == 0) != (s == 'user') %}x{% endif %}", "{{ 'a' ~ '%s' % 1 ~ 'b' }}", "{{ 10 - 7 % 4 }} {{ 2 ** 3 % 5 }} {{ -7 % 3 }} {{ (1 + 2) % 2 }} {{ l|length % 3 }} {{ 7 % 4 % 2 }} {{ 7 % (2 + 1) }} {{ l[0] % 2 }}",
    "{% set c = cycler('a', 'b') %}{{ c.next() }}{{ c.next() }}{{ c.current }}{{ c.next() }}{{ c.current }}{% if c.reset() %}x{% endif %}{{ c.next() }}", "{% set c = cycler(1, 2, 3) %}{% for a in l %}{{ c.next() }}{% endfor %}", "{{ cycler() }}",
    "{% macro f(a, b=2) %}{{ a }}{{ b }}{{ varargs }}{{ kwargs }}{% endmacro %}{{ f(1) }};{{ f(1, 2, 3, 'x') }};{{ f(1, c=3) }};{{ f(b=1, a=2, z=none) }}", "{% macro f() %}{% for v in varargs %}{{ v }},{% endfor %}{% for k, v in kwargs.items() %}{{ k }}={{ v }},{% endfor %}{% endmacro %}{{ f() }};{{ f(1, *l) }};{{ f(**d) }}",
    "{% macro f(a) %}{{ a }}{% endmacro %}{{ f(1, 2) }}", "{% macro f(a) %}{{ a }}{% endmacro %}{{ f(b=2) }}", "{% macro f() %}{{ caller(*varargs) }}{% endmacro %}{% call(x, y) f(1, 2) %}{{ x }}+{{ y }}{% endcall %}", "{% macro outer() %}{% macro inner() %}{{ varargs|length }}{% endmacro %}{{ inner(1, 2) }}{% endmacro %}{{ outer() }}", "{% macro f(a=1) %}{{ varargs }}{{ kwargs|tojson }}{% endmacro %}{{ f(*[1, 2], **{'k': 'v'}) }}{{ f.name }}",
    "{% macro m() %}[{{ caller() }}]{% endmacro %}{% call m() %}x{% endcall %}", "{% macro m(a) %}{{ caller(a, 2) }}{% endmacro %}{% call(x, y) m(1) %}{{ x }}{{ y }}{% endcall %}", "{% filter upper %}a{{ s }}{% endfilter %}", "{% filter replace('a', 'b')|upper %}banana{% endfilter %}", "{% autoescape false %}{{ html }}{% endautoescape %}",
    "{% set x %}a{{ tiny }}b{% endset %}{{ x ~ tiny }}", "{% set x = tiny ~ 'a' %}{{ x }}", "{% for v in numbers %}{{ v ~ ',' }}{% endfor %}", "{% if tiny ~ '' == '1e-07' %}y{% endif %}", "{% macro f(a) %}{{ a ~ '!' }}{% endmacro %}{{ f(tiny ~ huge) }}", "{%- for k, v in d.items() -%}{{- k ~ '=' ~ v ~ ';' -}}{%- endfor -%}", "{{ 'a' ~ \"b'~'c\" ~ '~' }}", "{{ messages | default([]) | length ~ 'x' }}",
]  # fmt: skip


def main():
    jinja = environment()

    def rendered(source):
        try:
            return jinja.from_string(source).render(**VARIABLES)
        except Exception:
            return None

    sources = ["{{ " + expression + " }}" for expression in EXPRESSIONS] + STATEMENTS
    output = {"variables": VARIABLES, "expected": [[source, rendered(source)] for source in sources]}
    OUTPUT.write_text(json.dumps(output, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    errors = sum(expected is None for _, expected in output["expected"])
    print(len(sources), "templates,", errors, "of them errors;", OUTPUT.stat().st_size, "bytes")


if __name__ == "__main__":
    main()
