//! Mistakes in architecture files are errors that name the op and say what is wrong; none of them becomes another model.

use basert_files::Kind;
use basert_graph::{Architecture, Metadata};

struct Nothing;

impl Metadata for Nothing {
    fn kind(&self) -> Kind {
        Kind::Gguf
    }

    fn name(&self) -> String {
        "a model".to_owned()
    }

    fn get(&self, _key: &str) -> Option<basert_files::Value<'_>> {
        None
    }
}

/// What is said of a model that embeds 32 values as `x`, has `q`, `k` and `v` of two heads and then these ops.
fn error(ops: &str) -> String {
    let text = format!(
        "name = 'mine'\ngguf = ['mine']\nuse = ['common']\n[parameters]\nlayers = 1\ncontext = 64\nhidden = 32\nheads = 2\n\
         kv_heads = 2\nhead_dim = 16\n[tensors]\nembed = {{ gguf = 'embed', shape = [96, 32] }}\n\
         w = {{ gguf = 'w', shape = [32, 32] }}\nvector = {{ gguf = 'vector', shape = [7] }}\n\
         part = {{ gguf = 'w', shape = [32, 32], rows = [20, 20] }}\n\
         columns = {{ gguf = 'w', shape = [32, 32], columns = [0, 16] }}\n\
         beyond = {{ gguf = 'w', shape = [32, 32], columns = [20, 20] }}\n[graph]\nstart = [\n\
         {{ op = 'embed', weight = 'embed', out = 'x' }},\n{{ op = 'linear', in = 'x', weight = 'w', out = 'q' }},\n\
         {{ op = 'linear', in = 'x', weight = 'w', out = 'k' }},\n{{ op = 'linear', in = 'x', weight = 'w', out = 'v' }},\n\
         {{ op = 'store', k = 'k', v = 'v', out = 'kv' }},\n{{ op = 'select', in = 'x', out = 's' }},\n{ops}\n]\nblock = []\n\
         finish = [{{ op = 'linear', in = 's', weight = 'embed', out = 'logits' }}]\n"
    );
    let architecture = Architecture::parse(&text, "mine.toml").unwrap();
    match architecture.tensors(&Nothing, "mine", &|name| !name.starts_with("rope")) {
        Ok(_) => String::new(),
        Err(error) => error.to_string(),
    }
}

#[test]
fn what_cannot_be_computed_is_refused_by_name() {
    assert_eq!(error(""), "");
    assert_eq!(error("{ op = 'attention', in = 'q', kv = 'kv', out = 'a' },"), "");
    for (ops, said) in [
        ("{ op = 'rope_cache', q = 'q', k = 'k', v = 'k', out = 'q' },", "say norm, rope and store"),
        ("{ op = 'gate', gate = 'q', up = 'k', out = 'q' },", "say activate and mul"),
        ("{ op = 'sofcap', in = 'q', out = 'q' },", "there is no op 'sofcap'; there are embed"),
        ("{ op = 'norm', in = 'kv', out = 'a' },", "'kv' stands for what is stored"),
        ("{ op = 'add', in = ['x', 'kv'], out = 'a' },", "'kv' stands for what is stored"),
        ("{ op = 'attention', in = 'q', out = 'a' },", "`kv` is missing"),
        ("{ op = 'attention', in = 'q', kv = 'x', out = 'a' },", "does not name what an op 'store' stores"),
        ("{ op = 'attention', in = 's', kv = 'kv', out = 'a' },", "rows for the wanted tokens only"),
        ("{ op = 'attention', in = 'q', kv = 'kv', skipped = 1, window = 2, out = 'a' },", "it skips tokens, and has"),
        ("{ op = 'embed', weight = 'columns', out = 'a' },", "only some of the columns"),
        ("{ op = 'linear', in = 'x', weight = 'beyond', out = 'a' },", "20 from 20 on cannot be taken"),
        ("{ op = 'store', k = 's', v = 'v', out = 'b' },", "rows for the wanted tokens only"),
        ("{ op = 'rope', in = 's', out = 'a' },", "rows for the wanted tokens only"),
        ("{ op = 'select', in = 's', out = 'a' },", "rows for the wanted tokens only"),
        ("{ op = 'add', in = ['x', 's'], out = 'a' },", "have rows for different tokens"),
        ("{ op = 'norm', in = 'x', group = 5, out = 'a' },", "no groups of 5"),
        ("{ op = 'norm', in = 'x', weight = 'vector', out = 'a' },", "expected [32]"),
        ("{ op = 'slice', in = 'x', first = 30, width = 4, out = 'a' },", "4 columns from 30 on are wanted"),
        ("{ op = 'linear', in = 'x', weight = 'part', out = 'a' },", "20 of each 32 from 20 on"),
        (
            "{ op = 'linear', in = 'x', weight = 'w', route = 'x', out = 'a' },",
            "does not name what an op 'route' computes",
        ),
        ("{ op = 'route', in = 'x', used = 33, out = 'a' },", "33 of 32 experts"),
        (
            "{ op = 'route', in = 'x', used = 3, groups = 16, out = 'a' },",
            "3 of 32 experts are to be in 1 of 16 groups",
        ),
        ("{ op = 'activate', in = 'x', kind = \"'silly'\", out = 'a' },", "the activation 'silly' is not known"),
        ("{ op = 'scale', in = 'x', factor = 2, colour = 3, out = 'a' },", "no attribute 'colour'"),
        ("{ op = 'select', in = 'x', out = 'a' },\n{ op = 'store', k = 'k', v = 'v', out = 'logits' },", ""),
    ] {
        let found = error(ops);
        assert!(found.contains(said), "{ops}\nsays: {found}");
    }
}
