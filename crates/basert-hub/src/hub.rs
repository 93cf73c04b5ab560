//! A hub's description of a repository.

use serde::Deserialize;

use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::http::Http;
use crate::reference::{ModelId, component};
use crate::variants::RemoteFile;

/// Longest listing that is accepted.
const MAX_FILES: usize = 100_000;

/// A repository at one commit.
pub(crate) struct Repository {
    pub commit: String,
    pub files: Vec<RemoteFile>,
}

/// `GET /api/models/{id}/revision/{revision}?blobs=true`
#[derive(Deserialize)]
struct Description {
    /// Mirrors may leave it out.
    sha: Option<String>,
    siblings: Vec<Sibling>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Sibling {
    rfilename: String,
    size: Option<u64>,
    /// git's id of the file or, with `lfs`, of a pointer to it.
    blob_id: Option<String>,
    lfs: Option<Lfs>,
}

#[derive(Deserialize)]
struct Lfs {
    /// Where git says it: with `sha256:` in front.
    #[serde(alias = "oid")]
    sha256: String,
    size: u64,
}

/// Lists the files of a revision, with sizes and checksums. What is then downloaded is addressed by the commit, so that
/// a push in between cannot mix two versions.
pub(crate) fn describe(http: &Http<'_>, repo: &ModelId, revision: &str) -> Result<Repository> {
    let mut url = http.url(["api", "models", repo.org(), repo.name(), "revision", revision]);
    url.set_query(Some("blobs=true"));
    let description: Description = http.get_json(&url, &repo.to_string())?;
    let bad = |reason: String| Error::BadResponse { what: repo.to_string(), reason };
    let commit = description.sha.unwrap_or_else(|| revision.to_owned());
    component(&commit).map_err(|r| bad(format!("the commit id {r}")))?;
    if description.siblings.len() > MAX_FILES {
        return Err(bad(format!("it lists {} files, more than {MAX_FILES}", description.siblings.len())));
    }
    // Wrong data of a file that is not needed is ignored; for one that is, a missing checksum is noted.
    let digest = |text: String| Digest::try_from(text.trim_start_matches("sha256:").to_owned()).ok();
    let files = description.siblings.into_iter().map(|file| {
        let (size, digest) = match file.lfs {
            Some(lfs) => (Some(lfs.size), digest(lfs.sha256).filter(|d| matches!(d, Digest::Sha256(_)))),
            None => (file.size, file.blob_id.and_then(digest).filter(|d| matches!(d, Digest::GitSha1(_)))),
        };
        RemoteFile { path: file.rfilename, size, digest }
    });
    Ok(Repository { commit, files: files.collect() })
}
