//! NVRTC, NVIDIA's compiler for kernels, wherever a CUDA toolkit or pip put it.

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::fs;
use std::iter::once_with;
use std::path::{Path, PathBuf};
use std::ptr;

use basert_system::programs;
use libloading::Library;

use super::source::CudaSource;
use crate::{CacheKey, GpuError, Kernel};

/// Environment variable that names the file of the library, in place of looking for it.
const FILE_VARIABLE: &str = "BASERT_NVRTC";

const LIBRARY: &str = "libnvrtc.so";
const BUILTINS: &str = "libnvrtc-builtins.so";

/// On top of the target. Division and square roots are exact and small numbers are kept, which is the default.
const OPTIONS: [&str; 2] = ["--std=c++17", "--device-as-default-execution-space"];
/// And for a kernel that is exact.
const EXACT: &str = "--fmad=false";

/// The compiler.
pub struct Nvrtc {
    /// Its library, as it was found.
    pub file: PathBuf,
    functions: Functions,
    version: (u32, u32),
    targets: Vec<u32>,
    /// What the functions are in, and what those look for.
    _libraries: Vec<Library>,
}

type Program = *mut c_void;

macro_rules! functions {
    ($($name:ident($($argument:ty),*);)*) => {
        #[allow(non_snake_case)]
        struct Functions {
            $($name: unsafe extern "C" fn($($argument),*) -> c_int,)*
            nvrtcGetErrorString: unsafe extern "C" fn(c_int) -> *const c_char,
        }

        impl Functions {
            /// # Safety
            /// The library has to be NVRTC, and has to stay loaded.
            unsafe fn new(library: &Library) -> Result<Functions, libloading::Error> {
                // SAFETY: these are the declarations of nvrtc.h.
                unsafe {
                    Ok(Functions {
                        $($name: *library.get(stringify!($name))?,)*
                        nvrtcGetErrorString: *library.get("nvrtcGetErrorString")?,
                    })
                }
            }
        }
    };
}

functions! {
    nvrtcVersion(*mut c_int, *mut c_int);
    nvrtcGetNumSupportedArchs(*mut c_int);
    nvrtcGetSupportedArchs(*mut c_int);
    nvrtcCreateProgram(*mut Program, *const c_char, *const c_char, c_int, *const *const c_char, *const *const c_char);
    nvrtcDestroyProgram(*mut Program);
    nvrtcCompileProgram(Program, c_int, *const *const c_char);
    nvrtcGetProgramLogSize(Program, *mut usize);
    nvrtcGetProgramLog(Program, *mut c_char);
    nvrtcGetCUBINSize(Program, *mut usize);
    nvrtcGetCUBIN(Program, *mut c_char);
}

impl Nvrtc {
    /// Finds the compiler: in `$BASERT_NVRTC`, where the system looks for libraries, in `$CUDA_HOME`, `$CUDA_PATH` and
    /// `/usr/local/cuda*`, in `$VIRTUAL_ENV`, and where `python3` looks for modules. A driver takes what compilers of
    /// its own major version made, or of an earlier one, so newer ones than `newest` are passed over.
    ///
    /// # Errors
    /// [`GpuError::Missing`], which says what was looked at and how to get it.
    pub fn find(newest: Option<u32>) -> Result<Nvrtc, GpuError> {
        if let Some(file) = std::env::var_os(FILE_VARIABLE).filter(|f| !f.is_empty()) {
            let open = Nvrtc::open(Path::new(&file), newest);
            return open.map_err(|why| GpuError::Missing(format!("${FILE_VARIABLE} cannot be used: {why}")));
        }
        let mut refused = String::new();
        for file in candidates() {
            match Nvrtc::open(&file, newest) {
                Ok(nvrtc) => return Ok(nvrtc),
                // Names without a folder are guesses.
                Err(why) if file.is_absolute() => refused += &format!("; {why}"),
                Err(_) => {}
            }
        }
        let package =
            if newest.is_some_and(|newest| newest < 13) { "nvidia-cuda-nvrtc-cu12" } else { "nvidia-cuda-nvrtc" };
        Err(GpuError::Missing(format!(
            "NVRTC, the compiler of CUDA kernels, is not among the system's libraries, in $CUDA_HOME, $CUDA_PATH, \
             /usr/local/cuda*, $VIRTUAL_ENV or python3's modules{refused}. `python3 -m pip install {package}` gets it, \
             and so does a CUDA toolkit; ${FILE_VARIABLE} can name its file"
        )))
    }

    fn open(file: &Path, newest: Option<u32>) -> Result<Nvrtc, String> {
        let failed = |why: &dyn std::fmt::Display| format!("{}: {why}", file.display());
        // SAFETY: loading NVRTC runs nothing that relies on anything of ours; a file that was named by the user, or is
        // called libnvrtc, is taken to be it.
        let library = unsafe { Library::new(file) }.map_err(|e| failed(&e))?;
        // It loads another one later, by its name. Not all versions look beside themselves for it, but what has been
        // loaded already is found.
        let beside = file.parent().filter(|folder| folder.is_absolute()).map(|folder| entries(folder, BUILTINS));
        // SAFETY: as above.
        let builtins = beside.into_iter().flatten().filter_map(|file| unsafe { Library::new(file) }.ok());
        let libraries: Vec<Library> = [library].into_iter().chain(builtins).collect();
        let library = &libraries[0];
        // SAFETY: as above, and the library is kept beside its functions.
        let functions = unsafe { Functions::new(library) }.map_err(|e| failed(&e))?;

        let (mut major, mut minor, mut count) = (0, 0, 0);
        // SAFETY: the pointers are to integers that the calls set.
        let codes = unsafe {
            [(functions.nvrtcVersion)(&mut major, &mut minor), (functions.nvrtcGetNumSupportedArchs)(&mut count)]
        };
        let mut targets = vec![0; usize::try_from(count).unwrap_or(0)];
        // SAFETY: there is room for as many targets as the call before said.
        let code = unsafe { (functions.nvrtcGetSupportedArchs)(targets.as_mut_ptr()) };
        if codes != [0, 0] || code != 0 || major <= 0 || minor < 0 {
            return Err(failed(&"it does not say what it is"));
        }
        let (major, minor) = (major as u32, minor as u32);
        if let Some(newest) = newest.filter(|newest| major > *newest) {
            return Err(failed(&format!("version {major}.{minor} is too new for a driver of CUDA {newest}")));
        }
        let mut targets: Vec<u32> = targets.into_iter().filter_map(|target| u32::try_from(target).ok()).collect();
        targets.sort_unstable();
        Ok(Nvrtc { file: file.to_owned(), functions, version: (major, minor), targets, _libraries: libraries })
    }

    /// What it is, with its version.
    pub fn name(&self) -> String {
        format!("NVRTC {}.{}", self.version.0, self.version.1)
    }

    /// The target to compile for, such as 90, for a GPU of a compute capability such as (9, 0): its own, or the last one
    /// before it that the compiler knows, of the same major number.
    ///
    /// # Errors
    /// [`GpuError::Missing`] when the compiler is too old for the GPU, or the GPU too old for the compiler.
    pub fn target(&self, (major, minor): (u32, u32)) -> Result<u32, GpuError> {
        let (first, own) = (major * 10, major * 10 + minor);
        self.targets.iter().copied().rfind(|target| (first..=own).contains(target)).ok_or_else(|| {
            let (version, of_version) = self.version;
            let known: Vec<String> = self.targets.iter().map(|t| format!("{}.{}", t / 10, t % 10)).collect();
            GpuError::Missing(format!(
                "NVRTC {version}.{of_version} compiles for compute capabilities {}; the GPU has {major}.{minor}",
                known.join(", ")
            ))
        })
    }

    /// Under which name a kernel compiled for a target is cached.
    ///
    /// # Errors
    /// As [`Nvrtc::compile`], when the kernel cannot be put in CUDA's terms.
    pub fn key(&self, kernel: &Kernel, target: u32) -> Result<CacheKey, GpuError> {
        let compiler = self.name();
        let source = source(kernel)?.text;
        let options = options(kernel, target);
        let parts = [source.as_str(), kernel.function, compiler.as_str()];
        Ok(CacheKey::new(parts.into_iter().chain(options.iter().map(String::as_str))))
    }

    /// Compiles a kernel for a target, to what a driver loads. May be called from several threads at a time.
    ///
    /// # Errors
    /// [`GpuError::Compile`] with the compiler's log.
    pub fn compile(&self, kernel: &Kernel, target: u32) -> Result<Vec<u8>, GpuError> {
        let failed = |log: String| GpuError::Compile { kernel: kernel.to_string(), log };
        let text = CString::new(source(kernel)?.text).map_err(|_| failed("its source has a zero byte".to_owned()))?;
        let mut job = Job { nvrtc: self, program: ptr::null_mut() };
        // SAFETY: the source is a C string that lives through the call, which copies it; no headers are given.
        self.check(unsafe {
            (self.functions.nvrtcCreateProgram)(
                &mut job.program,
                text.as_ptr(),
                c"kernel.cu".as_ptr(),
                0,
                ptr::null(),
                ptr::null(),
            )
        })
        .map_err(failed)?;
        job.compile(&options(kernel, target)).map_err(failed)
    }

    fn check(&self, code: c_int) -> Result<(), String> {
        if code == 0 {
            return Ok(());
        }
        // SAFETY: the string is the library's and stays; it has one for every number.
        let name = unsafe { CStr::from_ptr((self.functions.nvrtcGetErrorString)(code)) };
        Err(name.to_string_lossy().into_owned())
    }
}

fn source(kernel: &Kernel) -> Result<CudaSource, GpuError> {
    CudaSource::new(kernel).map_err(|log| GpuError::Compile { kernel: kernel.to_string(), log })
}

fn options(kernel: &Kernel, target: u32) -> Vec<String> {
    let of_kernel = [EXACT].into_iter().filter(|_| kernel.exact);
    let all = OPTIONS.into_iter().chain(of_kernel).map(str::to_owned);
    // Products of four simdgroups at once are Hopper's own.
    let own = if target == 90 { "a" } else { "" };
    all.chain([format!("--gpu-architecture=sm_{target}{own}")]).collect()
}

/// A program while it is compiled.
struct Job<'a> {
    nvrtc: &'a Nvrtc,
    program: Program,
}

impl Job<'_> {
    fn compile(&self, options: &[String]) -> Result<Vec<u8>, String> {
        let functions = &self.nvrtc.functions;
        let options = options.iter().map(|option| CString::new(option.as_str()));
        let options: Vec<CString> = options.collect::<Result<_, _>>().map_err(|e| e.to_string())?;
        let pointers: Vec<*const c_char> = options.iter().map(|option| option.as_ptr()).collect();
        // SAFETY: the program was created; as many options are there as is said.
        let code = unsafe { (functions.nvrtcCompileProgram)(self.program, pointers.len() as c_int, pointers.as_ptr()) };
        if let Err(name) = self.nvrtc.check(code) {
            // SAFETY: these two are a pair, see `bytes`.
            let log = unsafe { self.bytes(functions.nvrtcGetProgramLogSize, functions.nvrtcGetProgramLog) };
            let log = log.unwrap_or_default();
            return Err(format!("{name}\n{}", String::from_utf8_lossy(&log).trim_end_matches(['\0', '\n'])));
        }
        // SAFETY: as above.
        unsafe { self.bytes(functions.nvrtcGetCUBINSize, functions.nvrtcGetCUBIN) }
    }

    /// What a pair of functions give, of which the first says how many bytes the second writes.
    ///
    /// # Safety
    /// They have to be such a pair.
    unsafe fn bytes(
        &self,
        size: unsafe extern "C" fn(Program, *mut usize) -> c_int,
        get: unsafe extern "C" fn(Program, *mut c_char) -> c_int,
    ) -> Result<Vec<u8>, String> {
        let mut length = 0;
        // SAFETY: the program was created, and `length` is set.
        self.nvrtc.check(unsafe { size(self.program, &mut length) })?;
        let mut bytes = vec![0; length];
        // SAFETY: there is room for what the call before said.
        self.nvrtc.check(unsafe { get(self.program, bytes.as_mut_ptr().cast()) })?;
        Ok(bytes)
    }
}

impl Drop for Job<'_> {
    fn drop(&mut self) {
        if !self.program.is_null() {
            // SAFETY: the program was created, and nothing uses it any more.
            unsafe { (self.nvrtc.functions.nvrtcDestroyProgram)(&mut self.program) };
        }
    }
}

/// Where the library may be. Python is asked last, since that takes a moment.
fn candidates() -> impl Iterator<Item = PathBuf> {
    let by_name = ["libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so"].map(PathBuf::from);
    by_name
        .into_iter()
        .chain(once_with(toolkits).chain(once_with(virtual_environment)).chain(once_with(python)).flatten())
}

fn toolkits() -> Vec<PathBuf> {
    let named = ["CUDA_HOME", "CUDA_PATH"].into_iter().filter_map(std::env::var_os).map(PathBuf::from);
    let usual = entries(Path::new("/usr/local"), "cuda");
    named
        .filter(|folder| folder.is_absolute())
        .chain(usual)
        .flat_map(|folder| libraries(&folder.join("lib64")))
        .collect()
}

fn virtual_environment() -> Vec<PathBuf> {
    let Some(root) = std::env::var_os("VIRTUAL_ENV").map(PathBuf::from).filter(|root| root.is_absolute()) else {
        return Vec::new();
    };
    entries(&root.join("lib"), "python").into_iter().flat_map(|python| in_site(&python.join("site-packages"))).collect()
}

fn python() -> Vec<PathBuf> {
    // Isolated, Python leaves out the user's own packages, where pip puts the library too.
    const ASK: &str = r"import site, sys; print('\n'.join([*sys.path, site.getusersitepackages()]))";
    let asked = programs::python("python3").and_then(|mut python| python.args(["-c", ASK]).output());
    let said = asked.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    said.lines().map(Path::new).filter(|folder| folder.is_absolute()).flat_map(in_site).collect()
}

/// NVIDIA's packages have a folder each: `nvidia/cu13/lib`, `nvidia/cuda_nvrtc/lib`.
fn in_site(packages: &Path) -> Vec<PathBuf> {
    entries(&packages.join("nvidia"), "cu").into_iter().flat_map(|package| libraries(&package.join("lib"))).collect()
}

fn libraries(folder: &Path) -> Vec<PathBuf> {
    entries(folder, LIBRARY)
}

/// What is in a folder and begins so, in order.
fn entries(folder: &Path, beginning: &str) -> Vec<PathBuf> {
    let begins = |path: &PathBuf| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(beginning));
    let mut found: Vec<PathBuf> =
        fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()).filter(begins).collect();
    found.sort();
    found
}
