//! Kernels compile for CUDA, without a GPU. `tools/test` fetches the compiler.
#![cfg(not(target_os = "macos"))]

use basert_gpu::{Cache, CudaCompiler, GpuError, Kernel, SOURCES};

const FORMATS: [&[(&str, &str)]; 11] = [
    &[("FLOAT_BITS", "32")],
    &[("FLOAT_BITS", "16")],
    &[("FLOAT_BITS", "17")],
    // Q4_0, Q8_0, Q4_1, Q5_0, Q4_K, Q6_K, Q2_K, MXFP4
    &[("NIBBLES_AT", "0"), ("SCALES", "1"), ("SCALES_AT", "65536"), ("ZERO", "8")],
    &[("BYTES_AT", "0"), ("CODE_SIGNED", "1"), ("SCALES", "1"), ("SCALES_AT", "65536"), ("ZERO", "0")],
    &[("NIBBLES_AT", "0"), ("SCALES", "2"), ("SCALES_AT", "65536")],
    &[
        ("NIBBLES_AT", "0"),
        ("BITS_AT", "4096"),
        ("BITS_SHIFT", "4"),
        ("SCALES", "1"),
        ("SCALES_AT", "65536"),
        ("ZERO", "16"),
    ],
    &[("NIBBLES_AT", "0"), ("SCALES", "3"), ("SCALES_AT", "65536")],
    &[
        ("NIBBLES_AT", "0"),
        ("PAIRS_AT", "4096"),
        ("BITS_SHIFT", "4"),
        ("SCALES", "5"),
        ("SCALES_AT", "65536"),
        ("BASES_AT", "131072"),
        ("ZERO", "32"),
    ],
    &[("PAIRS_AT", "0"), ("SCALES", "4"), ("SCALES_AT", "65536"), ("BASES_AT", "131072")],
    &[
        ("NIBBLES_AT", "0"),
        ("CODE_TABLE_0", "0x03020100u"),
        ("CODE_TABLE_1", "0x0c080604u"),
        ("CODE_TABLE_2", "0xfdfeff00u"),
        ("CODE_TABLE_3", "0xf4f8fafcu"),
        ("SCALES", "7"),
        ("SCALES_AT", "65536"),
    ],
];

fn kernel(file: &'static str, function: &'static str, threads: u32, macros: &[&'static str]) -> Kernel {
    macros.iter().fold(Kernel::new(file, function, threads), |kernel, definition| {
        let (name, value) = definition.split_once('=').unwrap();
        kernel.define(name, value)
    })
}

fn with_format(kernel: Kernel, format: &[(&'static str, &'static str)]) -> Kernel {
    format.iter().fold(kernel.define("FLOAT_BITS", 0), |kernel, (name, value)| kernel.define(name, value))
}

/// Of each kernel file, what differs most.
fn kernels() -> Vec<Kernel> {
    const GEMV: &[&str] = &[
        "ROWS_OF_W=4096",
        "COLUMNS=4096",
        "ROWS=4",
        "SPLIT=2",
        "TOKENS=1",
        "COUNT=0",
        "X_STRIDE=4096",
        "OUT_STRIDE=4096",
        "EPILOGUE=0",
        "HAS_BIAS=0",
        "NORM=0",
        "NORM_EPS=1e-5f",
    ];
    const GEMM: &[&str] = &[
        "ROWS_OF_W=4096",
        "COLUMNS=4096",
        "TILE_M=128",
        "TILE_N=128",
        "SIMDGROUPS_M=2",
        "COUNT=0",
        "OUT_STRIDE=4096",
        "EPILOGUE=0",
        "HAS_BIAS=0",
    ];
    const EMBED: &[&str] = &["ROWS_OF_W=32000", "COLUMNS=4096", "OUT_STRIDE=4096", "SCALE=1.0f", "STEP_TOKENS=16"];
    const ATTENTION: &[&str] = &[
        "Q_HEADS=32",
        "KV_HEADS=8",
        "HEAD_DIM=128",
        "SCALE=0.088388f",
        "WINDOW=0",
        "CAP_SCORES=0",
        "CAP=0.0f",
        "HEADS=4",
        "SPLITS=16",
        "LEAST_SPLIT=256",
        "PAGE=64",
        "PAGE_BYTES=4194304",
        "LAYER_AT=0",
        "KV_BITS=16",
        "Q_STRIDE=4096",
        "OUT_STRIDE=4096",
        "STEP_POSITIONS=528",
        "STEP_TABLES=1552",
        "STEP_TILES=2576",
        "STEP_PAGES=3600",
    ];
    const ROPE: &[&str] = &[
        "Q_HEADS=32",
        "KV_HEADS=8",
        "HEAD_DIM=128",
        "ROTATED=128",
        "INTERLEAVED=0",
        "Q_STRIDE=6144",
        "K_STRIDE=6144",
        "V_STRIDE=6144",
        "OUT_STRIDE=4096",
        "Q_NORM=1",
        "Q_EPS=1e-6f",
        "K_NORM=1",
        "K_EPS=1e-6f",
        "PAGE=64",
        "PAGE_BYTES=4194304",
        "LAYER_AT=0",
        "KV_BITS=16",
        "STEP_POSITIONS=528",
        "STEP_SLOTS=1040",
    ];
    const NORM: &[&str] = &[
        "WIDTH=4096",
        "X_STRIDE=4096",
        "OUT_STRIDE=4096",
        "COUNT=0",
        "NORM=1",
        "NORM_EPS=1e-5f",
        "ADD=0",
        "TO_HALF=0",
    ];
    const ELEMENTWISE: &[&str] = &[
        "WIDTH=4096",
        "A_STRIDE=4096",
        "B_STRIDE=4096",
        "OUT_STRIDE=4096",
        "COUNT=0",
        "CAP=30.0f",
        "STEP_WANTED=2064",
    ];

    const SAMPLE: &[&str] = &[
        "VOCABULARY=32000",
        "LOGITS_STRIDE=32000",
        "WANTED_LIMIT=64",
        "CHAIN=8",
        "PAGE=64",
        "STEP_TOKENS=16",
        "STEP_POSITIONS=528",
        "STEP_SLOTS=1040",
        "STEP_TABLES=1552",
        "STEP_WANTED=2064",
        "STEP_DRAWS=2576",
        "STEP_PAGES=3600",
    ];

    let gemv = kernel("linear/gemv.metal", "gemv", 256, GEMV);
    let gemm = kernel("linear/gemm.metal", "gemm", 256, GEMM);
    let embed = kernel("elementwise/embed.metal", "embed", 256, EMBED);
    let decode = kernel("attention/decode.metal", "attention_decode", 128, ATTENTION);
    let prefill = kernel("attention/prefill.metal", "attention_prefill", 128, ATTENTION);
    let rope = kernel("rope/rope_cache.metal", "rope_cache", 128, ROPE);
    let norm = kernel("norm/rms_norm.metal", "rms_norm", 256, NORM);
    let elementwise = kernel("elementwise/elementwise.metal", "elementwise", 256, ELEMENTWISE);

    let sample = kernel("sample/sample.metal", "sample", 1024, SAMPLE);

    let mut all = vec![
        Kernel { exact: true, ..sample },
        kernel("sample/advance.metal", "advance", 64, SAMPLE),
        kernel("attention/combine.metal", "attention_combine", 128, ATTENTION),
        norm.clone().define("TO_HALF", 1),
        norm.define("ADD", 1),
        gemm.clone().define("FLOAT_BITS", 16).define("HAS_BIAS", 1).define("EPILOGUE", 1),
    ];
    for format in FORMATS {
        all.push(with_format(gemv.clone(), format));
        all.push(with_format(gemv.clone().define("TOKENS", 8).define("EPILOGUE", 2).define("HAS_BIAS", 1), format));
        all.push(with_format(gemv.clone().define("NORM", 1).define("EPILOGUE", 3), format));
        all.push(with_format(gemm.clone(), format));
        all.push(with_format(embed.clone(), format));
    }
    for bits in [16, 8, 4] {
        let capped =
            |kernel: &Kernel| kernel.clone().define("CAP_SCORES", 1).define("CAP", "50.0f").define("WINDOW", 1024);
        all.extend([&decode, &prefill].map(|kernel| kernel.clone().define("KV_BITS", bits)));
        all.extend([&decode, &prefill].map(|kernel| capped(kernel).define("KV_BITS", bits)));
        all.push(rope.clone().define("KV_BITS", bits).define("INTERLEAVED", u32::from(bits == 8)));
    }
    all.extend((0..5).map(|function| elementwise.clone().define("FUNCTION", function)));
    all
}

#[test]
fn kernels_compile_for_cuda() {
    let kernels = kernels();
    for (file, text) in SOURCES {
        assert!(
            !text.contains("kernel void") || kernels.iter().any(|k| k.file == *file),
            "{file} is not compiled here"
        );
    }
    let folder = tempfile::tempdir().unwrap();
    for capability in [(8, 0), (9, 0)] {
        let compiler = CudaCompiler::new(capability, None, Cache::at(folder.path())).unwrap_or_else(|e| panic!("{e}"));
        let mut ready = 0;
        let all: Vec<&Kernel> = kernels.iter().collect();
        // What is in CUDA's own terms differs little between targets.
        let all = if capability == (8, 0) { first_of_each_file(all) } else { all };
        let compiled = compiler.compile(&all, &mut |so_far| ready = so_far).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(ready, all.len());
        assert!(compiled.iter().all(|image| image.starts_with(b"\x7fELF")));
        assert_eq!(compiler.compile(&all[..1], &mut |_| ()).unwrap(), compiled[..1], "what is cached is the same");
    }
}

fn first_of_each_file(mut kernels: Vec<&Kernel>) -> Vec<&Kernel> {
    kernels.sort_by_key(|kernel| kernel.file);
    kernels.dedup_by_key(|kernel| kernel.file);
    kernels
}

#[test]
fn what_does_not_compile_is_named_with_the_compilers_words() {
    let folder = tempfile::tempdir().unwrap();
    let compiler = CudaCompiler::new((9, 0), None, Cache::at(folder.path())).unwrap_or_else(|e| panic!("{e}"));
    let kernel = Kernel::new("norm/rms_norm.metal", "rms_norm", 32).define("NORM", 0);
    let Err(GpuError::Compile { kernel, log }) = compiler.compile(&[&kernel], &mut |_| ()) else { panic!() };
    assert!(kernel.contains("rms_norm") && log.contains("\"WIDTH\" is undefined"), "{kernel}: {log}");
}
