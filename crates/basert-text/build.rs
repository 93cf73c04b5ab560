//! Lists the built-in dialects: the files in `dialects/`.

use std::path::Path;
use std::{env, fs};

fn main() {
    let folder = Path::new(&env::var("CARGO_MANIFEST_DIR").expect("cargo sets it")).join("dialects");
    println!("cargo::rerun-if-changed={}", folder.display());
    let files = fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut paths: Vec<_> = files.map(|file| file.expect("the folder can be read").path()).collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "toml"));
    paths.sort();
    let entries = paths.iter().map(|path| {
        let name = path.file_stem().expect("it has an extension").to_string_lossy();
        format!("({:?}, include_str!({:?})),\n", name, path.to_string_lossy())
    });
    let list = format!("&[\n{}]", entries.collect::<String>());
    let target = Path::new(&env::var("OUT_DIR").expect("cargo sets it")).join("dialects.rs");
    fs::write(&target, list).unwrap_or_else(|error| panic!("{}: {error}", target.display()));
}
