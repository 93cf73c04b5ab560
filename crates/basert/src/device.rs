//! The devices that a model can run on, by name.

use std::fmt;
use std::str::FromStr;

use basert_cpu::CpuDevice;
#[cfg(not(target_os = "macos"))]
use basert_gpu::CudaGpu;
#[cfg(target_os = "macos")]
use basert_gpu::MetalGpu;
use basert_gpu::{Gpu, GpuDevice, GpuError, Tuning};
#[cfg(unix)]
use basert_gpu::{SimtGpu, SimtOptions};
use basert_plan::Device;
use basert_reference::ReferenceDevice;
use basert_tune::{Effort, Tell, Tuned};

use crate::Error;

/// A device that a model runs on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DeviceKind {
    /// The CPU.
    #[default]
    Cpu,
    /// The GPU of a Mac.
    Metal,
    /// An NVIDIA GPU, by its number.
    Cuda(usize),
    /// The GPU kernels simulated on the CPU, thread by thread: slow, for writing kernels.
    Simt,
    /// The oracle that devices are checked against: computes in f32, and very slow.
    Reference,
}

impl DeviceKind {
    /// The best device of this machine: a GPU if there is one, else the CPU.
    pub fn best() -> DeviceKind {
        #[cfg(target_os = "macos")]
        if MetalGpu::exists() {
            return DeviceKind::Metal;
        }
        #[cfg(not(target_os = "macos"))]
        if CudaGpu::count() > 0 {
            return DeviceKind::Cuda(0);
        }
        DeviceKind::Cpu
    }

    /// Opens the device, the CPU with `threads` threads. On a GPU's first use, its kernels are checked and timed
    /// ([`basert_tune::first_use`]), and the messages about that are logged as warnings.
    ///
    /// # Errors
    /// When there is no such device, its driver or compiler is missing, or its kernels compute wrong results.
    pub fn open(self, threads: Option<usize>) -> Result<Box<dyn Device>, Error> {
        self.open_telling(threads, &mut |line| tracing::warn!("{line}"))
    }

    /// Like [`DeviceKind::open`], with the messages passed to `tell`, line by line.
    ///
    /// # Errors
    /// As [`DeviceKind::open`].
    pub fn open_telling(self, threads: Option<usize>, tell: Tell<'_>) -> Result<Box<dyn Device>, Error> {
        match self {
            DeviceKind::Cpu => Ok(Box::new(CpuDevice::new(threads)?)),
            DeviceKind::Reference => Ok(Box::new(ReferenceDevice::default())),
            #[cfg(not(target_os = "macos"))]
            DeviceKind::Cuda(number) => gpu(&|| CudaGpu::open(number), tell),
            #[cfg(target_os = "macos")]
            DeviceKind::Metal => gpu(&MetalGpu::open, tell),
            #[cfg(unix)]
            DeviceKind::Simt => Ok(Box::new(GpuDevice::new(SimtGpu::new(SimtOptions::default())?)?)),
            #[allow(unreachable_patterns)]
            other => Err(Error::NoDevice { device: other.to_string() }),
        }
    }

    /// Tunes a GPU, or the simulated one.
    ///
    /// # Errors
    /// As for [`basert_tune::tune`]; and when the device is not a GPU or does not exist.
    pub fn tune(self, effort: Effort, tell: Tell<'_>) -> Result<Tuned, Error> {
        match self {
            #[cfg(not(target_os = "macos"))]
            DeviceKind::Cuda(number) => Ok(basert_tune::tune(&|| CudaGpu::open(number), effort, tell)?),
            #[cfg(target_os = "macos")]
            DeviceKind::Metal => Ok(basert_tune::tune(&MetalGpu::open, effort, tell)?),
            #[cfg(unix)]
            DeviceKind::Simt => Ok(basert_tune::tune(&|| SimtGpu::new(SimtOptions::default()), effort, tell)?),
            other => Err(Error::NoDevice { device: other.to_string() }),
        }
    }
}

/// A GPU with the tuning table measured on it, after measuring one if there is none.
fn gpu<G: Gpu + 'static>(open: &dyn Fn() -> Result<G, GpuError>, tell: Tell<'_>) -> Result<Box<dyn Device>, Error> {
    let gpu = open()?;
    if let Some(tuning) = Tuning::measured(gpu.facts())? {
        return Ok(Box::new(GpuDevice::with_tuning(gpu, tuning)));
    }
    drop(gpu);
    let tuning = basert_tune::first_use(open, tell)?;
    Ok(Box::new(GpuDevice::with_tuning(open()?, tuning)))
}

impl fmt::Display for DeviceKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DeviceKind::Cpu => f.write_str("cpu"),
            DeviceKind::Metal => f.write_str("metal"),
            DeviceKind::Cuda(number) => write!(f, "cuda:{number}"),
            DeviceKind::Simt => f.write_str("simt"),
            DeviceKind::Reference => f.write_str("reference"),
        }
    }
}

impl FromStr for DeviceKind {
    type Err = String;

    /// Reads `cpu`, `metal`, `cuda`, `cuda:N`, `simt` or `reference`.
    fn from_str(text: &str) -> Result<Self, String> {
        let number = |text: &str| text.parse().map_err(|_| format!("'{text}' is not the number of a GPU"));
        match (text, text.strip_prefix("cuda:")) {
            ("cpu", _) => Ok(DeviceKind::Cpu),
            ("metal", _) => Ok(DeviceKind::Metal),
            ("cuda", _) => Ok(DeviceKind::Cuda(0)),
            (_, Some(text)) => number(text).map(DeviceKind::Cuda),
            ("simt", _) => Ok(DeviceKind::Simt),
            ("reference", _) => Ok(DeviceKind::Reference),
            _ => Err(format!(
                "no device is called '{text}'; the devices are cpu, metal, cuda, cuda:N, simt and reference"
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_go_by_their_names() {
        let numbered = [DeviceKind::Cuda(0), DeviceKind::Cuda(3)];
        let others = [DeviceKind::Cpu, DeviceKind::Metal, DeviceKind::Simt, DeviceKind::Reference];
        for kind in numbered.into_iter().chain(others) {
            assert_eq!(kind.to_string().parse(), Ok(kind));
        }
        assert_eq!("cuda".parse(), Ok(DeviceKind::Cuda(0)));
        for text in ["gpu", "cuda:", "cuda:x", "", "CPU"] {
            assert!(text.parse::<DeviceKind>().is_err(), "{text}");
        }
    }
}
