//! Finding and listing, without any pull.

use std::fs;
use std::path::Path;

use basert_hub::{DEFAULT_MODEL, Error, Store};

use crate::temp_store;

/// Puts a complete model into the store.
fn install(store: &Store, id: &str, variant: &str, file: &str) {
    let dir = store.root().join(id).join(variant);
    fs::create_dir_all(&dir).unwrap();
    fs::write(dir.join(file), "weights").unwrap();
    let manifest = serde_json::json!({
        "format": 1, "model": id, "variant": variant, "pulled": "2026-01-02T03:04:05Z",
        "origin": {"kind": "pypi-wheel", "packages": ["x==1"]},
        "files": [{"name": file, "size": 7, "sha256": "0".repeat(64)}],
    });
    fs::write(dir.join("hub.json"), manifest.to_string()).unwrap();
}

fn resolved(store: &Store, reference: &str) -> String {
    match store.resolve(reference) {
        Ok(resolved) => resolved.installed.map_or("path".into(), |m| m.reference()),
        Err(error) => error.to_string(),
    }
}

#[test]
fn the_preferred_variant_is_found() {
    let (_dir, store) = temp_store();
    for variant in ["F16", "Q8_0", "Q4_0", "safetensors"] {
        install(&store, "org/Model", variant, "m.gguf");
    }
    assert_eq!(resolved(&store, "org/model"), "org/Model:Q4_0");
    assert_eq!(resolved(&store, "model:f16"), "org/Model:F16");
    install(&store, "other/model", "Q4_0", "m.gguf");
    let text = resolved(&store, "model");
    assert!(text.contains("fits several") && text.contains("other/model:Q4_0"), "{text}");
    assert_eq!(resolved(&store, "other/model"), "other/model:Q4_0");
    assert_eq!(store.list().unwrap().len(), 5);
}

#[test]
fn split_models_open_at_their_first_part() {
    let (_dir, store) = temp_store();
    install(&store, "org/m", "Q4_0", "m-00002-of-00002.gguf");
    let dir = store.root().join("org/m/Q4_0");
    fs::write(dir.join("m-00001-of-00002.gguf"), "weights").unwrap();
    let text = fs::read_to_string(dir.join("hub.json")).unwrap();
    let mut manifest: serde_json::Value = serde_json::from_str(&text).unwrap();
    let mut first = manifest["files"][0].clone();
    first["name"] = "m-00001-of-00002.gguf".into();
    manifest["files"].as_array_mut().unwrap().push(first);
    fs::write(dir.join("hub.json"), manifest.to_string()).unwrap();
    assert_eq!(store.resolve("org/m").unwrap().path, dir.join("m-00001-of-00002.gguf"));
}

#[test]
fn what_is_not_there_comes_with_advice() {
    let (_dir, store) = temp_store();
    let text = resolved(&store, DEFAULT_MODEL);
    assert!(text.contains("`basert pull smollm2-135m` fetches it (98.4 MB)"), "{text}");
    let text = resolved(&store, "smolm2");
    assert!(text.contains("no model is called `smolm2`; did you mean `smollm2`?"), "{text}");
    assert!(text.contains("nothing is installed yet"), "{text}");
    install(&store, "org/Qwen3-0.6B", "Q4_0", "m.gguf");
    let text = resolved(&store, "qwen3-06b");
    assert!(text.contains("`Qwen3-0.6B`") && text.contains("installed: org/Qwen3-0.6B:Q4_0"), "{text}");
    let text = resolved(&store, "zzzzzzzz");
    assert!(text.contains("the catalogue has smollm2-135m and gemma3-270m"), "{text}");
    let text = resolved(&store, "org/Qwen3-0.6B:Q8_0");
    assert!(
        text.contains("`basert pull org/Qwen3-0.6B:Q8_0`") && text.contains("installed: org/Qwen3-0.6B:Q4_0"),
        "{text}"
    );
    assert_eq!(resolved(&store, "./none.gguf"), "there is no file or folder `./none.gguf`");
    for reference in ["smolm2", "a/b", "./none.gguf", "", "smollm2:Q2_K"] {
        assert!(store.resolve(reference).unwrap_err().is_user_mistake(), "{reference}");
    }
}

#[test]
fn paths_are_themselves() {
    let (dir, store) = temp_store();
    let file = dir.path().join("x.gguf");
    fs::write(&file, "").unwrap();
    let found = store.resolve(file.to_str().unwrap()).unwrap();
    assert_eq!((found.path.as_path(), found.installed.is_none()), (file.as_path(), true));
    // Tests run in the crate's folder, which has `src` and `src/lib.rs`.
    assert_eq!(store.resolve("src").unwrap().path, Path::new("src"));
    assert_eq!(store.resolve("src/lib.rs").unwrap().path, Path::new("src/lib.rs"));
    assert!(matches!(store.remove("./src"), Err(Error::BadReference { .. })));
    assert!(Path::new("src").exists());
}

#[test]
fn damage_is_listed_with_its_reason_and_can_be_removed() {
    type Damage = fn(&Path);
    let damages: [(&str, Damage); 6] = [
        ("the pull has not finished", |dir| fs::remove_file(dir.join("hub.json")).unwrap()),
        ("m.gguf has 3 bytes, hub.json says 7", |dir| fs::write(dir.join("m.gguf"), "wei").unwrap()),
        ("m.gguf: No such file", |dir| fs::remove_file(dir.join("m.gguf")).unwrap()),
        ("hub.json: ", |dir| fs::write(dir.join("hub.json"), "{").unwrap()),
        ("hub.json has format 9", |dir| edit(dir, "\"format\":1", "\"format\":9")),
        ("is not a plain file name", |dir| edit(dir, "\"m.gguf\"", "\"x/m.gguf\"")),
    ];
    for (reason, damage) in damages {
        let (_dir, store) = temp_store();
        install(&store, "org/m", "Q4_0", "m.gguf");
        assert_eq!(store.incomplete().unwrap().len(), 0);
        damage(&store.root().join("org/m/Q4_0"));
        assert_eq!(store.list().unwrap().len(), 0, "{reason}");
        let found = store.incomplete().unwrap().remove(0);
        assert!(found.reason.contains(reason), "{}", found.reason);
        assert!(matches!(store.resolve("org/m"), Err(Error::NotInstalled { .. })));
        store.remove("org/m").unwrap();
        assert_eq!(store.incomplete().unwrap().len(), 0);
    }
}

fn edit(dir: &Path, from: &str, to: &str) {
    let text = fs::read_to_string(dir.join("hub.json")).unwrap();
    let edited = text.replace(from, to);
    assert_ne!(text, edited);
    fs::write(dir.join("hub.json"), edited).unwrap();
}

#[test]
fn strange_folders_are_left_alone() {
    let (_dir, store) = temp_store();
    assert_eq!(store.list().unwrap().len(), 0, "a store that does not exist is empty");
    install(&store, "org/m", "Q4_0", "m.gguf");
    fs::create_dir_all(store.root().join(".hidden/x/y")).unwrap();
    fs::create_dir_all(store.root().join("a b/x/y")).unwrap();
    fs::write(store.root().join("README"), "").unwrap();
    fs::write(store.root().join("org/m/notes.txt"), "").unwrap();
    assert_eq!((store.list().unwrap().len(), store.incomplete().unwrap().len()), (1, 0));
    store.remove("org/m").unwrap();
    assert!(store.root().join("org/m/notes.txt").exists(), "what is not the model's stays");
}
