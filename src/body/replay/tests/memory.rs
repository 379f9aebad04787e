//! The memory that a buffered body keeps allocated.

use allocation_counter::measure;

use super::*;

/// The size of the state of an upload and of the bookkeeping of its buffer, as documented.
const OVERHEAD: usize = 4 * 1024;

/// Returns a source that has buffered the frames sent in one attempt, and the bytes allocated by then.
fn allocated_after_send<B>(limit: usize, body: impl FnOnce() -> B) -> (ReplaySource<B>, usize)
where
    B: Body,
    B::Error: Into<BoxError>,
{
    let mut upload = None;
    let info = measure(|| {
        let (source, mut first) = ReplaySource::new(body(), limit);
        let cx = &mut Context::from_waker(noop_waker_ref());
        while let Poll::Ready(Some(Ok(_))) = Pin::new(&mut first).poll_frame(cx) {}
        upload = Some(source);
    });
    (upload.unwrap(), info.bytes_current.try_into().unwrap())
}

/// Creates a body of `frames` slices of `slice` bytes, each of a separate allocation of 160 KiB.
fn slices(
    frames: usize,
    slice: usize,
) -> impl Body<Data = Bytes, Error = io::Error> + Send + 'static {
    let frame = move |_| {
        Ok(Frame::data(
            Bytes::from(vec![b'x'; 160 * 1024]).slice(..slice),
        ))
    };
    StreamBody::new(futures_util::stream::iter((0..frames).map(frame)))
}

#[test]
fn buffer_does_not_keep_allocations_of_small_slices() {
    for frames in [1, 2, 15, 100] {
        let (upload, allocated) = allocated_after_send(64 * 1024, || slices(frames, 16));
        assert!(allocated <= OVERHEAD, "{allocated} bytes");
        let mut again = next_attempt(&upload).unwrap();
        assert_eq!(send_all(&mut again).data, vec![b'x'; frames * 16]);
    }
}

#[test]
fn buffer_allocates_at_most_limit() {
    const LIMIT: usize = 320 * 1024;
    for slice in [1000, 4 * 1024, 10_000, 64 * 1024, 128 * 1024] {
        for frames in [1, LIMIT / slice / 2 + 1, LIMIT / slice] {
            let (upload, allocated) = allocated_after_send(LIMIT, || slices(frames, slice));
            let (len, max) = (frames * slice, LIMIT + OVERHEAD);
            assert!(allocated <= max, "{allocated} bytes for {len}");
            assert!(allocated <= 2 * len + OVERHEAD, "{allocated} for {len}");
            let mut again = next_attempt(&upload).unwrap();
            assert_eq!(send_all(&mut again).data.len(), frames * slice);
        }
    }
}

#[test]
fn body_above_limit_leaves_nothing_allocated() {
    let (upload, allocated) = allocated_after_send(1000, || slices(101, 10));
    assert!(!upload.pause());
    assert!(allocated <= OVERHEAD, "{allocated} bytes");
}

/// A body of one chunk that reports its length, but not that it has ended.
struct Sized(Option<Bytes>);

impl Body for Sized {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        Poll::Ready(self.0.take().map(|data| Ok(Frame::data(data))))
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.0.as_ref().map_or(0, Bytes::len) as u64)
    }
}

#[test]
fn only_chunk_is_neither_copied_nor_allocates() {
    fn allocations<B>(body: impl FnOnce() -> B) -> u64
    where
        B: Body,
        B::Error: Into<BoxError>,
    {
        let mut upload = None;
        let info = measure(|| upload = Some(allocated_after_send(1024, body).0));
        assert!(upload.unwrap().pause());
        info.count_total
    }
    // The data is static. The pinned body and the shared state take an allocation each.
    let bytes = Bytes::from_static(&[7; 1024]);
    assert_eq!(allocations(|| Full::new(bytes.clone())), 2);
    assert_eq!(allocations(|| Sized(Some(bytes.clone()))), 2);
}
