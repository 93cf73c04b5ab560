//! Tuning on a GPU some of whose kernels are wrong: those are dropped and replaced, or the GPU is not used.

use std::sync::Arc;

use basert_files::ModelFile;
use basert_gpu::{
    Binding, Buffer, Dispatch, Family, Gemv, Gpu, GpuError, GpuFacts, Kernel, Pipeline, Recording, SimtGpu,
    SimtOptions, Ticket, Tuning, Variant,
};
use basert_tune::{Effort, Error, Tuned, tune};

/// What is wrong with a kernel.
type Fault = fn(&Kernel) -> Option<Broken>;

enum Broken {
    /// It does not compile.
    Text,
    /// It compiles, and leaves something out.
    Without(&'static str),
}

/// The simulated GPU, of whose kernels some are wrong.
struct Faulty {
    gpu: SimtGpu,
    fault: Fault,
}

impl Faulty {
    fn broken(&self, kernel: &Kernel) -> Kernel {
        let mut kernel = kernel.clone();
        match (self.fault)(&kernel) {
            Some(Broken::Text) => kernel.text = "no kernel",
            Some(Broken::Without(part)) => {
                assert!(kernel.text.contains(part), "{part}");
                kernel.text = Box::leak(kernel.text.replace(part, "").into_boxed_str());
            }
            None => {}
        }
        kernel
    }
}

impl Gpu for Faulty {
    fn compile(&mut self, kernels: &[Kernel], progress: &mut dyn FnMut(usize)) -> Result<Vec<Pipeline>, GpuError> {
        let kernels: Vec<_> = kernels.iter().map(|kernel| self.broken(kernel)).collect();
        self.gpu.compile(&kernels, progress)
    }

    fn facts(&self) -> &GpuFacts {
        self.gpu.facts()
    }

    fn allocate(&mut self, bytes: usize, what: &str) -> Result<Buffer, GpuError> {
        self.gpu.allocate(bytes, what)
    }

    fn map(&mut self, file: &Arc<ModelFile>, parts: &[&[u8]]) -> Result<Vec<Option<Binding>>, GpuError> {
        self.gpu.map(file, parts)
    }

    fn record(&mut self, dispatches: &[Dispatch]) -> Result<Recording, GpuError> {
        self.gpu.record(dispatches)
    }

    fn write(&mut self, to: Binding, bytes: &[u8]) -> Result<(), GpuError> {
        self.gpu.write(to, bytes)
    }

    fn copy(&mut self, from: Binding, to: Binding, bytes: usize) -> Result<(), GpuError> {
        self.gpu.copy(from, to, bytes)
    }

    fn submit(&mut self, recording: Recording) -> Result<(), GpuError> {
        self.gpu.submit(recording)
    }

    fn time(&mut self, recording: Recording) -> Result<Vec<f64>, GpuError> {
        self.gpu.time(recording)
    }

    fn read(&mut self, from: Binding, bytes: &mut [u8]) -> Result<(), GpuError> {
        self.gpu.read(from, bytes)
    }

    fn fetch(&mut self, from: Binding, bytes: usize) -> Result<Ticket, GpuError> {
        self.gpu.fetch(from, bytes)
    }

    fn collect(&mut self, ticket: Ticket, bytes: &mut [u8]) -> Result<(), GpuError> {
        self.gpu.collect(ticket, bytes)
    }

    fn wait(&mut self) -> Result<(), GpuError> {
        self.gpu.wait()
    }
}

fn tuned(fault: Fault) -> Result<Tuned, Error> {
    let open = || Ok(Faulty { gpu: SimtGpu::new(SimtOptions::default())?, fault });
    tune(&open, Effort::Short, &mut |_| {})
}

fn value<'a>(kernel: &'a Kernel, name: &str) -> &'a str {
    kernel.macros.iter().find(|(known, _)| *known == name).map_or("", |(_, value)| value)
}

fn chosen(tuning: &Tuning) -> Vec<Variant> {
    tuning.rules(Family::Gemv).into_iter().map(|(_, variant)| variant).collect()
}

/// A variant whose simdgroups do not put their parts together, and one that does not compile: both are named, and what is
/// right takes their places.
#[test]
fn a_wrong_variant_is_replaced_by_a_right_one() {
    let shipped = chosen(&Tuning::named("simt"));
    let [divided, plain] = shipped[..] else { panic!("{shipped:?}") };
    let tuned = tuned(|kernel| {
        let divided = kernel.function == "gemv" && value(kernel, "SPLIT") == "2";
        divided.then_some(Broken::Without("b += results[(set * SPLIT + part) * OUTPUTS + t * ROWS + r + 1];"))
    })
    .unwrap();
    let [(dropped, why)] = &tuned.dropped[..] else { panic!("{:?}", tuned.dropped) };
    assert_eq!(*dropped, divided);
    assert!(why.starts_with("linear ") && why.contains("beyond"), "{why}");
    assert_eq!(chosen(&tuned.tuning), [plain, plain]);
    assert!(tuned.choices.iter().all(|choice| choice.times.iter().all(|(variant, _)| *variant != divided)));
}

/// Where no variant that the project comes with is right, another one is looked for.
#[test]
fn others_are_tried_where_none_of_the_usual_is_right() {
    let fault: Fault = |kernel| (kernel.function == "gemv" && value(kernel, "SPLIT") != "4").then_some(Broken::Text);
    let tuned = tuned(fault).unwrap();
    let right = Variant::Gemv(Gemv { each: 2, simdgroups: 4, split: 4 });
    assert_eq!(chosen(&tuned.tuning), [right, right]);
    assert!(
        tuned.dropped.len() >= 3 && tuned.dropped.iter().all(|(_, why)| why.contains("does not compile")),
        "{:?}",
        tuned.dropped
    );
}

/// A kernel that there are no variants of, one all of whose variants are wrong, and one that is wrong for two tokens only.
#[test]
fn a_gpu_without_right_kernels_is_not_used() {
    let of_norms: Fault = |kernel| (kernel.function == "row_norm").then_some(Broken::Text);
    let of_products: Fault = |kernel| (kernel.function == "gemm").then_some(Broken::Text);
    let of_two: Fault = |kernel| {
        let two = kernel.function == "gemv" && value(kernel, "TOKENS") == "2";
        two.then_some(Broken::Without(" + min(t, tokens - 1) * X_STRIDE"))
    };
    for fault in [of_norms, of_products, of_two] {
        let error = tuned(fault).unwrap_err();
        assert!(matches!(error, Error::Gpu(GpuError::Missing(_))), "{error:?}");
        assert!(error.to_string().contains("no result could be trusted"), "{error}");
    }
}
