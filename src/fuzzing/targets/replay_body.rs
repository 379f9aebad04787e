//! Request bodies of several attempts, against the frames of the caller's body.

use std::{
    collections::VecDeque,
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    task::{Context, Poll, Wake, Waker},
};

use arbitrary::{Result, Unstructured};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue};
use http_body::{Body, Frame, SizeHint};
use tower_http_retry::{ReplayBody, Superseded, fuzzing::Upload};

/// Whether the chunks are small slices of larger allocations, which the buffer must not keep alive.
///
/// Off: the buffer of this branch shares up to 16 chunks with the caller.
const CHECK_ALLOCATIONS: bool = false;

/// The unused part of the allocation of each chunk.
const UNUSED: usize = if CHECK_ALLOCATIONS { 1000 } else { 0 };

/// Decodes a body, a limit, and the steps of the attempts that send it.
pub fn replay_body(data: &[u8]) {
    let _ = check(&mut Unstructured::new(data));
}

#[derive(Clone, Debug)]
enum Step {
    Data(usize),
    Trailers,
    Fail,
    Pend,
}

/// A chunk that counts the bytes of all chunks that are alive.
struct Chunk {
    bytes: Vec<u8>,
    live: Arc<AtomicUsize>,
}

impl Chunk {
    fn new(bytes: Vec<u8>, live: &Arc<AtomicUsize>) -> Self {
        live.fetch_add(bytes.len(), Relaxed);
        Self {
            bytes,
            live: live.clone(),
        }
    }
}

impl AsRef<[u8]> for Chunk {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Chunk {
    fn drop(&mut self) {
        self.live.fetch_sub(self.bytes.len(), Relaxed);
    }
}

/// The caller's body. It keeps the waker of its last poll, as the contract of `poll_frame` requires.
struct Source {
    steps: VecDeque<Step>,
    hint: SizeHint,
    sent: usize,
    knows_end: bool,
    live: Arc<AtomicUsize>,
}

impl Body for Source {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        Poll::Ready(Some(match self.steps.pop_front() {
            None => return Poll::Ready(None),
            Some(Step::Pend) => return Poll::Pending,
            Some(Step::Fail) => Err(io::ErrorKind::Other.into()),
            Some(Step::Trailers) => Ok(Frame::trailers(trailers())),
            Some(Step::Data(length)) => {
                let chunk = Chunk::new(pattern(self.sent, length + UNUSED), &self.live);
                self.sent += length;
                Ok(Frame::data(Bytes::from_owner(chunk).slice(..length)))
            }
        }))
    }

    fn is_end_stream(&self) -> bool {
        self.knows_end && self.steps.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        let sent = self.sent as u64;
        let mut hint = SizeHint::new();
        if let Some(total) = self.hint.exact() {
            hint.set_exact(total.saturating_sub(sent));
        }
        hint
    }
}

/// Returns bytes that encode their position.
fn pattern(start: usize, length: usize) -> Vec<u8> {
    (start..start + length)
        .map(|index| (index % 251) as u8)
        .collect()
}

fn trailers() -> HeaderMap {
    HeaderMap::from_iter([(http::header::ETAG, HeaderValue::from_static("\"a\""))])
}

#[derive(Default)]
struct CountWakes(AtomicUsize);

impl Wake for CountWakes {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Relaxed);
    }
}

/// One attempt, and the frames that it has sent.
struct Attempt {
    body: ReplayBody<Source>,
    wakes: Arc<CountWakes>,
    sent: usize,
    trailers: bool,
    ended: bool,
    failed: bool,
    /// The number of wakes before the last poll, if that was pending.
    pending_since: Option<usize>,
}

impl Attempt {
    fn new(body: ReplayBody<Source>) -> Self {
        Self {
            body,
            wakes: Arc::default(),
            sent: 0,
            trailers: false,
            ended: false,
            failed: false,
            pending_since: None,
        }
    }

    fn is_woken(&self) -> bool {
        self.pending_since
            .is_none_or(|wakes| self.wakes.0.load(Relaxed) > wakes)
    }

    fn poll(&mut self) -> Poll<Option<Result<Frame<Bytes>, tower::BoxError>>> {
        let waker = Waker::from(self.wakes.clone());
        let wakes = self.wakes.0.load(Relaxed);
        let polled = Pin::new(&mut self.body).poll_frame(&mut Context::from_waker(&waker));
        self.pending_since = polled.is_pending().then_some(wakes);
        polled
    }
}

/// The expected state.
struct Model {
    total: usize,
    has_one_chunk: bool,
    has_trailers: bool,
    fails: bool,
    limit: usize,
    /// The bytes that any attempt has read from the caller's body.
    read: usize,
    has_failed: bool,
    paused: bool,
    live: Arc<AtomicUsize>,
}

fn check(u: &mut Unstructured<'_>) -> Result<()> {
    let (steps, total) = any_steps(u)?;
    let live = Arc::<AtomicUsize>::default();
    let is_exact = u.arbitrary()?;
    let hint = if is_exact {
        SizeHint::with_exact(total as u64)
    } else {
        SizeHint::default()
    };
    let mut model = Model {
        total,
        has_one_chunk: steps
            .iter()
            .filter(|step| matches!(step, Step::Data(_)))
            .count()
            == 1,
        has_trailers: steps.iter().any(|step| matches!(step, Step::Trailers)),
        fails: steps.iter().any(|step| matches!(step, Step::Fail)),
        limit: u.int_in_range(0..=total + 10)?,
        read: 0,
        has_failed: false,
        paused: false,
        live: live.clone(),
    };
    // Hints of more than the limit disable the buffer.
    let limit = model.limit;
    if is_exact && total > limit {
        model.limit = 0;
    }
    let knows_end = u.arbitrary()?;
    let source = Source {
        knows_end,
        steps,
        hint,
        sent: 0,
        live,
    };
    let (upload, first) = Upload::new(source, limit);
    let mut upload = Some(upload);
    let mut attempt = Attempt::new(first);
    let mut superseded = Vec::new();
    for _ in 0..u.int_in_range(0..=60)? {
        let Some(handle) = &mut upload else { break };
        match u.int_in_range(0..=9)? {
            0 => {
                model.paused = true;
                assert_eq!(handle.pause(), model.is_replayable());
            }
            1 if handle.pause() => {
                assert!(model.is_replayable());
                let next = Attempt::new(handle.replay());
                model.paused = false;
                let old = std::mem::replace(&mut attempt, next);
                assert!(old.is_woken(), "a superseded body is not woken");
                superseded.push(old);
                model.check_memory();
            }
            1 => {
                assert!(!model.is_replayable());
                model.paused = true;
            }
            2 if u.ratio(1, 4)? => {
                handle.release();
                upload = None;
                model.paused = false;
                assert!(attempt.is_woken(), "a released body is not woken");
            }
            _ => model.step(&mut attempt),
        }
        if let Some(handle) = &upload {
            assert_eq!(handle.has_failed(), model.has_failed);
        }
    }
    superseded.iter_mut().for_each(check_superseded);
    drop(superseded);
    if let Some(mut handle) = upload.take() {
        handle.release();
        assert!(attempt.is_woken());
    }
    model.paused = false;
    model.finish(attempt);
    Ok(())
}

impl Model {
    fn is_replayable(&self) -> bool {
        self.read <= self.limit && !self.has_failed
    }

    /// The buffer holds at most the limit, in chunks that are alive or copied.
    fn check_memory(&self) {
        let live = self.live.load(Relaxed);
        // The only chunk of a body may be shared.
        let unused = if self.has_one_chunk { UNUSED } else { 0 };
        assert!(
            live <= self.limit + unused,
            "{live} bytes are alive, the limit is {}",
            self.limit
        );
    }

    /// Polls the body of the current attempt once.
    fn step(&mut self, attempt: &mut Attempt) {
        let unsent = (self.total - attempt.sent) as u64;
        let hint = attempt.body.size_hint();
        let finished = attempt.ended || attempt.failed || self.has_failed;
        if !finished && !self.fails {
            assert!(hint.lower() <= unsent, "{hint:?}, unsent: {unsent}");
            assert!(
                hint.upper().is_none_or(|upper| upper >= unsent),
                "{hint:?}, unsent: {unsent}"
            );
        }
        if attempt.body.is_end_stream() && !attempt.failed {
            assert!(
                attempt.sent == self.total && !self.fails && attempt.trailers == self.has_trailers
            );
        }
        match attempt.poll() {
            Poll::Pending => assert!(
                attempt.sent >= self.read || self.paused,
                "pending before the replay's end"
            ),
            Poll::Ready(None) => {
                assert!(!self.fails || attempt.failed);
                assert!(
                    attempt.sent == self.total && attempt.trailers == self.has_trailers
                        || attempt.failed
                );
                attempt.ended = true;
            }
            Poll::Ready(Some(Err(error))) => {
                assert!(self.fails && !error.is::<Superseded>(), "{error}");
                assert!(attempt.sent == self.total || self.has_failed);
                attempt.failed = true;
                self.has_failed = true;
            }
            Poll::Ready(Some(Ok(frame))) => self.check_frame(attempt, frame),
        }
    }

    fn check_frame(&mut self, attempt: &mut Attempt, frame: Frame<Bytes>) {
        assert!(!attempt.ended && !attempt.failed && !attempt.trailers);
        match frame.into_data() {
            Ok(data) => {
                assert_eq!(data, pattern(attempt.sent, data.len()));
                attempt.sent += data.len();
                assert!(
                    !self.paused || attempt.sent <= self.read,
                    "read while paused"
                );
                self.read = self.read.max(attempt.sent);
                drop(data);
                // Chunks of a body that is not buffered are alive only until they are sent.
                self.check_memory();
            }
            Err(frame) => {
                assert_eq!(frame.into_trailers().ok(), Some(trailers()));
                attempt.trailers = true;
            }
        }
    }

    /// Sends the rest of the last attempt.
    fn finish(&mut self, mut attempt: Attempt) {
        // The source is pending at most once per step.
        for _ in 0..1000 {
            if attempt.ended || attempt.failed {
                break;
            }
            self.step(&mut attempt);
        }
        assert!(attempt.ended || attempt.failed, "the body does not end");
        assert_eq!(attempt.failed, self.fails);
        if !attempt.failed {
            assert!(attempt.sent == self.total && attempt.trailers == self.has_trailers);
        }
        drop(attempt);
        assert_eq!(self.live.load(Relaxed), 0, "chunks leak");
    }
}

/// A superseded body fails, unless it had sent all.
fn check_superseded(attempt: &mut Attempt) {
    let was_end_stream = attempt.body.is_end_stream();
    match attempt.poll() {
        Poll::Ready(None) => assert!(was_end_stream),
        Poll::Ready(Some(Err(error))) => {
            assert!(!was_end_stream && error.is::<Superseded>(), "{error}")
        }
        other => panic!("{other:?} of a superseded body"),
    }
    // After its error a body may have ended. It never yields data.
    let has_ended = attempt.body.is_end_stream();
    match attempt.poll() {
        Poll::Ready(None) => {}
        Poll::Ready(Some(Err(error))) => assert!(!has_ended && error.is::<Superseded>(), "{error}"),
        other => panic!("{other:?} of a superseded body"),
    }
}

fn any_steps(u: &mut Unstructured<'_>) -> Result<(VecDeque<Step>, usize)> {
    let (mut steps, mut total) = (VecDeque::new(), 0);
    for _ in 0..u.int_in_range(0..=50)? {
        steps.push_back(match u.int_in_range(0..=9)? {
            0 | 1 => Step::Pend,
            kind => {
                let length = match kind {
                    2 => u.int_in_range(4000..=5000)?,
                    3 => 0,
                    _ => u.int_in_range(1..=100)?,
                };
                total += length;
                Step::Data(length)
            }
        });
    }
    match u.int_in_range(0..=3)? {
        0 => steps.push_back(Step::Trailers),
        1 => steps.push_back(Step::Fail),
        _ => {}
    }
    Ok((steps, total))
}
