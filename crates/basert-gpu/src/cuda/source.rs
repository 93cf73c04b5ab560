//! A kernel's source in CUDA C++.
//!
//! What is Metal's in it is spelled by macros and by a small library (`metal.h`). Three things are not a matter of
//! spelling, and are rewritten: the kernel's declaration, where what a thread is told about itself comes from, and the
//! variables in threadgroup memory.

use crate::{Argument, Kernel, Signature};

const LIBRARY: &str = include_str!("metal.h");

/// What a kernel's registers are limited by: its threads, and, where it says so, how many threadgroups a core has at once. To say
/// that this is one is not the same: the compiler takes more registers then.
const BOUNDS: &str = "#ifdef RESIDENT\n#define BOUNDS THREADS, RESIDENT\n#else\n#define BOUNDS THREADS\n#endif\n";

/// A kernel's source in CUDA C++, and the number of buffers it takes.
pub(super) struct CudaSource {
    pub(super) text: String,
    pub(super) buffers: usize,
}

impl CudaSource {
    /// Fails with a sentence on what in the declaration cannot be expressed.
    pub(super) fn new(kernel: &Kernel) -> Result<CudaSource, String> {
        let metal = kernel.source();
        let signature = Signature::find(&metal, kernel.function)
            .ok_or_else(|| format!("{} has no declaration of `kernel void {}(…)`", kernel.file, kernel.function))?;
        let declaration = declaration(&signature)?;
        let buffers = signature.arguments.iter().filter(|a| a.buffer().is_some()).count();

        let mut text = format!("{LIBRARY}\n{}{BOUNDS}#line 1 \"{}\"\n", kernel.defines(), kernel.function);
        for part in [&metal[..signature.span.start], &declaration, &metal[signature.span.end..]] {
            part.split_inclusive('\n').for_each(|line| push_line(&mut text, line));
        }
        text.push_str("}  // namespace msl\n");
        Ok(CudaSource { text, buffers })
    }
}

fn push_line(text: &mut String, line: &str) {
    match line.trim_start().strip_prefix("threadgroup ").filter(|rest| is_variable(rest)) {
        Some(variable) => text.extend(["THREADGROUP_MEMORY ", variable]),
        None if line.trim() == "#include <metal_stdlib>" => text.push('\n'),
        None => text.push_str(line),
    }
}

/// Whether this is `T name[…` or `T name;`, where a pointer would have a `*`, and a function a parenthesis.
fn is_variable(text: &str) -> bool {
    let end = text.find(|c: char| !c.is_alphanumeric() && c != '_' && c != ' ').unwrap_or(text.len());
    text[end..].starts_with(['[', ';']) && text[..end].split_whitespace().count() == 2
}

/// The declaration up to the brace that opens the body: buffers by their index, then the rest as variables.
fn declaration(signature: &Signature) -> Result<String, String> {
    let mut pointers: Vec<(usize, String)> = Vec::new();
    // What the launch bounds say the compiler does not draw conclusions from.
    let mut variables = " __builtin_assume(threadIdx.x < THREADS);".to_owned();
    for argument in &signature.arguments {
        let Argument { kind, name, .. } = argument;
        match (argument.buffer(), kind.strip_suffix('&')) {
            (Some(index), None) => pointers.push((index, format!("{kind} {name}"))),
            (Some(index), Some(value)) => {
                pointers.push((index, format!("{value}*{name}_pointer")));
                variables += &format!(" {kind} {name} = *{name}_pointer;");
            }
            (None, _) => variables += &format!(" const {kind} {name} = {};", told(argument)?),
        }
    }
    pointers.sort_by_key(|(index, _)| *index);
    if let Some((place, (index, _))) = pointers.iter().enumerate().find(|(place, (index, _))| place != index) {
        return Err(format!("{} has buffer({index}) where buffer({place}) is expected", signature.name));
    }
    let pointers: Vec<String> = pointers.into_iter().map(|(_, pointer)| pointer).collect();
    let (name, pointers) = (&signature.name, pointers.join(", "));
    Ok(format!("extern \"C\" __global__ void __launch_bounds__(BOUNDS) {name}({pointers}) {{{variables}"))
}

/// What a thread is told about itself.
fn told(argument: &Argument) -> Result<String, String> {
    let Argument { kind, name, attribute } = argument;
    let scalar = match attribute.as_str() {
        "thread_index_in_threadgroup" => "threadIdx.x",
        "simdgroup_index_in_threadgroup" => "threadIdx.x / 32",
        "thread_index_in_simdgroup" => "threadIdx.x % 32",
        "threadgroup_position_in_grid" => "blockIdx",
        "threadgroups_per_grid" => "gridDim",
        _ => return Err(format!("what [[{attribute}]] of {name} is on CUDA is not known")),
    };
    match (kind.as_str(), scalar) {
        ("uint3", "blockIdx" | "gridDim") => Ok(format!("uint3({scalar}.x, {scalar}.y, {scalar}.z)")),
        ("uint", "blockIdx" | "gridDim") => Ok(format!("{scalar}.x")),
        ("uint", _) => Ok(scalar.to_owned()),
        _ => Err(format!("[[{attribute}]] {name} is a {kind}; expected uint or uint3")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::SOURCES;

    #[test]
    fn declarations_become_cuda() {
        let metal = "kernel void f(\n device float *b [[buffer(1)]],\n constant uint &n [[buffer(0)]],\n\
                     uint lane [[thread_index_in_simdgroup]],\n uint3 at [[threadgroup_position_in_grid]])\n{ }";
        let signature = Signature::find(metal, "f").unwrap();
        assert_eq!(
            declaration(&signature).unwrap(),
            "extern \"C\" __global__ void __launch_bounds__(BOUNDS) f(constant uint *n_pointer, device float * b) { \
             __builtin_assume(threadIdx.x < THREADS); constant uint & n = *n_pointer; const uint lane = threadIdx.x % 32; \
             const uint3 at = uint3(blockIdx.x, blockIdx.y, blockIdx.z);"
        );
    }

    #[test]
    fn what_cannot_be_expressed_is_named() {
        let refused = |metal: &str| declaration(&Signature::find(metal, "f").unwrap()).unwrap_err();
        assert!(refused("kernel void f(uint x [[quadgroup_index_in_threadgroup]]) {").contains("[[quadgroup_index"));
        assert!(refused("kernel void f(device float *x [[buffer(1)]]) {").contains("buffer(1) where buffer(0)"));
        assert!(refused("kernel void f(ushort x [[thread_index_in_simdgroup]]) {").contains("ushort"));
    }

    #[test]
    fn variables_in_threadgroup_memory_are_told_from_pointers_to_it() {
        assert!(is_variable("float partial[SIMDGROUPS];"));
        assert!(is_variable("uint count;"));
        assert!(!is_variable("float *values = heads;"));
        assert!(!is_variable("const half *tiles, uint chunks) {"));
        let mut text = String::new();
        for line in ["    threadgroup half tiles[8];\n", "    threadgroup half *from = tiles;\n"] {
            push_line(&mut text, line);
        }
        assert_eq!(text, "THREADGROUP_MEMORY half tiles[8];\n    threadgroup half *from = tiles;\n");
    }

    #[test]
    fn every_kernel_is_rewritten_and_waits_for_its_inputs() {
        let mut kernels = 0;
        for (file, text) in SOURCES {
            let Some(rest) = text.split("\nkernel void ").nth(1) else { continue };
            let function = rest.split('(').next().unwrap();
            let source = CudaSource::new(&Kernel::new(file, function, 32)).unwrap();
            assert!(source.buffers > 0 && !source.text.contains("[["), "{file}");

            // A return before it would let the next kernel begin before those that this one should have waited for.
            let body = rest.split_once("\n{").unwrap().1;
            let before = body.split("    AWAIT_INPUTS();\n").next().unwrap();
            assert!(before.len() < body.len() && !before.contains("return"), "{file}");
            // Nor is anything read before it but weights, which no kernel writes.
            let written = ["step[", "x[", "input", "q[", "k[", "v[", "cache +", "drawn["];
            let code = before.lines().filter(|line| !line.trim_start().starts_with("//"));
            assert!(code.flat_map(|line| written.map(|name| line.contains(name))).all(|found| !found), "{file}");
            kernels += 1;
        }
        assert!(kernels >= 9, "{kernels} kernels");
    }
}
