//! Starting programs safely: none is taken from the current folder.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, io};

/// Finds a program by its name, in an absolute folder of `PATH`, or by a path.
///
/// Empty or relative entries of `PATH`, which refer to the current folder, are skipped.
///
/// # Errors
/// When there is no such program.
pub fn find(program: impl AsRef<Path>) -> io::Result<PathBuf> {
    find_in(program.as_ref(), &env::var_os("PATH").unwrap_or_default())
}

fn find_in(program: &Path, path: &OsStr) -> io::Result<PathBuf> {
    if program.components().count() != 1 || program.is_absolute() {
        return std::path::absolute(program);
    }
    let folders = env::split_paths(path).filter(|folder| folder.is_absolute());
    let found = folders.map(|folder| folder.join(program)).find(|file| is_program(file));
    found.ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "it is in no folder of PATH"))
}

/// A command that runs `program` ([`find`]) in the root folder.
///
/// # Errors
/// As for [`find`].
pub fn command(program: impl AsRef<Path>) -> io::Result<Command> {
    let mut command = Command::new(find(program)?);
    command.current_dir("/");
    Ok(command)
}

/// A command that runs this Python in isolation: it imports nothing from the current folder, `PYTHONPATH` or the user's
/// own packages. Paths among its arguments must be absolute.
///
/// # Errors
/// As for [`find`].
pub fn python(program: impl AsRef<Path>) -> io::Result<Command> {
    let mut command = command(program)?;
    command.arg("-I");
    Ok(command)
}

#[cfg(unix)]
fn is_program(file: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    file.metadata().is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

#[cfg(not(unix))]
fn is_program(file: &Path) -> bool {
    file.is_file()
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    #[test]
    fn only_absolute_folders_of_the_path_count() {
        let found = |path: &str| find_in(Path::new("sh"), OsStr::new(path)).ok();
        assert_eq!(found("/nowhere:/bin:/usr/bin"), Some(PathBuf::from("/bin/sh")));
        // Tests run in the folder of their crate.
        let here = env::current_dir().unwrap();
        let folder = tempfile::tempdir_in(&here).unwrap();
        std::fs::copy("/bin/sh", folder.path().join("sh")).unwrap();
        let relative = folder.path().strip_prefix(&here).unwrap().to_str().unwrap();
        for path in [relative, "", ":", ".", &format!("./{relative}:")] {
            assert_eq!(found(path), None, "{path:?}");
        }
        assert_eq!(find_in(&Path::new(relative).join("sh"), OsStr::new("")).unwrap(), folder.path().join("sh"));
        assert_eq!(command("sh").unwrap().get_current_dir(), Some(Path::new("/")));
    }
}
