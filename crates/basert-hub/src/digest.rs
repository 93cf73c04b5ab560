//! Checksums of files: sha256, and for small files of a git repository its blob id.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use serde::{Deserialize, Serialize};
use sha1::Sha1;
use sha2::{Digest as _, Sha256};

use crate::error::{Error, Result};

/// The announced digest of a file's content.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Digest {
    /// sha256 of the content, 64 lower-case hexadecimal digits.
    Sha256(String),
    /// git's id of a blob: sha1 of `blob LENGTH\0` and the content, 40 lower-case hexadecimal digits.
    GitSha1(String),
}

impl Digest {
    pub(crate) fn hex(&self) -> &str {
        match self {
            Digest::Sha256(hex) | Digest::GitSha1(hex) => hex,
        }
    }

    fn algorithm(&self) -> &'static str {
        match self {
            Digest::Sha256(_) => "sha256",
            Digest::GitSha1(_) => "git-sha1",
        }
    }
}

/// Reads the file and compares it with the expected digest, if there is one; returns its sha256. `on_bytes` is called
/// with the size of every chunk read.
pub(crate) fn verify(expected: Option<&Digest>, path: &Path, mut on_bytes: impl FnMut(u64)) -> Result<String> {
    let mut file = File::open(path).map_err(Error::io("open", path))?;
    let length = file.metadata().map_err(Error::io("examine", path))?.len();
    let mut hashes = Hashes::new(expected, length);
    let mut buffer = vec![0; 1 << 20];
    loop {
        let n = file.read(&mut buffer).map_err(Error::io("read", path))?;
        let Some(chunk) = buffer.get(..n).filter(|c| !c.is_empty()) else { break };
        hashes.update(chunk);
        on_bytes(n as u64);
    }
    hashes.check(expected, &path.file_name().unwrap_or_default().to_string_lossy())
}

impl TryFrom<String> for Digest {
    type Error = String;

    /// The kind follows from the number of digits.
    fn try_from(text: String) -> Result<Self, String> {
        let hex = text.to_ascii_lowercase();
        if !hex.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(format!("`{text}` is not a hexadecimal digest"));
        }
        match hex.len() {
            64 => Ok(Digest::Sha256(hex)),
            40 => Ok(Digest::GitSha1(hex)),
            n => Err(format!("a digest has 64 (sha256) or 40 (git) hexadecimal digits, not {n}")),
        }
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> String {
        digest.hex().into()
    }
}

/// A running checksum: always sha256, which the manifest records, and git's where it was announced.
pub(crate) struct Hashes {
    sha256: Sha256,
    git: Option<Sha1>,
}

impl Hashes {
    pub(crate) fn new(expected: Option<&Digest>, length: u64) -> Hashes {
        let git = matches!(expected, Some(Digest::GitSha1(_)))
            .then(|| Sha1::new_with_prefix(format!("blob {length}\0").as_bytes()));
        Hashes { sha256: Sha256::new(), git }
    }

    pub(crate) fn update(&mut self, bytes: &[u8]) {
        self.sha256.update(bytes);
        if let Some(git) = &mut self.git {
            git.update(bytes);
        }
    }

    /// The sha256 of `file`, if its content is as expected.
    pub(crate) fn check(self, expected: Option<&Digest>, file: &str) -> Result<String> {
        let sha256 = hex(&self.sha256.finalize());
        let Some(expected) = expected else { return Ok(sha256) };
        let got = self.git.map_or_else(|| sha256.clone(), |git| hex(&git.finalize()));
        if got == expected.hex() {
            return Ok(sha256);
        }
        Err(Error::Checksum {
            file: file.into(),
            algorithm: expected.algorithm(),
            expected: expected.hex().into(),
            got,
        })
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_digests() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        std::fs::write(&path, "hello\n").unwrap();
        let sha256 = "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03";
        // `printf 'hello\n' | git hash-object --stdin`
        for expected in [sha256.to_uppercase(), "ce013625030ba8dba906f756967f9e9ca394464a".to_owned()] {
            let mut seen = 0;
            assert_eq!(verify(Some(&Digest::try_from(expected).unwrap()), &path, |n| seen += n).unwrap(), sha256);
            assert_eq!(seen, 6);
        }
        let wrong = Digest::try_from("0".repeat(40)).unwrap();
        let message = verify(Some(&wrong), &path, |_| ()).unwrap_err().to_string();
        assert!(message.contains("`f` has git-sha1 ce0136") && message.contains("expected 0000"), "{message}");
    }
}
