//! The declaration of a kernel function, parsed from its source for the compilers that are not Apple's.

/// A kernel function's declaration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signature {
    /// Its name.
    pub name: String,
    /// Its arguments in order.
    pub arguments: Vec<Argument>,
    /// The bytes of the source from `kernel` to the brace that opens the body, inclusive.
    pub span: std::ops::Range<usize>,
}

/// One argument.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Argument {
    /// Its type as written, such as `device const float *`.
    pub kind: String,
    /// Its name.
    pub name: String,
    /// The text between the brackets: `buffer(0)`, `threadgroup_position_in_grid`.
    pub attribute: String,
}

impl Argument {
    /// The index of a buffer.
    pub fn buffer(&self) -> Option<usize> {
        self.attribute.strip_prefix("buffer(")?.strip_suffix(')')?.parse().ok()
    }
}

impl Signature {
    /// The declaration of `kernel void name(…)` in a source.
    pub fn find(source: &str, name: &str) -> Option<Signature> {
        let start = source.find(&format!("kernel void {name}("))?;
        let open = start + source[start..].find('(')?;
        let end = open + source[open..].find('{')?;
        let close = open + source[open..end].rfind(')')?;
        let arguments = source[open + 1..close].split(',').map(argument).collect::<Option<Vec<_>>>()?;
        Some(Signature { name: name.to_owned(), arguments, span: start..end + 1 })
    }
}

fn argument(text: &str) -> Option<Argument> {
    let (declaration, attribute) = text.split_once("[[")?;
    let declaration = declaration.trim();
    let at = declaration.rfind(|c: char| !c.is_alphanumeric() && c != '_')? + 1;
    let (kind, name) = declaration.split_at(at);
    let attribute = attribute.trim().strip_suffix("]]")?.trim();
    Some(Argument { kind: kind.trim().to_owned(), name: name.to_owned(), attribute: attribute.to_owned() })
}
