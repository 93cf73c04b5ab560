//! Another engine, measured on the same file with as many threads: a child process that keeps the model open and
//! answers requests, one JSON object a line.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Stdio};
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use basert_system::programs;
use serde_json::{Value, json};

use super::workload::{Engine, Kind, Test};
use crate::failure::mistake;

/// The script that the child runs.
const SCRIPT: &str = include_str!("peer.py");

/// Time for this engine's waiting threads to stop spinning before the other engine is measured.
const PAUSE: Duration = Duration::from_millis(50);

/// llama.cpp, through its Python module.
pub struct Peer {
    python: PathBuf,
    child: Child,
    requests: ChildStdin,
    answers: BufReader<ChildStdout>,
    name: String,
}

impl Peer {
    /// Starts it, without a model.
    pub fn start(python: &Path) -> anyhow::Result<Peer> {
        let started = programs::python(python)
            .and_then(|mut python| python.args(["-c", SCRIPT]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn());
        let mut child = started
            .map_err(|error| mistake(format!("cannot run '{}': {error}; --python names another", python.display())))?;
        let (Some(requests), Some(answers)) = (child.stdin.take(), child.stdout.take()) else {
            bail!("the peer has no stdin or stdout");
        };
        let (python, answers) = (python.to_owned(), BufReader::new(answers));
        let mut peer = Peer { python, child, requests, answers, name: "llama-cpp-python".to_owned() };
        let hello = peer.answer()?;
        if !hello["missing"].is_null() {
            let python = peer.python.display();
            bail!(
                "{python} has no module llama_cpp to compare with; this installs it: \
                 CMAKE_ARGS=\"-DGGML_NATIVE=ON\" {python} -m pip install llama-cpp-python"
            );
        }
        peer.name = hello["engine"].as_str().ok_or_else(|| peer.nonsense(&hello))?.to_owned();
        Ok(peer)
    }

    /// Loads a model, to be run with `threads` threads.
    pub fn load(&mut self, model: &Path, threads: usize) -> anyhow::Result<()> {
        let model = std::path::absolute(model)?;
        let path = model.to_str().ok_or_else(|| mistake(format!("'{}' is not UTF-8 text", model.display())))?;
        self.ask(&json!({ "model": path, "threads": threads }))?;
        Ok(())
    }

    /// The engine's name and version.
    pub fn name(&self) -> &str {
        &self.name
    }

    fn ask(&mut self, request: &Value) -> anyhow::Result<Value> {
        // If the child has ended, its exit code says more than the broken pipe.
        let sent = writeln!(self.requests, "{request}").and_then(|()| self.requests.flush());
        let answer = self.answer()?;
        sent.with_context(|| format!("cannot talk to {}", self.name))?;
        Ok(answer)
    }

    fn answer(&mut self) -> anyhow::Result<Value> {
        let mut line = String::new();
        if self.answers.read_line(&mut line)? == 0 {
            bail!("the other engine, in {}, ended: {}", self.python.display(), self.child.wait()?);
        }
        let answer: Value = serde_json::from_str(&line).map_err(|_| self.nonsense(line.trim()))?;
        match &answer["error"] {
            Value::Null => Ok(answer),
            error => bail!("{}: {}", self.name, error.as_str().unwrap_or("it failed")),
        }
    }

    fn nonsense(&self, answer: impl std::fmt::Display) -> anyhow::Error {
        anyhow!("the other engine, in {}, gave an unexpected answer: '{answer}'", self.python.display())
    }
}

impl Engine for Peer {
    fn prepare(&mut self, test: &Test, timelines: &[Vec<u32>]) -> anyhow::Result<()> {
        let at_once = test.kind == Kind::Prefill;
        self.ask(&json!({ "timelines": timelines, "depth": test.depth, "at_once": at_once }))?;
        Ok(())
    }

    fn measure(&mut self) -> anyhow::Result<f64> {
        std::thread::sleep(PAUSE);
        let answer = self.ask(&json!({}))?;
        std::thread::sleep(PAUSE);
        let seconds = answer["seconds"].as_f64().filter(|seconds| *seconds > 0.0);
        seconds.ok_or_else(|| self.nonsense(&answer))
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        // Errors mean that the child has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
