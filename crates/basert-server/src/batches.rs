//! Running batches.
//!
//! Lines are read one by one, and answers are appended to files as they are completed, in the order of the lines. So a
//! server that stops or crashes loses no complete answer, and the next one continues: as many lines are done as there
//! are answers. A line at which a server crashed twice ends its batch: it may be the reason. Servers that were stopped
//! do not count, however they were stopped.

use std::fs::File;
use std::io::Write;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::Extension;
use axum::Router;
use axum::body::{Body, to_bytes};
use axum::http::{Request, StatusCode, header};
use futures_util::{StreamExt, stream};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::task::{JoinSet, spawn_blocking};
use tower::ServiceExt;

use crate::api;
use crate::auth::Client;
use crate::budget::Hold;
use crate::clock;
use crate::error::{self, ApiError};
use crate::files::{EACH, Files, Kind};
use crate::lines::{self, Line, Place, Wrong};
use crate::random;
use crate::server::Shared;
use crate::work::{self, Wanted};

/// Batches under way, of one client and of all.
const MOST: usize = 16;
const MOST_OF_ALL: usize = 256;
/// The largest answer to a request, in bytes.
const LARGEST_ANSWER: usize = 64 << 20;
/// How long to wait where a request has to be tried again.
const PATIENCE: Duration = Duration::from_secs(1);
/// Seconds after which a batch that has not ended does.
const WINDOW: u64 = 24 * 3600;
/// The files that answers are appended to: the field of an ended batch that names each, and its ending beside the batch
/// until then.
const OUTPUTS: [(&str, &str); 2] = [("output_file_id", "good"), ("error_file_id", "bad")];
/// The name of each file's count of answers.
const COUNTS: [&str; 2] = ["completed", "failed"];

/// A batch, as it is reported and saved.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Batch {
    pub owner: u64,
    /// The object that the API returns.
    pub told: Value,
    /// How many lines were done when the server before crashed, if it did.
    #[serde(default)]
    crashed_at: Option<usize>,
}

impl Batch {
    pub fn new(client: Client, input: String, endpoint: String, metadata: Option<Value>) -> Batch {
        let now = clock::now();
        let told = json!({
            "id": random::id("batch_"),
            "object": "batch",
            "endpoint": endpoint,
            "errors": null,
            "input_file_id": input,
            "completion_window": "24h",
            "status": "in_progress",
            "output_file_id": null,
            "error_file_id": null,
            "created_at": now,
            "in_progress_at": now,
            "expires_at": now + WINDOW,
            "request_counts": { "total": 0, "completed": 0, "failed": 0 },
            "metadata": metadata,
        });
        Batch { owner: client.0, told, crashed_at: None }
    }

    pub fn id(&self) -> &str {
        self.text("id")
    }

    fn text(&self, name: &str) -> &str {
        self.told[name].as_str().unwrap_or_default()
    }

    fn client(&self) -> Client {
        Client(self.owner)
    }

    /// How many lines were answered.
    fn done(&self) -> usize {
        COUNTS.iter().map(|&name| self.told["request_counts"][name].as_u64().unwrap_or(0) as usize).sum()
    }

    fn has_expired(&self) -> bool {
        self.told["expires_at"].as_u64().is_some_and(|end| clock::now() >= end)
    }

    /// Whether its client and its time let it go on.
    fn is_wanted(&self) -> bool {
        self.text("status") != "cancelling" && !self.has_expired()
    }

    /// Ends one that is not wanted any more.
    fn ended_early(&mut self) {
        self.ended(if self.text("status") == "cancelling" { "cancelled" } else { "expired" });
    }

    fn ended(&mut self, status: &str) {
        self.told["status"] = status.into();
        self.told[format!("{status}_at")] = clock::now().into();
    }

    fn failed(&mut self, code: &str, message: &str, line: Option<usize>) {
        self.ended("failed");
        let error = json!({ "code": code, "message": message, "line": line, "param": null });
        self.told["errors"] = json!({ "object": "list", "data": [error] });
    }

    /// Counts an answer, by the file that it is in.
    fn count(&mut self, output: usize) {
        let count = &mut self.told["request_counts"][COUNTS[output]];
        *count = (count.as_u64().unwrap_or(0) + 1).into();
    }
}

/// Batches that are being computed. They change here, and are written down when they begin and end.
#[derive(Debug, Default)]
pub struct Batches {
    running: Mutex<Vec<Batch>>,
    tasks: Mutex<JoinSet<()>>,
}

impl Batches {
    fn lock(&self) -> MutexGuard<'_, Vec<Batch>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A batch that runs.
    pub fn get(&self, id: &str) -> Option<Batch> {
        self.lock().iter().find(|batch| batch.id() == id).cloned()
    }

    fn change(&self, id: &str, change: impl FnOnce(&mut Batch)) -> Option<Batch> {
        let mut running = self.lock();
        let batch = running.iter_mut().find(|batch| batch.id() == id)?;
        change(batch);
        Some(batch.clone())
    }

    /// Cancels a batch that runs.
    pub fn cancel(&self, id: &str) -> Option<Batch> {
        self.change(id, |batch| {
            if batch.text("status") == "in_progress" {
                batch.told["status"] = "cancelling".into();
                batch.told["cancelling_at"] = clock::now().into();
            }
        })
    }

    /// Makes room for a batch, if there is any.
    fn admit(&self, batch: &Batch) -> Result<(), ApiError> {
        let mut running = self.lock();
        let own = running.iter().filter(|other| other.owner == batch.owner).count();
        if own >= MOST || running.len() >= MOST_OF_ALL {
            let message = format!(
                "{own} of your batches and {} of all are under way; there may be {MOST} and {MOST_OF_ALL}",
                running.len()
            );
            let error = ApiError::new(StatusCode::TOO_MANY_REQUESTS, message);
            return Err(error.with_code("rate_limit_exceeded").again_after(60));
        }
        running.push(batch.clone());
        Ok(())
    }

    fn end(&self, id: &str) {
        self.lock().retain(|batch| batch.id() != id);
    }

    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let mut tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        while tasks.try_join_next().is_some() {}
        tasks.spawn(task);
    }

    /// Waits until what had begun is written down. Nothing begins while the server drains.
    pub async fn drained(&self) {
        let mut tasks = std::mem::take(&mut *self.tasks.lock().unwrap_or_else(PoisonError::into_inner));
        while tasks.join_next().await.is_some() {}
    }
}

/// Begins a batch, or says in it what is wrong with its lines.
pub async fn begin(shared: &Shared, files: Arc<Files>, batch: Batch) -> Result<Batch, ApiError> {
    shared.batches.admit(&batch)?;
    let admitted = Admitted::new(shared, &batch);
    let (limit, hold) = (shared.config.body_limit, shared.budget.hold(batch.client()));
    let writer = files.clone();
    let checked = work::run_long(move |wanted| {
        let mut batch = batch;
        let file = writer.content(batch.client(), batch.text("input_file_id"))?;
        let places = match lines::check(&file, batch.text("endpoint"), limit, wanted, &hold) {
            Ok(places) => places,
            Err(Wrong::Line(line, message)) => {
                batch.failed("invalid_line", &message, Some(line));
                vec![]
            }
            Err(Wrong::All(error)) => return Err(error),
        };
        batch.told["request_counts"]["total"] = places.len().into();
        writer.take(batch.client(), EACH)?;
        writer.write(batch.id(), &batch).inspect_err(|_| writer.give(batch.client(), EACH))?;
        writer.enlist(batch.client(), Kind::Batch, batch.id(), batch.told["created_at"].as_u64().unwrap_or(0));
        Ok((batch, Lines { file: Arc::new(Mutex::new(file)), places, _hold: hold }))
    });
    let (batch, lines) = checked.await?;
    if batch.text("status") == "in_progress" {
        note_work(shared, &files);
        shared.batches.change(batch.id(), |running| *running = batch.clone());
        shared.batches.spawn(run(files, admitted, batch.clone(), lines));
    }
    Ok(batch)
}

/// The room of a batch, which is given back when it has ended.
struct Admitted {
    shared: Shared,
    id: String,
    /// A state that could not be saved is kept in memory.
    stays: bool,
}

impl Admitted {
    fn new(shared: &Shared, batch: &Batch) -> Admitted {
        Admitted { shared: shared.clone(), id: batch.id().to_owned(), stays: false }
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        if !self.stays {
            self.shared.batches.end(&self.id);
        }
    }
}

/// What a batch asks.
struct Lines {
    file: Arc<Mutex<File>>,
    places: Vec<Place>,
    _hold: Hold,
}

/// Batches that a server before left unfinished, with what was answered of them.
pub fn recover(files: &Files) -> Batches {
    let all = files.all::<Batch>(Kind::Batch).map(|(_, batch)| batch);
    let unfinished = all.filter(|batch| matches!(batch.text("status"), "in_progress" | "cancelling"));
    let running = unfinished.map(|mut batch| {
        for (place, (_, ending)) in OUTPUTS.iter().enumerate() {
            let path = files.path(batch.id(), ending).filter(|path| path.exists());
            let (answers, bytes) = path.and_then(|path| lines::whole(&path).ok()).unwrap_or_default();
            files.add(batch.client(), bytes);
            batch.told["request_counts"][COUNTS[place]] = answers.into();
        }
        batch
    });
    Batches { running: Mutex::new(running.collect()), ..Batches::default() }
}

/// Notes in the folder that batches are under way, unless the server is about to stop.
fn note_work(shared: &Shared, files: &Files) {
    if !shared.is_draining()
        && let Err(error) = files.set_running(true)
    {
        tracing::warn!(%error, "it cannot be noted that batches are under way; a crash will not be counted");
    }
}

/// Notes that what ends batches from here on is no crash.
pub fn stopping(shared: &Shared) {
    if let Some(files) = &shared.files
        && let Err(error) = files.set_running(false)
    {
        tracing::warn!(%error, "it cannot be noted that batches were stopped; that will be counted as a crash");
    }
}

/// Goes on with them.
pub fn resume(shared: &Shared) {
    let Some(files) = &shared.files else { return };
    let crashed = files.was_running();
    let all = shared.batches.lock().clone();
    for mut batch in all {
        let (before, done) = (batch.crashed_at, batch.done());
        batch.crashed_at = crashed.then_some(done);
        let twice = crashed && before == Some(done);
        shared.batches.spawn(go_on(files.clone(), Admitted::new(shared, &batch), batch, twice));
    }
}

async fn go_on(files: Arc<Files>, admitted: Admitted, mut batch: Batch, crashed_twice: bool) {
    let (shared, done) = (&admitted.shared, batch.done());
    // A request that ends the server must not do so again and again.
    if crashed_twice {
        batch.failed("interrupted", "the server ended twice while it answered this line", Some(done + 1));
        return finish(files, admitted, batch).await;
    }
    let mut reason = None;
    let lines = loop {
        match read_again(shared, &files, &batch).await {
            Ok(Ok(lines)) => break lines,
            Ok(Err(message)) => {
                let message = format!("the server ended, and the next one cannot go on: {message}");
                batch.failed("interrupted", &message, None);
                return finish(files, admitted, batch).await;
            }
            // There may be room, or time, in a while.
            Err(error) if reason.as_ref() == Some(&error) => {}
            Err(error) => {
                tracing::warn!(id = batch.id(), %error, "batch has to wait");
                reason = Some(error);
            }
        }
        if shared.is_draining() {
            return;
        }
        let Some(now) = shared.batches.get(batch.id()) else { return };
        batch.told = now.told;
        if !batch.is_wanted() {
            batch.ended_early();
            return finish(files, admitted, batch).await;
        }
        tokio::time::sleep(PATIENCE).await;
    };
    note_work(shared, &files);
    tracing::info!(id = batch.id(), done, "batch goes on");
    run(files, admitted, batch, lines).await;
}

/// The lines of a batch that another server began, or why there will never be any; an error if there are none now.
async fn read_again(shared: &Shared, files: &Arc<Files>, batch: &Batch) -> Result<Result<Lines, String>, ApiError> {
    let (limit, hold, client) = (shared.config.body_limit, shared.budget.hold(batch.client()), batch.client());
    let (files, batch) = (files.clone(), batch.clone());
    let read = move |wanted: &Wanted| {
        let file = match files.content(client, batch.text("input_file_id")) {
            Err(error) if error.status == StatusCode::NOT_FOUND => return Ok(Err(error.message)),
            file => file?,
        };
        let places = match lines::check(&file, batch.text("endpoint"), limit, wanted, &hold) {
            Ok(places) => places,
            Err(Wrong::Line(line, message)) => return Ok(Err(format!("line {line}: {message}"))),
            Err(Wrong::All(error)) => return Err(error),
        };
        files.write(batch.id(), &batch)?;
        Ok(Ok(Lines { file: Arc::new(Mutex::new(file)), places, _hold: hold }))
    };
    shared.work.run(client, read).await
}

/// What became of a line.
enum Answered {
    /// A line for one of the [`OUTPUTS`].
    Line(usize, String),
    /// It is not asked any more.
    Not,
}

/// Answers the lines that are not done.
async fn run(files: Arc<Files>, admitted: Admitted, batch: Batch, lines: Lines) {
    let shared = &admitted.shared;
    let kept = answer_all(shared, &files, &batch, &lines).await;
    let Some(mut batch) = shared.batches.get(batch.id()) else { return };
    match kept {
        Err(error) => batch.failed("not_kept", &error.message, None),
        Ok(()) if batch.done() >= lines.places.len() => batch.ended("completed"),
        Ok(()) if !batch.is_wanted() => batch.ended_early(),
        // The next server goes on with it.
        Ok(()) => return,
    }
    finish(files, admitted, batch).await;
}

/// Answers lines, and writes the answers down; an error if that is not possible.
async fn answer_all(shared: &Shared, files: &Arc<Files>, batch: &Batch, lines: &Lines) -> Result<(), ApiError> {
    let (client, service) = (batch.client(), asked(shared, batch.client()));
    let places = lines.places.get(batch.done()..).unwrap_or_default().iter().copied();
    let answers = stream::iter(places)
        .map(|place| answer(shared, service.clone(), batch, lines.file.clone(), place))
        .buffered(shared.config.parallel.max(1));
    let mut answers = std::pin::pin!(answers);
    while let Some(answered) = answers.next().await {
        let Answered::Line(output, line) = answered else {
            // The lines that are done have to be the first ones, if another server is to go on.
            if shared.is_draining() { return Ok(()) } else { continue }
        };
        let (files, id) = (files.clone(), batch.id().to_owned());
        let written = spawn_blocking(move || {
            files.take(client, line.len() as u64)?;
            let written = files.append(&id, OUTPUTS[output].1)?.write_all(line.as_bytes());
            written.map_err(|error| ApiError::internal(format!("an answer cannot be kept: {error}")))
        });
        written.await.unwrap_or_else(|error| Err(ApiError::internal(error.to_string())))?;
        shared.batches.change(batch.id(), |batch| batch.count(output));
    }
    Ok(())
}

/// Makes files of the answers, and writes down that a batch has ended. It is told to have ended when its files are
/// there: clients ask for them at once.
async fn finish(files: Arc<Files>, mut admitted: Admitted, mut batch: Batch) {
    let written = spawn_blocking(move || {
        for (name, ending) in OUTPUTS {
            let Some(path) = files.path(batch.id(), ending).filter(|path| path.exists()) else { continue };
            match files.adopt(batch.client(), &path, &format!("{name}.jsonl"), "batch_output") {
                Ok(file) => batch.told[name] = file.id.into(),
                Err(error) => batch.failed("not_kept", &error.message, None),
            }
        }
        (files.write(batch.id(), &batch), batch)
    });
    if let Ok((Err(error), batch)) = written.await {
        tracing::warn!(%error, id = batch.id(), "a batch cannot be written down");
        admitted.stays = admitted.shared.batches.change(&admitted.id, |running| *running = batch).is_some();
    }
}

/// What answers a batch's lines: the endpoints, as its client asks them.
fn asked(shared: &Shared, client: Client) -> Router {
    api::router(shared)
        .layer(axum::middleware::from_fn(error::in_its_own_shape))
        .layer(Extension(client.batch()))
        .with_state(shared.clone())
}

/// The answer to a line.
async fn answer(shared: &Shared, service: Router, batch: &Batch, file: Arc<Mutex<File>>, place: Place) -> Answered {
    // The line, what is made of it, and the answer until it is written.
    let hold = Arc::new(shared.budget.hold(batch.client()));
    loop {
        if shared.is_draining() || shared.batches.get(batch.id()).is_none_or(|now| !now.is_wanted()) {
            return Answered::Not;
        }
        match attempt(shared, &service, batch, &file, place, &hold).await {
            Ok(answered) => return answered,
            Err(_busy) => tokio::time::sleep(PATIENCE).await,
        }
    }
}

/// One attempt to answer a line; an error if there was no room for it.
async fn attempt(
    shared: &Shared,
    service: &Router,
    batch: &Batch,
    file: &Arc<Mutex<File>>,
    place: Place,
    hold: &Arc<Hold>,
) -> Result<Answered, ApiError> {
    let busy = |status| matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE);
    let (reader, held) = (file.clone(), hold.clone());
    hold.shrink(usize::MAX);
    let line = shared.work.run(batch.client(), move |_| lines::read(&reader, place, &held)).await;
    let (custom_id, status, body) = match line {
        Err(error) if busy(error.status) => return Err(error),
        Err(error) => (String::new(), error.status, error.openai().to_string()),
        Ok(Line { custom_id, body }) => {
            let request = Request::post(batch.text("endpoint")).header(header::CONTENT_TYPE, "application/json");
            let request = request.body(Body::from(body)).map_err(|error| ApiError::internal(error.to_string()))?;
            let Ok(response) = service.clone().oneshot(request).await;
            let status = response.status();
            if busy(status) {
                return Err(ApiError::new(status, "no room"));
            }
            let body = to_bytes(response.into_body(), LARGEST_ANSWER).await;
            match body.map(|bytes| String::from_utf8(bytes.into())) {
                Ok(Ok(body)) if !body.is_empty() => (custom_id, status, body),
                _ => {
                    let error =
                        ApiError::internal(format!("the answer is larger than {LARGEST_ANSWER} bytes, or broken"));
                    (custom_id, error.status, error.openai().to_string())
                }
            }
        }
    };
    // The answer is there: it waits for room, and is not computed again.
    let (status, body) = loop {
        match hold.grow(body.len()) {
            Ok(()) => break (status, body),
            Err(error) if busy(error.status) => tokio::time::sleep(PATIENCE).await,
            Err(error) => break (error.status, error.openai().to_string()),
        }
    };
    let [id, request] = ["batch_req_", "req_"].map(random::id);
    let custom_id = Value::from(custom_id);
    // The body is JSON as it is. To read it would take many times its size.
    let line = format!(
        "{{\"id\":\"{id}\",\"custom_id\":{custom_id},\"response\":{{\"status_code\":{},\"request_id\":\"{request}\",\"body\":{body}}},\"error\":null}}\n",
        status.as_u16()
    );
    Ok(Answered::Line(usize::from(!status.is_success()), line))
}
