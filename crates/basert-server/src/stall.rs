//! A write timeout: a connection fails if its peer reads nothing for too long.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep};

/// Bytes that the peer has to read within the limit, if as many are pending: fewer do not count as progress.
const PROGRESS: usize = 1024;

/// A stream whose writes fail with a timeout if they are stalled for longer than the limit.
pub struct Stalling<S> {
    stream: S,
    limit: Duration,
    /// Since the last progress, while there is something to send.
    stalled: Option<Pin<Box<Sleep>>>,
    taken: usize,
}

impl<S> Stalling<S> {
    pub fn new(stream: S, limit: Duration) -> Stalling<S> {
        Stalling { stream, limit, stalled: None, taken: 0 }
    }

    /// The result of an attempt to write `wanted` bytes, or a timeout.
    fn judge(
        &mut self,
        wanted: usize,
        result: Poll<io::Result<usize>>,
        context: &mut Context<'_>,
    ) -> Poll<io::Result<usize>> {
        match result {
            Poll::Ready(Ok(taken)) => {
                self.taken += taken;
                if taken == wanted || self.taken >= PROGRESS {
                    (self.stalled, self.taken) = (None, 0);
                }
                Poll::Ready(Ok(taken))
            }
            Poll::Ready(error) => Poll::Ready(error),
            Poll::Pending => {
                let limit = self.limit;
                let stalled = self.stalled.get_or_insert_with(|| Box::pin(sleep(limit)));
                stalled.as_mut().poll(context).map(|()| Err(io::ErrorKind::TimedOut.into()))
            }
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Stalling<S> {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_read(context, into)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Stalling<S> {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let result = Pin::new(&mut this.stream).poll_write(context, bytes);
        this.judge(bytes.len(), result, context)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let result = Pin::new(&mut this.stream).poll_write_vectored(context, parts);
        this.judge(parts.iter().map(|part| part.len()).sum(), result, context)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn who_takes_nothing_is_given_up_and_who_takes_little_is_not() {
        let limit = Duration::from_secs(60);
        for (piece, fails) in [(0, true), (1, true), (64, false)] {
            let (ours, mut peer) = duplex(256);
            let reader = tokio::spawn(async move {
                let mut taken = vec![0; piece];
                loop {
                    tokio::time::sleep(Duration::from_secs(2)).await;
                    if piece > 0 && peer.read_exact(&mut taken).await.is_err() {
                        return;
                    }
                }
            });
            let mut ours = Stalling::new(ours, limit);
            let began = tokio::time::Instant::now();
            let result = ours.write_all(&[7; 8 << 10]).await;
            assert_eq!(result.is_err(), fails, "{piece} bytes every two seconds");
            assert!(!fails || began.elapsed() < 2 * limit);
            reader.abort();
        }
    }
}
