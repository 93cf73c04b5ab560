//! The input of the host's compiler for a kernel: the same source, with the kernel's declaration rewritten, and
//! bounds-checked pointers.

use std::fmt::Write;

use crate::{GpuError, Kernel, Signature};

/// Metal's standard library, implemented for the host.
const METAL: &str = include_str!("metal.h");

/// A kernel as C++, with the line numbers of [`Kernel::source`], and its declaration.
pub struct Source {
    /// The whole text. It defines `simt_thread`, which runs one thread.
    pub text: String,
    /// The kernel's declaration.
    pub signature: Signature,
}

impl Source {
    /// # Errors
    /// When the kernel's declaration is missing or not understood.
    pub fn of(kernel: &Kernel) -> Result<Source, GpuError> {
        let source = kernel.source();
        let refuse = |log: String| GpuError::Compile { kernel: kernel.to_string(), log };
        let signature = Signature::find(&source, kernel.function)
            .ok_or_else(|| refuse(format!("no declaration `kernel void {}(…)` that can be read", kernel.function)))?;
        let entry = entry(&signature).map_err(refuse)?;

        let mut text = String::new();
        let _ = writeln!(text, "{METAL}\n{}\n#line 1 \"{}\"", addresses(&kernel.defines()), kernel.file);
        text += &addresses(&source[..signature.span.start]);
        text += &entry;
        // One line replaces the declaration's lines.
        text.extend(source[signature.span.clone()].matches('\n'));
        text += &addresses(&source[signature.span.end..]);
        Ok(Source { text: text.replace("#include <metal_stdlib>", ""), signature })
    }
}

/// The function that the host calls for each thread, up to the brace that opens the kernel's body.
fn entry(signature: &Signature) -> Result<String, String> {
    let mut out = String::from(
        "extern \"C\" void simt_thread(const simt::group *simt_group) { \
         simt::self = simt_group; unsigned long threadgroup_memory_used = 0; (void)threadgroup_memory_used; ",
    );
    for argument in &signature.arguments {
        let (kind, name) = (addresses(&argument.kind), &argument.name);
        let _ = match (argument.buffer(), kind.strip_suffix('&')) {
            (Some(i), Some(referred)) => {
                let kind = referred.trim_start_matches("device").trim_start_matches("constant").trim();
                let pointer = format!("simt::pointer<simt::device_space, const {kind}>");
                write!(out, "const {kind} &{name} = *{pointer}(simt_group->arguments[{i}]); ")
            }
            (Some(i), None) => write!(out, "{kind} {name}(simt_group->arguments[{i}]); "),
            (None, _) => {
                let value = attribute(&argument.attribute).ok_or_else(|| {
                    format!("argument {name}: [[{}]] is not among what simt knows", argument.attribute)
                })?;
                write!(out, "const {kind} {name} = simt::index_of<{kind}>::{value}; ")
            }
        };
    }
    Ok(out)
}

/// The function of `simt::index_of` that computes an attribute.
fn attribute(name: &str) -> Option<&'static str> {
    Some(match name {
        "threadgroup_position_in_grid" => "get(simt_group->position)",
        "threadgroups_per_grid" => "get(simt_group->groups)",
        "thread_position_in_threadgroup" => "line(simt_group->running, 0)",
        "threads_per_threadgroup" => "line(simt_group->threads, 1)",
        "thread_index_in_threadgroup" => "line(simt_group->running, 0)",
        "simdgroup_index_in_threadgroup" => "line(simt_group->running / 32, 0)",
        "thread_index_in_simdgroup" => "line(simt_group->running % 32, 0)",
        "simdgroups_per_threadgroup" => "line(simt_group->threads / 32, 0)",
        "threads_per_simdgroup" => "line(32, 0)",
        _ => return None,
    })
}

/// With pointers to device and threadgroup memory, and threadgroup arrays, as `metal.h` has them:
/// `device const T *` becomes `simt::pointer<simt::device_space, const T>`, `threadgroup T name[n];` a declaration by
/// `THREADGROUP_ARRAY`.
fn addresses(source: &str) -> String {
    let mut out = String::new();
    let mut rest = source;
    while let Some(found) = rest.find(|c: char| c.is_alphabetic() || c == '_') {
        out += &rest[..found];
        rest = &rest[found..];
        let (written, taken) = match address(rest) {
            Some(rewritten) => rewritten,
            None => {
                let end = rest.find(|c: char| !is_name(c)).unwrap_or(rest.len());
                (rest[..end].to_owned(), end)
            }
        };
        out += &written;
        rest = &rest[taken..];
    }
    out + rest
}

/// The replacement of a pointer or an array at the beginning of a text, and the bytes it replaces.
fn address(text: &str) -> Option<(String, usize)> {
    let mut words = Words { text, at: 0 };
    let space = words.name().filter(|space| ["device", "threadgroup"].contains(space))?;
    let mut kind = words.name()?;
    let constant = kind == "const";
    if constant {
        kind = words.name()?;
    }
    let constant = if constant { "const " } else { "" };
    if words.symbol('*') {
        return Some((format!("simt::pointer<simt::{space}_space, {constant}{kind}>"), words.at));
    }
    let name = words.name().filter(|_| space == "threadgroup" && constant.is_empty())?;
    if !words.symbol('[') {
        return None;
    }
    let end = words.at + text[words.at..].find(']')?;
    let count = &text[words.at..end];
    words.at = end + 1;
    words.symbol(';').then(|| (format!("THREADGROUP_ARRAY({kind}, {name}, {count});"), words.at))
}

fn is_name(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// Parses names and symbols, skipping spaces before them.
struct Words<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Words<'a> {
    fn skip_spaces(&mut self) -> &'a str {
        let rest = self.text[self.at..].trim_start_matches(' ');
        self.at = self.text.len() - rest.len();
        rest
    }

    fn name(&mut self) -> Option<&'a str> {
        let rest = self.skip_spaces();
        let end = rest.find(|c: char| !is_name(c)).unwrap_or(rest.len());
        self.at += end;
        (end > 0).then(|| &rest[..end])
    }

    fn symbol(&mut self, symbol: char) -> bool {
        let is = self.skip_spaces().starts_with(symbol);
        self.at += if is { symbol.len_utf8() } else { 0 };
        is
    }
}

#[cfg(test)]
mod tests {
    use super::addresses;

    #[test]
    fn pointers_and_arrays() {
        for (metal, host) in [
            ("device const float *x", "simt::pointer<simt::device_space, const float>x"),
            ("((device uint4 *)w)[i]", "((simt::pointer<simt::device_space, uint4>)w)[i]"),
            ("threadgroup half *xs", "simt::pointer<simt::threadgroup_space, half>xs"),
            ("threadgroup half xs[2 * (A + 1)];", "THREADGROUP_ARRAY(half, xs, 2 * (A + 1));"),
            ("my_device float *x", "my_device float *x"),
            ("thread const brought &b", "thread const brought &b"),
            ("threadgroup_barrier(x)", "threadgroup_barrier(x)"),
            ("// the device's memory", "// the device's memory"),
        ] {
            assert_eq!(addresses(metal), host);
        }
    }
}
