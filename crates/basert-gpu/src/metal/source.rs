//! The input of Metal's compiler for a kernel, and the key of the result.

use std::fmt::Write;
use std::path::Path;
use std::{fs, io};

use crate::{CacheKey, Kernel};

/// How products of matrices are computed (`kernels/common/tile.h`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tiles {
    /// By simdgroups, on all chips.
    Simdgroups,
    /// By the tensor units of chips from M5 on, through Metal 4.
    TensorUnits,
}

/// The capabilities of a system's compiler.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MetalSystem {
    /// The major version of macOS, at least 14.
    pub macos: u32,
    /// How products of matrices are computed.
    pub tiles: Tiles,
}

/// The compiler's freedom in arithmetic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Math {
    /// Strict IEEE 754.
    Safe,
    /// Sums may be reordered, but infinities and NaNs are preserved: the softmax needs them.
    Relaxed,
}

/// A kernel as input of Metal's compiler.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MetalSource {
    /// The source.
    pub text: String,
    /// The macros with their values.
    pub macros: Vec<(&'static str, String)>,
    /// The name of the kernel function.
    pub function: &'static str,
    /// Version of the language, as (major, minor).
    pub(crate) language: (u32, u32),
    pub(crate) math: Math,
}

impl MetalSource {
    /// The source of a kernel on a system.
    pub fn new(kernel: &Kernel, system: MetalSystem) -> MetalSource {
        let mut text = kernel.source();
        let mut macros = kernel.macros.clone();
        let mut language = (3, 1);
        if kernel.exact {
            // Products and sums on one line would be fused even in the safe mode.
            text.insert_str(0, "#pragma METAL fp contract(off)\n");
            language = if system.macos >= 15 { (3, 2) } else { language };
        }
        if system.tiles == Tiles::TensorUnits && text.contains("TILES_ON_TENSOR_UNITS") {
            macros.push(("TILES_ON_TENSOR_UNITS", "1".to_owned()));
            language = (4, 0);
        }
        // macOS 14 has only two modes, and the fast one assumes that nothing is infinite.
        let math = if kernel.exact || system.macos < 15 { Math::Safe } else { Math::Relaxed };
        MetalSource { text, macros, function: kernel.function, language, math }
    }

    /// The key of a library compiled from it, on any machine.
    pub fn key(&self) -> CacheKey {
        CacheKey::new([self.text.as_str(), self.function, &self.options()])
    }

    /// Writes it to a folder for the command-line compiler: KEY.metal, and KEY.options with one option per line.
    ///
    /// # Errors
    /// When the folder cannot be written to.
    pub fn write_to(&self, folder: &Path, file: &str) -> io::Result<()> {
        let key = self.key();
        fs::write(folder.join(format!("{key}.metal")), format!("#line 1 \"{file}\"\n{}", self.text))?;
        fs::write(folder.join(format!("{key}.options")), self.options())
    }

    /// The equivalent options of the command-line compiler, one per line.
    pub fn options(&self) -> String {
        let (major, minor) = self.language;
        let math = match self.math {
            Math::Safe => "safe",
            Math::Relaxed => "relaxed",
        };
        let mut options = format!("-std=metal{major}.{minor}\n-fmetal-math-mode={math}\n");
        options += "-fmetal-math-fp32-functions=precise\n";
        for (name, value) in &self.macros {
            let _ = writeln!(options, "-D{name}={value}");
        }
        options
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OLD: MetalSystem = MetalSystem { macos: 14, tiles: Tiles::Simdgroups };
    const NEW: MetalSystem = MetalSystem { macos: 26, tiles: Tiles::TensorUnits };

    #[test]
    fn the_sampler_is_exact_on_every_system() {
        let kernel = Kernel { exact: true, ..Kernel::new("sample/sample.metal", "sample", 1024) };
        for system in [OLD, NEW] {
            let source = MetalSource::new(&kernel, system);
            assert_eq!(source.math, Math::Safe);
            assert!(
                source.text.starts_with("#pragma METAL fp contract(off)\n#include")
                    || source.text.contains("contract(off)\n//")
            );
            assert!(source.language < (4, 0));
        }
    }

    #[test]
    fn only_tiles_need_tensor_units() {
        let tiles = Kernel::new("linear/gemm.metal", "gemm", 128);
        let none = Kernel::new("linear/gemv.metal", "gemv", 64);
        let defines = |source: &MetalSource| source.macros.iter().any(|(name, _)| *name == "TILES_ON_TENSOR_UNITS");
        assert!(defines(&MetalSource::new(&tiles, NEW)) && MetalSource::new(&tiles, NEW).language == (4, 0));
        assert!(!defines(&MetalSource::new(&none, NEW)) && MetalSource::new(&none, NEW).language == (3, 1));
        assert!(!defines(&MetalSource::new(&tiles, OLD)));
        assert_eq!(MetalSource::new(&tiles, OLD).math, Math::Safe);
        assert_eq!(MetalSource::new(&tiles, NEW).math, Math::Relaxed);
    }

    #[test]
    fn whatever_changes_what_is_compiled_changes_the_key() {
        let kernel = Kernel::new("linear/gemm.metal", "gemm", 128);
        let key = |kernel: &Kernel, system| MetalSource::new(kernel, system).key();
        let first = key(&kernel, OLD);
        assert_eq!(first, key(&kernel.clone(), OLD));
        let others = [
            key(&kernel.clone().define("COLUMNS", 64), OLD),
            key(&Kernel { exact: true, ..kernel.clone() }, OLD),
            key(&kernel, MetalSystem { macos: 15, ..OLD }),
            key(&kernel, NEW),
            key(&Kernel::new("linear/gemv.metal", "gemv", 128), OLD),
        ];
        assert!(others.iter().all(|other| *other != first));
    }
}
