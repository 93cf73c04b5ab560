//! A model of the ops with running states, in the variants that compile differently; its weights are zeros.

use std::error::Error;
use std::fmt::Write;
use std::sync::Arc;

use basert_core::Format;
use basert_files::{ModelFile, TensorSpec, gguf};
use basert_graph::{Architecture, Graph};

const WIDTH: usize = 64;

pub fn model() -> Result<(Arc<ModelFile>, Arc<Graph>), Box<dyn Error>> {
    // Heads, heads of keys, values of each, what else there is, and whether rows have their own decays and tokens betas.
    let variants = [
        (4, 2, 128, 64, "delta = true", false, true),
        (4, 4, 64, 128, "delta = true, tiled = true", true, true),
        (6, 2, 16, 21, "delta = false, tiled = true", false, false),
        (3, 3, 7, 5, "delta = true", true, true),
        (96, 1, 16, 1, "delta = false", true, true),
    ];
    let (mut ops, mut tensors) = (String::new(), vec![("embed".to_owned(), vec![96, WIDTH])]);
    for (i, (heads, keys, key_dim, value_dim, how, by_row, has_beta)) in variants.into_iter().enumerate() {
        let (keys_wide, values_wide) = (keys * key_dim, heads * value_dim);
        let widths = [("q", keys_wide), ("k", keys_wide), ("v", values_wide), ("a", heads), ("b", heads)];
        for (of, width) in widths.into_iter().filter(|(of, _)| *of != "b" || has_beta) {
            writeln!(ops, "{{ op = 'linear', in = 'x', weight = '{of}{i}', out = '{of}' }},")?;
            tensors.push((format!("{of}{i}"), vec![width, WIDTH]));
        }
        let (bias, beta) = if has_beta { (", bias = 'bias'", ", beta = 'b'") } else { ("", "") };
        let bias = bias.replace("bias'", &format!("bias{i}'"));
        writeln!(
            ops,
            "{{ op = 'conv', in = 'v', weight = 'taps{i}'{bias}, out = 'v' }},\
             {{ op = 'activate', in = 'a', kind = \"'softplus'\", out = 'a' }},\
             {{ op = 'affine', in = 'a', weight = 'rate{i}', decay = true, out = 'a' }},\
             {{ op = 'linear_attention', q = 'q', k = 'k', v = 'v', decay = 'a'{beta}, heads = {heads},\
              key_heads = {keys}, {how}, out = 'o' }}, {{ op = 'affine', in = 'o'{bias}, out = 'o' }},"
        )?;
        tensors.push((format!("taps{i}"), vec![values_wide, 4]));
        tensors.push((format!("rate{i}"), vec![if by_row { heads * key_dim } else { heads }]));
        if has_beta {
            tensors.push((format!("bias{i}"), vec![values_wide]));
        }
    }
    let names =
        tensors.iter().fold(String::new(), |names, (name, _)| names + &format!("{name} = {{ gguf = '{name}' }}\n"));
    let text = format!(
        "name = 'recurrent'\ngguf = ['recurrent']\n[parameters]\nlayers = 1\ncontext = 1024\n[tensors]\n{names}[graph]\n\
         start = [{{ op = 'embed', weight = 'embed', out = 'x' }},\n{ops}]\nblock = []\n\
         finish = [{{ op = 'select', in = 'o', out = 'logits' }}]\n"
    );
    let mut writer = gguf::Writer::new();
    writer.set("general.architecture", "recurrent")?;
    for (name, shape) in &tensors {
        writer.declare(TensorSpec::new(name.as_str(), Format::F32, shape))?;
    }
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("recurrent.gguf");
    let mut out = writer.begin(std::fs::File::create(&path)?)?;
    for (_, shape) in &tensors {
        out.append(&vec![0; shape.iter().product::<usize>() * size_of::<f32>()])?;
    }
    out.finish()?;
    // The mapping outlives its folder.
    let file = Arc::new(ModelFile::open(&path)?);
    let graph = Arc::new(Graph::open(&file, &[Architecture::parse(&text, "recurrent")?])?);
    Ok((file, graph))
}
