//! The machine's C++ compiler, which makes a shared library of each kernel.

use std::path::{Path, PathBuf};

use basert_system::programs;
use libloading::Library;

use super::source::Source;
use super::threadgroup::Entry;
use crate::{Cache, CacheKey, GpuError, Kernel, Signature};

const OPTIONS: &[&str] = &[
    "-std=c++17",
    "-O1",
    "-w",
    "-shared",
    "-fPIC",
    "-fno-exceptions",
    "-fno-rtti",
    "-fno-strict-aliasing",
    "-fno-math-errno",
    "-ffp-contract=off",
];

/// A compiler of C++, and where what it makes is kept.
pub struct Compiler {
    /// The program and its first arguments.
    program: PathBuf,
    arguments: Vec<String>,
    version: String,
    options: Vec<&'static str>,
    cache: Cache,
}

/// A kernel that can be run.
pub struct Compiled {
    /// What it is.
    pub kernel: Kernel,
    /// What it asks for.
    pub signature: Signature,
    /// Runs one thread.
    pub entry: Entry,
    /// Where `entry` is.
    _library: Library,
}

impl Compiler {
    /// `$CXX`, or the first of the usual names that there is.
    ///
    /// # Errors
    /// When there is none.
    pub fn find(cache: Cache) -> Result<Compiler, GpuError> {
        let named = std::env::var("CXX").ok().filter(|name| !name.trim().is_empty());
        let candidates = named.as_deref().map_or(vec!["c++", "g++", "clang++"], |name| vec![name]);
        let found = candidates.iter().find_map(|candidate| {
            let mut words = candidate.split_whitespace();
            let program = programs::find(words.next()?).ok()?;
            let arguments: Vec<String> = words.map(str::to_owned).collect();
            let output = programs::command(&program).ok()?.args(&arguments).arg("--version").output().ok()?;
            let version = String::from_utf8_lossy(&output.stdout).into_owned();
            output.status.success().then_some((program, arguments, version))
        });
        let (program, arguments, version) = found.ok_or_else(|| {
            GpuError::Missing(match named {
                Some(name) => format!("simt compiles kernels with the C++ compiler in CXX, but `{name}` does not run"),
                None => {
                    "simt compiles kernels with a C++ compiler, and none of c++, g++ and clang++ is here; install g++ \
                         or clang, or name one in CXX"
                        .to_owned()
                }
            })
        })?;
        let options = OPTIONS.iter().copied().chain(instructions()).collect();
        Ok(Compiler { program, arguments, version, options, cache })
    }

    /// What it calls itself.
    pub fn name(&self) -> String {
        self.version.lines().next().map_or_else(|| self.program.display().to_string(), str::to_owned)
    }

    /// Compiles a kernel, or finds it compiled.
    ///
    /// # Errors
    /// [`GpuError::Compile`].
    pub fn compile(&self, kernel: &Kernel) -> Result<Compiled, GpuError> {
        let failed = |log: String| GpuError::Compile { kernel: kernel.to_string(), log };
        let Source { text, signature } = Source::of(kernel)?;
        let key = CacheKey::new(
            [&text, &self.version, &self.program.display().to_string()]
                .into_iter()
                .chain(&self.arguments)
                .map(String::as_str)
                .chain(self.options.iter().copied()),
        );
        let library = match self.cache.file(&key) {
            Some(file) => load(&file),
            None => {
                let folder = tempfile::tempdir().map_err(|e| failed(format!("no temporary folder: {e}")))?;
                // The compiler runs elsewhere.
                let place = std::path::absolute(folder.path()).map_err(|e| failed(e.to_string()))?;
                let made = self.make(&text, &place).map_err(failed)?;
                if let Ok(bytes) = std::fs::read(&made) {
                    self.cache.put(&key, &bytes);
                }
                load(&made)
            }
        };
        let library = library.map_err(|e| failed(e.to_string()))?;
        // SAFETY: `Source` defines it so.
        let entry = unsafe { library.get::<Entry>(c"simt_thread") };
        let entry = *entry.map_err(|e| failed(e.to_string()))?;
        Ok(Compiled { kernel: kernel.clone(), signature, entry, _library: library })
    }

    /// Compiles in `folder`, or gives what the compiler says.
    fn make(&self, text: &str, folder: &Path) -> Result<PathBuf, String> {
        let (source, library) = (folder.join("kernel.cc"), folder.join("kernel.so"));
        std::fs::write(&source, text).map_err(|e| format!("cannot write {}: {e}", source.display()))?;
        let output = programs::command(&self.program).and_then(|mut command| {
            command.args(&self.arguments).args(&self.options).arg("-o").arg(&library).arg(&source).output()
        });
        let output = output.map_err(|e| format!("cannot run {}: {e}", self.program.display()))?;
        if output.status.success() { Ok(library) } else { Err(String::from_utf8_lossy(&output.stderr).into_owned()) }
    }
}

fn load(file: &Path) -> Result<Library, libloading::Error> {
    // SAFETY: it is of our own making, without initialisers.
    unsafe { Library::new(file) }
}

/// Instructions for halves and fused multiply-adds, without which both are calls of functions.
fn instructions() -> Vec<&'static str> {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("f16c") && is_x86_feature_detected!("fma") {
        return vec!["-mavx2", "-mf16c", "-mfma"];
    }
    Vec::new()
}
