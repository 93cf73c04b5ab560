//! Metrics for Prometheus.

use std::sync::OnceLock;
use std::time::Duration;

use basert::{Counts, Observer, Turn};
use metrics::{
    Counter, Gauge, Histogram, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram,
};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};

/// Bounds of histograms of seconds.
const SECONDS: [f64; 14] = [0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 120.0];
/// Bounds of histograms of counts.
const COUNTS: [f64; 8] = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0];

/// The recorder of this process, installed on first use. None if the process has another one.
pub fn recorder() -> Option<&'static PrometheusHandle> {
    static RECORDER: OnceLock<Option<PrometheusHandle>> = OnceLock::new();
    RECORDER.get_or_init(install).as_ref()
}

fn install() -> Option<PrometheusHandle> {
    use metrics_exporter_prometheus::Matcher::Suffix;
    let builder = PrometheusBuilder::new()
        .set_buckets_for_metric(Suffix("_seconds".to_owned()), &SECONDS)
        .and_then(|builder| builder.set_buckets_for_metric(Suffix("_answers".to_owned()), &COUNTS));
    let handle = builder.and_then(PrometheusBuilder::install_recorder).ok()?;
    describe_counter!("basert_requests_total", "Requests that were answered, by path and status");
    describe_histogram!("basert_request_seconds", "Time from a request's head to the end of its answer");
    describe_counter!("basert_prompt_tokens_total", "Tokens of prompts, computed or cached");
    describe_counter!("basert_cached_tokens_total", "Tokens of prompts that were found in the prefix cache");
    describe_counter!("basert_generated_tokens_total", "Tokens of answers");
    describe_histogram!("basert_first_token_seconds", "Time from a request to its first token");
    describe_histogram!("basert_between_tokens_seconds", "Time between two tokens of an answer");
    describe_gauge!("basert_running_answers", "Running answers");
    describe_gauge!("basert_waiting_answers", "Waiting answers");
    describe_counter!("basert_preempted_total", "Preempted answers");
    describe_counter!("basert_proposed_tokens_total", "Draft tokens proposed");
    describe_counter!("basert_accepted_tokens_total", "Draft tokens accepted");
    describe_histogram!("basert_step_seconds", "Time of a step");
    describe_histogram!("basert_step_answers", "Answers that got a token in a step");
    describe_gauge!("basert_kv_pages", "Pages of the KV cache");
    describe_gauge!("basert_kv_pages_held", "Pages of the KV cache that requests hold");
    describe_gauge!("basert_kv_pages_cached", "Pages of the KV cache that only the prefix cache holds");
    Some(handle)
}

/// The metrics of a model's thread.
pub struct ModelGauges {
    running: Gauge,
    waiting: Gauge,
    preempted: Counter,
    proposed: Counter,
    accepted: Counter,
    step: Histogram,
    batch: Histogram,
    pages: Gauge,
    held: Gauge,
    cached: Gauge,
}

impl ModelGauges {
    pub fn new(model: &str) -> ModelGauges {
        let model = model.to_owned();
        ModelGauges {
            running: gauge!("basert_running_answers", "model" => model.clone()),
            waiting: gauge!("basert_waiting_answers", "model" => model.clone()),
            preempted: counter!("basert_preempted_total", "model" => model.clone()),
            proposed: counter!("basert_proposed_tokens_total", "model" => model.clone()),
            accepted: counter!("basert_accepted_tokens_total", "model" => model.clone()),
            step: histogram!("basert_step_seconds", "model" => model.clone()),
            batch: histogram!("basert_step_answers", "model" => model.clone()),
            pages: gauge!("basert_kv_pages", "model" => model.clone()),
            held: gauge!("basert_kv_pages_held", "model" => model.clone()),
            cached: gauge!("basert_kv_pages_cached", "model" => model),
        }
    }
}

impl Observer for ModelGauges {
    fn turn(&mut self, turn: &Turn, counts: &Counts) {
        self.running.set(counts.running as f64);
        self.waiting.set(counts.waiting as f64);
        self.preempted.absolute(counts.preempted);
        self.proposed.absolute(counts.proposed);
        self.accepted.absolute(counts.accepted);
        self.pages.set(counts.pages.total as f64);
        self.held.set(counts.pages.held as f64);
        self.cached.set(counts.pages.cached as f64);
        if let Turn::Step { decoded, time, .. } = turn {
            self.step.record(time.as_secs_f64());
            if *decoded > 0 {
                self.batch.record(*decoded as f64);
            }
        }
    }
}

/// The metrics of a request that a model answered.
pub struct Answered {
    first: Histogram,
    between: Histogram,
    prompt: Counter,
    cached: Counter,
    generated: Counter,
}

impl Answered {
    pub fn new(model: &str) -> Answered {
        let model = model.to_owned();
        Answered {
            first: histogram!("basert_first_token_seconds", "model" => model.clone()),
            between: histogram!("basert_between_tokens_seconds", "model" => model.clone()),
            prompt: counter!("basert_prompt_tokens_total", "model" => model.clone()),
            cached: counter!("basert_cached_tokens_total", "model" => model.clone()),
            generated: counter!("basert_generated_tokens_total", "model" => model),
        }
    }

    pub fn first(&self, time: Duration) {
        self.first.record(time.as_secs_f64());
    }

    pub fn next(&self, time: Duration) {
        self.between.record(time.as_secs_f64());
    }

    pub fn prompt(&self, tokens: usize, cached: usize) {
        self.prompt.increment(tokens as u64);
        self.cached.increment(cached as u64);
    }

    pub fn generated(&self, tokens: usize) {
        self.generated.increment(tokens as u64);
    }
}
