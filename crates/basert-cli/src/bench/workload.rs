//! Tests, and the engines that run them.

use std::time::Instant;

use basert::{Sampler, Sampling, Sequence};
use basert_convert::Random;

/// Whether tokens are computed together or one after the other.
#[derive(Clone, Copy, PartialEq)]
pub enum Kind {
    Prefill,
    Decode,
}

/// A test, and the seconds of each repetition.
pub struct Test {
    pub kind: Kind,
    /// Measured tokens of each sequence.
    pub tokens: usize,
    /// Tokens of context of each sequence.
    pub depth: usize,
    /// Sequences that are computed together.
    pub sequences: usize,
    pub seconds: Vec<f64>,
    /// Seconds of each repetition of the other engine.
    pub peer_seconds: Vec<f64>,
}

impl Test {
    pub fn new(kind: Kind, tokens: usize, depth: usize, sequences: usize) -> Test {
        Test { kind, tokens, depth, sequences, seconds: Vec::new(), peer_seconds: Vec::new() }
    }

    pub fn name(&self) -> String {
        let kind = if self.kind == Kind::Prefill { "prefill" } else { "decode" };
        let sequences = if self.sequences == 1 { String::new() } else { format!(" ×{}", self.sequences) };
        let depth = if self.depth == 0 { String::new() } else { format!(" @ {}", self.depth) };
        format!("{kind} {}{sequences}{depth}", self.tokens)
    }

    /// Tokens a second of all sequences together, for each of `seconds`.
    pub fn rates(&self, seconds: &[f64]) -> Vec<f64> {
        seconds.iter().map(|seconds| (self.tokens * self.sequences) as f64 / seconds).collect()
    }

    /// For each repetition, how many times as fast as the peer it was.
    pub fn ratios(&self) -> Vec<f64> {
        self.seconds.iter().zip(&self.peer_seconds).map(|(ours, theirs)| theirs / ours).collect()
    }

    /// Pseudo-random tokens for each sequence, the same every time.
    fn timelines(&self, vocabulary: usize) -> Vec<Vec<u32>> {
        let timeline = |sequence| {
            let mut random = Random::new(0, sequence as u64);
            (0..self.depth + self.tokens).map(|_| random.below(vocabulary.max(1)) as u32).collect()
        };
        (0..self.sequences).map(timeline).collect()
    }

    /// Measures `ours` and `peer` in turn, after warm-up rounds that are not counted.
    pub fn run(
        &mut self,
        vocabulary: usize,
        ours: &mut dyn Engine,
        mut peer: Option<&mut dyn Engine>,
        (warmup, rounds): (usize, usize),
    ) -> anyhow::Result<()> {
        let timelines = self.timelines(vocabulary);
        ours.prepare(self, &timelines)?;
        if let Some(peer) = peer.as_deref_mut() {
            peer.prepare(self, &timelines)?;
        }
        for round in 0..warmup + rounds {
            let seconds = ours.measure()?;
            let peer_seconds = peer.as_deref_mut().map(|peer| peer.measure()).transpose()?;
            if round >= warmup {
                self.seconds.push(seconds);
                self.peer_seconds.extend(peer_seconds);
            }
        }
        Ok(())
    }
}

/// An engine that can be measured.
pub trait Engine {
    /// Prepares a test by computing the first `depth` tokens of the timelines.
    fn prepare(&mut self, test: &Test, timelines: &[Vec<u32>]) -> anyhow::Result<()>;

    /// Computes the rest of the timelines and returns the seconds that this takes. The prepared state stays unchanged.
    fn measure(&mut self) -> anyhow::Result<f64>;
}

/// This engine, step by step: without requests, of which each has a sampler, a text and a reader.
pub struct Ours<'m> {
    engine: &'m mut basert::Engine,
    kind: Kind,
    timelines: Vec<Vec<u32>>,
    contexts: Vec<Sequence>,
}

impl<'m> Ours<'m> {
    pub fn new(engine: &'m mut basert::Engine) -> Ours<'m> {
        Ours { engine, kind: Kind::Prefill, timelines: Vec::new(), contexts: Vec::new() }
    }

    /// The seconds that it takes to sample `tokens` tokens for each sequence.
    fn draw(&mut self, sequences: &mut [Sequence], tokens: usize) -> anyhow::Result<f64> {
        let mut samplers =
            (0..sequences.len()).map(|_| Sampler::new(Sampling::default(), &[])).collect::<Result<Vec<_>, _>>()?;
        let mut last: Vec<u32> = sequences.iter().zip(&self.timelines).map(|(s, t)| t[s.tokens().len()]).collect();
        let began = Instant::now();
        for more in (0..tokens).rev() {
            let rows = sequences.iter_mut().zip(&mut samplers).zip(&last);
            let mut rows: Vec<_> = rows.map(|((sequence, sampler), &token)| (sequence, sampler, token)).collect();
            last = self.engine.draw(&mut rows, more)?;
        }
        Ok(began.elapsed().as_secs_f64())
    }

    /// The seconds that it takes to compute the timelines, as a whole or token by token.
    fn compute(&mut self, sequences: &mut [Sequence], depth: usize, length: usize) -> anyhow::Result<f64> {
        let began = Instant::now();
        let first = if self.kind == Kind::Prefill { length } else { depth + 1 };
        for end in first..=length {
            for (sequence, timeline) in sequences.iter_mut().zip(&self.timelines) {
                self.engine.sync(sequence, &timeline[..end]);
            }
            self.engine.advance(&mut sequences.iter_mut().collect::<Vec<_>>(), usize::MAX, &mut |_| true)?;
        }
        Ok(began.elapsed().as_secs_f64())
    }
}

impl Engine for Ours<'_> {
    fn prepare(&mut self, test: &Test, timelines: &[Vec<u32>]) -> anyhow::Result<()> {
        (self.kind, self.timelines) = (test.kind, timelines.to_vec());
        self.contexts.iter_mut().for_each(|context| self.engine.close(context));
        self.contexts.clear();
        for timeline in timelines {
            let mut context = Sequence::default();
            self.engine.sync(&mut context, &timeline[..test.depth]);
            self.engine.advance(&mut [&mut context], usize::MAX, &mut |_| true)?;
            self.contexts.push(context);
        }
        Ok(())
    }

    fn measure(&mut self) -> anyhow::Result<f64> {
        let mut sequences: Vec<_> = self.contexts.iter().map(|context| self.engine.fork(context)).collect();
        let depth = self.contexts.first().map_or(0, |context| context.tokens().len());
        let length = self.timelines.first().map_or(0, Vec::len);
        // A device that samples continues with its own tokens; on others, sampling is not measured.
        let seconds = if self.kind == Kind::Decode && self.engine.draws_on_device() {
            self.draw(&mut sequences, length - depth)
        } else {
            self.compute(&mut sequences, depth, length)
        };
        sequences.iter_mut().for_each(|sequence| self.engine.close(sequence));
        seconds
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_the_same_every_time_and_in_the_vocabulary() {
        let test = Test::new(Kind::Decode, 60, 40, 2);
        let timelines = test.timelines(50);
        assert_eq!(timelines, test.timelines(50));
        assert!(timelines.iter().all(|timeline| timeline.len() == 100 && timeline.iter().all(|&token| token < 50)));
        assert_ne!(timelines[0], timelines[1]);
        assert_eq!(test.name(), "decode 60 ×2 @ 40");
    }

    #[test]
    fn engines_take_turns() {
        struct Fake<'a>(&'a std::cell::RefCell<String>, char, f64);
        impl Engine for Fake<'_> {
            fn prepare(&mut self, _: &Test, timelines: &[Vec<u32>]) -> anyhow::Result<()> {
                self.0.borrow_mut().push_str(&timelines.len().to_string());
                Ok(())
            }

            fn measure(&mut self) -> anyhow::Result<f64> {
                self.0.borrow_mut().push(self.1);
                self.2 *= 2.0;
                Ok(self.2)
            }
        }
        let log = std::cell::RefCell::default();
        let (mut ours, mut theirs) = (Fake(&log, 'a', 1.0), Fake(&log, 'b', 3.0));
        let mut test = Test::new(Kind::Decode, 10, 0, 3);
        test.run(9, &mut ours, Some(&mut theirs), (1, 2)).unwrap();
        assert_eq!(*log.borrow(), "33ababab");
        assert_eq!((&test.seconds[..], &test.peer_seconds[..]), (&[4.0, 8.0][..], &[12.0, 24.0][..]));
        assert_eq!(test.ratios(), [3.0, 3.0]);
        assert_eq!(test.rates(&test.seconds), [7.5, 3.75]);
    }
}
