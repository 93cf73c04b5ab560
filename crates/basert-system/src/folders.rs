//! The folders of a user's files, by the XDG Base Directory Specification, also on macOS.
//!
//! | | own variable | otherwise |
//! | --- | --- | --- |
//! | models | `$BASERT_MODELS_DIR` | `$XDG_DATA_HOME/basert/models`, `~/.local/share/basert/models` |
//! | caches | `$BASERT_CACHE_DIR` | `$XDG_CACHE_HOME/basert`, `~/.cache/basert` |
//! | history of the chat | | `$XDG_STATE_HOME/basert`, `~/.local/state/basert` |
//!
//! Earlier versions kept everything in `~/.cache/baseRT`. [`leave_old`] moves it from there; before that, models are
//! also found in the old folder.

use std::fs;
use std::path::{Path, PathBuf};

use etcetera::BaseStrategy;
use etcetera::base_strategy::Xdg;

/// Environment variable that names the folder of models.
pub const MODELS_DIR_VARIABLE: &str = "BASERT_MODELS_DIR";
/// Environment variable that names the folder of caches.
pub const CACHE_DIR_VARIABLE: &str = "BASERT_CACHE_DIR";

/// The folder of models; none if no home folder is known.
pub fn models() -> Option<PathBuf> {
    named(MODELS_DIR_VARIABLE).or_else(|| Places::of_user()?.models())
}

/// The folder of caches; none if no home folder is known.
pub fn cache() -> Option<PathBuf> {
    named(CACHE_DIR_VARIABLE).or_else(|| Some(Places::of_user()?.cache))
}

/// The folder of the chat's history; none if no home folder is known.
pub fn state() -> Option<PathBuf> {
    Some(Places::of_user()?.state)
}

/// Moves the files of an earlier version from `~/.cache/baseRT` to the folders above. Nothing is moved to or from a
/// folder that a variable names, and nothing is replaced. Returns a message for the user if models were moved.
pub fn leave_old() -> Option<String> {
    Places::of_user()?.leave_old(named(MODELS_DIR_VARIABLE).is_none(), named(CACHE_DIR_VARIABLE).is_none())
}

fn named(variable: &str) -> Option<PathBuf> {
    std::env::var_os(variable).filter(|folder| !folder.is_empty()).map(PathBuf::from)
}

/// The folders that no variable of our own names.
struct Places {
    data: PathBuf,
    cache: PathBuf,
    state: PathBuf,
    old: PathBuf,
}

impl Places {
    fn of_user() -> Option<Places> {
        let base = Xdg::new().ok()?;
        Some(Places {
            data: base.data_dir().join("basert"),
            cache: base.cache_dir().join("basert"),
            state: base.state_dir()?.join("basert"),
            old: base.home_dir().join(".cache/baseRT"),
        })
    }

    fn models(&self) -> Option<PathBuf> {
        let (new, old) = (self.data.join("models"), self.old.join("models"));
        Some(if old.is_dir() && !new.exists() { old } else { new })
    }

    fn leave_old(&self, models: bool, cache: bool) -> Option<String> {
        if !self.old.is_dir() {
            return None;
        }
        if cache {
            relocate(&self.old.join("kernels"), &self.cache.join("kernels"));
            relocate(&self.old.join("tuning"), &self.cache.join("tuning"));
        }
        relocate(&self.old.join("chat-history"), &self.state.join("chat-history"));
        let (old, new) = (self.old.join("models"), self.data.join("models"));
        if !(models && relocate(&old, &new)) {
            return None;
        }
        // What knows the old place goes on to find the models.
        #[cfg(unix)]
        let _ = std::os::unix::fs::symlink(&new, &old);
        Some(format!("models are now kept in {}; they were moved from {}", new.display(), old.display()))
    }
}

/// Renames `old` to `new`, unless that exists, and returns whether it was renamed. Files that cannot be renamed,
/// because they are on another file system or belong to another user, stay. So do links, as relative ones would break.
/// Of several processes that do this at once, one succeeds.
fn relocate(old: &Path, new: &Path) -> bool {
    let real = fs::symlink_metadata(old).is_ok_and(|meta| !meta.is_symlink());
    let vacant = fs::symlink_metadata(new).is_err();
    real && vacant
        && new.parent().is_some_and(|parent| fs::create_dir_all(parent).is_ok())
        && fs::rename(old, new).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn places(home: &Path) -> Places {
        let place = |name: &str| home.join(name);
        Places { data: place("data"), cache: place("cache"), state: place("state"), old: place("old") }
    }

    fn old_home() -> (tempfile::TempDir, Places) {
        let home = tempfile::tempdir().unwrap();
        let places = places(home.path());
        fs::create_dir_all(places.old.join("models/org/name")).unwrap();
        fs::create_dir_all(places.old.join("kernels")).unwrap();
        fs::write(places.old.join("chat-history"), "hello\n").unwrap();
        (home, places)
    }

    #[test]
    fn what_was_in_the_old_place_is_moved_once() {
        let (_home, places) = old_home();
        assert_eq!(places.models().unwrap(), places.old.join("models"));
        assert!(places.leave_old(true, true).unwrap().contains("data/models"));
        assert_eq!(places.models().unwrap(), places.data.join("models"));
        for moved in
            [places.data.join("models/org/name"), places.cache.join("kernels"), places.state.join("chat-history")]
        {
            assert!(moved.exists(), "{}", moved.display());
        }
        assert!(places.old.join("models/org/name").exists(), "the old path leads there");
        assert_eq!(places.leave_old(true, true), None);
    }

    #[test]
    fn nothing_is_replaced_and_nothing_named_elsewhere_is_touched() {
        let (_home, places) = old_home();
        assert_eq!(places.leave_old(false, false), None);
        assert!(places.old.join("models/org").is_dir() && places.old.join("kernels").is_dir());
        fs::create_dir_all(places.data.join("models")).unwrap();
        assert_eq!(places.leave_old(true, true), None);
        assert!(places.old.join("models/org").is_dir());
        assert_eq!(places.models().unwrap(), places.data.join("models"));
    }

    #[cfg(unix)]
    #[test]
    fn a_link_stays_and_is_used() {
        let (home, places) = old_home();
        fs::rename(places.old.join("models"), home.path().join("elsewhere")).unwrap();
        std::os::unix::fs::symlink("../elsewhere", places.old.join("models")).unwrap();
        assert_eq!(places.leave_old(true, true), None);
        assert!(places.models().unwrap().join("org/name").is_dir());
    }

    #[test]
    fn of_many_processes_one_moves() {
        let (_home, places) = old_home();
        let told = std::thread::scope(|scope| {
            let movers: Vec<_> = (0..8).map(|_| scope.spawn(|| places.leave_old(true, true))).collect();
            movers.into_iter().filter_map(|mover| mover.join().unwrap()).count()
        });
        assert_eq!(told, 1);
        assert!(places.models().unwrap().join("org/name").is_dir());
        assert!(!places.data.join("models/models").exists());
    }
}
