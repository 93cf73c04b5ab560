/**
 * Markdown to HTML that is safe to show: HTML in the source stays text, links lead to other pages only, nothing is
 * loaded from anywhere, and what results is sanitised once more.
 */

import DOMPurify from "dompurify";
import hljs from "highlight.js/lib/core";
import bash from "highlight.js/lib/languages/bash";
import c from "highlight.js/lib/languages/c";
import cpp from "highlight.js/lib/languages/cpp";
import css from "highlight.js/lib/languages/css";
import diff from "highlight.js/lib/languages/diff";
import go from "highlight.js/lib/languages/go";
import ini from "highlight.js/lib/languages/ini";
import java from "highlight.js/lib/languages/java";
import javascript from "highlight.js/lib/languages/javascript";
import json from "highlight.js/lib/languages/json";
import python from "highlight.js/lib/languages/python";
import rust from "highlight.js/lib/languages/rust";
import sql from "highlight.js/lib/languages/sql";
import swift from "highlight.js/lib/languages/swift";
import typescript from "highlight.js/lib/languages/typescript";
import xml from "highlight.js/lib/languages/xml";
import yaml from "highlight.js/lib/languages/yaml";
import MarkdownIt from "markdown-it";

const LANGUAGES = {
  bash, c, cpp, css, diff, go, ini, java, javascript, json, python, rust, sql, swift, typescript, xml, yaml,
}; // prettier-ignore
for (const [name, definition] of Object.entries(LANGUAGES)) hljs.registerLanguage(name, definition);

/** Links that may be followed. A relative one would lead to the server's API. */
const LINK = /^(https?:\/\/|mailto:)/i;

const md = new MarkdownIt({ html: false, linkify: true });
// Else `main.rs` would be a host in Serbia.
md.linkify.set({ fuzzyLink: false, fuzzyEmail: false });
md.validateLink = (url) => LINK.test(url.trim());

const { escapeHtml } = md.utils;
const rules = md.renderer.rules;

rules.link_open = (tokens, at, options, _env, self) => {
  tokens[at]?.attrSet("target", "_blank");
  tokens[at]?.attrSet("rel", "noopener noreferrer");
  return self.renderToken(tokens, at, options);
};
// An image is a link to it: showing it would tell its server who is reading.
rules.image = (tokens, at) => {
  const image = tokens[at]!;
  const url = escapeHtml(String(image.attrGet("src")));
  const text = escapeHtml(image.content || "image");
  return `<a href="${url}" target="_blank" rel="noopener noreferrer">${text}</a>`;
};
rules.table_open = () => '<div class="table" tabindex="0"><table>';
rules.table_close = () => "</table></div>";
// The alignment of a column comes as a style attribute, which the content security policy forbids.
rules.th_open = rules.td_open = (tokens, at, options, _env, self) => {
  const token = tokens[at]!;
  const align = String(token.attrGet("style") ?? "").replace("text-align:", "");
  token.attrs = align ? [["class", align]] : [];
  return self.renderToken(tokens, at, options);
};
rules.fence = (tokens, at) => code(tokens[at]!.content, tokens[at]!.info.trim().split(/\s+/, 1)[0] ?? "");
rules.code_block = (tokens, at) => code(tokens[at]!.content, "");

function code(text: string, language: string): string {
  const html = hljs.getLanguage(language) ? hljs.highlight(text, { language }).value : escapeHtml(text);
  return (
    `<div class="code"><div class="code-head"><span>${escapeHtml(language)}</span>` +
    `<button type="button" data-copy>Copy</button></div><pre tabindex="0"><code>${html}</code></pre></div>`
  );
}

function sanitise(html: string): string {
  return DOMPurify.sanitize(html, {
    ALLOWED_TAGS: [
      "a", "blockquote", "br", "button", "code", "del", "div", "em", "h1", "h2", "h3", "h4", "h5", "h6", "hr", "li", "ol",
      "p", "pre", "s", "span", "strong", "table", "tbody", "td", "th", "thead", "tr", "ul",
    ], // prettier-ignore
    ALLOWED_ATTR: ["class", "data-copy", "href", "rel", "start", "tabindex", "target", "type"],
    // Their values are no addresses, and not held against the pattern below.
    ADD_URI_SAFE_ATTR: ["data-copy", "rel", "start", "tabindex", "target", "type"],
    ALLOW_ARIA_ATTR: false,
    ALLOW_DATA_ATTR: false,
    ALLOWED_URI_REGEXP: LINK,
  });
}

interface Block {
  /** The line of the source that it begins in, from 0. */
  line: number;
  html: string;
}

/** The blocks that a source consists of: paragraphs, lists, code blocks. */
function blocks(source: string): Block[] {
  const env = {};
  const tokens = md.parse(source, env);
  const found: Block[] = [];
  let from = 0;
  tokens.forEach((token, at) => {
    if (token.level > 0 || token.nesting > 0) return;
    const html = sanitise(md.renderer.render(tokens.slice(from, at + 1), md.options, env));
    found.push({ line: tokens[from]?.map?.[0] ?? 0, html });
    from = at + 1;
  });
  return found;
}

/** A definition that links anywhere in the source may refer to. */
const DEFINITION = /^ {0,3}\[[^\]]+\]:/m;

/** The HTML of a source that may grow, block by block. Only its last block can still change, so what came before is
 * parsed once. */
export class Rendered {
  private source = "";
  private done: string[] = [];
  private rest = 0;

  update(source: string, complete: boolean): string[] {
    if (complete && DEFINITION.test(source)) return blocks(source).map(({ html }) => html);
    if (!source.startsWith(this.source)) {
      this.done = [];
      this.rest = 0;
    }
    this.source = source;
    const tail = source.slice(this.rest);
    const found = blocks(tail);
    const last = found.pop();
    if (!last) return this.done;
    if (found.length > 0) {
      this.done = [...this.done, ...found.map(({ html }) => html)];
      this.rest += startOfLine(tail, last.line);
    }
    return [...this.done, last.html];
  }
}

function startOfLine(text: string, line: number): number {
  let at = 0;
  for (const end of text.matchAll(/\r\n?|\n/g)) {
    if (line-- === 0) break;
    at = end.index + end[0].length;
  }
  return at;
}
