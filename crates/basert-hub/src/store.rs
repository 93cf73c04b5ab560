//! The models on this machine: finding, listing, removing.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use basert_system::folders;
use jiff::Timestamp;

use crate::catalogue::{Catalogue, Entry};
use crate::digest;
use crate::error::{Error, Result, human_bytes, list};
use crate::lock::ModelLock;
use crate::manifest::{FileRecord, Manifest};
use crate::progress::Progress;
use crate::reference::{ModelId, Reference, component};
use crate::variants;

/// A folder of models, and the catalogue that gives some of them short names.
#[derive(Clone, Debug)]
pub struct Store {
    root: PathBuf,
    catalogue: Catalogue,
}

/// A model that was pulled completely.
#[derive(Clone, Debug)]
pub struct Installed {
    /// Its id.
    pub id: ModelId,
    /// Its quantisation, or `safetensors`.
    pub variant: String,
    /// Its folder.
    pub dir: PathBuf,
    /// What to open: the (first) GGUF file, or the folder of a safetensors model.
    pub path: PathBuf,
    /// Bytes of all its files.
    pub size: u64,
    /// When it was pulled.
    pub pulled: Timestamp,
    /// Its `hub.json`.
    pub manifest: Manifest,
}

/// A model folder that cannot be used: a pull that was interrupted, or damage.
#[derive(Clone, Debug)]
pub struct Incomplete {
    /// Its id.
    pub id: ModelId,
    /// Its variant.
    pub variant: String,
    /// Its folder.
    pub dir: PathBuf,
    /// Bytes on disk.
    pub size: u64,
    /// What is wrong with it.
    pub reason: String,
}

/// What a reference means.
#[derive(Clone, Debug)]
pub struct Resolved {
    /// What to open.
    pub path: PathBuf,
    /// The model's entry in the store; `None` for a path outside.
    pub installed: Option<Installed>,
}

/// What [`Store::remove`] took away.
#[derive(Clone, Debug)]
pub struct Removed {
    /// `org/name:variant`
    pub reference: String,
    /// Bytes freed.
    pub size: u64,
}

impl Installed {
    /// The reference that always means this model: `org/name:variant`.
    pub fn reference(&self) -> String {
        format!("{}:{}", self.id, self.variant)
    }

    /// A file that was changed after it was pulled, by the time that the file system keeps of it. It may still be
    /// right, for a copy of it has a later time too: [`Installed::verify`] tells.
    pub fn changed(&self) -> Option<&str> {
        // Times of files may be of whole seconds, or of two.
        let pulled = SystemTime::from(self.pulled) + Duration::from_secs(2);
        let later = |file: &&FileRecord| {
            let time = fs::metadata(self.dir.join(&file.name)).and_then(|meta| meta.modified());
            time.is_ok_and(|time| time > pulled)
        };
        self.manifest.files.iter().find(later).map(|file| file.name.as_str())
    }

    /// Reads all files, and compares them with the checksums of their pull. Where they are right, none counts as
    /// [`Installed::changed`] any more.
    ///
    /// # Errors
    /// [`Error::Damaged`] for the first that is not what was pulled, or when one cannot be read.
    pub fn verify(&self, progress: &dyn Progress) -> Result<()> {
        for FileRecord { name, size, sha256 } in &self.manifest.files {
            let path = self.dir.join(name);
            progress.begin(&format!("verify {name}"), *size);
            digest::verify(Some(sha256), &path, |bytes| progress.advance(bytes)).map_err(|error| match error {
                Error::Checksum { expected, got, .. } => Error::Damaged { path: path.clone(), expected, got },
                other => other,
            })?;
            progress.finish();
            // If the store cannot be written to, the warning is repeated.
            let _ = fs::File::options().append(true).open(&path).and_then(|file| file.set_modified(self.pulled.into()));
        }
        Ok(())
    }

    fn new(id: ModelId, variant: String, dir: PathBuf, manifest: Manifest) -> Installed {
        let names = manifest.files.iter().map(|f| f.name.as_str());
        let path = match names.filter(|n| n.to_ascii_lowercase().ends_with(".gguf")).min() {
            Some(first) => dir.join(first),
            None => dir.clone(),
        };
        // A sum of sizes of real files, checked against the file system.
        let size = manifest.files.iter().map(|f| f.size).sum();
        Installed { id, variant, dir, path, size, pulled: manifest.pulled, manifest }
    }
}

impl From<Installed> for Resolved {
    fn from(installed: Installed) -> Resolved {
        Resolved { path: installed.path.clone(), installed: Some(installed) }
    }
}

impl Store {
    /// The store in the user's folder of models ([`basert_system::folders::models`]).
    pub fn open_default() -> Result<Store> {
        folders::models().map(Store::at).ok_or(Error::NoHome)
    }

    /// The store in `root`, with the built-in catalogue. The folder need not exist; the first pull makes it.
    pub fn at(root: impl Into<PathBuf>) -> Store {
        Store { root: root.into(), catalogue: Catalogue::builtin() }
    }

    /// The same store with another catalogue.
    pub fn with_catalogue(self, catalogue: Catalogue) -> Store {
        Store { catalogue, ..self }
    }

    /// The store's folder.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The models it knows by name.
    pub fn catalogue(&self) -> &Catalogue {
        &self.catalogue
    }

    /// The complete models, sorted by id and variant.
    pub fn list(&self) -> Result<Vec<Installed>> {
        Ok(self.scan()?.0)
    }

    /// Folders of the store that hold no complete model.
    pub fn incomplete(&self) -> Result<Vec<Incomplete>> {
        Ok(self.scan()?.1)
    }

    /// What to open for a reference that a user typed.
    ///
    /// Names of the catalogue and installed models come first; what is neither may still be a path.
    pub fn resolve(&self, reference: impl AsRef<OsStr>) -> Result<Resolved> {
        let given = reference.as_ref();
        // Names are ASCII; what is not even UTF-8 can only be a path.
        let parsed = given.to_str().map_or_else(|| Ok(Reference::Path(given.into())), str::parse)?;
        if let Reference::Path(path) = parsed {
            let exists = path.exists();
            return if exists { Ok(Resolved { path, installed: None }) } else { Err(Error::NoSuchPath(path)) };
        }
        let installed = self.list()?;
        if let Some(found) = self.find(&parsed, &installed)? {
            return Ok(found.clone().into());
        }
        let in_catalogue = self.catalogue_entries(&parsed)?;
        let path = PathBuf::from(given);
        if in_catalogue.is_empty() && path.exists() {
            return Ok(Resolved { path, installed: None });
        }
        Err(self.not_found(&parsed, &in_catalogue, &installed))
    }

    /// Deletes a pulled model, or what an interrupted pull left. Of several variants, one must be named.
    pub fn remove(&self, reference: &str) -> Result<Removed> {
        let parsed: Reference = reference.parse()?;
        if let Reference::Path(_) = parsed {
            let reason = "only pulled models can be removed, by name; delete other files yourself".into();
            return Err(Error::BadReference { text: reference.into(), reason });
        }
        let (installed, incomplete) = self.scan()?;
        let entries = self.catalogue_entries(&parsed)?;
        let mut found: Vec<(&ModelId, &str, &Path)> = installed
            .iter()
            .map(|m| (&m.id, m.variant.as_str(), m.dir.as_path()))
            .chain(incomplete.iter().map(|m| (&m.id, m.variant.as_str(), m.dir.as_path())))
            .filter(|(id, variant, _)| matches_reference(&parsed, &entries, id, variant))
            .collect();
        let (id, variant, dir) = match (found.pop(), found.as_slice()) {
            (Some(one), []) => one,
            (None, _) => return Err(self.not_found(&parsed, &entries, &installed)),
            (Some(last), _) => {
                let candidates =
                    found.iter().chain([&last]).map(|(id, variant, _)| format!("{id}:{variant}")).collect();
                return Err(Error::Ambiguous { reference: reference.into(), candidates });
            }
        };
        let _lock = ModelLock::take(&self.root, id, variant)?;
        let size = folder_size(dir);
        // Without its manifest the folder is an unfinished pull, should the deletion be interrupted.
        let manifest = dir.join(crate::manifest::FILE_NAME);
        match fs::remove_file(&manifest) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(Error::io("delete", &manifest)(e)),
            _ => {}
        }
        fs::remove_dir_all(dir).map_err(Error::io("delete", dir))?;
        // Empty parents go too; one that is not empty stays.
        for parent in dir.ancestors().skip(1).take(2) {
            let _ = fs::remove_dir(parent);
        }
        Ok(Removed { reference: format!("{id}:{variant}"), size })
    }

    pub(crate) fn model_dir(&self, id: &ModelId, variant: &str) -> PathBuf {
        self.root.join(id.org()).join(id.name()).join(variant)
    }

    /// The model kept as exactly this id and variant, or why there is none.
    pub(crate) fn installed(&self, id: &ModelId, variant: &str) -> Result<Installed, String> {
        let dir = self.model_dir(id, variant);
        let manifest = Manifest::read(&dir)?;
        if manifest.model != *id || manifest.variant != variant {
            return Err(format!("hub.json is that of {}:{}", manifest.model, manifest.variant));
        }
        Ok(Installed::new(id.clone(), variant.into(), dir, manifest))
    }

    fn scan(&self) -> Result<(Vec<Installed>, Vec<Incomplete>)> {
        let (mut installed, mut incomplete) = (Vec::new(), Vec::new());
        for org in folders(&self.root)? {
            for name in folders(&self.root.join(&org))? {
                let Ok(id) = format!("{org}/{name}").parse::<ModelId>() else { continue };
                for variant in folders(&self.root.join(&org).join(&name))? {
                    match self.installed(&id, &variant) {
                        Ok(model) => installed.push(model),
                        Err(reason) => {
                            let dir = self.model_dir(&id, &variant);
                            let size = folder_size(&dir);
                            incomplete.push(Incomplete { id: id.clone(), variant, dir, size, reason });
                        }
                    }
                }
            }
        }
        Ok((installed, incomplete))
    }

    /// The catalogue's entries that a reference may mean.
    pub(crate) fn catalogue_entries(&self, reference: &Reference) -> Result<Vec<&Entry>> {
        match reference {
            Reference::Path(_) => Ok(Vec::new()),
            // Without a variant, a hub id means the hub's repository.
            Reference::Hub { variant: None, .. } => Ok(Vec::new()),
            Reference::Hub { id, variant: Some(variant) } => {
                Ok(self.catalogue.kept_as(id, variant).into_iter().collect())
            }
            Reference::Name { name, variant } => {
                let named = self.catalogue.named(name);
                let Some(variant) = variant else { return Ok(named) };
                let fitting: Vec<_> =
                    named.iter().copied().filter(|e| e.variant.eq_ignore_ascii_case(variant)).collect();
                if fitting.is_empty() && !named.is_empty() {
                    let available = named.iter().map(|e| e.variant.clone()).collect();
                    return Err(Error::UnknownVariant { model: name.clone(), variant: variant.clone(), available });
                }
                Ok(fitting)
            }
        }
    }

    /// The installed model that a reference means, if there is one.
    fn find<'a>(&self, reference: &Reference, installed: &'a [Installed]) -> Result<Option<&'a Installed>> {
        let entries = self.catalogue_entries(reference)?;
        let by_catalogue =
            entries.iter().find_map(|e| installed.iter().find(|m| m.id.same(&e.id) && m.variant == e.variant));
        if by_catalogue.is_some() {
            return Ok(by_catalogue);
        }
        let found: Vec<_> =
            installed.iter().filter(|m| matches_reference(reference, &entries, &m.id, &m.variant)).collect();
        let same_model = found.windows(2).all(|w| w[0].id.same(&w[1].id));
        match variants::preferred(found.iter().map(|m| m.variant.as_str())) {
            Some(i) if same_model => Ok(found.get(i).copied()),
            _ if found.is_empty() => Ok(None),
            _ => Err(Error::Ambiguous {
                reference: reference.to_string(),
                candidates: found.iter().map(|m| m.reference()).collect(),
            }),
        }
    }

    fn not_found(&self, reference: &Reference, entries: &[&Entry], installed: &[Installed]) -> Error {
        if let Some(entry) = entries.first() {
            let hint = format!("`basert pull {reference}` fetches it ({})", human_bytes(entry.size));
            let size = Some(entry.size);
            return Error::NotInstalled { reference: reference.to_string(), hint, size };
        }
        let have = match installed {
            [] => "nothing is installed yet".to_owned(),
            some => format!("installed: {}", list(&some.iter().map(Installed::reference).collect::<Vec<_>>())),
        };
        if let Reference::Hub { .. } = reference {
            let hint = format!("`basert pull {reference}` fetches it; {have}");
            return Error::NotInstalled { reference: reference.to_string(), hint, size: None };
        }
        let name = reference.to_string();
        let near = self.near_misses(&name, installed);
        let near = match near.as_slice() {
            [] => {
                let known: Vec<_> = self.catalogue.entries().iter().filter_map(|e| e.names.first().cloned()).collect();
                format!("the catalogue has {}", list(&known))
            }
            some => format!("did you mean {}?", some.iter().map(|n| format!("`{n}`")).collect::<Vec<_>>().join(" or ")),
        };
        let hint = format!("{near} ({have}; a hub id has the form org/name[:variant])");
        Error::UnknownModel { name, hint }
    }

    /// Known names that look like `text`, the most alike first.
    fn near_misses(&self, text: &str, installed: &[Installed]) -> Vec<String> {
        let wanted = text.split(':').next().unwrap_or(text).to_ascii_lowercase();
        let names = self.catalogue.entries().iter().flat_map(|e| e.names.iter().map(String::as_str));
        let mut scored: Vec<(usize, &str)> = names
            .chain(installed.iter().map(|m| m.id.name()))
            .map(|n| (strsim::damerau_levenshtein(&wanted, &n.to_ascii_lowercase()), n))
            .filter(|(distance, _)| *distance <= 1 + wanted.len() / 4)
            .collect();
        scored.sort_unstable();
        scored.dedup();
        scored.into_iter().take(3).map(|(_, name)| name.to_owned()).collect()
    }
}

/// Whether the store's model `id:variant` may be what `reference` means; `entries` are the catalogue's for it.
fn matches_reference(reference: &Reference, entries: &[&Entry], id: &ModelId, variant: &str) -> bool {
    let fits = |wanted: &Option<String>| wanted.as_ref().is_none_or(|w| w.eq_ignore_ascii_case(variant));
    match reference {
        Reference::Path(_) => false,
        Reference::Hub { id: wanted, variant } => wanted.same(id) && fits(variant),
        Reference::Name { name, variant: wanted } => {
            entries.iter().any(|e| e.id.same(id) && e.variant.eq_ignore_ascii_case(variant))
                || name.eq_ignore_ascii_case(id.name()) && fits(wanted)
        }
    }
}

/// Names of the folders in `dir` that can be part of a model's path, sorted. A missing `dir` has none.
fn folders(dir: &Path) -> Result<Vec<String>> {
    let entries = match fs::read_dir(dir) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(Error::io("list", dir))?,
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.map_err(Error::io("list", dir))?;
        let name = entry.file_name().into_string().ok().filter(|n| component(n).is_ok());
        names.extend(name.filter(|_| entry.path().is_dir()));
    }
    names.sort_unstable();
    Ok(names)
}

/// Bytes that the files of a folder occupy on disk; an interrupted download is a file with holes.
fn folder_size(dir: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let Ok(entries) = fs::read_dir(dir) else { return 0 };
    entries
        .flatten()
        .filter_map(|e| Some((e.path(), e.metadata().ok()?)))
        .map(|(path, meta)| if meta.is_dir() { folder_size(&path) } else { meta.blocks().saturating_mul(512) })
        .sum()
}
