//! The vector instruction sets of the kernels.

use std::fmt;
use std::str::FromStr;

/// A vector instruction set; every kernel exists for each.
///
/// All of them give the same bits: the kernels are written once over [`Simd`](crate::simd::Simd), whose operations are
/// IEEE operations on 16 lanes (or exact integer ones), in one order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Isa {
    /// Plain Rust.
    Portable,
    /// x86-64 with AVX2, FMA and F16C.
    Avx2,
    /// The same with AVX-VNNI, as in most x86 laptops.
    AvxVnni,
    /// x86-64 with AVX-512 F, BW, VL, DQ and VNNI.
    Avx512,
    /// AArch64 with NEON.
    Neon,
    /// The same with the dot product instructions.
    NeonDotprod,
    /// The same with the instructions that multiply matrices of bytes.
    NeonI8mm,
}

impl Isa {
    /// All instruction sets, worst first.
    pub const ALL: [Isa; 7] =
        [Isa::Portable, Isa::Avx2, Isa::AvxVnni, Isa::Avx512, Isa::Neon, Isa::NeonDotprod, Isa::NeonI8mm];

    /// The best instruction set of this machine.
    pub fn detect() -> Isa {
        Isa::available().pop().unwrap_or(Isa::Portable)
    }

    /// The instruction sets of this machine, best last.
    pub fn available() -> Vec<Isa> {
        Isa::ALL.into_iter().filter(|isa| isa.is_available()).collect()
    }

    /// Whether this machine has it.
    pub fn is_available(self) -> bool {
        match self {
            Isa::Portable => true,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => {
                is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c")
            }
            #[cfg(target_arch = "x86_64")]
            Isa::AvxVnni => Isa::Avx2.is_available() && is_x86_feature_detected!("avxvnni"),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => {
                Isa::Avx2.is_available()
                    && is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512vl")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512vnni")
            }
            #[cfg(target_arch = "aarch64")]
            Isa::Neon => std::arch::is_aarch64_feature_detected!("neon"),
            #[cfg(target_arch = "aarch64")]
            Isa::NeonDotprod => Isa::Neon.is_available() && std::arch::is_aarch64_feature_detected!("dotprod"),
            #[cfg(target_arch = "aarch64")]
            Isa::NeonI8mm => Isa::NeonDotprod.is_available() && std::arch::is_aarch64_feature_detected!("i8mm"),
            #[allow(unreachable_patterns)]
            _ => false,
        }
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Isa::Portable => "portable",
            Isa::Avx2 => "avx2",
            Isa::AvxVnni => "avx-vnni",
            Isa::Avx512 => "avx512",
            Isa::Neon => "neon",
            Isa::NeonDotprod => "neon-dotprod",
            Isa::NeonI8mm => "neon-i8mm",
        }
    }
}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Isa {
    type Err = String;

    /// Parses a name; an instruction set that this machine lacks is refused.
    fn from_str(text: &str) -> Result<Isa, String> {
        let isa = Isa::ALL.into_iter().find(|isa| isa.name() == text);
        isa.filter(|isa| isa.is_available()).ok_or_else(|| {
            let names: Vec<_> = Isa::available().into_iter().map(Isa::name).collect();
            format!("'{text}' is not an instruction set of this machine; it has {}", names.join(", "))
        })
    }
}

/// Defines a function that runs a generic kernel, compiled once for each instruction set:
///
/// ```text
/// dispatch! {
///     /// Adds `y` to `x`.
///     pub unsafe fn add(x: &mut [f32], y: &[f32]) = add_kernel;
/// }
/// ```
///
/// becomes `add(isa, x, y)`, which calls `add_kernel::<S>(x, y)` with the [`Simd`](crate::simd::Simd) type of `isa`.
/// A kernel with const parameters is written `= kernel::<A, B>` and called as `kernel::<S, A, B>`.
macro_rules! dispatch {
    ($($(#[$attribute:meta])* $vis:vis unsafe fn $name:ident
        $([$(const $param:ident: $param_type:ty),+])?
        ($($arg:ident: $type:ty),* $(,)?) $(-> $ret:ty)? = $kernel:ident $(::<$($const:ident),+>)?;)+) => {$(
        $(#[$attribute])*
        #[allow(clippy::too_many_arguments)]
        #[inline]
        $vis unsafe fn $name $(<$(const $param: $param_type),+>)? (isa: $crate::Isa, $($arg: $type),*) $(-> $ret)? {
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
            #[allow(clippy::too_many_arguments)]
            unsafe fn avx512 $(<$(const $param: $param_type),+>)? ($($arg: $type),*) $(-> $ret)? {
                // SAFETY: guaranteed by the caller, and this function has the features of `Avx512`.
                unsafe { $kernel::<$crate::simd::Avx512 $($(, $const)+)?>($($arg),*) }
            }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma,f16c")]
            #[allow(clippy::too_many_arguments)]
            unsafe fn avx2 $(<$(const $param: $param_type),+>)? ($($arg: $type),*) $(-> $ret)? {
                // SAFETY: guaranteed by the caller, and this function has the features of `Avx2`.
                unsafe { $kernel::<$crate::simd::Avx2<$crate::simd::Narrow> $($(, $const)+)?>($($arg),*) }
            }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma,f16c,avxvnni")]
            #[allow(clippy::too_many_arguments)]
            unsafe fn avx_vnni $(<$(const $param: $param_type),+>)? ($($arg: $type),*) $(-> $ret)? {
                // SAFETY: guaranteed by the caller, and this function has the features of `Vnni`.
                unsafe { $kernel::<$crate::simd::Avx2<$crate::simd::Vnni> $($(, $const)+)?>($($arg),*) }
            }
            #[cfg(target_arch = "aarch64")]
            #[target_feature(enable = "neon,dotprod,i8mm")]
            #[allow(clippy::too_many_arguments)]
            unsafe fn neon_i8mm $(<$(const $param: $param_type),+>)? ($($arg: $type),*) $(-> $ret)? {
                // SAFETY: guaranteed by the caller, and this function has the features of `I8mm`.
                unsafe { $kernel::<$crate::simd::Neon<$crate::simd::I8mm> $($(, $const)+)?>($($arg),*) }
            }
            #[cfg(target_arch = "aarch64")]
            #[target_feature(enable = "neon,dotprod")]
            #[allow(clippy::too_many_arguments)]
            unsafe fn neon_dotprod $(<$(const $param: $param_type),+>)? ($($arg: $type),*) $(-> $ret)? {
                // SAFETY: guaranteed by the caller, and this function has the features of `Dotprod`.
                unsafe { $kernel::<$crate::simd::Neon<$crate::simd::Dotprod> $($(, $const)+)?>($($arg),*) }
            }
            #[cfg(target_arch = "aarch64")]
            #[target_feature(enable = "neon")]
            #[allow(clippy::too_many_arguments)]
            unsafe fn neon $(<$(const $param: $param_type),+>)? ($($arg: $type),*) $(-> $ret)? {
                // SAFETY: guaranteed by the caller, and this function has the features of `Basic`.
                unsafe { $kernel::<$crate::simd::Neon<$crate::simd::Basic> $($(, $const)+)?>($($arg),*) }
            }
            // SAFETY: guaranteed by the caller; an `Isa` only exists for instructions that the machine has.
            unsafe {
                match isa {
                    #[cfg(target_arch = "x86_64")]
                    $crate::Isa::Avx512 => avx512 $(::<$($param),+>)? ($($arg),*),
                    #[cfg(target_arch = "x86_64")]
                    $crate::Isa::AvxVnni => avx_vnni $(::<$($param),+>)? ($($arg),*),
                    #[cfg(target_arch = "x86_64")]
                    $crate::Isa::Avx2 => avx2 $(::<$($param),+>)? ($($arg),*),
                    #[cfg(target_arch = "aarch64")]
                    $crate::Isa::NeonI8mm => neon_i8mm $(::<$($param),+>)? ($($arg),*),
                    #[cfg(target_arch = "aarch64")]
                    $crate::Isa::NeonDotprod => neon_dotprod $(::<$($param),+>)? ($($arg),*),
                    #[cfg(target_arch = "aarch64")]
                    $crate::Isa::Neon => neon $(::<$($param),+>)? ($($arg),*),
                    _ => $kernel::<$crate::simd::Portable $($(, $const)+)?>($($arg),*),
                }
            }
        }
    )+};
}
pub(crate) use dispatch;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_what_the_machine_has_read_back() {
        for isa in Isa::ALL {
            assert_eq!(isa.name().parse().ok(), Some(isa).filter(|isa| isa.is_available()));
        }
    }

    /// Checks under emulators name the expected instruction set, so that they cannot pass without running it.
    #[test]
    fn the_best_is_found() {
        if let Ok(expected) = std::env::var("BASERT_EXPECTED_ISA") {
            assert_eq!(Isa::detect().name(), expected);
        }
    }
}
